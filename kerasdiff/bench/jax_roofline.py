"""The least time of a U-Net's step through JAX: its parts at the rates of one large product and one convolution.

Every shape alone, as `kerasdiff.bench.roofline` measures them, would be a program to compile, which takes minutes on a
GPU.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kerasdiff.bench.parts import Part
from kerasdiff.bench.roofline import kind_of, least_times
from kerasdiff.runtime import backend

_BYTES = 2**29
_SECONDS = 0.2
_ITEMSIZES = {"float32": 4, "float16": 2, "bfloat16": 2}


def ceilings(parts: Mapping[Part, int], precisions: Sequence[str]) -> dict[str, dict[str, Any]]:
    """As `kerasdiff.bench.roofline.ceilings`, without "alone_s" and "parts"; float32 as JAX multiplies by default."""
    large, bandwidth = bool(backend.devices()), _bandwidth() / 1e9
    found = {}
    for precision in precisions:
        rates = {"convolution": _convolution(precision, large), "product": _product(precision, large)}
        found[precision] = at_rates(parts, precision, {kind: rate / 1e9 for kind, rate in rates.items()}, bandwidth)
    return found


def at_rates(
    parts: Mapping[Part, int], precision: str, gflops: Mapping[str, float], bandwidth_gb_s: float
) -> dict[str, Any]:
    """The least time of a step of these parts at known rates."""
    seconds = {part: 2e-9 * part.macs / gflops[kind_of(part)] for part in parts}
    found = least_times(parts, seconds, 1e9 * bandwidth_gb_s, _ITEMSIZES[precision])
    return {**{key: found[key] for key in ("step_s", "bandwidth_gb_s")}, "gflops": dict(gflops)}


def _product(precision: str, large: bool) -> float:
    from jax import numpy

    size = 8192 if large else 1024
    factors = [_normal(precision, size, size) for _ in range(2)]
    return 2.0 * size**3 / _fastest(numpy.matmul, *factors)


def _convolution(precision: str, large: bool) -> float:
    import jax

    # A layer of the U-Net at its second resolution, with guidance.
    batch, side, channels = (16, 64, 640) if large else (2, 16, 640)
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    x, kernel = _normal(precision, batch, side, side, channels), _normal(precision, 3, 3, channels, channels)
    return 2.0 * batch * side**2 * 9 * channels**2 / _fastest(convolve, x, kernel)


def _bandwidth() -> float:
    """Bytes per second of a plain read."""
    from jax import numpy

    return _BYTES / _fastest(numpy.max, numpy.ones(_BYTES // 4))


def _normal(precision: str, *shape: int) -> Any:
    import jax

    return jax.random.normal(jax.random.key(len(shape)), shape, precision)


def _fastest(function: Callable[..., Any], *tensors: Any) -> float:
    """Seconds of the fastest call within `_SECONDS`: on a GPU of eight, as one is over before it is timed well."""
    import jax

    program = jax.jit(function)
    program(*tensors).block_until_ready()
    calls = 8 if backend.devices() else 1
    fastest, ends = float("inf"), time.perf_counter() + _SECONDS
    while fastest == float("inf") or time.perf_counter() < ends:
        began = time.perf_counter()
        results = [program(*tensors) for _ in range(calls)]
        results[-1].block_until_ready()
        fastest = min(fastest, (time.perf_counter() - began) / calls)
    return fastest
