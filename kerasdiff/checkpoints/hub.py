"""Models of the Hugging Face hub, downloaded once into its cache by its own library.

`HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_HUB_OFFLINE`, `HF_ENDPOINT` and `HF_HUB_DOWNLOAD_TIMEOUT` work as everywhere
else.
"""

import hashlib
import pathlib
import re
from collections.abc import Iterator

from kerasdiff.checkpoints import licence
from kerasdiff.checkpoints.formats import diffusers_folder
from kerasdiff.checkpoints.hub_requests import WAY_OUT, bounded_requests, check_library
from kerasdiff.errors import ModelError
from kerasdiff.runtime import cache_dir

_NAME = re.compile(r"(?:hf://)?(?P<repository>\w[\w.-]*/\w[\w.-]*)(?:/(?P<file>[\w./-]+\.(?:safetensors|h5)))?")
_SETTINGS = [
    "model_index.json",
    "*/config.json",
    "scheduler/*.json",
    "feature_extractor/*.json",
    "tokenizer/*.json",
    "tokenizer/*.txt",
]


def is_name(model: str) -> bool:
    """Whether a text names a repository, "hf://org/name" or "org/name", or a file in one."""
    return _NAME.fullmatch(model) is not None


def fetch(model: str, revision: str | None = None, variant: str | None = None, weights: bool = True) -> pathlib.Path:
    """Downloads a repository in diffusers' layout, or a single file of one; returns its local path.

    `model` is "hf://org/name" or "org/name", perhaps with "/file.safetensors" behind it. Only settings and, with
    `weights`, the networks' safetensors files are downloaded; pickles and the rest are not.
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
            patterns = [*_SETTINGS, *(_weights(variant) if weights else [])]
            path = huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=patterns)
    if weights:
        if file is None:
            _check(repository, pathlib.Path(path), variant)
        licence.give_notice(repository, repository)
    return pathlib.Path(path)


def downloaded(model: str, revision: str | None = None) -> pathlib.Path | None:
    """The path that `fetch` gave last, in this process or another; None if there is none. Nothing is requested."""
    match = _NAME.fullmatch(model)
    if match is None:
        return None
    check_library()
    import huggingface_hub

    repository, file = match["repository"], match["file"]
    try:
        if file is not None:
            path = huggingface_hub.hf_hub_download(repository, file, revision=revision, local_files_only=True)
        else:
            path = huggingface_hub.snapshot_download(repository, revision=revision, local_files_only=True)
        return pathlib.Path(path)
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


def _weights(variant: str | None) -> Iterator[str]:
    for folder, stem in {(component.folder, component.stem) for component in diffusers_folder.COMPONENTS.values()}:
        name = stem if variant is None else f"{stem}.{variant}"
        yield f"{folder}/{name}.safetensors"
        yield f"{folder}/{name}-*.safetensors"
        if variant is not None:
            yield f"{folder}/{stem}-*.{variant}.safetensors"  # shards, as they used to be called
        yield f"{folder}/*.safetensors.index*.json"


def _check(repository: str, folder: pathlib.Path, variant: str | None) -> None:
    """Raises if a snapshot is incomplete: offline, the library may return an unfinished download."""
    try:
        diffusers_folder.check(folder, variant)
    except ModelError as error:
        raise ModelError(
            f"{repository} is not complete in the cache: {error}; its download was not finished and needs a network, "
            f"or the repository is not in diffusers' layout; {WAY_OUT}"
        ) from None


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
