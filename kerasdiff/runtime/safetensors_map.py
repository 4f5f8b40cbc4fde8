"""Tensors of safetensors files, mapped into memory: nothing is read before it is needed."""

import contextlib
import dataclasses
import json
import mmap
import pathlib
import struct
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from kerasdiff.errors import ModelError

DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
}
# Of counters and switches that are beside the weights.
_WHOLE = {"I64": np.int64, "I32": np.int32, "BOOL": np.bool_}
# The first bytes of pickles, and of the archives that torch wraps them in.
_ZIP, _PICKLE, _TAR_OFFSET, _TAR = b"PK\x03\x04", b"\x80", 257, b"ustar"
# The first bytes of other formats that models come in.
_OTHERS = {
    b"GGUF": "a GGUF file, whose numbers are quantised; use the model's .safetensors file",
    b"version https://git-lfs": "a pointer of Git LFS in place of the file; run `git lfs pull` where it was cloned",
    b"\x89HDF": "an HDF5 file, not a .safetensors file; KerasCV's are opened by the folder that they are in",
}
# All files that are mapped at the moment.
_MAPPED: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
_EVERY_S = 0.05


@contextlib.contextmanager
def pages_given_back(files: Iterable[mmap.mmap] | None = None) -> Iterator[None]:
    """Inside, memory of mapped `files`, or of all, is released again and again, for work that looks at a tensor once.

    Looking at one again reads it again, from the system's file cache. Nothing may have been written to them.
    """
    done = threading.Event()

    def release() -> None:
        while not done.wait(_EVERY_S):
            for mapped in list(_MAPPED if files is None else files):
                mapped.madvise(mmap.MADV_DONTNEED)

    thread = threading.Thread(target=release, daemon=True)
    if hasattr(mmap, "MADV_DONTNEED"):
        thread.start()
    try:
        yield
    finally:
        done.set()
        if thread.is_alive():
            thread.join()


class TensorFiles:
    """The tensors of one or several safetensors files, by name; a name may be in only one of them.

    A tensor is known by what `renamed` makes of its name, unless the files have another of that name.

    Raises:
        ModelError: a file is missing, corrupt, incomplete, or a pickle.
    """

    def __init__(self, paths: Iterable[pathlib.Path], renamed: Callable[[str], str] = str) -> None:
        self.paths = tuple(paths)
        self._entries: dict[str, _Entry] = {}
        for path in self.paths:
            for name, entry in _entries(path):
                if name in self._entries:
                    raise ModelError(f"duplicate tensor {name}: {path} and another file of the same model have it")
                self._entries[name] = entry
        for name in list(self._entries):
            if renamed(name) not in self._entries:
                self._entries[renamed(name)] = self._entries.pop(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def maps(self) -> set[mmap.mmap]:
        """The files in memory."""
        return {entry.file for entry in self._entries.values()}

    @property
    def where(self) -> str:
        """The first file, for messages."""
        return str(self.paths[0])

    def dtype(self, name: str) -> str:
        """As the file names it: "F32", "F16", "BF16", ..."""
        return self._entries[name].dtype

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape that the file states."""
        return self._entries[name].shape

    def read(self, name: str) -> np.ndarray:
        """A view of the file, whose pages are read when they are looked at; writing to it does not change the file.

        Numbers of eight bits are widened to float16, which holds them exactly.
        """
        entry = self._entries[name]
        raw = np.frombuffer(entry.file, "uint8", entry.end - entry.begin, entry.begin)
        values = raw.view({**DTYPES, **_WHOLE}[entry.dtype]).reshape(entry.shape)
        return values.astype(np.float16) if values.itemsize == 1 else values

    def release(self, name: str) -> None:
        """Releases the memory of a tensor; looking at it again reads the file again."""
        entry = self._entries[name]
        release_pages(entry.file, entry.begin, entry.end)


@dataclasses.dataclass(frozen=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    file: mmap.mmap
    begin: int
    end: int


def release_pages(mapped: mmap.mmap, begin: int, end: int) -> None:
    """Releases the memory of a part of a mapped file; looking at it again reads the file again."""
    begin -= begin % mmap.PAGESIZE
    if hasattr(mmap, "MADV_DONTNEED") and end > begin:
        mapped.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def _entries(path: pathlib.Path) -> Iterator[tuple[str, _Entry]]:
    refuse_pickle(path)
    try:
        # The library checks the header: lengths, offsets without gaps or overlaps, sizes against the file's.
        with safetensors.safe_open(path, framework="np") as checked:
            checked.keys()
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length), object_pairs_hook=_without_duplicates)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        _MAPPED.add(mapped)
    except (OSError, ValueError, struct.error, RecursionError, safetensors.SafetensorError) as error:
        head = _head(path)
        other = next((meaning for start, meaning in _OTHERS.items() if head.startswith(start)), None)
        if other is not None:
            raise ModelError(f"{path} is {other}") from None
        raise ModelError(f"{path} is corrupt or incomplete: {' '.join(str(error).split())[:200]}") from None
    header.pop("__metadata__", None)
    start = 8 + length
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        yield name, _Entry(entry["dtype"], tuple(entry["shape"]), mapped, start + begin, start + end)


def _head(path: pathlib.Path) -> bytes:
    """How a file begins."""
    try:
        with open(path, "rb") as file:
            return file.read(512)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None


def refuse_pickle(path: pathlib.Path, advice: str = "use the model's .safetensors file instead") -> None:
    """Raises ModelError if a file's content is a pickle, whatever its name: reading one runs its code."""
    head = _head(path)
    # A safetensors header begins after eight bytes of length, which may look like anything.
    if head[8:9] != b"{" and (head.startswith((_ZIP, _PICKLE)) or head[_TAR_OFFSET:].startswith(_TAR)):
        raise ModelError(f"{path} is a pickle checkpoint, which can run code when it is read; {advice}")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("duplicate name in its header")
    return values
