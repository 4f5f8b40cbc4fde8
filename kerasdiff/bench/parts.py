"""The parts of a U-Net's evaluation: every convolution, dense layer and attention by shape, from the configuration."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Literal

from kerasdiff.bench.task import Workload
from kerasdiff.models.blocks import halved, unet_blocks
from kerasdiff.models.config import ModelConfig
from kerasdiff.models.control_configs import ControlNetConfig
from kerasdiff.models.network_configs import UNetConfig


@dataclasses.dataclass(frozen=True)
class Part:
    """A convolution, a dense layer, or the two products of attention.

    Their shapes: (rows, height and width of the result, channels, filters, kernel size, stride); (tokens, channels,
    units); (rows, heads, queries, keys, width of a head).
    """

    kind: Literal["convolution", "linear", "attention"]
    shape: tuple[int, ...]

    @property
    def macs(self) -> int:
        """Multiply-adds."""
        if self.kind == "convolution":
            *sizes, kernel_size, _ = self.shape
            return math.prod(sizes) * kernel_size**2
        return math.prod(self.shape) * (2 if self.kind == "attention" else 1)

    @property
    def weights(self) -> int:
        """How many values of the model it reads."""
        if self.kind == "convolution":
            *_, channels, filters, kernel_size, _ = self.shape
            return channels * filters * kernel_size**2
        return math.prod(self.shape[1:]) if self.kind == "linear" else 0


def step_parts(config: ModelConfig, workload: Workload) -> Counter[Part]:
    """What one step of a workload needs: both halves of guidance are one until they meet what their texts give."""
    height, width = (size // config.latent_factor for size in (workload.height, workload.width))
    rows = workload.batch_size
    texts = rows * (2 if workload.guided else 1)
    return unet_parts(
        config.unet, height, width, config.main_text_encoder.max_length, rows=rows, texts=texts, needed=True
    )


def unet_parts(
    config: UNetConfig,
    height: int,
    width: int,
    text_length: int = 77,
    *,
    rows: int = 1,
    texts: int = 1,
    needed: bool = False,
    steers: bool = False,
) -> Counter[Part]:
    """How often each part is computed for latents (rows, height, width), which meet `texts` texts altogether.

    If it `steers`, that is a ControlNet of such a U-Net: its way down and its middle, and what each of these gives.

    Only what is `needed` leaves out what a step does not have to do: the texts' keys and values and what is made of
    pooled embeddings and sizes, which all steps share, and five ninths of a convolution behind a doubling, whose window
    meets 2 x 2 different pixels.
    """
    parts: Counter[Part] = Counter()
    time_width = 4 * config.widths[0]

    def conv(level: int, channels: int, filters: int, kernel_size: int = 3, stride: int = 1, count: int = 1) -> None:
        size = halved(height, level), halved(width, level)
        parts[Part("convolution", (rows, *size, channels, filters, kernel_size, stride))] += count

    def linear(tokens: int, channels: int, units: int, count: int = 1) -> None:
        parts[Part("linear", (tokens, channels, units))] += count

    def gives(level: int, channels: int, part: str = "") -> None:
        if steers and not part.startswith("mid"):  # of which only the end counts
            linear(rows * halved(height, level) * halved(width, level), channels, channels)

    conv(0, config.in_channels, config.widths[0])
    gives(0, config.widths[0])
    linear(rows, config.widths[0], time_width)
    linear(rows, time_width, time_width)
    if config.pooled_width is not None:
        rows = texts  # each text has a time of its own from here on
        if not needed:
            linear(rows, config.pooled_width + config.num_time_ids * config.time_id_width, time_width)
            linear(rows, time_width, time_width)
    for block in unet_blocks(config):
        if steers and block.part.startswith("up"):
            break
        before, after, level = block.in_channels, block.out_channels, block.level
        if block.kind == "upsamplers" and needed:
            conv(level + 1, before, after, 2, count=4)
        else:
            conv(level, before, after, stride=2 if block.kind == "downsamplers" else 1)
        if block.kind != "resnets":
            gives(level, after, block.part)
            continue
        conv(level, after, after)
        linear(rows, time_width, after)
        if before != after:
            conv(level, before, after, 1)
        if not block.num_heads:
            gives(level, after, block.part)
            continue
        area, heads = halved(height, level) * halved(width, level), (block.num_heads, after // block.num_heads)
        conv(level, after, after, 1)
        for reads in (block.only_cross, True) * block.depth:
            rows = texts if reads else rows  # from the first look at a text on
            linear(rows * area, after, after, 2 if reads else 4)
            if reads and not needed:
                linear(texts * text_length, config.context_width, after, 2)
            parts[Part("attention", (rows, heads[0], area, text_length if reads else area, heads[1]))] += 1
        linear(rows * area, after, 8 * after, block.depth)
        linear(rows * area, 4 * after, after, block.depth)
        conv(level, after, after, 1)
        gives(level, after, block.part)
    if steers:
        gives(len(config.widths) - 1, config.widths[-1])
    else:
        conv(0, config.widths[0], config.out_channels)
    return parts


def hint_parts(config: ControlNetConfig, height: int, width: int) -> Counter[Part]:
    """What encodes a hint (height, width in pixels), once per run."""
    parts: Counter[Part] = Counter()
    channels, level = config.hint_channels, 0
    for number, filters in enumerate((*config.hint_widths, config.unet.widths[0])):
        # Between the first and the last one there are two for each width, the second of which halves.
        between = 0 < number < len(config.hint_widths)
        for outputs, stride in ((channels, 1), (filters, 2)) if between else ((filters, 1),):
            level += stride - 1
            size = halved(height, level), halved(width, level)
            parts[Part("convolution", (1, *size, channels, outputs, 3, stride))] += 1
            channels = outputs
    return parts
