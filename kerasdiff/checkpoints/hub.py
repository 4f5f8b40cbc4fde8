"""Models of the Hugging Face hub, downloaded once into its cache by its own library.

`HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_HUB_OFFLINE`, `HF_ENDPOINT` and `HF_HUB_DOWNLOAD_TIMEOUT` work as everywhere
else.
"""

import contextlib
import hashlib
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from kerasdiff.checkpoints import licence, recognition
from kerasdiff.checkpoints.formats import diffusers_folder
from kerasdiff.checkpoints.hub_requests import (
    ADAPTER_WAY_OUT,
    AUTOENCODER_WAY_OUT,
    WAY_OUT,
    bounded_requests,
    check_library,
)
from kerasdiff.errors import ModelError
from kerasdiff.runtime import cache_dir
from kerasdiff.runtime.safetensors_map import TORCH_ENDINGS
from kerasdiff.validation import line, shown

_LOG = logging.getLogger("kerasdiff")
# How the names of files end that may be a whole model, and of PyTorch's that may be an adapter.
_SINGLE, _ADAPTERS = (".safetensors", ".ckpt", ".pt", ".pth"), (".bin", ".pt", ".pth")
_NAME = re.compile(
    r"(?:hf://)?(?P<repository>\w[\w.-]*/\w[\w.-]*)"
    r"(?:/(?P<file>[\w./=+,() -]+\.(?:safetensors|h5|ckpt|pt|pth|bin)))?"
)
_PLACE = re.compile(r"(?:hf://)?(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:/(?P<place>[\w./=+,() -]+))?")
_SETTINGS = [
    "model_index.json",
    "config.json",  # of a repository that has only a part of a model
    "*/config.json",
    "scheduler/*.json",
    "feature_extractor/*.json",
    *(f"{folder}/*.{ending}" for folder in ("tokenizer", "tokenizer_2") for ending in ("json", "txt")),
]

# Of an autoencoder, by itself or in a whole model; and its files where it is a TAESD without settings.
AUTOENCODER_SETTINGS, _TAESD_PAIR = ("config.json", "vae/config.json"), ("taesd_decoder.*", "taesd_encoder.*")


def is_name(model: str) -> bool:
    """Whether a text names a repository, "hf://org/name" or "org/name", or a file in one."""
    return _NAME.fullmatch(model) is not None


def is_place(name: str) -> bool:
    """The same with anything behind "org/name", such as a folder."""
    return _PLACE.fullmatch(name) is not None


def not_found(kind: str, reference: str, near: str | None) -> ModelError:
    """What to say of a reference that leads to no file or folder and is no name here; `near` is what may be meant."""
    folder = os.path.dirname(os.path.abspath(os.path.expanduser(reference)))
    hint = f"did you mean {near!r}? " if near else ""
    if os.path.isabs(reference) and not os.path.isdir(folder):
        hint = f"{line(folder)} is no folder; "
    return ModelError(
        f"there is no {kind} {shown(reference)}; {hint}give a file, a folder, or 'org/name' on the Hugging Face hub"
    )


def fetch(model: str, revision: str | None = None, variant: str | None = None, weights: bool = True) -> pathlib.Path:
    """Downloads a repository in diffusers' layout, or a single file of one; returns its local path.

    `model` is "hf://org/name" or "org/name", perhaps with "/file.safetensors" behind it. Only settings and, with
    `weights`, the networks' files are downloaded, and of these `.bin` files only where there are no safetensors files.
    A repository that is not in diffusers' layout and has one file that may be a model is that file.
    """
    match = _NAME.fullmatch(model)
    if match is None:
        raise ModelError(f"model={model!r} is no name on the Hugging Face hub; it must look like 'org/name'")
    repository, file = match["repository"], match["file"]
    check_library()
    import huggingface_hub

    with bounded_requests(repository, file, revision):
        if file is not None:
            path = huggingface_hub.hf_hub_download(repository, file, revision=revision)
        else:
            components = diffusers_folder.COMPONENTS if weights else {}
            patterns = [*_SETTINGS, *_weights(components, variant)]
            path = huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=patterns)
    if weights:
        if file is None:
            names = _complete(repository, revision, pathlib.Path(path), variant)
            single = _check(repository, pathlib.Path(path), variant, names)
            if single is not None:
                return fetch(f"{repository}/{single}", revision)
        licence.give_notice(repository, repository)
    return pathlib.Path(path)


