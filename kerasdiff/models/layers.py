"""Layers that the text encoder, the U-Net and the autoencoder share.

Every layer is built from known channel counts (`build` takes no input shape from a call), so that a full-size network
is built without tracing anything. Names follow the published checkpoints.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import ops

from kerasdiff import validation
from kerasdiff.models.blocks import BlockSpec
from kerasdiff.models.network_configs import UNetConfig, VAEConfig
from kerasdiff.runtime import backend

# Name and shape of a parameter -> its value, e.g. ("unet.conv_in.kernel", (3, 3, 4, 320)). The array is copied before
# the next call, so that a source may reuse one buffer, unless it has a true attribute `lasting`: then parameters may be
# its arrays themselves. A tensor is taken as it is. If it has a method `finish`, that is called at the end.
Source = Callable[[str, tuple[int, ...]], Any]
_SOURCE: contextvars.ContextVar[Source | None] = contextvars.ContextVar("source", default=None)
# Collects names and shapes instead of parameters being made.
_RECORD: contextvars.ContextVar[dict[str, tuple[int, ...]] | None] = contextvars.ContextVar("record", default=None)
_SLICES: contextvars.ContextVar[int] = contextvars.ContextVar("slices", default=1)
_WRAPPED: contextvars.ContextVar[str] = contextvars.ContextVar("wrapped", default="")
# Attention with fewer scores for one image takes little memory, however it is computed.
_FEW_SCORES = 2**22


@contextlib.contextmanager
def _set(variable: contextvars.ContextVar, value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def values_from(source: Source) -> contextlib.AbstractContextManager[None]:
    """Inside, every parameter that is built gets its value from `source`: nothing is initialised twice."""
    return _set(_SOURCE, source)


def parameters_of(layer: keras.layers.Layer) -> dict[str, tuple[int, ...]]:
    """The name and shape of every parameter that building `layer` would make; it is of no use afterwards."""
    shapes: dict[str, tuple[int, ...]] = {}
    with _set(_RECORD, shapes):
        layer.build()
    return shapes


def attention_slices(count: int) -> contextlib.AbstractContextManager[None]:
    """Inside, large attentions process their queries in `count` slices, one after another, to save memory.

    It holds for what is traced inside; results differ by rounding only.
    """
    return _set(_SLICES, validation.integer("attention_slices", count, 1))


def wrapping(tile: str | None) -> contextlib.AbstractContextManager[None]:
    """Inside, convolutions go on at the opposite side of a picture along "x", "y" or "xy", so that it is seamless.

    It holds for what is traced inside. As in AUTOMATIC1111's interface, every padding of a convolution is circular; the
    row and the column of zeros that the autoencoder's encoder adds before it halves a picture are none of one.
    """
    return _set(_WRAPPED, tile or "")


def padded(inputs, rows: tuple[int, int], columns: tuple[int, int]):
    """(B, h, w, C) with pixels before and behind: zeros, or those of the opposite side where the picture wraps."""
    around = {"y": (1, *rows), "x": (2, *columns)}
    for axis, before, behind in (around.pop(name) for name in _WRAPPED.get()):
        head, tail = (slice(None),) * axis, inputs.shape[axis]
        parts = [inputs[(*head, slice(tail - before, None))], inputs, inputs[(*head, slice(None, behind))]]
        inputs = ops.concatenate([part for part in parts if part.shape[axis]], axis=axis)
    widths = {axis: (before, behind) for axis, before, behind in around.values()}
    return ops.pad(inputs, [widths.get(axis, (0, 0)) for axis in range(4)]) if widths else inputs


class Sourced(keras.layers.Layer):
    """A leaf layer whose parameters can come from a `Source` at the moment they are made."""

    def add_weight(self, *args, **kwargs):
        name = f"{self.path}.{kwargs['name']}".replace("/", ".")
        record, source = _RECORD.get(), _SOURCE.get()
        if record is not None:
            record[name] = tuple(kwargs["shape"] if "shape" in kwargs else args[0])
            return None
        if source is not None:
            kwargs["initializer"] = lambda shape, dtype: backend.adopt(
                source(name, shape), dtype, getattr(source, "lasting", False)
            )
        return super().add_weight(*args, **kwargs)


class Dense(Sourced, keras.layers.Dense):
    """`keras.layers.Dense` as one product of matrices, so that the bias is added in the same kernel."""

    def call(self, inputs):
        if len(inputs.shape) == 2:
            return super().call(inputs)
        flat = ops.reshape(inputs, (-1, inputs.shape[-1]))
        return ops.reshape(super().call(flat), (-1, *inputs.shape[1:-1], self.units))

    def halves(self, inputs):
        """The two halves of its result for (N, C), as two products, so that nothing is split afterwards."""
        kernels, biases = (
            ops.split(ops.cast(each, self.compute_dtype), 2, axis=-1) for each in (self.kernel, self.bias)
        )
        return [ops.add(ops.matmul(inputs, kernel), bias) for kernel, bias in zip(kernels, biases, strict=True)]


class Embedding(Sourced, keras.layers.Embedding):
    """`keras.layers.Embedding`."""


class LayerNorm(Sourced, keras.layers.LayerNormalization):
    """`keras.layers.LayerNormalization` over the last axis, in float32 throughout."""

    def call(self, inputs):
        return ops.cast(backend.layer_norm(inputs, self.gamma, self.beta, self.epsilon), self.compute_dtype)


class GroupNorm(Sourced, keras.layers.GroupNormalization):
    """Group normalisation (Wu & He 2018) over the last axis of (B, h, w, C), statistics in float32.

    Same numbers as `keras.layers.GroupNormalization`.
    """

    def call(self, inputs, offset=None):
        """`offset` (B, C) is added to the inputs first."""
        return backend.group_norm(inputs, self.groups, self.gamma, self.beta, self.epsilon, offset)


class Conv(Sourced, keras.layers.Conv2D):
    """A 2D convolution with torch's padding: `padding` pixels on each side.

    None is Keras's "same"; with stride 2 that is one row and one column at the end, as the autoencoder has it.
    """

    def __init__(self, filters: int, kernel_size: int = 3, strides: int = 1, padding: int | None = None, **kwargs):
        super().__init__(filters, kernel_size, strides, padding="same" if padding is None else "valid", **kwargs)
        self.pixels = padding

    def convolution_op(self, inputs, kernel):
        pixels = self.pixels
        if pixels is None and _WRAPPED.get() and self.strides == (1, 1):
            pixels = self.kernel_size[0] // 2  # as many as "same" has zeros
        if not pixels:
            return super().convolution_op(inputs, kernel)
        sides = pixels, pixels
        return ops.conv(padded(inputs, sides, sides), kernel, strides=list(self.strides), padding="valid")


def silu(x):
    """x * sigmoid(x).

    TensorFlow's own has a gradient of its own, which is registered for ever and, with it, every graph that uses it and
    every weight that such a graph reads: no model would ever leave memory.
    """
    return x * ops.sigmoid(x)


def attend(queries, keys, values, num_heads: int, causal: bool = False, seen=None):
    """Scaled dot-product attention of (B, T, C) queries over (B, S, C) keys and values.

    Keys where `seen`, bool (B, S), is false are not attended to.
    """
    head_width = queries.shape[-1] // num_heads

    def split(x, order):
        return ops.transpose(ops.reshape(x, (-1, x.shape[1], num_heads, head_width)), order)

    # The scale goes to the smaller of the two: a text has fewer keys than a picture has queries.
    scale = ops.cast(head_width**-0.5, queries.dtype)
    queries, keys = (queries, keys * scale) if keys.shape[1] < queries.shape[1] else (queries * scale, keys)
    queries = split(queries, (0, 2, 1, 3))
    keys = split(keys, (0, 2, 3, 1))
    values = split(values, (0, 2, 1, 3))
    length = queries.shape[2]
    count = 1 if num_heads * length * keys.shape[3] < _FEW_SCORES else min(_SLICES.get(), length)
    mixed = _mix_slices(queries, keys, values, causal, count, seen)
    return ops.reshape(ops.transpose(mixed, (0, 2, 1, 3)), (-1, length, num_heads * head_width))


def _mix_slices(queries, keys, values, causal: bool, count: int, seen=None):
    """The result of `_mix`, computed in slices of the queries that differ by at most one row in size."""
    if count == 1:
        return _mix(queries, keys, values, 0 if causal else None, seen)
    length = queries.shape[2]
    mixed: list[Any] = []
    for index in range(count):
        first, end = index * length // count, (index + 1) * length // count
        part = queries[:, :, first:end]
        # Or a graph would compute several slices at once.
        part = backend.after(part, mixed[-1]) if mixed else part
        mixed.append(_mix(part, keys, values, first if causal else None, seen))
    return ops.concatenate(mixed, axis=2)


def _mix(queries, keys, values, first: int | None, seen=None):
    """Attention of queries (B, H, T, d) over keys (B, H, d, S) and values (B, H, S, d).

    With causal attention the queries are those from position `first` on, and see no later key.
    """
    scores = ops.matmul(queries, keys)
    if first is not None:
        positions, others = ops.arange(first, first + scores.shape[2]), ops.arange(scores.shape[3])
        # Finite: an infinity here has made NaNs in half precision before.
        scores = ops.where(positions[:, None] >= others, scores, ops.cast(-3e4, scores.dtype))
    if seen is not None:
        scores = ops.where(seen[:, None, None], scores, ops.cast(-3e4, scores.dtype))
    if scores.shape[3] == 1:  # of which Keras would warn
        weights = ops.ones_like(scores)
    elif scores.dtype == "float16":
        weights = ops.cast(ops.softmax(ops.cast(scores, "float32")), "float16")
    else:
        weights = ops.softmax(scores)
    return ops.matmul(weights, values)


def unshuffled(x, factor: int):
    """A picture (B, h, w, C) as (B, h / factor, w / factor, C * factor**2), channels in torch's order."""
    if factor == 1:
        return x
    _, height, width, channels = x.shape
    x = ops.reshape(x, (-1, height // factor, factor, width // factor, factor, channels))
    return ops.reshape(
        ops.transpose(x, (0, 1, 3, 5, 2, 4)), (-1, height // factor, width // factor, channels * factor**2)
    )


class Composite(keras.layers.Layer):
    """A layer of layers, whose weights are created in the order in which these were added."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._parts = []

    def add(self, layer_class, *args, in_channels: int | None = None, **kwargs):
        """Makes a layer of the same type as this one; `in_channels` are those of its input, if it must be told."""
        layer = layer_class(*args, dtype=self.dtype_policy, **kwargs)
        self._parts.append((layer, in_channels))
        return layer

    def build(self, _=None):
        for layer, in_channels in self._parts:
            layer.build((None, None, None, in_channels))
        self.built = True


class ResnetBlock(Composite):
    """Two convolutions around a residual, with an optional time embedding added in between."""

    def __init__(self, block: BlockSpec, config: UNetConfig | VAEConfig, time_width: int | None = None, **kwargs):
        super().__init__(**kwargs)
        before, after = block.in_channels, block.out_channels
        norm = {"groups": config.norm_groups, "epsilon": config.norm_epsilon}
        self.norm1 = self.add(GroupNorm, **norm, in_channels=before, name="norm1")
        self.conv1 = self.add(Conv, after, in_channels=before, name="conv1")
        self.time_emb_proj = self.conv_shortcut = None
        if time_width is not None:
            self.time_emb_proj = self.add(Dense, after, in_channels=time_width, name="time_emb_proj")
        self.norm2 = self.add(GroupNorm, **norm, in_channels=after, name="norm2")
        self.conv2 = self.add(Conv, after, in_channels=after, name="conv2")
        if before != after:
            self.conv_shortcut = self.add(Conv, after, 1, in_channels=before, name="conv_shortcut")

    def call(self, inputs, time_embedding=None):
        x = self.conv1(silu(self.norm1(inputs)))
        time = None if self.time_emb_proj is None else self.time_emb_proj(silu(time_embedding))
        x = self.conv2(silu(self.norm2(x, time)))
        return x + (inputs if self.conv_shortcut is None else self.conv_shortcut(inputs))


class Upsample(Composite):
    """Nearest-neighbour doubling followed by a 3 x 3 convolution, with 4/9 of its products.

    After doubling, a 3 x 3 window meets only 2 x 2 different pixels. Each of the four phases of the result is a
    2 x 2 convolution of the small picture, with sums of the 3 x 3 kernel's rows and columns. Both wrap alike: what lies
    beyond a side of the doubled picture is one pixel of the small one's opposite side, twice.
    """

    def __init__(self, channels: int, use_bias: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.conv = self.add(Conv, channels, in_channels=channels, use_bias=use_bias, name="conv")

    def call(self, inputs, size=None):
        """`size` is that of the result, (height, width); each may be odd, one less than double."""
        doubled = tuple(None if side is None else 2 * side for side in inputs.shape[1:3])
        if size is not None and tuple(size) != doubled:
            # At the edge a window meets no pixel twice: what is cut off comes before the convolution.
            return self.conv(backend.interleave([[inputs] * 2] * 2)[:, : size[0], : size[1]])
        kernel = ops.cast(self.conv.kernel, self.compute_dtype)
        bias = ops.cast(self.conv.bias, self.compute_dtype) if self.conv.use_bias else None
        rows = []
        for row in _halves(kernel, 0):
            phases = []
            for phase in _halves(row, 1):
                above, left = 1 - len(rows), 1 - len(phases)
                around = padded(inputs, (above, 1 - above), (left, 1 - left))
                pixels = ops.conv(around, phase, padding="valid")
                phases.append(pixels if bias is None else ops.add(pixels, bias))
            rows.append(phases)
        return backend.interleave(rows)


def _halves(kernel, axis: int):
    """What is left of three taps along an axis for the first and for the second pixel of a doubled one."""
    first, second, third = ops.split(kernel, 3, axis=axis)
    return ops.concatenate([first, second + third], axis=axis), ops.concatenate([first + second, third], axis=axis)


class Downsample(Composite):
    """A convolution with stride 2; `padding` as in `Conv`."""

    def __init__(self, channels: int, padding: int | None, **kwargs):
        super().__init__(**kwargs)
        self.conv = self.add(Conv, channels, strides=2, padding=padding, in_channels=channels, name="conv")

    def call(self, inputs):
        return self.conv(inputs)
