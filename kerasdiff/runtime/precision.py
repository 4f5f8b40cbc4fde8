"""Which backend, number format and compiler a model runs with."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import sys
from typing import TYPE_CHECKING, Any

from kerasdiff import validation
from kerasdiff.errors import RequestError
from kerasdiff.runtime import backend as backends
from kerasdiff.runtime.platform_info import cpu_has_bfloat16, version

if TYPE_CHECKING:
    import keras

PRECISIONS = ("float32", "mixed_float16", "mixed_bfloat16", "float16", "bfloat16")
BACKENDS = ("auto", *backends.NAMES)
# Earlier ones, which an extra does not keep away, read no blobs of theirs or fail in the middle of an image.
OLDEST_OPENVINO = "2025.4"
# What drivers of NVIDIA and AMD leave.
_DRIVERS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


@dataclasses.dataclass(frozen=True)
class Execution:
    """A decision: the device, a Keras dtype policy by name, whether XLA compiles the stages, and what runs them."""

    device: str
    precision: str
    jit_compile: bool
    backend: str = "tensorflow"

    def __str__(self) -> str:
        compiler = "OpenVINO" if self.backend == "openvino" else "XLA" if self.jit_compile else "no XLA"
        return f"{self.device}, {self.precision}, {compiler}"

    @property
    def variable_dtype(self) -> str:
        """The type of the networks' parameters."""
        return "float32" if self.precision.startswith("mixed_") else self.precision

    def upcast(self, part: Any) -> Execution:
        """That of a network: float32 in place of float16 for one whose configuration says that its numbers overflow."""
        if getattr(part, "force_upcast", False) and self.precision in ("float16", "mixed_float16"):
            return dataclasses.replace(self, precision="float32")
        return self

    @property
    def policy(self) -> keras.DTypePolicy:
        """The policy that the networks are built with."""
        import keras

        return keras.DTypePolicy(self.precision)


def check(precision: str, jit_compile: bool | str, backend: str = "auto") -> None:
    """Raises RequestError for an unknown precision or backend, or a `jit_compile` that is neither a bool nor "auto"."""
    if not isinstance(precision, str) or precision not in ("auto", *PRECISIONS):
        raise RequestError(
            f"precision={validation.shown(precision)} is unknown; choose one of auto, {', '.join(PRECISIONS)}"
        )
    if not (isinstance(jit_compile, bool) or (isinstance(jit_compile, str) and jit_compile == "auto")):
        raise RequestError(f"jit_compile={validation.shown(jit_compile)} is neither True, False nor 'auto'")
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise RequestError(f"backend={validation.shown(backend)} is unknown; choose one of {', '.join(BACKENDS)}")
    if backend == "openvino" and jit_compile is True:
        raise RequestError("jit_compile=True means XLA, which OpenVINO does not use; leave one of the two out")
    if backend == "openvino" and precision.startswith("mixed_"):
        raise RequestError(
            f"precision={precision!r} has float32 weights beside half precision, which OpenVINO does not do; choose "
            "float32, bfloat16 or float16, or another backend"
        )


def choose(
    precision: str, jit_compile: bool | str, large: bool, backend: str = "auto", fixed: bool = True
) -> Execution:
    """Resolves "auto" for a model; a `large` one spends its time in arithmetic, a small one around it.

    On a GPU: float16 and XLA; the images are mixed_float16's, as sums that need it are in float32 either way, and
    weights take half the memory. On a CPU: OpenVINO where it is installed and the model's weights are `fixed`, in
    bfloat16 for a large model where the processor computes in it, else in float32. Without OpenVINO: bfloat16 through
    oneDNN, or float32 through XLA for a large model and through oneDNN for a small one, which starts sooner and is
    about as fast (benchmarks/results/*/embedded_speed.json).

    Raises:
        RequestError: an unknown precision or backend, `jit_compile` neither a bool nor "auto", or two that do not go
            together.
    """
    check(precision, jit_compile, backend)
    backend = choose_backend(backend, precision, jit_compile, fixed)
    gpu = has_gpu(backend)
    if precision == "auto":
        # XLA on a CPU computes convolutions in float32 whatever it is given.
        bfloat16 = large and cpu_has_bfloat16() and backend != "jax"
        on_cpu = "bfloat16" if bfloat16 else "float32"
        precision = "float16" if gpu else on_cpu
    if backend == "jax":
        if jit_compile is False:
            raise RequestError("jit_compile=False is not possible on JAX, which always compiles with XLA")
        jit_compile = True
    if jit_compile == "auto":
        jit_compile = backend != "openvino" and (gpu or (large and precision == "float32"))
    return Execution("GPU" if gpu else "CPU", precision, bool(jit_compile), backend)


