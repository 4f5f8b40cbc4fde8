"""Upscalers of ESRGAN's kind: pictures in 0 to 1 (B, h, w, 3) to the same, larger."""

import keras
from keras import ops

from kerasdiff.models.layers import Composite, Conv, Sourced, Upsample, unshuffled
from kerasdiff.models.upscaler_config import CompactConfig, RRDBConfig

# What each residual is multiplied by.
_RESIDUAL = 0.2
_LAYERS = 5


def _leaky(x):
    return ops.leaky_relu(x, 0.2)


class _Network(Composite):
    """Sees its pictures in float32, whatever it computes in: eight bits are too many for bfloat16."""

    def __init__(self, config, **kwargs):
        super().__init__(autocast=False, **{"name": "upscaler", **kwargs})
        self.config = config


class DenseBlock(Composite):
    """Five convolutions, each of which sees what all before it gave."""

    def __init__(self, config: RRDBConfig, **kwargs):
        super().__init__(**kwargs)
        width, growth = config.features, config.growth
        self.residual = (
            self.add(Conv, growth, 1, use_bias=False, in_channels=width, name="conv1x1") if config.plus else None
        )
        self.layers = []
        for index in range(_LAYERS):
            channels = width if index == _LAYERS - 1 else growth
            self.layers.append(self.add(Conv, channels, in_channels=width + index * growth, name=f"conv{index + 1}"))

    def call(self, inputs):
        known = [inputs]
        for index, layer in enumerate(self.layers[:-1]):
            x = _leaky(layer(known[0] if len(known) == 1 else ops.concatenate(known, axis=-1)))
            if self.residual is not None and index % 2:
                x = x + (self.residual(inputs) if index == 1 else known[2])
            known.append(x)
        return inputs + _RESIDUAL * self.layers[-1](ops.concatenate(known, axis=-1))


class RRDB(Composite):
    """A residual in residual dense block."""

    def __init__(self, config: RRDBConfig, **kwargs):
        super().__init__(**kwargs)
        self.blocks = [self.add(DenseBlock, config, name=f"rdb{number}") for number in (1, 2, 3)]

    def call(self, inputs):
        x = inputs
        for block in self.blocks:
            x = block(x)
        return inputs + _RESIDUAL * x


class RRDBNet(_Network):
    """ESRGAN's generator (Wang et al. 2018, arXiv:1809.00219), as Real-ESRGAN has it (arXiv:2107.10833).

    Sides are multiples of `config.unshuffle`. Names are those of Real-ESRGAN's files.
    """

    def __init__(self, config: RRDBConfig, **kwargs):
        super().__init__(config, **kwargs)
        width = config.features
        self.conv_first = self.add(Conv, width, in_channels=3 * config.unshuffle**2, name="conv_first")
        self.blocks = [self.add(RRDB, config, name=f"body.{index}") for index in range(config.blocks)]
        self.conv_body = self.add(Conv, width, in_channels=width, name="conv_body")
        self.upsamplers = [self.add(Upsample, width, name=f"conv_up{number + 1}") for number in range(config.doublings)]
        self.conv_hr = self.add(Conv, width, in_channels=width, name="conv_hr")
        self.conv_last = self.add(Conv, 3, in_channels=width, name="conv_last")

    def call(self, pictures):
        x = first = self.conv_first(unshuffled(ops.cast(pictures, self.compute_dtype), self.config.unshuffle))
        for block in self.blocks:
            x = block(x)
        x = first + self.conv_body(x)
        for upsampler in self.upsamplers:
            x = _leaky(upsampler(x))
        return self.conv_last(_leaky(self.conv_hr(x)))


class PReLU(Sourced):
    """max(x, 0) + alpha * min(x, 0), with an alpha of each channel."""

    def build(self, shape):
        self.alpha = self.add_weight(name="alpha", shape=(shape[-1],), initializer=keras.initializers.Constant(0.25))
        self.built = True

    def call(self, inputs):
        return ops.maximum(inputs, 0) + ops.cast(self.alpha, self.compute_dtype) * ops.minimum(inputs, 0)


class SRVGGNetCompact(_Network):
    """The small network of Real-ESRGAN ("realesr-general-x4v3", "realesr-animevideov3").

    It computes at the picture's own size what is to be added to each pixel, enlarged.
    """

    def __init__(self, config: CompactConfig, **kwargs):
        super().__init__(config, **kwargs)
        width, self.body = config.features, []
        for index in range(config.blocks + 1):
            channels = width if index else 3
            self.body.append(self.add(Conv, width, in_channels=channels, name=f"body.{2 * index}"))
            self.body.append(self.add(PReLU, in_channels=width, name=f"body.{2 * index + 1}"))
        last = f"body.{2 * config.blocks + 2}"
        self.body.append(self.add(Conv, 3 * config.scale**2, in_channels=width, name=last))

    def call(self, pictures):
        x = ops.cast(pictures, self.compute_dtype)
        for layer in self.body:
            x = layer(x)
        return _shuffled(ops.cast(x, "float32"), pictures, self.config.scale)


def _shuffled(x, base, scale: int):
    """(B, h, w, C * scale**2), with (B, h, w, C) added to each pixel, as a picture (B, scale * h, scale * w, C)."""
    _, height, width, channels = base.shape
    x = ops.reshape(x, (-1, height, width, channels, scale**2)) + base[..., None]
    x = ops.transpose(ops.reshape(x, (-1, height, width, channels, scale, scale)), (0, 1, 4, 2, 5, 3))
    return ops.reshape(x, (-1, scale * height, scale * width, channels))
