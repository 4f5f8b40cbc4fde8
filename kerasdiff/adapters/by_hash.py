"""Finding again the adapters of a saved image: files go by their hashes, as their names lead nowhere."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from kerasdiff.adapter_files import EmbeddingFile, Lora
from kerasdiff.checkpoints import hub
from kerasdiff.errors import RequestError

_Adapter = TypeVar("_Adapter", Lora, EmbeddingFile)


def found(path: str | os.PathLike[str], argument: str, wanted: Sequence[_Adapter], given: Sequence[Any]) -> list[Any]:
    """The adapters that an image was made with, where they are now: in `given` files and folders, or on the hub.

    RequestError for one that is not there.
    """
    return [_found(path, argument, adapter, given) for adapter in wanted]


def _found(path: str | os.PathLike[str], argument: str, adapter: _Adapter, given: Sequence[Any]) -> _Adapter:
    if hub.is_name(adapter.file) and not given:
        return adapter  # whose hash is compared when it is opened
    for file in (file for place in given for file in _files(pathlib.Path(place.file), adapter.file)):
        if adapter.sha256 == sha256(file):
            return dataclasses.replace(adapter, file=str(file))
    what = "LoRA" if isinstance(adapter, Lora) else "embedding"
    among = "; none of the files that were given is it" if given else f"; give its file as {argument}"
    raise RequestError(f"{path} was made with the {what} {adapter.file} (SHA-256 {adapter.sha256:.16}...){among}")


def _files(place: pathlib.Path, name: str) -> Iterator[pathlib.Path]:
    """The files at a place, those of a name first."""
    if not place.is_dir():
        yield place
        return
    inside = sorted(place.rglob("*.safetensors"), key=lambda file: (file.name != name, file))
    yield from (file for file in inside if file.is_file())


def sha256(path: pathlib.Path) -> str | None:
    """Of a file, 64 hex digits; None if it cannot be read."""
    try:
        return _sha256(str(path), path.stat().st_mtime_ns)
    except OSError:
        return None


@functools.lru_cache(256)
def _sha256(path: str, modified_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
