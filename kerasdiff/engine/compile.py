"""The one place that knows how a function is compiled on the backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kerasdiff.errors import KerasdiffError


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
