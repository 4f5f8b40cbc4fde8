"""JAX: functions are exported programs, with parameters as arguments; nothing of TensorFlow is imported."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax import export

from kerasdiff.runtime.backends.keras_ops import after, group_norm, interleave, layer_norm, weighted_sums  # noqa: F401
from kerasdiff.runtime.cache_dir import private_folder
from kerasdiff.runtime.layout import converted
from kerasdiff.runtime.values import Values

# Whether parameters are read when they are needed, not when a network is loaded.
READS_LATE = False


def devices() -> list[str]:
    """Names of the accelerators that JAX computes on."""
    return [] if jax.default_backend() == "cpu" else [device.device_kind for device in jax.devices()]


def memory() -> tuple[int, int] | None:
    """Bytes that JAX may take of the first accelerator, and bytes in use; None where its allocator does not tell."""
    stats = _stats()
    return (stats["bytes_limit"], stats["bytes_in_use"]) if stats.get("bytes_limit") else None


def peak_memory() -> int | None:
    """The most bytes that JAX held on the first accelerator so far."""
    return _stats().get("peak_bytes_in_use")


def _stats() -> dict[str, int]:
    return jax.local_devices()[0].memory_stats() or {}


def tensor(values: Any) -> Any:
    """An array on the device."""
    # `jax.numpy.asarray` would compile a program for every shape.
    return values if isinstance(values, jax.Array) else jax.device_put(np.asarray(values))


def value_of(variable: Any) -> Any:
    """What a Keras variable holds."""
    return variable.value


def prefetches(values: Values) -> bool:
    """Whether a program may be prepared before it is needed: what compiles it is its first call."""
    return False


def latest(values: Values, before: Values | None) -> Values:
    """Of values that were read again, those to use."""
    return values


def adopt(values: Any, dtype: str, lasting: bool = False) -> Any:
    """A tensor of `values` in `dtype`."""
    if isinstance(values, jax.Array):
        return values.astype(dtype)
    # On a CPU, JAX may keep a view of an array, and to a GPU it copies when it comes to it: what will be written to
    # again is copied before.
    kept = lasting and values.dtype == np.dtype(getattr(ml_dtypes, dtype, dtype))
    return tensor(values if kept else converted(values, dtype))


def trace(
    function: Callable[..., Any],
    values: Sequence[Any],
    arguments: Sequence[Any],
    jit_compile: bool,
    lasting: Collection[int] = (),
) -> bytes:
    """A program for the devices that are there now; JAX always compiles with XLA, and all of it each time."""
    shapes = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in (*values, *arguments)]
    program = jax.jit(lambda *tensors: function(list(tensors[: len(values)]), *tensors[len(values) :]))
    return bytes(export.export(program)(*shapes).serialize())


def load(payload: bytes) -> Callable[[Values, Sequence[Any]], Any]:
    """A traced program, ready to run."""
    _keep_compiled()
    program = jax.jit(export.deserialize(bytearray(payload)).call)

    def run(values: Values, arguments: Sequence[Any]) -> Any:
        return program(*values, *arguments)

    return run


def _keep_compiled() -> None:
    """What XLA compiles is kept between processes, unless the user has said where, or that it is not."""
    folder = private_folder("jax") if jax.config.values["jax_compilation_cache_dir"] is None else None
    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