def fetch_autoencoder(name: str, variant: str | None = None, weights: bool = True) -> pathlib.Path:
    """Downloads an autoencoder, from a repository of its own, of a whole model, or as a file; returns its local path.

    In a whole model it is in the folder vae. Without `weights` settings alone are downloaded.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ModelError(f"vae={name!r} is no name on the Hugging Face hub; it must look like 'org/name'")
    repository, file = match["repository"], match["file"]
    check_library(AUTOENCODER_WAY_OUT)
    import huggingface_hub

    path, folder = pathlib.Path(), ""
    if file is None:
        settings = [*AUTOENCODER_SETTINGS]
        with bounded_requests(repository, None, way_out=AUTOENCODER_WAY_OUT):
            path = pathlib.Path(huggingface_hub.snapshot_download(repository, allow_patterns=settings))
        folder = "vae/" if (path / "vae").is_dir() else ""
        if weights and not (path / folder / "config.json").is_file():
            with bounded_requests(repository, None, way_out=AUTOENCODER_WAY_OUT):
                huggingface_hub.snapshot_download(repository, allow_patterns=[*settings, *_TAESD_PAIR])
            if all(any(path.glob(half)) for half in _TAESD_PAIR):
                licence.give_notice(repository, repository)
                return path
            file = _only_file(repository, path, (), TORCH_ENDINGS)
    with bounded_requests(repository, file, way_out=AUTOENCODER_WAY_OUT):
        if file is not None:
            path = pathlib.Path(huggingface_hub.hf_hub_download(repository, file))
        else:
            # As asked for, else the plain one, else whichever there is.
            safe = (_in_folder(folder, variant), _in_folder(folder), _in_folder(folder, "*"))
            for patterns in (*safe, *(_in_folder(folder, one, ending=".bin") for one in (variant, None, "*"))):
                if weights and not diffusers_folder.has_autoencoder(path / folder, variant):
                    huggingface_hub.snapshot_download(repository, allow_patterns=[*settings, *patterns])
    if weights:
        licence.give_notice(repository, repository)
    return path


def fetch_adapter(name: str, usual: Sequence[str], settings: Sequence[str] = ()) -> pathlib.Path:
    """Downloads a file that changes a model, and the `settings` beside it; returns its local path.

    Of "org/name" it is the first of the `usual` files, or else the only .safetensors file, or else the only one of
    PyTorch's.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ModelError(f"{name!r} is no name on the Hugging Face hub; it must look like 'org/name'")
    repository, file = match["repository"], match["file"]
    check_library(ADAPTER_WAY_OUT)
    import huggingface_hub

    if file is None:
        safe = [one for one in usual if one.endswith(".safetensors")]
        with bounded_requests(repository, None, way_out=ADAPTER_WAY_OUT):
            folder = huggingface_hub.snapshot_download(repository, allow_patterns=[*safe, *settings])
        there = [one for one in safe if (pathlib.Path(folder) / one).is_file()]
        file = there[0] if there else _only_file(repository, pathlib.Path(folder), usual)
    with bounded_requests(repository, file, way_out=ADAPTER_WAY_OUT):
        path = huggingface_hub.hf_hub_download(repository, file)
    licence.give_notice(repository, repository)
    return pathlib.Path(path)


