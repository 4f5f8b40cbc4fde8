"""A small autoencoder that stands in for a large one: TAESD (github.com/madebyollin/taesd), in its two halves."""

from keras import ops

from kerasdiff.models.layers import Composite, Conv, Upsample, silu
from kerasdiff.models.network_configs import TinyVAEConfig

_ACTIVATIONS = {
    "relu": ops.relu,
    "silu": silu,
    "gelu": lambda x: ops.gelu(x, approximate=False),
    "mish": lambda x: x * ops.tanh(ops.softplus(x)),
}
# Latents beyond this count for hardly more.
_CLAMP = 3.0


class _TinyHalf(Composite):
    """What both halves share: levels of residual blocks. Layers are numbered through, as in diffusers' files."""

    def __init__(self, config: TinyVAEConfig, **kwargs):
        super().__init__(**kwargs)
        self.config = config
        self._steps: list = []

    def _add_blocks(self, width: int, count: int) -> None:
        for _ in range(count):
            self._append(TinyBlock, width, self.config.activation)

    def _append(self, layer_class, *args, **kwargs) -> None:
        name = f"layers.{len(self._steps)}"
        self._steps.append(self.add(layer_class, *args, name=name, **kwargs))

    def _append_step(self, function) -> None:
        self._steps.append(function)

    def _through(self, x):
        for layer in self._steps:
            x = layer(x)
        return x


class TinyEncoder(_TinyHalf):
    """Pictures in [-1, 1] (B, H, W, 3) to latents (B, H/8, W/8, 4), scaled as the U-Net sees them."""

    def __init__(self, config: TinyVAEConfig, **kwargs):
        super().__init__(config, **{"name": "encoder", **kwargs})
        width = config.encoder_width
        for level, count in enumerate(config.encoder_blocks):
            if level == 0:
                self._append(Conv, width, in_channels=3)
            else:
                self._append(Conv, width, strides=2, padding=1, use_bias=False, in_channels=width)
            self._add_blocks(width, count)
        self._append(Conv, config.latent_channels, in_channels=width)

    def call(self, pictures):
        latents = self._through((pictures + 1) * 0.5)
        return latents * ops.cast(self.config.scaling_factor, latents.dtype)


class TinyDecoder(_TinyHalf):
    """Latents (B, h, w, 4), scaled as the U-Net sees them, to pictures around [-1, 1] (B, 8h, 8w, 3)."""

    def __init__(self, config: TinyVAEConfig, **kwargs):
        super().__init__(config, **{"name": "decoder", **kwargs})
        width, last = config.decoder_width, len(config.decoder_blocks) - 1
        self._append(Conv, width, in_channels=config.latent_channels)
        self._append_step(_ACTIVATIONS[config.activation])
        for level, count in enumerate(config.decoder_blocks):
            self._add_blocks(width, count)
            if level == last:
                self._append(Conv, 3, in_channels=width)
            else:
                self._append_step(lambda x: x)  # diffusers doubles here; the next layer does both
                self._append(Upsample, width, use_bias=False)

    def call(self, latents):
        x = latents * ops.cast(1 / (_CLAMP * self.config.scaling_factor), latents.dtype)
        return self._through(ops.tanh(x) * _CLAMP) * 2 - 1


class TinyBlock(Composite):
    """Three convolutions with an activation in between, added to what came in."""

    def __init__(self, width: int, activation: str, **kwargs):
        super().__init__(**kwargs)
        self.activation = _ACTIVATIONS[activation]
        self.convolutions = [self.add(Conv, width, in_channels=width, name=f"conv.{index}") for index in (0, 2, 4)]

    def call(self, inputs):
        first, second, third = self.convolutions
        x = third(self.activation(second(self.activation(first(inputs)))))
        return ops.relu(x + inputs)
