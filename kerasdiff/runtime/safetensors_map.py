"""Tensors of safetensors files and of PyTorch's, mapped into memory: nothing is read before it is needed."""

import contextlib
import dataclasses
import json
import mmap
import pathlib
import re
import struct
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from kerasdiff.errors import ModelError
from kerasdiff.runtime import torch_file
from kerasdiff.runtime.torch_file import ForeignPickleError, TensorPlace

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
_WHOLE = {
    **{f"I{8 * size}": np.dtype(f"i{size}") for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": np.dtype(f"u{size}") for size in (1, 2, 4, 8)},
    "BOOL": np.dtype(np.bool_),
}
# The first bytes of pickles that are no file of tensors, and of the archives that torch once wrapped them in.
_PICKLE, _TAR_OFFSET, _TAR = b"\x80", 257, b"ustar"
# How the names of PyTorch's files end; what they are is told by their content.
TORCH_ENDINGS = (".bin", ".pt", ".pth", ".ckpt")
# The first bytes of other formats that models come in.
_OTHERS = {
    b"GGUF": "a GGUF file, whose numbers are quantised; use the model's .safetensors file",
    b"version https://git-lfs": "a pointer of Git LFS in place of the file; run `git lfs pull` where it was cloned",
    b"\x89HDF": "an HDF5 file, not a .safetensors file; KerasCV's are opened by the folder that they are in",
}
_PAGE = re.compile(rb"\s*(<!doctype html|<html)", re.IGNORECASE)
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
        runs = True
        while runs:
            runs = not done.wait(_EVERY_S)  # and once more at the end
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

    Files of tensors that `torch.save` wrote are read alike, whatever they are called. What is in nested mappings there
    has dotted names, and what is beside a `state_dict` is left out.

    A tensor is known by what `renamed` makes of its name, unless the files have another of that name.

    Attributes:
        paths: the files.
        metadata: the texts in their headers, or beside the tensors.

    Raises:
        ModelError: a file is missing, corrupt or incomplete, or a pickle with more than tensors.
    """

    def __init__(self, paths: Iterable[pathlib.Path], renamed: Callable[[str], str] = str) -> None:
        self.paths = tuple(paths)
        self.metadata: dict[str, str] = {}
        self._entries: dict[str, _Entry] = {}
        for path in self.paths:
            metadata, entries = _read_header(path)
            self.metadata |= metadata
            for name, entry in entries.items():
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
        kind: Any = {**DTYPES, **_WHOLE}[entry.dtype]
        values = np.ndarray(entry.shape, kind, entry.file, entry.begin, entry.strides)
        if entry.dtype in DTYPES and values.itemsize == 1:
            return values.astype(np.float16)
        # In the older form of PyTorch's files numbers begin anywhere, which not all that reads them can do with.
        return values if values.flags.aligned else values.copy()

    def release(self, name: str) -> None:
        """Releases the memory of a tensor; looking at it again reads the file again."""
        entry = self._entries[name]
        release_pages(entry.file, entry.begin, entry.end)


@dataclasses.dataclass(frozen=True)
class _Entry(TensorPlace):
    file: mmap.mmap = dataclasses.field(kw_only=True)


def release_pages(mapped: mmap.mmap, begin: int, end: int) -> None:
    """Releases the memory of a part of a mapped file; looking at it again reads the file again."""
    begin -= begin % mmap.PAGESIZE
    if hasattr(mmap, "MADV_DONTNEED") and end > begin:
        mapped.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def _read_header(path: pathlib.Path) -> tuple[dict[str, str], dict[str, _Entry]]:
    """A file's metadata, and where its tensors are."""
    head = _head(path)
    is_torch = _is_pickle(head) and head.startswith((torch_file.ZIP, torch_file.LEGACY))
    if not is_torch:
        refuse_pickle(path)
    try:
        if not is_torch:
            # The library checks the header: lengths, offsets without gaps or overlaps, sizes against the file's.
            with safetensors.safe_open(path, framework="np") as checked:
                metadata = checked.metadata() or {}
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        if is_torch:
            metadata, places = torch_file.read_places(mapped)
        else:
            places = _safetensors_places(mapped)
        _MAPPED.add(mapped)
    except ForeignPickleError as error:
        raise ModelError(_PICKLE_REFUSED.format(path=path, reason=f": {error}", advice=_ADVICE)) from None
    except (OSError, ValueError, struct.error, RecursionError, safetensors.SafetensorError) as error:
        other = next((meaning for start, meaning in _OTHERS.items() if head.startswith(start)), None)
        if not head:
            other = "empty; get the file again"
        elif _PAGE.match(head):
            other = "a web page in place of the file, perhaps one to log in; get the file again"
        if other is not None:
            raise ModelError(f"{path} is {other}") from None
        raise ModelError(f"{path} is corrupt or incomplete: {' '.join(str(error).split())[:200]}") from None
    return metadata, {name: _Entry(**vars(place), file=mapped) for name, place in places.items()}


def _safetensors_places(mapped: mmap.mmap) -> dict[str, TensorPlace]:
    (length,) = struct.unpack("<Q", mapped[:8])
    header = json.loads(mapped[8 : 8 + length], object_pairs_hook=_without_duplicates)
    header.pop("__metadata__", None)
    places = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        places[name] = TensorPlace(entry["dtype"], tuple(entry["shape"]), begin, end)
    return places


def _head(path: pathlib.Path) -> bytes:
    """How a file begins."""
    try:
        with open(path, "rb") as file:
            return file.read(512)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None


_ADVICE = "use a .safetensors file instead"
_PICKLE_REFUSED = "{path} is a pickle checkpoint, which can run code when it is read{reason}; {advice}"


def refuse_pickle(path: pathlib.Path, advice: str = _ADVICE) -> None:
    """Raises ModelError if a file's content is a pickle, whatever its name."""
    head = _head(path)
    if _is_pickle(head):
        tar = head[_TAR_OFFSET:].startswith(_TAR)
        reason = ": it is an archive of tar, as PyTorch wrote them before 0.1.10" if tar else ""
        raise ModelError(_PICKLE_REFUSED.format(path=path, reason=reason, advice=advice))


def is_safetensors(path: pathlib.Path) -> bool:
    """Whether a file is not one of PyTorch's, by its content; it may be damaged, or neither."""
    return not _is_pickle(_head(path))


def _is_pickle(head: bytes) -> bool:
    # A safetensors header begins after eight bytes of length, which may look like anything.
    return head[8:9] != b"{" and (head.startswith((torch_file.ZIP, _PICKLE)) or head[_TAR_OFFSET:].startswith(_TAR))


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("duplicate name in its header")
    return values
