"""What layers ask of a backend that has nothing special for it: Keras's own operations."""

from collections.abc import Callable, Sequence
from typing import Any


def channel_moments(x: Any) -> tuple[Any, Any]:
    """Means and variances of each channel of (B, h, w, C), each float32 (B, C)."""
    from keras import ops

    _, height, width, channels = x.shape
    # Along one axis at a time: the sum over pixels then goes through memory in order.
    pixels = ops.cast(ops.reshape(x, (-1, height * width, channels)), "float32")
    means = ops.mean(pixels, axis=1)
    return means, ops.mean(ops.square(pixels - means[:, None]), axis=1)


def scale_and_shift(x: Any, scale: Any, shift: Any) -> Any:
    """x (B, h, w, C) * scale (B, C) + shift (B, C), computed in float32, in the type of x."""
    from keras import ops

    scaled = ops.cast(x, "float32") * scale[:, None, None] + shift[:, None, None]
    return ops.cast(scaled, x.dtype)


def group_norm(
    x: Any,
    groups: int,
    gamma: Any,
    beta: Any,
    epsilon: float,
    offset: Any = None,
    moments: Callable[[Any], tuple[Any, Any]] = channel_moments,
    scaled: Callable[[Any, Any, Any], Any] = scale_and_shift,
) -> Any:
    """Group normalisation of x + `offset`, (B, h, w, C) and (B, C), with statistics in float32, in the type of x.

    Statistics are taken per channel, which reads memory in order, and folded into one scale and one shift per channel,
    so that normalising is one product and one sum.
    """
    from keras import ops

    if offset is not None:
        x = x + offset[:, None, None, :]
    channels = x.shape[-1]
    grouped = (-1, groups, channels // groups)
    means, variances = moments(x)
    means, variances = ops.reshape(means, grouped), ops.reshape(variances, grouped)
    mean = ops.mean(means, axis=2, keepdims=True)
    variance = ops.mean(variances + ops.square(means - mean), axis=2, keepdims=True)
    gamma, beta = (ops.reshape(ops.cast(each, "float32"), (1, *grouped[1:])) for each in (gamma, beta))
    scale = ops.rsqrt(variance + epsilon) * gamma
    shift = beta - mean * scale
    return scaled(x, ops.reshape(scale, (-1, channels)), ops.reshape(shift, (-1, channels)))


def layer_norm(x: Any, gamma: Any, beta: Any, epsilon: float) -> Any:
    """Layer normalisation over the last axis, float32 throughout, in fewer passes than Keras's own."""
    from keras import ops

    gamma, beta = (ops.cast(each, "float32") for each in (gamma, beta))
    centred = ops.cast(x, "float32")
    centred = centred - ops.mean(centred, axis=-1, keepdims=True)
    variance = ops.mean(ops.square(centred), axis=-1, keepdims=True)
    return centred * ops.rsqrt(variance + epsilon) * gamma + beta


def interleave(phases: Sequence[Sequence[Any]]) -> Any:
    """2 x 2 pictures (B, h, w, C) as one (B, 2h, 2w, C), of which they are the pixels of every other row and column."""
    from keras import ops

    _, height, width, channels = phases[0][0].shape
    rows = [ops.stack(list(row), axis=3) for row in phases]
    return ops.reshape(ops.stack(rows, axis=2), (-1, 2 * height, 2 * width, channels))


def weighted_sums(weights: Any, terms: Sequence[Any]) -> list[Any]:
    """For weights (B, R, T) and T terms (B, h, w, C): R sums of products.

    Not a matrix product: a GPU would round its inputs to TF32.
    """
    rows, columns = weights.shape[1:]
    each = lambda row, column: weights[:, row, column][:, None, None, None]  # noqa: E731
    return [sum(each(row, column) * terms[column] for column in range(columns)) for row in range(rows)]


def after(x: Any, done: Any) -> Any:
    """x, held back until `done` is computed: a sum with a zero for which all of `done` must be known.

    XLA's own barrier would not do: on a CPU it is taken out before XLA decides in which order to compute.
    """
    from keras import ops

    never = ops.greater(ops.max(done), float("inf"))
    return x + ops.cast(never, x.dtype)
