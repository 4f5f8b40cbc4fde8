"""Which files a model was opened from, and whether they are still the same."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping

from kerasdiff.errors import ModelError
from kerasdiff.runtime.safetensors_map import TORCH_ENDINGS, is_safetensors

# How the names of files end that checkpoints consist of; a picture that is saved beside them changes no model.
_ENDINGS = (".json", ".txt", ".safetensors", ".h5", ".gz", *TORCH_ENDINGS)


@dataclasses.dataclass(frozen=True)
class FileStamp:
    """Where a path leads, size and time of the file there, and its number on the disk."""

    real_path: str
    size: int
    modified_ns: int
    inode: int = dataclasses.field(compare=False)  # a file system of a network may number its files anew

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> FileStamp | None:
        """The stamp of a file; None if there is none."""
        try:
            stat = os.stat(path)
        except (OSError, ValueError):
            return None
        return cls(os.path.realpath(path), stat.st_size, stat.st_mtime_ns, stat.st_ino)


@dataclasses.dataclass(frozen=True)
class FileStamps:
    """The files that a model was opened from: single ones, or those of folders and of the folders in these."""

    stamps: Mapping[str, FileStamp]

    @classmethod
    def of(cls, *paths: pathlib.Path) -> FileStamps:
        """The files at these paths as they are now."""
        found = ((str(file), FileStamp.of(file)) for path in paths for file in _files(path))
        return cls({file: stamp for file, stamp in found if stamp is not None})

    def check(self, name: str, paths: Iterable[pathlib.Path]) -> None:
        """Raises ModelError if one of these files is not the one that was there when the model was opened."""
        for path in paths:
            if FileStamp.of(path) != self.stamps.get(str(path)):
                raise ModelError(f"{path} has changed since {name} was opened; open the model anew")

    def check_mapped(self, name: str, paths: Iterable[pathlib.Path]) -> None:
        """Raises ModelError if one of these files, which are mapped into memory, was overwritten in its place.

        A file that took the place of another one leaves what is mapped as it is.
        """
        for path in paths:
            now, then = FileStamp.of(path), self.stamps.get(str(path))
            if now is not None and then is not None and now != then and now.inode == then.inode:
                raise ModelError(f"{path} was overwritten while {name} is in use; open the model anew")


def sha256(path: str | os.PathLike[str], behind_header: bool = False) -> str:
    """Of a file, or of what follows its header if it has safetensors', 64 hex digits; OSError if it cannot be read."""
    return _sha256(os.fspath(path), FileStamp.of(path), behind_header)


@functools.lru_cache(1024)
def _sha256(path: str, stamp: FileStamp | None, behind_header: bool) -> str:
    with open(path, "rb") as file:
        if behind_header and is_safetensors(pathlib.Path(path)):
            file.seek(min(os.path.getsize(path), 8 + int.from_bytes(file.read(8), "little")))
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(path: pathlib.Path) -> Iterator[str | pathlib.Path]:
    """A file itself; of a folder those that a checkpoint may consist of, one level deep."""
    if not os.path.isdir(path):
        yield path
        return
    for entry in _entries(path):
        if entry.is_dir():
            yield from (inner.path for inner in _entries(entry.path) if inner.name.endswith(_ENDINGS))
        elif entry.name.endswith(_ENDINGS):
            yield entry.path


def _entries(folder: str | pathlib.Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # whoever reads it says so
        return []
