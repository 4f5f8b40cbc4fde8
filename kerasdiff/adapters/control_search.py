"""Finding again what steered a saved image: networks go by their hashes or names, pictures are given anew."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from kerasdiff import validation
from kerasdiff.adapters.file_search import files_below
from kerasdiff.checkpoints import hub
from kerasdiff.checkpoints.control_files import ENDINGS, control_hash, find_control
from kerasdiff.controls import Control, Controls, ImagePrompt
from kerasdiff.errors import ModelError, RequestError

_KINDS = {Control: "control", ImagePrompt: "image prompt"}
_SETTINGS = "config.json"
# Where AUTOMATIC1111's short hash of a file looks, and how much it reads.
_BEGIN, _LENGTH = 2**20, 2**16


def found(
    path: str | os.PathLike[str], argument: str, wanted: Controls | None, given: Sequence[Any], had: Collection[str]
) -> list[Any]:
    """The entries of `controls` or `image_prompts` that an image was made with, with the pictures that are given.

    `had` names the pictures that it was made from: "image", "controls[0]", ... RequestError for what is not there.
    """
    entries = list(wanted or ())
    _check_count(path, argument, len(entries), given)
    return [
        _again(path, f"{argument}[{number}]", entry, given[number] if given else None, had)
        for number, entry in enumerate(entries)
    ]


def named(path: str | os.PathLike[str], argument: str, wanted: Sequence[Any], given: Sequence[Any]) -> list[Any]:
    """The same by the names, or short hashes in place of `sha256`, that another program has, as (entry, is_same) pairs.

    The second value is whether the hash is the same, as far as it is known.
    """
    _check_count(path, argument, len(wanted), given)
    pairs = []
    for number, (entry, one) in enumerate(zip(wanted, given, strict=True)):
        _check_plain(path, f"{argument}[{number}]", one)
        place, digest = pathlib.Path(one.model).expanduser(), (entry.sha256 or "").lower()
        files = list(_candidates(one.model, entry.model))
        same = next((file for file in files if digest and _has_hash(file, digest)), None)
        if place.is_dir() and not (place / _SETTINGS).is_file():
            file = same or next((file for file in files if _is_called(file, entry.model)), None)
            if file is None:
                raise RequestError(f"{path} was made with {_shown(entry)}, and {one.model} does not have it")
        else:
            file = files[0]
        own = {"hint": one.hint} if isinstance(entry, Control) else {"encoder": one.encoder}
        pairs.append(
            (
                dataclasses.replace(entry, model=_reference(one.model, file), image=one.image, sha256=None, **own),
                same is not None or not digest,
            )
        )
    return pairs


def short_hash(path: str | os.PathLike[str]) -> str | None:
    """The eight digits by which AUTOMATIC1111's interface knows a file: of the 64 KiB behind its first MiB."""
    try:
        with open(path, "rb") as file:
            file.seek(_BEGIN)
            return hashlib.sha256(file.read(_LENGTH)).hexdigest()[:8]
    except OSError:
        return None


def _again(path: str | os.PathLike[str], name: str, entry: Any, one: Any, had: Collection[str]) -> Any:
    what = f"{path} was made with {_shown(entry)}"
    own = isinstance(entry, Control) and "image" in had
    if one is None:
        if (name in had and not own) or not hub.is_place(entry.model):
            argument, kind = name.partition("[")[0], type(entry).__name__
            raise RequestError(f"{what}, and has neither it nor its picture; give {argument}=[{kind}(model, image)]")
        return entry
    _check_plain(path, name, one)
    if name in had and one.image is None and not own:
        raise RequestError(f"{what}, whose picture is not in the file; give it as image of {name}")
    if name not in had and one.image is not None:
        raise RequestError(f"{what}, which read the image itself; leave the image of {name} out")
    more = {}
    if isinstance(entry, ImagePrompt):
        more["encoder"] = one.encoder
        if one.encoder is None and entry.encoder is not None:
            if not hub.is_place(entry.encoder):
                raise RequestError(f"{what} and the image encoder {validation.line(entry.encoder)}; give it as encoder")
            more["encoder"] = entry.encoder
    return dataclasses.replace(entry, model=_model(path, entry, one.model), image=one.image, **more)


def _model(path: str | os.PathLike[str], entry: Any, place: str) -> str:
    if entry.sha256 is None:
        raise RequestError(f"the metadata of {path} is damaged: it has no SHA-256 of {validation.line(entry.model)}")
    for file in _candidates(place, entry.model):
        with contextlib.suppress(ModelError):
            if control_hash(file) == entry.sha256:
                return _reference(place, file)
    raise RequestError(f"{path} was made with {_shown(entry)} (SHA-256 {entry.sha256:.16}...); {place} is not it")


def _candidates(place: str, name: str) -> Iterator[pathlib.Path]:
    """The networks at a place, a file, a folder or a name on the hub; in a folder of several those of a name first."""
    folder = pathlib.Path(place).expanduser()
    if not folder.is_dir() or (folder / _SETTINGS).is_file():
        yield find_control(place)
        return
    inside = [*folder.glob(f"*/{_SETTINGS}"), *files_below(folder, ENDINGS)]
    files = [file.parent if file.name == _SETTINGS else file for file in inside]
    yield from sorted(files, key=lambda file: (not _is_called(file, name), file))


def _reference(place: str, file: pathlib.Path) -> str:
    """How a network that was found is named: one on the hub keeps its name."""
    return str(file) if pathlib.Path(place).expanduser().exists() else place


def _is_called(file: pathlib.Path, name: str) -> bool:
    return pathlib.PurePath(name).name.casefold() in (file.name.casefold(), file.stem.casefold())


def _has_hash(file: pathlib.Path, digest: str) -> bool:
    with contextlib.suppress(ModelError):
        return short_hash(file) == digest or control_hash(file).startswith(digest)
    return False


def _shown(entry: Any) -> str:
    return f"the {_KINDS[type(entry)]} {validation.line(entry.model)}"


def _check_count(path: str | os.PathLike[str], argument: str, count: int, given: Sequence[Any]) -> None:
    if given and not count:
        raise RequestError(f"{path} was made without {argument}; leave them out")
    if given and len(given) != count:
        raise RequestError(f"{path} was made with {count} {argument}, and {len(given)} are given; give all, in order")


def _check_plain(path: str | os.PathLike[str], name: str, one: Any) -> None:
    settings = {"scale": (1, (1,)), "start": (0,), "end": (1,), "mode": ("balanced",)}
    for setting, usual in settings.items():
        if getattr(one, setting, usual[0]) not in usual:
            raise RequestError(f"{path} says the {setting} of {name}; give its model and its image alone")