def fetch_chosen(
    name: str, choose: Callable[[str, Sequence[str], str], tuple[str, Sequence[str]]], way_out: str = ADAPTER_WAY_OUT
) -> pathlib.Path:
    """Downloads what is meant by "org/name" with a folder or file behind it; returns its local path.

    `choose` gets the repository, its files and what is behind its name, and gives what is meant and the files to load.
    """
    match = _PLACE.fullmatch(name)
    if match is None:
        raise ModelError(f"{name!r} is no name on the Hugging Face hub; it must look like 'org/name'")
    repository, place = match["repository"], (match["place"] or "").strip("/")
    check_library(way_out)
    import huggingface_hub

    try:
        with bounded_requests(repository, place or None, way_out=way_out):
            names = [file.rfilename for file in huggingface_hub.model_info(repository).siblings or []]
        meant, files = choose(repository, names, place)
    except ModelError as error:
        # Without a network, or told to do without.
        try:
            folder = pathlib.Path(
                huggingface_hub.snapshot_download(repository, allow_patterns=[""], local_files_only=True)
            )
            names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
            meant, files = choose(repository, names, place)
        except Exception:  # of several kinds, by what is missing
            raise error from None
    with bounded_requests(repository, place or None, way_out=way_out):
        folder = pathlib.Path(huggingface_hub.snapshot_download(repository, allow_patterns=[*files]))
    licence.give_notice(repository, repository)
    return folder / meant


def _only_file(
    repository: str, folder: pathlib.Path, usual: Sequence[str], endings: tuple[str, ...] = _ADAPTERS
) -> str:
    """A repository's usual or only file, by its list or, without a network, by what is in the cache."""
    import huggingface_hub

    try:
        with bounded_requests(repository, None):
            names = [file.rfilename for file in huggingface_hub.model_info(repository).siblings or []]
    except ModelError:
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    safe = sorted(name for name in names if name.endswith(".safetensors"))
    found = safe or [name for name in usual if name in names][:1]
    found = found or sorted(name for name in names if name.endswith(endings))
    if len(found) == 1:
        if not safe:
            _log_torch(repository, found)
        return found[0]
    if found:
        shown = ", ".join(f"{repository}/{name}" for name in found[:3])
        raise ModelError(f"{repository} has {len(found)} files that may be meant: give one of them, {shown}")
    shown = ", ".join(sorted(names)[:3])
    raise ModelError(
        f"{repository} has no .safetensors file, and none of PyTorch's" + (f"; it has {shown}" if shown else "")
    )


def _log_torch(repository: str, names: Sequence[str]) -> None:
    more = f" and {len(names) - 1} more are" if len(names) > 1 else " is"
    _LOG.info("%s has no .safetensors file of this; %s%s downloaded, and read as data", repository, names[0], more)


def downloaded(model: str, revision: str | None = None, settings: Sequence[str] = _SETTINGS[:1]) -> pathlib.Path | None:
    """The path that `fetch` gave last, in this process or another; None if there is none. Nothing is requested.

    `settings` are files that were asked for, if the repository has them.
    """
    match = _NAME.fullmatch(model)
    if match is None:
        return None
    check_library()
    import huggingface_hub

    repository, file = match["repository"], match["file"]
    try:
        if file is not None:
            return pathlib.Path(
                huggingface_hub.hf_hub_download(repository, file, revision=revision, local_files_only=True)
            )
        # Without patterns the library misses the files that nobody asked for.
        folder = pathlib.Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=[*settings], local_files_only=True
            )
        )
        whole = (folder / "unet").is_dir() or (folder / "config.json").is_file()
        single = [] if whole else _single_files(path.name for path in folder.iterdir())
        return folder / single[0] if len(single) == 1 else folder
    except Exception:  # of several kinds, by what is missing
        return None


def fetch_file(repository: str, name: str, sha256: str) -> pathlib.Path:
    """Downloads one file with a known SHA-256; a corrupt one is downloaded once more."""
    check_library()
    import huggingface_hub

    for again in (False, True):
        with bounded_requests(repository, name):
            path = pathlib.Path(huggingface_hub.hf_hub_download(repository, name, force_download=again))
        if _has_digest(path, sha256):
            return path
    raise ModelError(
        f"{path} is not the published {repository}/{name}, even after a second download from "
        f"{huggingface_hub.constants.ENDPOINT}: its SHA-256 is not {sha256}; {WAY_OUT}"
    )


def _weights(networks: Iterable[str], variant: str | None, ending: str = ".safetensors") -> Iterator[str]:
    components = (diffusers_folder.COMPONENTS[network] for network in networks)
    for folder, stem in {(component.folder, component.stem) for component in components}:
        yield from _in_folder(f"{folder}/", variant, stem, ending)


