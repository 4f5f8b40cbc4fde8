"""Safetensors files that are laid out so that a mapped tensor can be a parameter as it is."""

from __future__ import annotations

import collections
import concurrent.futures
import hashlib
import io
import json
import math
import mmap
import os
import pathlib
import struct
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from kerasdiff.runtime.layout import ALIGNMENT, lay_out
from kerasdiff.runtime.safetensors_map import DTYPES, give_back

# What a file that is written by way of a map says of its own content, see `has_sample`.
_SAMPLE, _NO_SAMPLE = "sample", "0" * 64
_SAMPLE_EVERY, _SAMPLED = 2**23, 64


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
        give_back(mapped, begin, end)
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
