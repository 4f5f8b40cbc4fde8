"""The blocks of the U-Net and of the autoencoder, in the order in which data pass through them.

That is also the order of their parameters, in the networks built here as in KerasCV's files.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from kerasdiff.models.network_configs import UNetConfig, VAEConfig


@dataclasses.dataclass(frozen=True)
class BlockSpec:
    """A residual block, perhaps with attention behind it, or a change of size."""

    kind: Literal["resnets", "downsamplers", "upsamplers"]
    part: str  # "down_blocks.0", "mid_block", "up_blocks.0", ...
    index: int  # among the part's blocks of its kind
    level: int  # resolution level of its result; 0 is the finest
    in_channels: int  # in the U-Net's up_blocks with those of the skip connection
    out_channels: int
    num_heads: int = 0  # of the attention behind it; 0 if there is none
    only_cross: bool = False  # whether that attention reads nothing but the text
    depth: int = 1  # how many transformer blocks that attention has

    @property
    def name(self) -> str:
        """Such as "down_blocks.0.resnets.1"."""
        return f"{self.part}.{self.kind}.{self.index}"

    @property
    def attention(self) -> str:
        """The name of the attention behind it."""
        return f"{self.part}.attentions.{self.index}"


def halved(side: int, level: int) -> int:
    """A side of latents at a resolution level; of an odd one the larger half remains."""
    return -(-side >> level)


def unet_blocks(config: UNetConfig) -> Iterator[BlockSpec]:
    """The blocks of a U-Net between its first and its last convolution."""
    widths, depth = config.widths, config.layers_per_level
    heads = [count if attends else 0 for count, attends in zip(config.num_heads, config.attention, strict=True)]
    only = [level for level, text in enumerate(config.only_cross_attention) if text and config.attention[level]]
    down = [dataclasses.replace(block, only_cross=block.level in only) for block in _down(widths, depth, heads)]
    yield from (_deep(config, block) for block in down)
    for block in _middle(widths, config.num_heads[-1], config.middle):
        yield dataclasses.replace(block, depth=config.depths(len(widths) - 1)[0])
    skips = [widths[0], *(block.out_channels for block in down)]
    for block in _up(widths, depth, heads):
        joined = skips.pop() if block.kind == "resnets" else 0
        yield _deep(
            config,
            dataclasses.replace(block, in_channels=block.in_channels + joined, only_cross=block.level in only),
            up=True,
        )


def _deep(config: UNetConfig, block: BlockSpec, up: bool = False) -> BlockSpec:
    """A block with the depth of its transformer."""
    if not block.num_heads:
        return block
    return dataclasses.replace(block, depth=config.depths(block.level, up)[block.index])


def residual_shapes(config: UNetConfig, h: int, w: int) -> list[tuple[int, int, int]]:
    """Height, width and channels of each skip connection, and then of the middle, for latents of h x w."""
    down = [(block.level, block.out_channels) for block in unet_blocks(config) if block.part.startswith("down")]
    levels = [(0, config.widths[0]), *down, (len(config.widths) - 1, config.widths[-1])]
    return [(halved(h, level), halved(w, level), channels) for level, channels in levels]


def feature_places(config: UNetConfig) -> tuple[int, ...]:
    """For each level, after which block of the way down a T2I-Adapter's features are added.

    That is before a downsampler with attention, and else behind it, as in diffusers.
    """
    blocks = [block for block in unet_blocks(config) if block.part.startswith("down")]
    parts = [int(block.part.split(".")[1]) for block in blocks]
    places = []
    for part in sorted({*parts}):
        own = [place for place, number in enumerate(parts) if number == part]
        attends = config.attention[part] and blocks[own[-1]].kind == "downsamplers"
        places.append(own[-2] if attends else own[-1])
    return tuple(places)


def feature_shapes(config: UNetConfig, h: int, w: int) -> list[tuple[int, int, int]]:
    """Height, width and channels of a T2I-Adapter's features: at each of these places, and then behind the middle."""
    shapes = residual_shapes(config, h, w)
    return [*(shapes[1 + place] for place in feature_places(config)), shapes[-1]]


def cross_attentions(config: UNetConfig) -> dict[str, int]:
    """Name and width of each attention to the text, as "down_blocks.0.attentions.1.transformer_blocks.0"."""
    return {
        f"{block.attention}.transformer_blocks.{index}": block.out_channels
        for block in unet_blocks(config)
        if block.num_heads
        for index in range(block.depth)
    }


def diffusers_order(places: Iterable[str]) -> list[str]:
    """Names of attentions in the order of diffusers' processors, which is that of files: the middle comes last."""
    return sorted(places, key=lambda name: name.startswith("mid"))


def deep_features(config: UNetConfig, branch: int) -> tuple[int, int]:
    """Level and channels of what comes up from below a skip connection; number 0 is the last one to be joined."""
    blocks = list(unet_blocks(config))
    skips = [config.widths[0], *(block.out_channels for block in blocks if block.part.startswith("down"))]
    joined = [block for block in blocks if block.part.startswith("up") and block.kind == "resnets"]
    block = joined[-1 - branch]
    return block.level, block.in_channels - skips[branch]


def encoder_blocks(config: VAEConfig) -> Iterator[BlockSpec]:
    """The blocks of the autoencoder's first half."""
    yield from _down(config.widths, config.layers_per_level, [0] * len(config.widths))
    yield from _middle(config.widths, 1)


def decoder_blocks(config: VAEConfig) -> Iterator[BlockSpec]:
    """The blocks of the autoencoder's second half."""
    yield from _middle(config.widths, 1)
    yield from _up(config.widths, config.layers_per_level, [0] * len(config.widths))


def _down(widths: Sequence[int], depth: int, heads: Sequence[int]) -> Iterator[BlockSpec]:
    channels = widths[0]
    for level, width in enumerate(widths):
        for index in range(depth):
            yield BlockSpec("resnets", f"down_blocks.{level}", index, level, channels, width, heads[level])
            channels = width
        if level < len(widths) - 1:
            yield BlockSpec("downsamplers", f"down_blocks.{level}", 0, level + 1, width, width)


def _middle(widths: Sequence[int], num_heads: int, kind: str | None = "attention") -> Iterator[BlockSpec]:
    heads_of = {"attention": (num_heads, 0), "plain": (0,), None: ()}
    for index, heads in enumerate(heads_of[kind]):
        yield BlockSpec("resnets", "mid_block", index, len(widths) - 1, widths[-1], widths[-1], heads)


def _up(widths: Sequence[int], depth: int, heads: Sequence[int]) -> Iterator[BlockSpec]:
    channels = widths[-1]
    for number, level in enumerate(reversed(range(len(widths)))):
        for index in range(depth + 1):
            yield BlockSpec("resnets", f"up_blocks.{number}", index, level, channels, widths[level], heads[level])
            channels = widths[level]
        if level > 0:
            yield BlockSpec("upsamplers", f"up_blocks.{number}", 0, level - 1, channels, channels)
