"""From the layout and type of a checkpoint's tensor to those of a parameter, in memory."""

import concurrent.futures
import functools
import os
from collections.abc import Callable

import ml_dtypes
import numpy as np

# Where TensorFlow wants tensors to begin; safetensors itself asks for 8.
ALIGNMENT = 64
_PIECE = 64
# Smaller arrays are not worth a second thread.
_LARGE = 2**20


def torch_axes(name: str, dimensions: int) -> tuple[int, ...]:
    """The order of a parameter's axes in torch, of so many: kernels go from (..., in, out) to (out, in, ...)."""
    if not name.endswith(".kernel"):
        return tuple(range(dimensions))
    return (1, 0) if dimensions == 2 else (3, 2, 0, 1)


def converted(values: np.ndarray, dtype: str) -> np.ndarray:
    """A new array of the values in `dtype`, C-contiguous, that begins at a multiple of 64 bytes."""
    wanted = np.dtype(getattr(ml_dtypes, dtype, dtype))
    count = values.size * wanted.itemsize
    raw = np.empty(count + ALIGNMENT, "uint8")
    start = -raw.ctypes.data % ALIGNMENT
    array = raw[start : start + count].view(wanted).reshape(values.shape)
    convert_into(values, array)
    return array


def convert_into(values: np.ndarray, buffer: np.ndarray) -> None:
    """Copies values into a C-contiguous buffer of their shape and any type; too large ones become infinite.

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
            _transpose_kernels(kernel, buffer)
            return

    def copy(first: int) -> None:
        _cast(np.ascontiguousarray(values[..., first : first + _PIECE]), buffer[..., first : first + _PIECE])

    _each(copy, range(0, values.shape[-1], _PIECE), values.nbytes)


def _transpose_kernels(kernels: np.ndarray, buffer: np.ndarray) -> None:
    """(out, in, h, w) to (h, w, in, out): a matrix is transposed, then rows are swapped, both in the CPU's cache."""
    outputs, inputs, height, width = kernels.shape
    pixels = height * width
    rows = kernels.reshape(outputs, inputs * pixels)
    target = buffer.reshape(pixels, inputs, outputs)
    step = max(1, _PIECE * 9 // pixels)

    def transpose(first: int) -> None:
        block = np.ascontiguousarray(rows[:, first * pixels : (first + step) * pixels].T)
        _cast(block.reshape(-1, pixels, outputs).transpose(1, 0, 2), target[:, first : first + step])

    _each(transpose, range(0, inputs, step), kernels.nbytes)


def _cast(values: np.ndarray, buffer: np.ndarray) -> None:
    with np.errstate(over="ignore"):  # what comes of them is looked at, stage by stage
        np.copyto(buffer, values, casting="unsafe")


def _each(function: Callable[[int], None], starts: range, nbytes: int) -> None:
    mapped = map(function, starts) if nbytes < _LARGE else _workers().map(function, starts)
    for _ in mapped:  # raises what one of them raised
        pass


@functools.cache
def _workers() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1))
