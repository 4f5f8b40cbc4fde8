"""How many multiply-adds a request takes, from the model's configuration alone."""

from __future__ import annotations

import dataclasses

from kerasdiff.bench.task import Workload
from kerasdiff.models.blocks import decoder_blocks, unet_blocks
from kerasdiff.models.config import ModelConfig, TextEncoderConfig, UNetConfig, VAEConfig


@dataclasses.dataclass(frozen=True)
class MacCount:
    """Multiply-adds by kind: convolutions, dense layers, and the two products inside attention."""

    convolution: float = 0.0
    linear: float = 0.0
    attention: float = 0.0

    def __add__(self, other: MacCount) -> MacCount:
        return MacCount(
            self.convolution + other.convolution, self.linear + other.linear, self.attention + other.attention
        )

    def __mul__(self, times: float) -> MacCount:
        return MacCount(*(times * value for value in dataclasses.astuple(self)))

    @property
    def total(self) -> float:
        """All three kinds."""
        return sum(dataclasses.astuple(self))


def request_macs(config: ModelConfig, workload: Workload) -> MacCount:
    """A whole run: both texts once, every step, every image decoded."""
    height, width = (size // config.latent_factor for size in (workload.height, workload.width))
    evaluations = workload.num_steps * workload.batch_size * (2 if workload.guided else 1)
    texts = text_encoder_macs(config.text_encoder) * (2 if workload.guided else 1)
    unet = unet_macs(config.unet, height, width, config.text_encoder.max_length) * evaluations
    return texts + unet + decoder_macs(config.vae, height, width) * workload.batch_size


def unet_macs(config: UNetConfig, height: int, width: int, text_length: int = 77) -> MacCount:
    """One evaluation for one image, latents of height x width."""
    time_width = 4 * config.widths[0]
    macs = MacCount(linear=config.widths[0] * time_width + time_width**2)
    macs += _conv(config.in_channels, config.widths[0], height * width)
    for block in unet_blocks(config):
        area = (height >> block.level) * (width >> block.level)
        if block.kind != "resnets":
            macs += _conv(block.in_channels, block.out_channels, area)
            continue
        macs += _resnet(block.in_channels, block.out_channels, area) + MacCount(linear=time_width * block.out_channels)
        if block.num_heads:
            macs += _transformer(block.out_channels, area, config.context_width, text_length)
    return macs + _conv(config.widths[0], config.out_channels, height * width)


def decoder_macs(config: VAEConfig, height: int, width: int) -> MacCount:
    """One image, latents of height x width."""
    macs = _conv(config.latent_channels, config.latent_channels, height * width, 1)
    macs += _conv(config.latent_channels, config.widths[-1], height * width)
    finest = len(config.widths) - 1
    for block in decoder_blocks(config):
        area = (height << finest - block.level) * (width << finest - block.level)
        if block.kind != "resnets":
            macs += _conv(block.in_channels, block.out_channels, area)
            continue
        macs += _resnet(block.in_channels, block.out_channels, area)
        if block.num_heads:
            macs += MacCount(linear=4 * area * block.out_channels**2, attention=2 * area**2 * block.out_channels)
    return macs + _conv(config.widths[0], 3, area)


def text_encoder_macs(config: TextEncoderConfig) -> MacCount:
    """One text."""
    length, width = config.max_length, config.width
    inner = 4 * width if config.mlp_width is None else config.mlp_width
    layer = MacCount(linear=length * (4 * width**2 + 2 * width * inner), attention=2 * length**2 * width)
    return layer * config.num_layers


def _conv(before: int, after: int, area: int, kernel_size: int = 3) -> MacCount:
    return MacCount(convolution=before * after * area * kernel_size**2)


def _resnet(before: int, after: int, area: int) -> MacCount:
    shortcut = MacCount() if before == after else _conv(before, after, area, 1)
    return _conv(before, after, area) + _conv(after, after, area) + shortcut


def _transformer(width: int, area: int, context_width: int, text_length: int) -> MacCount:
    """Self-attention, attention to the text, gated feed-forward, and the 1 x 1 convolutions around them."""
    linear = area * width**2 * (4 + 2 + 8 + 4) + 2 * text_length * context_width * width
    around = _conv(width, width, area, 1) * 2
    return around + MacCount(linear=linear, attention=2 * area * width * (area + text_length))
