"""The autoencoder of latent diffusion (Rombach et al. 2022, arXiv:2112.10752), in its two halves."""

from __future__ import annotations

from collections.abc import Iterable

import keras
from keras import ops

from kerasdiff.models.blocks import BlockSpec, decoder_blocks, encoder_blocks
from kerasdiff.models.config import VAEConfig
from kerasdiff.models.layers import Conv, Dense, Downsample, GroupNorm, ResnetBlock, Upsample, attend, silu


class _Half(keras.layers.Layer):
    """What encoder and decoder share: how their layers are made."""

    def __init__(self, config: VAEConfig, **kwargs):
        super().__init__(**kwargs)
        self.config = config

    def _make(self, blocks: Iterable[BlockSpec]) -> list[keras.layers.Layer]:
        layers: list[keras.layers.Layer] = []
        for block in blocks:
            if block.kind == "downsamplers":
                layers.append(Downsample(block.out_channels, None, dtype=self.dtype_policy, name=block.name))
            elif block.kind == "upsamplers":
                layers.append(Upsample(block.out_channels, dtype=self.dtype_policy, name=block.name))
            else:
                layers.append(ResnetBlock(block, self.config, dtype=self.dtype_policy, name=block.name))
                if block.num_heads:
                    layers.append(PixelAttention(self.config, dtype=self.dtype_policy, name=block.attention))
        return layers

    def _norm_out(self) -> GroupNorm:
        return GroupNorm(
            self.config.norm_groups, epsilon=self.config.norm_epsilon, dtype=self.dtype_policy, name="conv_norm_out"
        )

    def _conv(self, filters: int, kernel_size: int, name: str) -> Conv:
        return Conv(filters, kernel_size, dtype=self.dtype_policy, name=name)


class Encoder(_Half):
    """Pictures in [-1, 1] (B, H, W, 3) to the mean of their latents (B, H/8, W/8, 4), scaled.

    `moments` gives the unscaled mean and log variance instead, both (B, H/8, W/8, 4).
    """

    def __init__(self, config: VAEConfig, **kwargs):
        super().__init__(config, **{"name": "encoder", **kwargs})
        self.conv_in = self._conv(config.widths[0], 3, "conv_in")
        self.blocks = self._make(encoder_blocks(config))
        self.norm_out = self._norm_out()
        self.conv_out = self._conv(2 * config.latent_channels, 3, "conv_out")
        self.quant_conv = self._conv(2 * config.latent_channels, 1, "quant_conv")

    def build(self, _=None):
        self.conv_in.build((None, None, None, 3))
        for layer in self.blocks:
            layer.build()
        self.norm_out.build((None, None, None, self.config.widths[-1]))
        self.conv_out.build((None, None, None, self.config.widths[-1]))
        self.quant_conv.build((None, None, None, 2 * self.config.latent_channels))
        self.built = True

    def moments(self, pictures):
        x = self.conv_in(pictures)
        for layer in self.blocks:
            x = layer(x)
        x = self.quant_conv(self.conv_out(silu(self.norm_out(x))))
        return ops.split(x, 2, axis=-1)

    def call(self, pictures):
        mean, _ = self.moments(pictures)
        return mean * ops.cast(self.config.scaling_factor, mean.dtype)


class Decoder(_Half):
    """Latents (B, h, w, 4), scaled as the U-Net sees them, to pictures around [-1, 1] (B, 8h, 8w, 3)."""

    def __init__(self, config: VAEConfig, **kwargs):
        super().__init__(config, **{"name": "decoder", **kwargs})
        self.post_quant_conv = self._conv(config.latent_channels, 1, "post_quant_conv")
        self.conv_in = self._conv(config.widths[-1], 3, "conv_in")
        self.blocks = self._make(decoder_blocks(config))
        self.norm_out = self._norm_out()
        self.conv_out = self._conv(3, 3, "conv_out")

    def build(self, _=None):
        latents = (None, None, None, self.config.latent_channels)
        self.post_quant_conv.build(latents)
        self.conv_in.build(latents)
        for layer in self.blocks:
            layer.build()
        self.norm_out.build((None, None, None, self.config.widths[0]))
        self.conv_out.build((None, None, None, self.config.widths[0]))
        self.built = True

    def call(self, latents):
        x = latents * ops.cast(1.0 / self.config.scaling_factor, latents.dtype)
        x = self.conv_in(self.post_quant_conv(x))
        for layer in self.blocks:
            x = layer(x)
        return self.conv_out(silu(self.norm_out(x)))


class PixelAttention(keras.layers.Layer):
    """Single-headed self-attention over all pixels, with a residual."""

    def __init__(self, config: VAEConfig, **kwargs):
        super().__init__(**kwargs)
        self.width = config.widths[-1]
        dtype = self.dtype_policy
        self.norm = GroupNorm(config.norm_groups, epsilon=config.norm_epsilon, dtype=dtype, name="group_norm")
        self.projections = [Dense(self.width, dtype=dtype, name=name) for name in ("to_q", "to_k", "to_v", "to_out.0")]

    def build(self, _=None):
        self.norm.build((None, None, None, self.width))
        for layer in self.projections:
            layer.build((None, None, self.width))
        self.built = True

    def call(self, inputs):
        _, height, width, channels = inputs.shape
        x = ops.reshape(self.norm(inputs), (-1, height * width, channels))
        to_q, to_k, to_v, to_out = self.projections
        x = to_out(attend(to_q(x), to_k(x), to_v(x), num_heads=1))
        return inputs + ops.reshape(x, (-1, height, width, channels))
