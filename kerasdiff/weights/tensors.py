"""Tensors of safetensors files, mapped into memory: nothing is read before it is asked for.

What is written here is laid out so that a mapped tensor can be a parameter as it is.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import math
import mmap
import os
import pathlib
import struct
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import safetensors

from kerasdiff.errors import ModelError

DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
# Where TensorFlow wants tensors to begin; safetensors itself asks for 8.
ALIGNMENT = 64
_PIECE = 64
# Smaller arrays are not worth a second thread.
_LARGE = 2**20
# How pickles and the archives that torch wraps them in begin.
_ZIP, _PICKLE, _TAR_OFFSET, _TAR = b"PK\x03\x04", b"\x80", 257, b"ustar"
# Every file that is mapped at the moment.
_MAPPED: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
_EVERY_S = 0.05
# What a file that is written by way of a map says of its own content, see `has_sample`.
_SAMPLE, _NO_SAMPLE = "sample", "0" * 64
_SAMPLE_EVERY, _SAMPLED = 2**23, 64


@contextlib.contextmanager
def pages_given_back() -> Iterator[None]:
    """Inside, memory of mapped files is given back again and again: for work that looks at every tensor once.

    Looking at one again reads it again, from the system's cache of files. Nothing may have been written to them.
    """
    done = threading.Event()

    def give_back() -> None:
        while not done.wait(_EVERY_S):
            for mapped in list(_MAPPED):
                mapped.madvise(mmap.MADV_DONTNEED)

    thread = threading.Thread(target=give_back, daemon=True)
    if hasattr(mmap, "MADV_DONTNEED"):
        thread.start()
    try:
        yield
    finally:
        done.set()
        if thread.is_alive():
            thread.join()


class TensorFiles:
    """The tensors of one or several safetensors files, by name.

    Args:
        paths: the files; a name may be in only one of them.

    Raises:
        ModelError: a file is missing, corrupt, incomplete, or a pickle.
    """

    def __init__(self, paths: Iterable[pathlib.Path]) -> None:
        self.paths = tuple(paths)
        self._entries: dict[str, _Entry] = {}
        for path in self.paths:
            for name, entry in _entries(path):
                if name in self._entries:
                    raise ModelError(f"{path} has the tensor {name}, which another file of the same model has as well")
                self._entries[name] = entry

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def __len__(self) -> int:
        return len(self._entries)

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
        """A view of the file, whose pages are read when they are looked at; what is written to it stays in memory."""
        entry = self._entries[name]
        raw = np.frombuffer(entry.file, "uint8", entry.end - entry.begin, entry.begin)
        return raw.view({**DTYPES, "I64": np.int64}[entry.dtype]).reshape(entry.shape)

    def release(self, name: str) -> None:
        """Gives the memory of a tensor's pages back; looking at it again reads the file again."""
        entry = self._entries[name]
        _give_back(entry.file, entry.begin, entry.end)


@dataclasses.dataclass(frozen=True)
class _Entry:
    dtype: str
    shape: tuple[int, ...]
    file: mmap.mmap
    begin: int
    end: int


def _give_back(mapped: mmap.mmap, begin: int, end: int) -> None:
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
        raise ModelError(f"{path} is corrupt or incomplete: {_one_line(error)}") from None
    header.pop("__metadata__", None)
    start = 8 + length
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        yield name, _Entry(entry["dtype"], tuple(entry["shape"]), mapped, start + begin, start + end)


def refuse_pickle(path: pathlib.Path) -> None:
    """Raises if a file is a pickle by its content, whatever it is called: reading one runs its code."""
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    # A safetensors header begins after eight bytes of length, which may look like anything.
    if head[8:9] != b"{" and (head.startswith((_ZIP, _PICKLE)) or head[_TAR_OFFSET:].startswith(_TAR)):
        raise ModelError(
            f"{path} is a pickle checkpoint, which can run code when it is read; "
            "use the model's .safetensors file instead"
        )


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name is in its header twice")
    return values


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def laid_out(values: np.ndarray, dtype: str) -> np.ndarray:
    """A new array of the values in `dtype`, C-contiguous, that begins at a multiple of 64 bytes."""
    wanted = np.dtype(getattr(ml_dtypes, dtype, dtype))
    count = values.size * wanted.itemsize
    raw = np.empty(count + ALIGNMENT, "uint8")
    start = -raw.ctypes.data % ALIGNMENT
    array = raw[start : start + count].view(wanted).reshape(values.shape)
    lay_out(values, array)
    return array


def lay_out(values: np.ndarray, buffer: np.ndarray) -> None:
    """Copies values into a C-contiguous buffer of their shape and perhaps another type; too large ones become infinite.

    Large arrays are copied by several threads, in pieces that stay in a processor's cache.
    """
    if values.dtype == buffer.dtype and values.itemsize == 2:  # NumPy knows how to copy whole numbers without the GIL
        values, buffer = values.view("uint16"), buffer.view("uint16")
    if values.ndim < 2 or values.flags.c_contiguous:
        _cast(values, buffer)
        return
    if values.ndim == 4:
        kernel = values.transpose(3, 2, 0, 1)
        if kernel.flags.c_contiguous and min(kernel.shape):
            _turn_kernels(kernel, buffer)
            return

    def copy(place: int) -> None:
        _cast(np.ascontiguousarray(values[..., place : place + _PIECE]), buffer[..., place : place + _PIECE])

    _each(copy, range(0, values.shape[-1], _PIECE), values.nbytes)


