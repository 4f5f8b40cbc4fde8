"""What runs the stages, and what layers ask of Keras's backend while they are traced.

`of(name)` is one of the modules in `kerasdiff.runtime.backends`. TensorFlow and JAX run what Keras traces with them;
OpenVINO runs what Keras traces with TensorFlow, and is the only one that needs neither of them to run what is cached.
What all of them promise:

- `adopt(values, dtype, lasting)` copies at most once; `lasting` values, which nobody writes to, not at all where they
  lie in memory as the backend wants them, and neither a tensor.
- with `READS_LATE`, parameters of files that can be read at any time are `Stored(shape, dtype, read)` instead.
- `trace(function, values, arguments, ...)` traces a function of (list of values, *arguments) for just their shapes and
  types; `load` gives what it traced, in this or another process, to be run as `run(values, arguments)`. `lasting` are
  the indices of arguments that are the same tensors in many calls after each other: what depends on them and on values
  alone may be computed once.
- `prefetches(values)` says whether what was loaded has a method `prepare(values)`, to be called before it is run.
- `latest(values, before)` is one of two lists of values: `before`, if nothing has changed and that saves work.

An attribute of this module is a function of Keras's backend, imported when it is first accessed; nothing here imports
Keras. `after(x, done)` holds x back until `done` is computed, so that what leads to one and what follows from the other
never meet. `done` must be computed of every argument that x depends on: what was there before cannot be waited for.
"""

import importlib
import json
import os
import pathlib
import sys
from typing import Any

from kerasdiff.errors import KerasdiffError

NAMES = ("tensorflow", "jax", "openvino")
OF_KERAS = ("tensorflow", "jax")
# The backend of whoever does not say which.
VARIABLE = "KERASDIFF_BACKEND"


def of_keras() -> str:
    """The backend that Keras has, or will have once it is imported.

    Raises:
        KerasdiffError: it is one that is not supported.
    """
    if "keras" in sys.modules and hasattr(sys.modules["keras"], "backend"):
        found = sys.modules["keras"].backend.backend()
    else:
        found = os.environ.get("KERAS_BACKEND") or _configured() or "tensorflow"
    if found not in OF_KERAS:
        raise KerasdiffError(
            f"kerasdiff's layers are traced by TensorFlow or JAX, but Keras is set to {found!r}; set "
            "KERAS_BACKEND=tensorflow (OpenVINO is backend='openvino' of kerasdiff)"
        )
    return found


def _configured() -> str | None:
    """What the user's keras.json says."""
    home = os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras")
    try:
        return json.loads((pathlib.Path(home) / "keras.json").read_text()).get("backend")
    except (OSError, ValueError, AttributeError):
        return None


def of(name: str) -> Any:
    """The module of a backend.

    Raises:
        KerasdiffError: it is not installed.
    """
    try:
        return importlib.import_module(f"kerasdiff.runtime.backends.{name}")
    except ModuleNotFoundError as error:
        raise KerasdiffError(f"backend={name!r} needs {error.name}: pip install {name}") from None


def memory() -> tuple[int, int] | None:
    """Bytes that may be taken of the accelerator that this process uses, and bytes in use; None if it uses none."""
    loaded = (sys.modules.get(f"kerasdiff.runtime.backends.{name}") for name in OF_KERAS)
    return next((found for module in loaded if module is not None and (found := module.memory()) is not None), None)


def __getattr__(function: str) -> Any:
    """A function of the module of Keras's backend."""
    if function.startswith("_"):
        raise AttributeError(function)
    return getattr(of(of_keras()), function)
