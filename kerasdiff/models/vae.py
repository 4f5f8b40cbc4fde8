"""The autoencoder of latent diffusion (Rombach et al. 2022, arXiv:2112.10752), in its two halves."""

from keras import ops

from kerasdiff.models.blocks import BlockSpec, decoder_blocks, encoder_blocks
from kerasdiff.models.layers import Composite, Conv, Dense, Downsample, GroupNorm, ResnetBlock, Upsample, attend, silu
from kerasdiff.models.network_configs import VAEConfig


class _Half(Composite):
    """What encoder and decoder share: blocks between two convolutions."""

    def __init__(self, config: VAEConfig, **kwargs):
        super().__init__(**kwargs)
        self.config = config

    def _add_blocks(self, blocks: list[BlockSpec], in_channels: int, out_channels: int) -> None:
        config, first, last = self.config, blocks[0].in_channels, blocks[-1].out_channels
        self.conv_in = self.add(Conv, first, in_channels=in_channels, name="conv_in")
        self.blocks = []
        for block in blocks:
            if block.kind == "downsamplers":
                self.blocks.append(self.add(Downsample, block.out_channels, None, name=block.name))
            elif block.kind == "upsamplers":
                self.blocks.append(self.add(Upsample, block.out_channels, name=block.name))
            else:
                self.blocks.append(self.add(ResnetBlock, block, config, name=block.name))
                if block.num_heads:
                    self.blocks.append(self.add(PixelAttention, config, name=block.attention))
        self.norm_out = self.add(
            GroupNorm, config.norm_groups, epsilon=config.norm_epsilon, in_channels=last, name="conv_norm_out"
        )
        self.conv_out = self.add(Conv, out_channels, in_channels=last, name="conv_out")

    def _through_blocks(self, x):
        for layer in (self.conv_in, *self.blocks):
            x = layer(x)
        return self.conv_out(silu(self.norm_out(x)))


class Encoder(_Half):
    """Pictures in [-1, 1] (B, H, W, 3) to the mean of their latents (B, H/8, W/8, 4), scaled.

    `moments` gives the unscaled mean and log variance instead, both (B, H/8, W/8, 4).
    """

    def __init__(self, config: VAEConfig, **kwargs):
        super().__init__(config, **{"name": "encoder", **kwargs})
        moments = 2 * config.latent_channels
        self._add_blocks(list(encoder_blocks(config)), 3, moments)
        self.quant_conv = self.add(Conv, moments, 1, in_channels=moments, name="quant_conv")

    def moments(self, pictures):
        return ops.split(self.quant_conv(self._through_blocks(pictures)), 2, axis=-1)

    def call(self, pictures):
        mean, _ = self.moments(pictures)
        return mean * ops.cast(self.config.scaling_factor, mean.dtype)


class Decoder(_Half):
    """Latents (B, h, w, 4), scaled as the U-Net sees them, to pictures around [-1, 1] (B, 8h, 8w, 3)."""

    def __init__(self, config: VAEConfig, **kwargs):
        super().__init__(config, **{"name": "decoder", **kwargs})
        channels = config.latent_channels
        self.post_quant_conv = self.add(Conv, channels, 1, in_channels=channels, name="post_quant_conv")
        self._add_blocks(list(decoder_blocks(config)), channels, 3)

    def call(self, latents):
        x = latents * ops.cast(1.0 / self.config.scaling_factor, latents.dtype)
        return self._through_blocks(self.post_quant_conv(x))


class PixelAttention(Composite):
    """Single-headed self-attention over all pixels, with a residual."""

    def __init__(self, config: VAEConfig, **kwargs):
        super().__init__(**kwargs)
        width = config.widths[-1]
        self.norm = self.add(
            GroupNorm, config.norm_groups, epsilon=config.norm_epsilon, in_channels=width, name="group_norm"
        )
        names = ("to_q", "to_k", "to_v", "to_out.0")
        self.projections = [self.add(Dense, width, in_channels=width, name=name) for name in names]

    def call(self, inputs):
        _, height, width, channels = inputs.shape
        x = ops.reshape(self.norm(inputs), (-1, height * width, channels))
        to_q, to_k, to_v, to_out = self.projections
        x = to_out(attend(to_q(x), to_k(x), to_v(x), num_heads=1))
        return inputs + ops.reshape(x, (-1, height, width, channels))
