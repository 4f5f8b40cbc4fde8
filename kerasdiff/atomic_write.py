"""Files and folders that are there whole or not at all, whatever ends the process that writes them."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import pathlib
import re
import shutil
import stat
from collections.abc import Iterator
from typing import BinaryIO

_PARTIAL = re.compile(r"\.(.+)\.\d+\.part", re.DOTALL)
# Bytes of a name that its temporary name begins with, so that the longest that a file system takes has one.
_BEGINNING = 150
# Temporary names that are in use, for whoever ends the process in the middle of a write.
_in_use: set[pathlib.Path] = set()


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, sync: bool = True, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Opens a file for writing that appears at `path`, or replaces what is there, when the block ends without an error.

    `sync` waits for the disk, so that the file survives a loss of power; `mode` is the permissions, less the umask.
    After an error nothing is left of the file.
    """
    with atomic_path(path) as partial, open(partial, "xb", opener=functools.partial(os.open, mode=mode)) as file:
        yield file
        if sync:
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A temporary name in the same folder, for a file or folder that is renamed to `path` when the block ends."""
    path = pathlib.Path(path)
    partial = _temporary(path)
    _in_use.add(partial)
    try:
        yield partial
        partial.replace(path)
    finally:
        _remove(partial)
        _in_use.discard(partial)


def check_name(path: str | os.PathLike[str]) -> None:
    """An OSError if no file can have this path, as its name is too long or that of a folder."""
    path = pathlib.Path(path)
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(path.stat().st_mode):
            raise IsADirectoryError(errno.EISDIR, "there is a folder of this name")


def check_folder(folder: str | os.PathLike[str]) -> None:
    """An OSError if no file can be made in a folder."""
    partial = _temporary(pathlib.Path(folder) / "file")
    partial.touch(exist_ok=False)
    partial.unlink()


def beginning(name: str) -> str:
    """What a temporary name tells of the final one: all of it, unless it is very long."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= _BEGINNING else encoded[:_BEGINNING].decode(errors="ignore")


def final_name(name: str) -> str | None:
    """The `beginning` of the name that a temporary file would have got; None for names of other files."""
    match = _PARTIAL.fullmatch(name)
    return None if match is None else match[1]


def remove_unfinished() -> None:
    """Removes whatever this process has not finished writing, before it ends at once."""
    for partial in [*_in_use]:
        _remove(partial)


def _temporary(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f".{beginning(path.name)}.{int.from_bytes(os.urandom(4))}.part")


def _remove(partial: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)
