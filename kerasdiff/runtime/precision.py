"""Which number format and which compiler a model runs with."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from kerasdiff import validation
from kerasdiff.errors import RequestError
from kerasdiff.runtime import backend
from kerasdiff.runtime.platform_info import cpu_has_bfloat16

if TYPE_CHECKING:
    import keras

PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16", "float16", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Execution:
    """A decision: the device, a Keras dtype policy by name, and whether XLA compiles the stages."""

    device: str
    precision: str
    jit_compile: bool

    def __str__(self) -> str:
        compiler = "XLA" if self.jit_compile else "no XLA"
        return f"{self.device}, {self.precision}, {compiler}"

    @property
    def variable_dtype(self) -> str:
        """The type of the networks' parameters."""
        return "float32" if self.precision.startswith("mixed_") else self.precision

    @property
    def policy(self) -> keras.DTypePolicy:
        """The policy that the networks are built with."""
        import keras

        return keras.DTypePolicy(self.precision)


def check(precision: str, jit_compile: bool | str) -> None:
    """Raises RequestError for an unknown precision, or a `jit_compile` that is neither a bool nor "auto"."""
    if not isinstance(precision, str) or precision not in ("auto", *PRECISIONS):
        raise RequestError(
            f"precision={validation.shown(precision)} is unknown; choose one of auto, {', '.join(PRECISIONS)}"
        )
    if not (isinstance(jit_compile, bool) or (isinstance(jit_compile, str) and jit_compile == "auto")):
        raise RequestError(f"jit_compile={validation.shown(jit_compile)} is neither True, False nor 'auto'")


def choose(precision: str, jit_compile: bool | str, large: bool) -> Execution:
    """Resolves "auto" for a model; a `large` one spends its time in arithmetic, a small one around it.

    On a GPU: float16 and XLA; the images are mixed_float16's, as sums that need it are in float32 either way, and
    weights take half the memory. On a CPU: for a large model bfloat16 through oneDNN where the
    processor computes in bfloat16, else float32 through XLA; for a small one float32 through oneDNN,
    which starts sooner and is about as fast (benchmarks/results/*/embedded_speed.json).

    Raises:
        RequestError: an unknown precision, `jit_compile` neither a bool nor "auto", or False on JAX.
    """
    check(precision, jit_compile)
    gpu = has_gpu()
    if precision == "auto":
        # XLA on a CPU computes convolutions in float32 whatever it is given.
        bfloat16 = large and cpu_has_bfloat16() and backend.name() != "jax"
        on_cpu = "bfloat16" if bfloat16 else "float32"
        precision = "float16" if gpu else on_cpu
    if backend.name() == "jax":
        if jit_compile is False:
            raise RequestError("jit_compile=False is not possible on JAX, which always compiles with XLA")
        jit_compile = True
    if jit_compile == "auto":
        jit_compile = gpu or (large and precision == "float32")
    return Execution("GPU" if gpu else "CPU", precision, bool(jit_compile))


def has_gpu() -> bool:
    """Whether the backend sees a GPU."""
    return bool(backend.devices())