def _turn_kernels(kernels: np.ndarray, buffer: np.ndarray) -> None:
    """(out, in, h, w) to (h, w, in, out): a matrix is turned, then rows change places, and both stay in the cache."""
    outputs, inputs, height, width = kernels.shape
    pixels = height * width
    rows = kernels.reshape(outputs, inputs * pixels)
    target = buffer.reshape(pixels, inputs, outputs)
    step = max(1, _PIECE * 9 // pixels)

    def turn(place: int) -> None:
        turned = np.ascontiguousarray(rows[:, place * pixels : (place + step) * pixels].T)
        _cast(turned.reshape(-1, pixels, outputs).transpose(1, 0, 2), target[:, place : place + step])

    _each(turn, range(0, inputs, step), kernels.nbytes)


def _cast(values: np.ndarray, buffer: np.ndarray) -> None:
    with np.errstate(over="ignore"):  # what comes of them is looked at, stage by stage
        np.copyto(buffer, values, casting="unsafe")


def _each(function: Callable[[int], None], places: range, nbytes: int) -> None:
    if nbytes < _LARGE:
        for place in places:
            function(place)
        return
    for _ in _workers().map(function, places):  # an iterator that raises what one of them raised
        pass


@functools.cache
def _workers() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1))


def write(
    path: pathlib.Path,
    shapes: Mapping[str, tuple[int, ...]],
    values: Iterable[tuple[str, np.ndarray]],
    dtype: str,
) -> None:
    """Writes a safetensors file, a tensor at a time; all but the smallest begin at a multiple of 64 bytes.

    Args:
        path: where.
        shapes: of every tensor, by name.
        values: the tensors, in any order; one may be overwritten when the next one comes.
        dtype: "float32", "float16" or "bfloat16".
    """
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    head, places = _laid_out_file(shapes, kind)
    largest = max((end - begin for begin, end in places.values()), default=0)
    buffers = [np.empty(largest, "uint8"), np.empty(largest, "uint8")]
    waiting: collections.deque[concurrent.futures.Future[None]] = collections.deque()
    with open(path, "wb") as file, concurrent.futures.ThreadPoolExecutor(1) as writer:
        file.write(head)
        for name, value in values:  # one is laid out while the one before is written
            if len(waiting) == len(buffers):
                waiting.popleft().result()
            begin, end = places[name]
            array = buffers[0][: end - begin].view(kind).reshape(shapes[name])
            buffers.reverse()
            lay_out(value, array)
            waiting.append(writer.submit(_put, file, begin, array))
        for one in waiting:
            one.result()


def write_mapped(
    path: pathlib.Path, shapes: Mapping[str, tuple[int, ...]], values: Iterable[tuple[str, np.ndarray]], dtype: str
) -> None:
    """Writes the same file by way of memory that is mapped to it, for files that are mapped again at once.

    Tensors are laid out where the system keeps the file, so that they take no memory besides; the disk is not waited
    for. Arguments are those of `write`.

    Raises:
        OSError: there is no room, or the file system maps no files.
    """
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    head, places = _laid_out_file(shapes, kind, {_SAMPLE: _NO_SAMPLE})
    size = max((end for _, end in places.values()), default=len(head))
    with open(path, "w+b") as file:
        if hasattr(os, "posix_fallocate"):  # or a disk that is full would end the process
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        mapped = mmap.mmap(file.fileno(), size)
    mapped[: len(head)] = head
    for name, value in values:
        begin, end = places[name]
        lay_out(value, np.frombuffer(mapped, "uint8", end - begin, begin).view(kind).reshape(shapes[name]))
        _give_back(mapped, begin, end)
    with open(path, "rb", buffering=0) as file:
        told = _sample(file, len(head))
    place = head.index(_NO_SAMPLE.encode())
    mapped[place : place + len(told)] = told.encode()


def has_sample(path: pathlib.Path) -> bool:
    """Whether a file of `write_mapped` holds what was laid out in it, looked at once in every eight megabytes.

    The system writes such a file to the disk later. If it did not get to that, as the power failed, the file has its
    length and zeros in it.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            (length,) = struct.unpack("<Q", file.read(8))
            told = json.loads(file.read(length))["__metadata__"][_SAMPLE]
            return told == _sample(file, 8 + length)
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return False


def _sample(file: io.FileIO, start: int) -> str:
    """A digest of some bytes every eight megabytes behind `start`, and of the last ones."""
    size = os.fstat(file.fileno()).st_size
    digest = hashlib.sha256()
    for place in (*range(start, size, _SAMPLE_EVERY), max(start, size - _SAMPLED)):
        file.seek(place)
        digest.update(file.read(_SAMPLED))
    return digest.hexdigest()


def _laid_out_file(
    shapes: Mapping[str, tuple[int, ...]], kind: np.dtype, metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """What the file begins with, and where in it each tensor begins and ends."""
    code = next(code for code, one in DTYPES.items() if np.dtype(one) == kind)
    sizes = {name: math.prod(shape) * kind.itemsize for name, shape in shapes.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in sorted(shapes, key=lambda name: sizes[name] % ALIGNMENT != 0):  # stable: in their order otherwise
        header[name] = {"dtype": code, "shape": list(shapes[name]), "data_offsets": [end, end + sizes[name]]}
        end += sizes[name]
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    start = 8 + len(text)
    places = {
        name: (start + header[name]["data_offsets"][0], start + header[name]["data_offsets"][1]) for name in shapes
    }
    return struct.pack("<Q", len(text)) + text, places


def _put(file: BinaryIO, begin: int, array: np.ndarray) -> None:
    file.seek(begin)
    file.write(array.view("uint8").reshape(-1).data)
