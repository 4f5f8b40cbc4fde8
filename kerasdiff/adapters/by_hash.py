"""Finding again the adapters of a saved image: files go by their hashes, as their names lead nowhere."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from kerasdiff import validation
from kerasdiff.adapter_files import EmbeddingFile, Lora, UpscalerFile
from kerasdiff.adapters import file_search
from kerasdiff.adapters.file_search import files_below, find_embedding, find_lora, trained_as
from kerasdiff.adapters.textual_inversion import read_embeddings
from kerasdiff.checkpoints import hub
from kerasdiff.errors import ModelError, RequestError

_Adapter = TypeVar("_Adapter", Lora, EmbeddingFile, UpscalerFile)
_KINDS = {Lora: "LoRA", EmbeddingFile: "embedding", UpscalerFile: "upscaler"}
# What of an adapter an image says.
_SAID = {Lora: "strengths", EmbeddingFile: "triggers", UpscalerFile: "scale"}


def found(path: str | os.PathLike[str], argument: str, wanted: Sequence[_Adapter], given: Sequence[Any]) -> list[Any]:
    """The adapters that an image was made with, where they are now: in `given` files and folders, or on the hub.

    RequestError for one that is not there, and for what the image says already.
    """
    loose = [place for place in given if not pathlib.Path(place.file).is_dir()]
    if loose and not wanted:
        raise RequestError(f"{path} was made without {argument}; leave them out")
    for place in given:
        if place != type(place)(place.file):
            raise RequestError(f"{path} says the {_SAID[type(place)]} of its {argument}; give {place.file} without")
    return [_found(path, argument, adapter, given) for adapter in wanted]


def _found(path: str | os.PathLike[str], argument: str, adapter: _Adapter, given: Sequence[Any]) -> _Adapter:
    if hub.is_name(adapter.file) and not given:
        return adapter  # whose hash is compared when it is opened
    name = validation.line(adapter.file)
    if adapter.sha256 is None:
        raise RequestError(f"the metadata of {path} is damaged: it has no SHA-256 of {name}")
    endings = file_search.UPSCALERS if isinstance(adapter, UpscalerFile) else file_search.ENDINGS
    for file in (file for place in given for file in _files(pathlib.Path(place.file), adapter.file, endings)):
        if adapter.sha256 == sha256(file):
            return dataclasses.replace(adapter, file=str(file))
    what = _KINDS[type(adapter)]
    among = "; none of the files that were given is it" if given else f"; give its file as {argument}"
    raise RequestError(f"{path} was made with the {what} {name} (SHA-256 {adapter.sha256:.16}...){among}")


def named(wanted: Sequence[_Adapter], given: Sequence[_Adapter]) -> list[tuple[_Adapter | None, bool]]:
    """The adapters that another program names, where they are among given files and folders, by hash or else by name.

    The second value is whether the hash is the same, as far as it is known.
    """
    found: list[tuple[_Adapter | None, bool]] = []
    for adapter in wanted:
        files = [file for place in given for file in _files(_place(place), adapter.file)]
        digest = (adapter.short_hash if isinstance(adapter, Lora) else adapter.sha256) or ""
        same = next((file for file in files if digest and _has_hash(file, digest.lower())), None)
        file = same or next((file for file in files if _is_called(file, adapter)), None)
        there = None if file is None else dataclasses.replace(adapter, file=str(file), sha256=None)
        if isinstance(there, Lora):
            there = dataclasses.replace(there, short_hash=None)
        found.append((there, same is not None or not digest))
    return found


def in_texts(given: Sequence[EmbeddingFile], texts: str) -> list[EmbeddingFile]:
    """Of given files and folders, the embeddings whose names are in some texts."""
    found = []
    for place in given:
        path = _place(place)
        for file in _files(path, ""):
            word = place.trigger or file.stem
            if word.casefold() in texts.casefold() and (not path.is_dir() or _is_embedding(file)):
                found.append(EmbeddingFile(str(file), word))
    return found


def _is_embedding(file: pathlib.Path) -> bool:
    try:
        return bool(read_embeddings(EmbeddingFile(str(file))))
    except ModelError:
        return False


def _place(adapter: Lora | EmbeddingFile | UpscalerFile) -> pathlib.Path:
    """The file or folder that is given; ModelError if there is none."""
    path = pathlib.Path(adapter.file).expanduser()
    if path.exists():
        return path
    return find_lora(adapter.file) if isinstance(adapter, Lora) else find_embedding(adapter.file)


def _is_called(file: pathlib.Path, adapter: Lora | EmbeddingFile | UpscalerFile) -> bool:
    names = [file.stem, *([trained_as(file)] if isinstance(adapter, Lora) else [])]
    return adapter.file.casefold() in [name.casefold() for name in names if name]


def _files(place: pathlib.Path, name: str, endings: Sequence[str] = file_search.ENDINGS) -> Iterator[pathlib.Path]:
    """The files at a place, those of a name first."""
    if not place.is_dir():
        yield place
        return
    yield from sorted(files_below(place, endings), key=lambda file: (name not in (file.name, file.stem), file))


def sha256(path: pathlib.Path) -> str | None:
    """Of a file, 64 hex digits; None if it cannot be read."""
    try:
        return file_search.sha256(path)
    except OSError:
        return None


def of_all(place: str) -> str | None:
    """Of a file, or one for all files in a folder; None if it cannot be read."""
    path = pathlib.Path(place)
    if not path.is_dir():
        return sha256(path)
    each = [f"{file.relative_to(path)} {sha256(file)}" for file in files_below(path)]
    return hashlib.sha256("\n".join(each).encode()).hexdigest()


def of_upscaler(reference: str) -> str | None:
    """Of the file that is meant, if it is on this machine; None if it is not."""
    try:
        return sha256(file_search.find_upscaler(reference)) if os.path.isabs(reference) else None
    except ModelError:
        return None


def _has_hash(path: pathlib.Path, digest: str) -> bool:
    """Whether the hash of a file, or of what follows its header, begins with some digits."""
    try:
        return any(file_search.sha256(path, behind).startswith(digest) for behind in (True, False))
    except OSError:
        return False
