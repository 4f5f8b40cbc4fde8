"""The blocks of the U-Net and of the autoencoder, in the order in which data pass through them.

That is also the order of their parameters, in the networks built here as in KerasCV's files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

from kerasdiff.models.config import UNetConfig, VAEConfig


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """A residual block, perhaps with attention behind it, or a change of size.

    Attributes:
        kind: which of them it is, as diffusers calls them.
        part: "down_blocks.0", "mid_block", "up_blocks.0", ..., which it belongs to.
        index: among the part's blocks of its kind.
        level: resolution level of its result; 0 is the finest.
        in_channels: channels of its input; in the U-Net's up_blocks with those of the skip connection.
        out_channels: channels of its result.
        num_heads: of the attention behind it; 0 if there is none.
    """

    kind: Literal["resnets", "downsamplers", "upsamplers"]
    part: str
    index: int
    level: int
    in_channels: int
    out_channels: int
    num_heads: int = 0

    @property
    def name(self) -> str:
        """Such as "down_blocks.0.resnets.1"."""
        return f"{self.part}.{self.kind}.{self.index}"

    @property
    def attention(self) -> str:
        """The name of the attention behind it."""
        return f"{self.part}.attentions.{self.index}"


def unet_blocks(config: UNetConfig) -> Iterator[BlockSpec]:
    """The blocks of a U-Net between its first and its last convolution."""
    widths, last = config.widths, len(config.widths) - 1

    def resnet(part: str, index: int, level: int, in_channels: int, attends: bool) -> BlockSpec:
        heads = config.num_heads[level] if attends else 0
        return BlockSpec("resnets", part, index, level, in_channels, widths[level], heads)

    channels = widths[0]
    skips = [channels]
    for level, width in enumerate(widths):
        part = f"down_blocks.{level}"
        for index in range(config.layers_per_level):
            yield resnet(part, index, level, channels, config.attention[level])
            channels = width
            skips.append(channels)
        if level != last:
            yield BlockSpec("downsamplers", part, 0, level + 1, channels, channels)
            skips.append(channels)
    yield resnet("mid_block", 0, last, channels, True)
    yield resnet("mid_block", 1, last, channels, False)
    for number, level in enumerate(range(last, -1, -1)):
        part = f"up_blocks.{number}"
        for index in range(config.layers_per_level + 1):
            yield resnet(part, index, level, channels + skips.pop(), config.attention[level])
            channels = widths[level]
        if level:
            yield BlockSpec("upsamplers", part, 0, level - 1, channels, channels)


def encoder_blocks(config: VAEConfig) -> Iterator[BlockSpec]:
    """The blocks of the autoencoder's first half."""
    channels, last = config.widths[0], len(config.widths) - 1
    for level, width in enumerate(config.widths):
        part = f"down_blocks.{level}"
        for index in range(config.layers_per_level):
            yield BlockSpec("resnets", part, index, level, channels, width)
            channels = width
        if level != last:
            yield BlockSpec("downsamplers", part, 0, level + 1, channels, channels)
    yield from _vae_middle(config)


def decoder_blocks(config: VAEConfig) -> Iterator[BlockSpec]:
    """The blocks of the autoencoder's second half."""
    yield from _vae_middle(config)
    channels, last = config.widths[-1], len(config.widths) - 1
    for number, level in enumerate(range(last, -1, -1)):
        part = f"up_blocks.{number}"
        for index in range(config.layers_per_level + 1):
            yield BlockSpec("resnets", part, index, level, channels, config.widths[level])
            channels = config.widths[level]
        if level:
            yield BlockSpec("upsamplers", part, 0, level - 1, channels, channels)


def _vae_middle(config: VAEConfig) -> Iterator[BlockSpec]:
    width, last = config.widths[-1], len(config.widths) - 1
    yield BlockSpec("resnets", "mid_block", 0, last, width, width, num_heads=1)
    yield BlockSpec("resnets", "mid_block", 1, last, width, width)
