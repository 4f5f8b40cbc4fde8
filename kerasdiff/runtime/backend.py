"""Which of Keras's backends runs the stages, and what they need of it.

Its functions are those of `kerasdiff.runtime.backends.tensorflow` or `kerasdiff.runtime.backends.jax`, imported when
one is first accessed. Nothing here imports Keras. What both promise:

- `adopt(values, dtype, lasting)` copies at most once; `lasting` values, which nobody writes to, not at all where they
  lie in memory as the backend wants them, and neither a tensor.
- `trace(function, values, arguments, ...)` traces a function of (list of values, *arguments) for just their shapes and
  types; `load` gives what it traced, in this or another process, to be run as `run(values, arguments)`. `lasting` are
  the indices of arguments that are the same tensors in many calls after each other: what depends on them and on values
  alone may be computed once.
- `after(x, done)` holds x back until `done` is computed, so that what leads to one and what follows from the other
  never meet. `done` must be computed of every argument that x depends on: what was there before cannot be waited for.
"""

import importlib
import json
import os
import pathlib
import sys
from typing import Any

from kerasdiff.errors import KerasdiffError

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


def __getattr__(function: str) -> Any:
    """A function of the backend's module."""
    if function.startswith("_"):
        raise AttributeError(function)
    try:
        module = importlib.import_module(f"kerasdiff.runtime.backends.{name()}")
    except ModuleNotFoundError as error:
        raise KerasdiffError(f"Keras is set to {name()!r}, which needs {error.name}: pip install {name()}") from None
    return getattr(module, function)