def choose_backend(backend: str, precision: str = "auto", jit_compile: bool | str = "auto", fixed: bool = True) -> str:
    """What "auto" is here, or RequestError if what was asked for cannot be."""
    if backend == "auto":
        backend = os.environ.get(backends.VARIABLE) or "auto"
        if backend not in BACKENDS:
            raise RequestError(f"{backends.VARIABLE}={backend!r} is unknown; choose one of {', '.join(BACKENDS)}")
        if backend in backends.OF_KERAS and os.environ.get("KERAS_BACKEND") in backends.OF_KERAS:
            backend = backends.of_keras()
        # OpenVINO computes float16 in float32 on a CPU, which is not what whoever asks for it wants to see.
        of_xla = jit_compile is True or precision == "float16" or precision.startswith("mixed_")
        if backend == "openvino" and (of_xla or not fixed):
            backend = "auto"
    if backend == "auto":
        backend = backends.of_keras()
        if backend == "tensorflow" and fixed and not of_xla and prefers_openvino():
            return "openvino"
    if backend == "openvino" and not fixed:
        raise RequestError("the weights of a live model may change, which OpenVINO does not allow; leave backend out")
    if backend == "openvino" and (problem := _too_old()):
        raise RequestError(problem)
    _prepare_keras("jax" if backend == "jax" else "tensorflow", backend)
    return backend


def _prepare_keras(wanted: str, backend: str) -> None:
    """Has Keras use what traces for a backend."""
    if backends.of_keras() == wanted:
        return
    if "keras" in sys.modules:
        raise RequestError(
            f"backend={backend!r} needs Keras on {wanted}, and Keras was imported with {backends.of_keras()} in this "
            f"process; set KERAS_BACKEND={wanted} before it is imported"
        )
    os.environ["KERAS_BACKEND"] = wanted


def is_available(backend: str) -> bool:
    """Whether a backend is installed, and Keras can trace for it in this process."""
    if backend not in backends.NAMES or version(backend) is None:
        return False
    wanted = "jax" if backend == "jax" else "tensorflow"
    return "keras" not in sys.modules or backends.of_keras() == wanted


def prefers_openvino() -> bool:
    """Whether OpenVINO is installed and the fastest here: on an x86 processor without an accelerator."""
    return against_openvino() is None


def against_openvino() -> str | None:
    """Why OpenVINO is not what "auto" takes on this machine, whatever the model; None if it is."""
    machine = platform.machine()
    if machine.lower() not in ("x86_64", "amd64"):
        return f"OpenVINO is taken on x86 processors alone, and this one is {machine}"
    driver = next(filter(os.path.exists, _DRIVERS), None)
    if driver is not None and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        return f"there is a GPU's driver ({driver}), and OpenVINO does not use GPUs; CUDA_VISIBLE_DEVICES=-1 hides them"
    if version("openvino") is None:
        return f"OpenVINO is not installed: pip install 'openvino>={OLDEST_OPENVINO}'"
    return _too_old()


def _too_old() -> str | None:
    """One line if OpenVINO is installed and too old, else None."""
    found = version("openvino")
    if found is None or _numbers(found) >= _numbers(OLDEST_OPENVINO):
        return None
    return f"OpenVINO {found} is too old: pip install 'openvino>={OLDEST_OPENVINO}'"


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:2]]


def has_gpu(backend: str) -> bool:
    """Whether a backend sees a GPU."""
    return bool(backends.of(backend).devices())
