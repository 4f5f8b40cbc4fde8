"""Which of Keras's backends runs the stages, and what they need of it.

Each function is one of `kerasdiff.runtime.backends.tensorflow` or `kerasdiff.runtime.backends.jax`, imported when it is
first called. Nothing here imports Keras.
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from kerasdiff.errors import KerasdiffError
from kerasdiff.runtime.values import Values

NAMES = ("tensorflow", "jax")


def name() -> str:
    """The backend that Keras has, or will have once it is imported.

    Raises:
        KerasdiffError: it is one that is not supported.
    """
    if "keras" in sys.modules and hasattr(sys.modules["keras"], "backend"):
        found = sys.modules["keras"].backend.backend()
    else:
        found = os.environ.get("KERAS_BACKEND") or _configured() or "tensorflow"
    if found not in NAMES:
        raise KerasdiffError(
            f"kerasdiff runs on TensorFlow and JAX, but Keras is set to {found!r}; set KERAS_BACKEND=tensorflow"
        )
    return found


def _configured() -> str | None:
    """What the user's keras.json says."""
    home = os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")
    try:
        return json.loads((pathlib.Path(home) / "keras.json").read_text()).get("backend")
    except (OSError, ValueError, AttributeError):
        return None


def _backend() -> Any:
    try:
        return importlib.import_module(f"kerasdiff.runtime.backends.{name()}")
    except ModuleNotFoundError as error:
        raise KerasdiffError(f"Keras is set to {name()!r}, which needs {error.name}: pip install {name()}") from None


def devices() -> list[str]:
    """Names of the accelerators; empty where there is only the CPU."""
    return _backend().devices()


def memory() -> tuple[int, int] | None:
    """Bytes that the first accelerator has for this process, and bytes in use; None where there is only the CPU."""
    return _backend().memory()


def tensor(values: Any) -> Any:
    """An array as the backend's; a tensor stays as it is."""
    return _backend().tensor(values)


def to_numpy(values: Any) -> np.ndarray:
    """A tensor as an array; waits for it."""
    return _backend().to_numpy(values)


def value_of(variable: Any) -> Any:
    """The tensor that a Keras variable holds; nothing is copied."""
    return _backend().value_of(variable)


def adopt(values: Any, dtype: str, lasting: bool = False) -> Any:
    """A tensor of `values` in `dtype`, copied at most once.

    `lasting` values, which nobody writes to, are not copied at all where they lie in memory as the backend wants
    them, and neither is a tensor.
    """
    return _backend().adopt(values, dtype, lasting)


def trace(
    function: Callable[..., Any],
    values: Sequence[Any],
    arguments: Sequence[Any],
    jit_compile: bool,
    lasting: Collection[int] = (),
) -> bytes:
    """A function of (list of values, *arguments) for just their shapes and types, as bytes for `load`.

    `lasting` are the places of arguments that are the same tensors in many calls after each other: what depends on them
    and on values alone may be computed once.
    """
    return _backend().trace(function, values, arguments, jit_compile, lasting)


def load(payload: bytes) -> Callable[[Values, Sequence[Any]], Any]:
    """What `trace` gave, in this or another process, to be run as `run(values, arguments)`."""
    return _backend().load(payload)


def channel_moments(x: Any) -> tuple[Any, Any]:
    """Means and variances of each channel of (B, h, w, C), each float32 (B, C)."""
    return _backend().channel_moments(x)


def scale_and_shift(x: Any, scale: Any, shift: Any) -> Any:
    """x (B, h, w, C) * scale (B, C) + shift (B, C), computed in float32, in the type of x."""
    return _backend().scale_and_shift(x, scale, shift)


def after(x: Any, done: Any) -> Any:
    """x, held back until `done` is computed, so that what leads to one and what follows from the other never meet.

    `done` must be computed of every argument that x depends on: what is there before the call cannot be waited for.
    """
    return _backend().after(x, done)
