"""The configurations of networks that steer a model: frozen values that they are built from."""

from __future__ import annotations

import dataclasses
from typing import Literal

from kerasdiff.models.config_checks import check, check_choice, check_size
from kerasdiff.models.network_configs import UNetConfig

# Of a hint that reaches the size of latents, whatever its widths.
_MOST_WIDTHS = 8


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
class ControlModel:
    """What a checkpoint of something that steers a model has in place of a `ModelConfig`."""

    controlnet: ControlNetConfig | None = None
