"""The best rate of this device through JAX: large matrix products and convolutions, alone."""

import functools
import time
from collections.abc import Callable, Sequence

import jax
from jax import numpy as jnp

from kerasdiff.runtime import backend

SECONDS = 0.3


def ceilings(precisions: Sequence[str]) -> dict[str, dict[str, float]]:
    """As `kerasdiff.bench.roofline.ceilings`; float32 in the precision that JAX multiplies in by default."""
    large = bool(backend.devices())
    cases = {"matmul": _matmul, "convolution": _convolution}
    return {name: {kind: _rate(case, name, large) / 1e9 for kind, case in cases.items()} for name in precisions}


def _matmul(precision: str, large: bool) -> tuple[Callable[..., jax.Array], tuple[jax.Array, ...], float]:
    size = 8192 if large else 1024
    return jnp.matmul, (_normal(precision, size, size), _normal(precision, size, size)), 2.0 * size**3


def _convolution(precision: str, large: bool) -> tuple[Callable[..., jax.Array], tuple[jax.Array, ...], float]:
    # A layer of the U-Net at its second resolution, with guidance.
    batch, side, channels = (16, 64, 640) if large else (2, 16, 640)
    convolve = functools.partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    factors = _normal(precision, batch, side, side, channels), _normal(precision, 3, 3, channels, channels)
    return convolve, factors, 2.0 * batch * side**2 * 9 * channels**2


def _normal(precision: str, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(len(shape)), shape, precision)


def _rate(
    case: Callable[[str, bool], tuple[Callable[..., jax.Array], tuple[jax.Array, ...], float]],
    precision: str,
    large: bool,
) -> float:
    """FLOP/s of the fastest group of calls within `SECONDS`: a single one is over before it is timed well."""
    function, factors, work = case(precision, large)
    program = jax.jit(function)
    program(*factors).block_until_ready()
    fastest, calls = float("inf"), 8 if large else 1
    ends = time.perf_counter() + SECONDS
    while time.perf_counter() < ends:
        began = time.perf_counter()
        results = [program(*factors) for _ in range(calls)]
        results[-1].block_until_ready()
        fastest = min(fastest, time.perf_counter() - began)
    return calls * work / fastest
