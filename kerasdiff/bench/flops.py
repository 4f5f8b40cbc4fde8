"""How many multiply-adds a request takes, from the model's configuration alone."""

from __future__ import annotations

import dataclasses

from kerasdiff.bench.task import Workload
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
    last = len(config.widths) - 1
    skips, channels = [config.widths[0]], config.widths[0]

    def stage(before: int, level: int, attention: bool) -> MacCount:
        area = (height >> level) * (width >> level)
        after = config.widths[level]
        done = _resnet(before, after, area) + MacCount(linear=time_width * after)
        return done + (_transformer(after, area, config.context_width, text_length) if attention else MacCount())

    for level, level_width in enumerate(config.widths):
        for _ in range(config.layers_per_level):
            macs += stage(channels, level, config.attention[level])
            channels = level_width
            skips.append(channels)
        if level != last:
            macs += _conv(channels, channels, (height >> level + 1) * (width >> level + 1))
            skips.append(channels)
    macs += stage(channels, last, True) + stage(channels, last, False)
    for level in reversed(range(last + 1)):
        for _ in range(config.layers_per_level + 1):
            macs += stage(channels + skips.pop(), level, config.attention[level])
            channels = config.widths[level]
        if level:
            macs += _conv(channels, channels, (height >> level - 1) * (width >> level - 1))
    return macs + _conv(channels, config.out_channels, height * width)


def decoder_macs(config: VAEConfig, height: int, width: int) -> MacCount:
    """One image, latents of height x width."""
    channels, area = config.widths[-1], height * width
    macs = _conv(config.latent_channels, config.latent_channels, area, 1)
    macs += _conv(config.latent_channels, channels, area) + _resnet(channels, channels, area) * 2
    macs += MacCount(linear=4 * area * channels**2, attention=2 * area**2 * channels)
    for index, level_width in enumerate(reversed(config.widths)):
        for _ in range(config.layers_per_level + 1):
            macs += _resnet(channels, level_width, area)
            channels = level_width
        if index != len(config.widths) - 1:
            area *= 4
            macs += _conv(channels, channels, area)
    return macs + _conv(channels, 3, area)


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
