"""OpenVINO, on a CPU: TensorFlow traces a function, and what came of it runs without TensorFlow and Keras.

A program is three graphs, as in the module for TensorFlow. Parameters are constants of them, so that each is laid out
once, when the program first runs with it. That takes longer than reading what came of it: for a small model that is
cached.
"""

import math
import pathlib
import struct
import tempfile
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from kerasdiff.runtime import tf_setup
from kerasdiff.runtime.backends.openvino_program import (
    PARTS,
    OpenVINOProgram,
    compiled,
    dtype_of,
    operations,
    ov,
    use_threads,  # noqa: F401
)
from kerasdiff.runtime.layout import ALIGNMENT, converted
from kerasdiff.runtime.values import Values

READS_LATE = True


def devices() -> list[str]:
    """None: accelerators are not used."""
    return []


def memory() -> None:
    """None: accelerators are not used."""


def small_product() -> float:
    """The sum of a product of ones, (2, 3) and (3, 4)."""
    product = operations.matmul(*(np.ones(shape, "float32") for shape in ((2, 3), (3, 4))), False, False)
    model = ov.Model([operations.reduce_sum(product, np.array([0, 1]))], [])
    return float(compiled(model)()[0])


class Stored:
    """A parameter in a file, which is read each time somebody looks at it: mostly once, to be laid out."""

    def __init__(self, shape: tuple[int, ...], dtype: str, read: Callable[[], np.ndarray]) -> None:
        self.shape, self.dtype, self._read = tuple(shape), dtype_of(dtype), read

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def as_stored(self) -> np.ndarray:
        """The parameter in the type that it has in the file, mostly a view."""
        return self._read().reshape(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return converted(self.as_stored, np.dtype(self.dtype if dtype is None else dtype).name)

    def transpose(self, order: Sequence[int]) -> np.ndarray:
        """With other axes, and in the type that it has in the file: mostly a view of that."""
        return self.as_stored.transpose(order)


def tensor(values: Any) -> np.ndarray:
    """An array."""
    return np.asarray(values)


def adopt(values: Any, dtype: str, lasting: bool = False) -> np.ndarray:
    """An array of `values` in `dtype`."""
    array = np.asarray(values)
    fits = array.dtype == dtype_of(dtype) and array.flags.c_contiguous and array.ctypes.data % ALIGNMENT == 0
    return array if fits and (lasting or not isinstance(values, np.ndarray)) else converted(array, dtype)


def prefetches(values: Values) -> bool:
    """Yes: whoever asks for it knows that there is room."""
    return True


def latest(values: Values, before: Values | None) -> Values:
    """Of values that were read again, those to use: the ones before if all are the same, as programs hold them."""
    if before is not None and all(map(_same, values, before)):
        before[:] = values  # or those in a file would be read each time
        return before
    return values


def _same(first: np.ndarray, stored: Any) -> bool:
    second = np.asarray(stored)
    if first.__array_interface__["data"] == second.__array_interface__["data"]:
        return True
    bits = f"uint{8 * first.itemsize}"
    return first.shape == second.shape and np.array_equal(first.view(bits), second.view(bits))


def trace(
    function: Callable[..., Any],
    values: Sequence[Any],
    arguments: Sequence[Any],
    jit_compile: bool,
    lasting: Collection[int] = (),
) -> bytes:
    """Three graphs: what is computed of the values alone, of these and lasting arguments, and the rest."""
    if tf_setup.is_inference_only():  # the process is ours
        tf_setup.import_tensorflow()
    from kerasdiff.runtime.backends import openvino_trace

    models = openvino_trace.traced(function, values, arguments, lasting)
    files = [_serialized(models[part]) if part in models else (b"", b"") for part in PARTS]
    flat = [content for pair in files for content in pair]
    return struct.pack(f"<{len(flat)}Q", *map(len, flat)) + b"".join(flat)


def _serialized(model: Any) -> tuple[bytes, bytes]:
    """A graph and its constants."""
    with tempfile.TemporaryDirectory() as folder:
        graph, constants = (pathlib.Path(folder) / name for name in ("graph.xml", "graph.bin"))
        ov.serialize(model, graph, constants)
        return graph.read_bytes(), constants.read_bytes()


def load(payload: bytes) -> OpenVINOProgram:
    """A traced function, ready to run."""
    return OpenVINOProgram(payload)
