"""The one place that knows the backend: how a function is compiled, how an array becomes a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kerasdiff.errors import KerasdiffError
from kerasdiff.weights.tensors import ALIGNMENT, lay_out


class Compiled:
    """A function of arrays that is traced once for each set of shapes.

    `traces` counts how often that happened, so that tests can show that nothing compiles twice.
    """

    def __init__(self, function: Callable[..., Any], jit_compile: bool) -> None:
        if keras.backend.backend() != "tensorflow":
            raise KerasdiffError(
                f"kerasdiff runs on TensorFlow, but Keras is set to {keras.backend.backend()!r}; "
                "set KERAS_BACKEND=tensorflow"
            )
        import tensorflow as tf

        self.traces = 0

        def traced(*arguments: Any) -> Any:
            self.traces += 1
            return function(*arguments)

        self._run = tf.function(traced, jit_compile=jit_compile, autograph=False)

    def __call__(self, *arguments: Any) -> Any:
        return self._run(*(self._tensor(argument) for argument in arguments))

    @staticmethod
    def _tensor(argument: Any) -> Any:
        # A Python or NumPy scalar would be traced anew for every value.
        return keras.ops.convert_to_tensor(argument) if isinstance(argument, np.ndarray) else argument


def adopt(values: Any, dtype: str, lasting: bool = False) -> Any:
    """A tensor of `values` in `dtype` that is written once and never copied again.

    TensorFlow's own conversion copies twice, into memory that is slow to touch for the first time;
    for 3.4 GB of weights that is most of the time that building takes. `lasting` values, which nobody
    writes to, are not copied at all if they lie in memory as TensorFlow wants them, and neither is a tensor.
    """
    import ml_dtypes
    import tensorflow as tf

    if tf.is_tensor(values):
        return tf.cast(values, dtype)
    wanted = np.dtype(getattr(ml_dtypes, dtype, dtype))
    fits = values.dtype == wanted and values.flags.c_contiguous and values.ctypes.data % ALIGNMENT == 0
    if lasting and fits and values.size:
        buffer = values
    else:
        count = values.size * wanted.itemsize
        raw = np.empty(count + ALIGNMENT, "uint8")
        start = -raw.ctypes.data % ALIGNMENT
        buffer = raw[start : start + count].view(wanted).reshape(values.shape)
        lay_out(values, buffer)
    if dtype == "bfloat16":  # unknown to NumPy's side of the exchange
        return tf.bitcast(tf.experimental.dlpack.from_dlpack(buffer.view("uint16").__dlpack__()), tf.bfloat16)
    return tf.experimental.dlpack.from_dlpack(buffer.__dlpack__())
