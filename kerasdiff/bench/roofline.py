"""The best rate of this device: large matrix products and convolutions, alone, through TensorFlow."""

import time
from collections.abc import Callable, Sequence
from typing import Any

SECONDS = 0.3


def ceilings(precisions: Sequence[str]) -> dict[str, dict[str, float]]:
    """GFLOP/s in each precision: {"float32": {"matmul": ..., "convolution": ...}}; a multiply-add counts as two.

    Each is the better one of with and without XLA, so that no subject is measured against a compiler's weakness.
    """
    return {precision: {name: _best(case, precision) for name, case in _CASES.items()} for precision in precisions}


def _matmul(precision: str, large: bool) -> tuple[Callable[[], Any], float]:
    import tensorflow as tf

    size = 8192 if large else 2048
    a, b = (tf.cast(tf.random.stateless_normal((size, size), (seed, 0)), precision) for seed in (1, 2))
    # One number is returned: copying the result is no part of the work.
    return lambda: tf.reduce_max(tf.matmul(a, b)), 2.0 * size**3


def _convolution(precision: str, large: bool) -> tuple[Callable[[], Any], float]:
    import tensorflow as tf

    # A layer of the U-Net at its second resolution, with guidance.
    batch, side, channels = (16, 64, 640) if large else (2, 32, 640)
    x = tf.cast(tf.random.stateless_normal((batch, side, side, channels), (1, 0)), precision)
    kernel = tf.cast(tf.random.stateless_normal((3, 3, channels, channels), (2, 0)), precision)
    work = 2.0 * batch * side**2 * 9 * channels**2
    return lambda: tf.reduce_max(tf.nn.conv2d(x, kernel, 1, "SAME")), work


_CASES = {"matmul": _matmul, "convolution": _convolution}


def _best(case: Callable[[str, bool], tuple[Callable[[], Any], float]], precision: str) -> float:
    import tensorflow as tf

    function, work = case(precision, bool(tf.config.list_physical_devices("GPU")))
    return max(work / _fastest(tf.function(function, jit_compile=jit)) for jit in (False, True)) / 1e9


def _fastest(function: Callable[[], Any]) -> float:
    """Seconds of the fastest call within `SECONDS`."""
    function().numpy()
    fastest, ends = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < ends:
        began = time.perf_counter()
        function().numpy()
        fastest = min(fastest, time.perf_counter() - began)
    return fastest