def _in_folder(
    folder: str,
    variant: str | None = None,
    stem: str = diffusers_folder.COMPONENTS["decoder"].stem,
    ending: str = ".safetensors",
) -> Iterator[str]:
    stem = diffusers_folder.torch_stem(stem) if ending == ".bin" else stem
    name = stem if variant is None else f"{stem}.{variant}"
    yield f"{folder}{name}{ending}"
    yield f"{folder}{name}-*{ending}"
    if variant is not None:
        yield f"{folder}{stem}-*.{variant}{ending}"  # shards, as they used to be called
    yield f"{folder}*{ending}.index*.json"


def _complete(repository: str, revision: str | None, path: pathlib.Path, variant: str | None) -> list[str]:
    """Downloads weights of networks that do not come as asked for; the repository's files if it was asked."""
    import huggingface_hub

    there = (
        *diffusers_folder.needed_in(path),
        *(["safety_checker"] if (path / "safety_checker" / "config.json").is_file() else []),
    )
    lacking = [network for network in there if not diffusers_folder.has_weights(path, network, variant)]
    if not lacking:
        return []
    try:
        with bounded_requests(repository, None, revision):
            names = [
                file.rfilename for file in huggingface_hub.model_info(repository, revision=revision).siblings or []
            ]
    except ModelError:  # without a network; what is missing is said below
        return []
    sets = {}
    for network, component in diffusers_folder.COMPONENTS.items():
        start = f"{component.folder}/"
        inside = (name.removeprefix(start) for name in names if name.startswith(start))
        sets[network] = diffusers_folder.variants(inside, component.stem)
    diffusers_folder.check_variant(repository, set().union(*sets.values()), variant)
    patterns: list[str] = []
    old: list[str] = []
    for network in lacking:
        with contextlib.suppress(KeyError):
            taken = diffusers_folder.chosen(sets[network], variant)
            ending = ".bin" if ".bin" in sets[network][taken] else ".safetensors"
            patterns += _weights([network], taken, ending)
            if ending == ".bin":
                old.append(f"{diffusers_folder.COMPONENTS[network].folder}/{sets[network][taken]}")
    if old:
        _log_torch(repository, old)
    if patterns:
        with bounded_requests(repository, None, revision):
            huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=patterns)
    return names


def _check(repository: str, folder: pathlib.Path, variant: str | None, names: list[str]) -> str | None:
    """The only file that may be a model of a repository in another layout; None if the snapshot is complete.

    Raises if it is not: offline, the library may return an unfinished download.
    """
    try:
        diffusers_folder.check(folder, variant)
    except ModelError as error:
        recognition.refuse_settings(folder, repository)
        names = names or [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        recognition.refuse_names(repository, names)
        files = _single_files(names)
        if files and not any(name.startswith("unet/") for name in names):
            if len(files) == 1 and "config.json" not in names:  # which a part of something has, or another model
                if not files[0].endswith(".safetensors"):
                    _log_torch(repository, files)
                return files[0]
            raise ModelError(
                f"{repository} is not in diffusers' layout, but has files that may be models: "
                f"give one of them, {', '.join(f'{repository}/{name}' for name in files[:3])}"
            ) from None
        raise ModelError(
            f"{repository} is not complete in the cache: {error}; its download was not finished and needs a network, "
            f"or the repository is not in diffusers' layout; {WAY_OUT}"
        ) from None
    return None


def _single_files(names: Iterable[str]) -> list[str]:
    """Files that may be whole models; of two with the same stem the one whose ending is first in `_SINGLE`."""
    found: dict[str, str] = {}
    for ending in _SINGLE:
        for name in sorted(names):
            if "/" not in name and name.endswith(ending):
                found.setdefault(name.removesuffix(ending), name)
    return list(found.values())


def _has_digest(path: pathlib.Path, sha256: str) -> bool:
    """Whether a file has this SHA-256; once it had, it is not read again, as that takes seconds."""
    stat = path.stat()
    marker = f"verified/{sha256}-{stat.st_size}-{stat.st_mtime_ns}"
    if cache_dir.marker_exists(marker):
        return True
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            return False
    cache_dir.leave_marker(marker)
    return True
