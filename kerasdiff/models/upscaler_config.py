"""The configurations of upscalers: frozen values that their networks are built from."""

from __future__ import annotations

import dataclasses

from kerasdiff.errors import ModelError

_LARGEST = {"features": 1024, "blocks": 256, "growth": 1024, "scale": 16, "unshuffle": 4}
# Products for each pixel in a layer's place, from which on the arithmetic is most of the work.
_LARGE = 20_000


class _Checked:
    """A file from a stranger must not make us build for ever."""

    def __post_init__(self) -> None:
        for name, limit in _LARGEST.items():
            value = getattr(self, name)
            if not 1 <= value <= limit:
                raise ModelError(f"an upscaler with {name}={value} cannot be built; 1 to {limit} can")


@dataclasses.dataclass(frozen=True)
class RRDBConfig(_Checked):
    """RRDBNet (Wang et al. 2018, arXiv:1809.00219): `blocks` of three dense blocks, whose layers add `growth` channels.

    With `unshuffle` 2 or 4, as Real-ESRGAN has it, the network sees the picture at a fraction of its size, with as many
    more channels; `scale` is that of the whole. With `plus` dense blocks have the further residuals of ESRGAN+.
    """

    features: int = 64
    blocks: int = 23
    growth: int = 32
    scale: int = 4
    unshuffle: int = 1
    plus: bool = False

    @property
    def large(self) -> bool:
        """Whether it spends its time in arithmetic."""
        return self.blocks * self.features * (self.features + self.growth) > _LARGE

    @property
    def doublings(self) -> int:
        """How often the features are doubled in size."""
        return (self.scale * self.unshuffle).bit_length() - 1


@dataclasses.dataclass(frozen=True)
class CompactConfig(_Checked):
    """SRVGGNetCompact of Real-ESRGAN: `blocks` convolutions of `features` channels between two others."""

    features: int = 64
    blocks: int = 16
    scale: int = 4
    growth = unshuffle = 1

    @property
    def large(self) -> bool:
        """Whether it spends its time in arithmetic."""
        return self.blocks * self.features**2 > _LARGE


UpscalerConfig = RRDBConfig | CompactConfig


@dataclasses.dataclass(frozen=True)
class UpscalerModel:
    """What a checkpoint of an upscaler has in place of a `ModelConfig`."""

    upscaler: UpscalerConfig
