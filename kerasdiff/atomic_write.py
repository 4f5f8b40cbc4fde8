"""Files and folders that are there whole or not at all, whatever ends the process that writes them."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import BinaryIO

_PARTIAL = re.compile(r"\.(.+)\.\d+\.part", re.DOTALL)


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
    partial = path.with_name(f".{path.name}.{int.from_bytes(os.urandom(4))}.part")
    try:
        yield partial
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):  # a name that was too long to be made
            if partial.is_dir():
                shutil.rmtree(partial)
            else:
                partial.unlink(missing_ok=True)


def final_name(name: str) -> str | None:
    """The name that a temporary file would have got; None if `name` is not that of a temporary file."""
    match = _PARTIAL.fullmatch(name)
    return None if match is None else match[1]
