"""The least time of a U-Net's step here: its own parts at the best rates that the device reaches, measured alone.

Each part is computed as an engine computes it: through a TensorFlow graph, at the workload's shapes, with weights that
are laid out once (for which the process must have TF_ONEDNN_ASSUME_FROZEN_WEIGHTS=1 from its start). What that gives is
two bounds of a part, and its least time is the greater one: its arithmetic at the best rate that *any* shape of its
kind reached, and its weights through memory. So a shape that is computed badly everywhere does not count as fast:
"alone_ms" beside "least_ms" shows which those are. Norms, activations and everything else that moves data count as
nothing. Attention has the rate of dense layers.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kerasdiff.bench.machine import cores
from kerasdiff.bench.parts import Part

# Bytes that no processor's caches hold: what is read for the bandwidth, and from where on weights pass through memory.
_BEYOND_CACHES = 2**29
_SECONDS = 0.05
_CALL_SECONDS = 0.004
_GUESSED_RATE = 2e11
_MOST_SCORES = 2**26


def ceilings(parts: Mapping[Part, int], precisions: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`least_times` in each precision, of parts and how often a step has each."""
    import tensorflow as tf

    bandwidth, found = _bandwidth(), {}
    for precision in precisions:
        seconds = {part: _seconds(part, precision) for part in parts}
        # The best of each kind with XLA as well, so that nobody is measured against a compiler's weakness.
        for kind in {kind_of(part) for part in parts}:
            best = max((part for part in parts if kind_of(part) == kind), key=lambda part: part.macs / seconds[part])
            seconds[best] = min(seconds[best], _seconds(best, precision, jit_compile=True))
        found[precision] = least_times(parts, seconds, bandwidth, tf.as_dtype(precision).size)
    return found


def kind_of(part: Part) -> str:
    """Of a rate: "convolution" or "product"."""
    return "convolution" if part.kind == "convolution" else "product"


def least_times(
    parts: Mapping[Part, int], seconds: Mapping[Part, float], bandwidth: float, itemsize: int
) -> dict[str, Any]:
    """The least time of a step from what was measured.

    `seconds` are those of each part alone, `bandwidth` is in bytes per second and `itemsize` the bytes of a weight.
    Returns "step_s", the sum of the least times of its parts; "alone_s", the sum of what they took; "gflops" by kind, a
    multiply-add counting as two; "bandwidth_gb_s"; and "parts". Weights that fit into caches altogether take no time.
    """
    rates: dict[str, float] = {}
    for part in parts:
        rates[kind_of(part)] = max(rates.get(kind_of(part), 0.0), 2 * part.macs / seconds[part])
    beyond = itemsize * sum(part.weights * count for part, count in parts.items()) > _BEYOND_CACHES
    least = {
        part: max(2 * part.macs / rates[kind_of(part)], itemsize * part.weights / bandwidth if beyond else 0.0)
        for part in parts
    }
    return {
        "step_s": sum(least[part] * count for part, count in parts.items()),
        "alone_s": sum(seconds[part] * count for part, count in parts.items()),
        "gflops": {kind: rate / 1e9 for kind, rate in rates.items()},
        "bandwidth_gb_s": bandwidth / 1e9,
        "parts": [
            {
                "kind": part.kind,
                "shape": list(part.shape),
                "count": count,
                "gmac": part.macs / 1e9,
                "least_ms": 1e3 * least[part],
                "alone_ms": 1e3 * seconds[part],
            }
            for part, count in parts.items()
        ],
    }


def _seconds(part: Part, precision: str, jit_compile: bool = False) -> float:
    """Of the fastest call of one part."""
    import tensorflow as tf

    # Several in a call, one after the other, each with inputs of its own: calling takes time too.
    repeats = int(np.clip(_CALL_SECONDS * _GUESSED_RATE / (2 * part.macs), 1, 8))
    operation, sizes, share = _operation(part, precision)
    inputs = [_values(size, precision, seed) for seed in range(repeats) for size in sizes]

    def call(*inputs: Any) -> Any:
        total = None
        for first in range(0, len(inputs), len(sizes)):
            with tf.control_dependencies([] if total is None else [total]):
                result = operation(*inputs[first : first + len(sizes)])
            # One number is returned: copying the result is no part of the work. XLA would compute no other one.
            rank = len(result.shape)
            one = tf.reduce_max(result) if jit_compile else tf.slice(result, [0] * rank, [1] * rank)
            total = one if total is None else total + one
        return total

    call = tf.function(call, autograph=False, jit_compile=jit_compile)
    return _fastest(lambda: call(*inputs).numpy()) * share / repeats


def _operation(part: Part, precision: str) -> tuple[Callable[..., Any], list[tuple[int, ...]], float]:
    """What computes it, the shapes of its inputs, and how often it does all of it: attention is done in slices."""
    import tensorflow as tf

    if part.kind == "convolution":
        rows, height, width, channels, filters, kernel_size, stride = part.shape
        kernel = _values((kernel_size, kernel_size, channels, filters), precision, 0)
        sides = (stride * (side - 1) + kernel_size for side in (height, width))
        return lambda x: tf.nn.conv2d(x, kernel, stride, "VALID"), [(rows, *sides, channels)], 1
    if part.kind == "linear":
        tokens, channels, units = part.shape
        matrix = _values((channels, units), precision, 0)
        return lambda x: tf.matmul(x, matrix), [(tokens, channels)], 1
    rows, heads, queries, keys, head = part.shape
    slice_ = max(1, min(queries, _MOST_SCORES // (rows * heads * keys)))
    shapes: list[tuple[int, ...]] = [(rows, heads, slice_, head), (rows, heads, head, keys), (rows, heads, keys, head)]
    return lambda q, k, v: tf.matmul(tf.matmul(q, k), v), shapes, queries / slice_


def _values(shape: tuple[int, ...], precision: str, seed: int) -> Any:
    import tensorflow as tf

    return tf.cast(tf.random.stateless_uniform(shape, (seed, 0), -1e-2, 1e-2), precision)


def _bandwidth() -> float:
    """Bytes per second of a plain read, by TensorFlow or, on a processor, by NumPy in every core."""
    import tensorflow as tf

    values = tf.ones([_BEYOND_CACHES // 4])
    seconds = _fastest(lambda: tf.reduce_max(values).numpy())
    if not tf.config.list_physical_devices("GPU"):
        slices = np.array_split(values.numpy(), cores())
        with concurrent.futures.ThreadPoolExecutor(len(slices)) as pool:
            seconds = min(seconds, _fastest(lambda: list(pool.map(np.max, slices))))
    return _BEYOND_CACHES / seconds


def _fastest(function: Callable[[], Any]) -> float:
    """Seconds of the fastest call within `_SECONDS`, but of three at least, after a first one."""
    function()
    fastest, calls, ends = float("inf"), 0, time.perf_counter() + _SECONDS
    while calls < 3 or time.perf_counter() < ends:
        began = time.perf_counter()
        function()
        fastest, calls = min(fastest, time.perf_counter() - began), calls + 1
    return fastest
