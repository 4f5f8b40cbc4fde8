"""What layers ask of a backend that has nothing special for it: Keras's own operations."""

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


def after(x: Any, done: Any) -> Any:
    """x, held back until `done` is computed: a sum with a zero for which all of `done` must be known.

    XLA's own barrier would not do: on a CPU it is taken out before XLA decides in which order to compute.
    """
    from keras import ops

    never = ops.greater(ops.max(done), float("inf"))
    return x + ops.cast(never, x.dtype)
