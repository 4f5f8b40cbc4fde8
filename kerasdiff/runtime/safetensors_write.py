"""Safetensors files in which a mapped tensor can be a parameter as it is."""

import collections
import concurrent.futures
import contextlib
import hashlib
import io
import json
import math
import mmap
import os
import pathlib
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from kerasdiff.runtime.layout import ALIGNMENT, convert_into
from kerasdiff.runtime.safetensors_map import DTYPES, release_pages

# Name -> shape and type.
Tensors = Mapping[str, tuple[tuple[int, ...], np.dtype]]
# In a file of `write_mapped`: a digest of its own content, see `has_sample`.
_SAMPLE, _NO_SAMPLE = "sample", "0" * 64
_SAMPLE_EVERY, _SAMPLED = 2**23, 64


def write(
    path: pathlib.Path,
    shapes: Mapping[str, tuple[int, ...]],
    values: Iterable[tuple[str, np.ndarray]],
    dtype: str,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors file, a tensor at a time; all but the smallest begin at a multiple of 64 bytes.

    Tensors may come in any order, and one may be overwritten when the next one comes.
    """
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    head, spans = _file_layout({name: (shape, kind) for name, shape in shapes.items()}, metadata)
    largest = max((end - begin for begin, end in spans.values()), default=0)
    buffers = [np.empty(largest, "uint8"), np.empty(largest, "uint8")]
    waiting: collections.deque[concurrent.futures.Future[None]] = collections.deque()
    with open(path, "wb") as file, concurrent.futures.ThreadPoolExecutor(1) as writer:
        file.write(head)
        for name, value in values:  # one is converted while the one before is written
            if len(waiting) == len(buffers):
                waiting.popleft().result()
            begin, end = spans[name]
            array = buffers[0][: end - begin].view(kind).reshape(shapes[name])
            buffers.reverse()
            convert_into(value, array)
            waiting.append(writer.submit(_put, file, begin, array))
        for written in waiting:
            written.result()


def write_mapped(
    path: pathlib.Path, shapes: Mapping[str, tuple[int, ...]], values: Iterable[tuple[str, np.ndarray]], dtype: str
) -> None:
    """Writes the same file as `write` through memory that is mapped to it, for files that are mapped again at once.

    Tensors are converted right into the system's file cache, so that they take no more memory; the disk is not waited
    for. Raises OSError if there is no room, or the file system maps no files.
    """
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    with mapped_tensors(path, {name: (shape, kind) for name, shape in shapes.items()}) as tensors:
        for name, value in values:
            convert_into(value, tensors[name])
            tensors.release(name)


class MappedTensors(Mapping[str, np.ndarray]):
    """Arrays in a file that is being written."""

    def __init__(self, mapped: mmap.mmap, spans: Mapping[str, tuple[int, int]], tensors: Tensors) -> None:
        self._mapped, self._spans, self._tensors = mapped, spans, tensors

    def __getitem__(self, name: str) -> np.ndarray:
        (begin, end), (shape, kind) = self._spans[name], self._tensors[name]
        return np.frombuffer(self._mapped, "uint8", end - begin, begin).view(kind).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._spans)

    def __len__(self) -> int:
        return len(self._spans)

    def release(self, name: str) -> None:
        """Takes an array, which is written, out of this process's memory."""
        release_pages(self._mapped, *self._spans[name])


@contextlib.contextmanager
def mapped_tensors(path: pathlib.Path, tensors: Tensors) -> Iterator[MappedTensors]:
    """Inside, arrays of some shapes and types are to be filled; afterwards the file is complete.

    Raises OSError as `write_mapped` does.
    """
    head, spans = _file_layout(tensors, {_SAMPLE: _NO_SAMPLE})
    size = max((end for _, end in spans.values()), default=len(head))
    with open(path, "w+b") as file:
        if hasattr(os, "posix_fallocate"):  # or a disk that is full would end the process
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        mapped = mmap.mmap(file.fileno(), size)
    mapped[: len(head)] = head
    yield MappedTensors(mapped, spans, tensors)
    with open(path, "rb", buffering=0) as file:
        sample = _sample(file, len(head)).encode()
    position = head.index(_NO_SAMPLE.encode())
    mapped[position : position + len(sample)] = sample


def has_sample(path: pathlib.Path) -> bool:
    """Whether a file of `write_mapped` still holds what was written to it, checked once in every eight megabytes.

    The system writes such a file to the disk later. If the power fails before that, the file has its length and zeros
    in it.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            (length,) = struct.unpack("<Q", file.read(8))
            stored = json.loads(file.read(length))["__metadata__"][_SAMPLE]
            return stored == _sample(file, 8 + length)
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return False


def _sample(file: io.FileIO, start: int) -> str:
    """A digest of some bytes every eight megabytes behind `start`, and of the last ones."""
    size = os.fstat(file.fileno()).st_size
    digest = hashlib.sha256()
    for position in (*range(start, size, _SAMPLE_EVERY), max(start, size - _SAMPLED)):
        file.seek(position)
        digest.update(file.read(_SAMPLED))
    return digest.hexdigest()


def _file_layout(
    tensors: Tensors, metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The file's header, and where in the file each tensor begins and ends."""
    codes = {np.dtype(dtype): code for code, dtype in DTYPES.items()}
    sizes = {name: math.prod(shape) * kind.itemsize for name, (shape, kind) in tensors.items()}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in sorted(tensors, key=lambda name: sizes[name] % ALIGNMENT != 0):  # stable: in their order otherwise
        shape, kind = tensors[name]
        header[name] = {"dtype": codes[kind], "shape": list(shape), "data_offsets": [end, end + sizes[name]]}
        end += sizes[name]
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    start = 8 + len(text)
    offsets = {name: header[name]["data_offsets"] for name in tensors}
    return struct.pack("<Q", len(text)) + text, {name: (start + i, start + j) for name, (i, j) in offsets.items()}


def _put(file: BinaryIO, begin: int, array: np.ndarray) -> None:
    file.seek(begin)
    file.write(array.view("uint8").reshape(-1).data)
