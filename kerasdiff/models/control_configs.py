"""The configurations of networks that steer a model: frozen values that they are built from."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from kerasdiff.models.config_checks import check, check_choice, check_size, check_sizes
from kerasdiff.models.network_configs import CLIPVisionConfig, UNetConfig

# Of a hint that reaches the size of latents, whatever its widths.
_MOST_WIDTHS = 8
_MOST = {"num_res_blocks": 32, "downscale_factor": 64}


@dataclasses.dataclass(frozen=True)
class ControlNetConfig:
    """A ControlNet (Zhang et al. 2023, arXiv:2302.05543).

    `unet` is what its first half and its middle are built as; `hint_widths` are the channels of what encodes a hint,
    which halves it before each but the first. With `global_pool` residuals are means over the picture.
    """

    unet: UNetConfig = UNetConfig()
    hint_channels: int = 3
    hint_widths: tuple[int, ...] = (16, 32, 96, 256)
    channel_order: Literal["rgb", "bgr"] = "rgb"
    global_pool: bool = False

    def __post_init__(self) -> None:
        check_size("hint_channels", self.hint_channels)
        check(1 <= len(self.hint_widths) <= _MOST_WIDTHS, f"hint_widths needs 1 to {_MOST_WIDTHS} entries")
        for width in self.hint_widths:
            check_size("hint_widths", width)
        check_choice("channel_order", self.channel_order, ("rgb", "bgr"))

    @property
    def factor(self) -> int:
        """Pixels of a hint per latent, along each side."""
        return 2 ** (len(self.hint_widths) - 1)

    @property
    def large(self) -> bool:
        """As of the U-Net."""
        return self.unet.large


@dataclasses.dataclass(frozen=True)
class T2IAdapterConfig:
    """A T2I-Adapter (Mou et al. 2023, arXiv:2302.08453).

    Fields are named as in diffusers. A light one has one more feature than `channels`, which is as wide as the one
    before.
    """

    adapter_type: Literal["full_adapter", "light_adapter", "full_adapter_xl"] = "full_adapter"
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_res_blocks: int = 2
    downscale_factor: int = 8
    in_channels: int = 3

    def __post_init__(self) -> None:
        check_choice("adapter_type", self.adapter_type, ("full_adapter", "light_adapter", "full_adapter_xl"))
        check(1 <= len(self.channels) <= _MOST_WIDTHS, f"channels needs 1 to {_MOST_WIDTHS} entries")
        for width in self.channels:
            check_size("width", width)
            check(self.adapter_type != "light_adapter" or width % 4 == 0, f"width {width} is not a multiple of 4")
        for name, most in _MOST.items():
            value = getattr(self, name)
            check(1 <= value <= most, f"{name}={value} is out of range; it must be between 1 and {most}")
        check(self.in_channels in (1, 3), f"in_channels={self.in_channels} is not supported; 1 and 3 are")
        if self.adapter_type == "full_adapter_xl":  # whose last blocks change no channels
            check(len({*self.channels[2:]}) <= 1, f"channels={list(self.channels)} must be equal from the third on")

    @property
    def features(self) -> tuple[tuple[int, int], ...]:
        """Channels of each feature, and pixels of a hint along each of its sides, from the finest on."""
        widths = (*self.channels, self.channels[-1]) if self.adapter_type == "light_adapter" else self.channels
        halvings = [index >= 2 if self.adapter_type == "full_adapter_xl" else index for index in range(len(widths))]
        return tuple((width, self.downscale_factor << halved) for width, halved in zip(widths, halvings, strict=True))

    @property
    def large(self) -> bool:
        """Whether it spends its time in arithmetic."""
        return max(self.channels) >= 512


@dataclasses.dataclass(frozen=True)
class IPAdapterConfig:
    """An IP-Adapter (Ye et al. 2023, arXiv:2308.06721) for a U-Net.

    It reads what an image encoder makes of a picture, `embedding_width` wide: its embedding ("plain"), or what its
    layers but the last make of all patches, through a resampler ("plus", of which the last four fields are) or through
    dense layers ("full"). A picture becomes `tokens`; of "full" as many as the encoder has.
    """

    unet: UNetConfig = UNetConfig()
    kind: Literal["plain", "plus", "full"] = "plain"
    embedding_width: int = 1024
    tokens: int = 4
    width: int = 768
    depth: int = 4
    num_heads: int = 12
    mlp_width: int = 3072

    # Of a head of the resampler, which no file states.
    HEAD_WIDTH: ClassVar[int] = 64

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, ("plain", "plus", "full"))
        check_sizes(self, "tokens", "width", "num_heads", "mlp_width")
        for name, size in (("width", self.embedding_width), ("layers_per_level", self.depth)):
            check_size(name, size)

    def reads(self, encoder: CLIPVisionConfig) -> bool:
        """Whether it is for what an image encoder gives."""
        return self.embedding_width == (encoder.projection if self.kind == "plain" else encoder.width)

    def tokens_of(self, encoder: CLIPVisionConfig) -> int:
        """Tokens of a picture."""
        return encoder.num_patches + 1 if self.kind == "full" else self.tokens


@dataclasses.dataclass(frozen=True)
class ControlModel:
    """What a checkpoint of something that steers a model has in place of a `ModelConfig`."""

    controlnet: ControlNetConfig | None = None
    t2i_adapter: T2IAdapterConfig | None = None
    ip_adapter: IPAdapterConfig | None = None
    image_encoder: CLIPVisionConfig | None = None
