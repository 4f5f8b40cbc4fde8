"""How many multiply-adds a request takes, from the model's configuration alone."""

from __future__ import annotations

import dataclasses
from collections import Counter

from kerasdiff.bench.parts import Part, hint_parts, unet_parts
from kerasdiff.bench.task import Workload
from kerasdiff.models.blocks import BlockSpec, decoder_blocks
from kerasdiff.models.config import ModelConfig
from kerasdiff.models.control_configs import ControlNetConfig
from kerasdiff.models.network_configs import AnyVAEConfig, TextEncoderConfig, TinyVAEConfig, UNetConfig, VAEConfig


@dataclasses.dataclass(frozen=True)
class MacCount:
    """Multiply-adds by kind: convolutions, dense layers, and the two products inside attention."""

    convolution: float = 0.0
    linear: float = 0.0
    attention: float = 0.0

    def __add__(self, other: MacCount) -> MacCount:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return MacCount(*map(sum, pairs))

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
    # A negative prompt that is not given may be zeros, which nothing is computed for.
    texts = sum(map(text_encoder_macs, config.text_encoders.values()), MacCount()) * (
        2 if workload.guided and not config.force_zeros_for_empty_prompt else 1
    )
    tokens = config.main_text_encoder.max_length
    unet = unet_macs(config.unet, height, width, tokens) * evaluations
    if workload.control:
        unet += controlnet_macs(config.unet, height, width, tokens) * evaluations
        unet += hint_macs(ControlNetConfig(unet=config.unet), workload.height, workload.width)
    return texts + unet + decoder_macs(config.vae, height, width) * workload.batch_size


def unet_macs(config: UNetConfig, height: int, width: int, text_length: int = 77) -> MacCount:
    """One evaluation for one image, latents of height x width."""
    return _sum(unet_parts(config, height, width, text_length))


def controlnet_macs(config: UNetConfig, height: int, width: int, text_length: int = 77) -> MacCount:
    """The same of a ControlNet of such a U-Net, whose hint is encoded before."""
    return _sum(unet_parts(config, height, width, text_length, steers=True))


def hint_macs(config: ControlNetConfig, height: int, width: int) -> MacCount:
    """A hint of height x width pixels."""
    return _sum(hint_parts(config, height, width))


def _sum(parts: Counter[Part]) -> MacCount:
    return sum((MacCount(**{part.kind: count * part.macs}) for part, count in parts.items()), MacCount())


def decoder_macs(config: AnyVAEConfig, height: int, width: int) -> MacCount:
    """One image, latents of height x width."""
    counted = _tiny_decoder_macs if isinstance(config, TinyVAEConfig) else _decoder_macs
    return counted(config, height * width)  # type: ignore[arg-type]


def _decoder_macs(config: VAEConfig, area: int) -> MacCount:
    channels = config.latent_channels
    pixels = area * 4 ** (len(config.widths) - 1)
    macs = _conv(channels, channels, area, 1) + _conv(channels, config.widths[-1], area)
    for block in decoder_blocks(config):
        cells = pixels / 4**block.level
        macs += _block(block, cells)
        if block.num_heads:
            macs += MacCount(linear=4 * cells * block.out_channels**2, attention=2 * cells**2 * block.out_channels)
    return macs + _conv(config.widths[0], 3, pixels)


def _tiny_decoder_macs(config: TinyVAEConfig, area: int) -> MacCount:
    width = config.decoder_width
    macs = _conv(config.latent_channels, width, area)
    for level, count in enumerate(config.decoder_blocks):
        # The convolution behind a doubling meets 2 x 2 different pixels; it is counted as what it stands for.
        between = 1 if level else 0
        macs += _conv(width, width, area * 4**level) * (3 * count + between)
    return macs + _conv(width, 3, area * 4 ** (len(config.decoder_blocks) - 1))


def text_encoder_macs(config: TextEncoderConfig) -> MacCount:
    """One text; all layers if there is a pooled embedding, else those that the context is made of."""
    length, width, pooled = config.max_length, config.width, config.projection
    layers = config.num_layers - (config.skipped_layers if pooled is None else 0)
    inner = 4 * width if config.mlp_width is None else config.mlp_width
    layer = MacCount(linear=length * (4 * width**2 + 2 * width * inner), attention=2 * length**2 * width)
    return layer * layers + MacCount(linear=0 if pooled is None else width * pooled)


def _conv(before: int, after: int, area: float, kernel_size: int = 3) -> MacCount:
    return MacCount(convolution=before * after * area * kernel_size**2)


def _block(block: BlockSpec, area: float) -> MacCount:
    """A block of a decoder without its attention."""
    before, after = block.in_channels, block.out_channels
    macs = _conv(before, after, area)
    if block.kind != "resnets":
        return macs
    shortcut = MacCount() if before == after else _conv(before, after, area, 1)
    return macs + _conv(after, after, area) + shortcut
