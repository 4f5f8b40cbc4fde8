"""How many multiply-adds a request takes, from the model's configuration alone."""

from __future__ import annotations

import dataclasses

from kerasdiff.bench.case import Settings
from kerasdiff.models.blocks import decoder_blocks, unet_blocks
from kerasdiff.models.config import ModelConfig, TextEncoderConfig, UNetConfig, VAEConfig


@dataclasses.dataclass(frozen=True)
class Work:
    """Multiply-adds by kind: convolutions, dense layers, and the two products inside attention."""

    convolution: float = 0.0
    linear: float = 0.0
    attention: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.convolution + other.convolution, self.linear + other.linear, self.attention + other.attention)

    def __mul__(self, times: float) -> Work:
        return Work(self.convolution * times, self.linear * times, self.attention * times)

    @property
    def total(self) -> float:
        """All of them."""
        return self.convolution + self.linear + self.attention


def request_work(config: ModelConfig, settings: Settings) -> Work:
    """Of a whole run: both texts once, every step, every image decoded."""
    height, width = (size // config.latent_factor for size in (settings.height, settings.width))
    evaluations = settings.num_steps * settings.batch_size * (2 if settings.guided else 1)
    texts = text_encoder_work(config.text_encoder) * (2 if settings.guided else 1)
    unet = unet_work(config.unet, height, width, config.text_encoder.max_length) * evaluations
    return texts + unet + decoder_work(config.vae, height, width) * settings.batch_size


def unet_work(config: UNetConfig, height: int, width: int, text_length: int = 77) -> Work:
    """Of one evaluation for one image, latents of height x width."""
    time_width = 4 * config.widths[0]
    work = Work(linear=config.widths[0] * time_width + time_width**2)
    work += _conv(config.in_channels, config.widths[0], height * width)
    for block in unet_blocks(config):
        area = (height >> block.level) * (width >> block.level)
        if block.kind != "resnets":
            work += _conv(block.in_channels, block.out_channels, area)
            continue
        work += _resnet(block.in_channels, block.out_channels, area) + Work(linear=time_width * block.out_channels)
        if block.num_heads:
            work += _transformer(block.out_channels, area, config.context_width, text_length)
    return work + _conv(config.widths[0], config.out_channels, height * width)


def decoder_work(config: VAEConfig, height: int, width: int) -> Work:
    """Of one image, latents of height x width."""
    work = _conv(config.latent_channels, config.latent_channels, height * width, 1)
    work += _conv(config.latent_channels, config.widths[-1], height * width)
    finest = len(config.widths) - 1
    for block in decoder_blocks(config):
        area = (height << finest - block.level) * (width << finest - block.level)
        if block.kind != "resnets":
            work += _conv(block.in_channels, block.out_channels, area)
            continue
        work += _resnet(block.in_channels, block.out_channels, area)
        if block.num_heads:
            work += Work(linear=4 * area * block.out_channels**2, attention=2 * area**2 * block.out_channels)
    return work + _conv(config.widths[0], 3, area)


def text_encoder_work(config: TextEncoderConfig) -> Work:
    """Of one text."""
    length, width = config.max_length, config.width
    inner = 4 * width if config.mlp_width is None else config.mlp_width
    layer = Work(linear=length * (4 * width**2 + 2 * width * inner), attention=2 * length**2 * width)
    return layer * config.num_layers


def _conv(before: int, after: int, area: int, kernel_size: int = 3) -> Work:
    return Work(convolution=before * after * area * kernel_size**2)


def _resnet(before: int, after: int, area: int) -> Work:
    shortcut = Work() if before == after else _conv(before, after, area, 1)
    return _conv(before, after, area) + _conv(after, after, area) + shortcut


def _transformer(width: int, area: int, context_width: int, text_length: int) -> Work:
    """Self-attention, attention to the text, gated feed-forward, and the 1 x 1 convolutions around them."""
    linear = area * width**2 * (4 + 2 + 8 + 4) + 2 * text_length * context_width * width
    around = _conv(width, width, area, 1) * 2
    return around + Work(linear=linear, attention=2 * area * width * (area + text_length))
