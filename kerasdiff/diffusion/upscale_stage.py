"""The upscaler's stage: one picture to a larger one, tile by tile.

All tiles have one size, whatever the picture's, so that one compiled program serves every picture. A network of
ESRGAN's kind has no norms and no attention: what is further away than its layers reach changes nothing, and what is
further than a few pixels hardly anything.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from kerasdiff.diffusion.stage import Expected, Stage, apply
from kerasdiff.models.footprint import upscaler_bytes
from kerasdiff.models.upscaler_config import UpscalerConfig
from kerasdiff.runtime.batch_sizer import MicroBatch, StageCost
from kerasdiff.runtime.compiled import Traceable
from kerasdiff.runtime.memory import HEADROOM
from kerasdiff.runtime.program_cache import ProgramCache

# From one tile to the next, which 512 and 1024 pixels are multiples of, and what tiles have in common at least. What is
# next to a tile's edge is not used, as the network saw no pixels beyond.
_STEP, _OVERLAP, _MARGIN = 256, 32, 8
# Sides of smaller pictures are filled up to multiples of the first, others to multiples of the second.
_SMALL, _MULTIPLE = 64, 4
MAX_PARTS = 8


def tile_side(length: int, parts: int = 1) -> int:
    """The side of the tiles of a side of a picture; `parts` 2, 4, ... are for less memory."""
    return min(_STEP // parts + _OVERLAP, _filled(length, _SMALL))


class UpscaleStage(Stage):
    """Pictures uint8 (h, w, 3) to uint8 (scale * h, scale * w, 3)."""

    name = "upscaler"

    def __init__(
        self, network: Traceable, jit_compile: bool, programs: ProgramCache | None, config: UpscalerConfig
    ) -> None:
        super().__init__(network, jit_compile, programs)
        self._scale = config.scale

    def tiles(self, height: int, width: int) -> int:
        """How many tiles a picture is computed in."""
        filled = (max(tile_side(length), _filled(length, _MULTIPLE)) for length in (height, width))
        return math.prod(len(_starts(length, min(length, _STEP + _OVERLAP))) for length in filled)

    def __call__(self, picture: np.ndarray, parts: int = 1, advance: Callable[[], Any] = lambda: None) -> np.ndarray:
        """Tiles are smaller with more `parts`; `advance` is called after each."""
        height, width, _ = picture.shape
        sides = tile_side(height, parts), tile_side(width, parts)
        filled = [max(side, _filled(length, _MULTIPLE)) for side, length in zip(sides, (height, width), strict=True)]
        around = (0, filled[0] - height), (0, filled[1] - width), (0, 0)
        pixels = np.pad(picture, around, "reflect" if min(height, width) > 1 else "edge")
        starts = [_starts(length, side) for length, side in zip(filled, sides, strict=True)]
        for check in self.checks():
            whole = np.empty((self._scale * filled[0], self._scale * filled[1], 3), "uint8")
            check.finite, end = True, 0
            for top in starts[0]:
                rows = pixels[top : top + sides[0]]
                strip = np.empty((self._scale * sides[0], *whole.shape[1:]), "uint8")
                reached = 0
                for left in starts[1]:
                    tile = rows[None, :, left : left + sides[1]] / np.float32(255)
                    levels, finite = self.function("upscale", _upscale)(tile)
                    check.finite = check.finite and bool(np.asarray(finite))
                    made = np.asarray(levels)[0].swapaxes(0, 1)
                    advance()
                    reached = self._put(strip.swapaxes(0, 1), reached, left, made)
                end = self._put(whole, end, top, strip)
                if not check.finite:
                    break
        return whole[: self._scale * height, : self._scale * width]

    def _put(self, whole: np.ndarray, end: int, start: int, piece: np.ndarray) -> int:
        """Writes the rows from `start` of the picture on, which fade in over those up to `end`; gives the new end."""
        begin = self._scale * start
        overlap = max(0, end - begin)
        if overlap:
            before, margin = whole[begin:end].astype("float32"), self._scale * _MARGIN
            ramp = np.clip((np.arange(overlap, dtype="float32") + 0.5 - margin) / (overlap - 2 * margin), 0, 1)
            # Where both are the same, this is it, to the bit.
            whole[begin:end] = np.rint(before + (piece[:overlap] - before) * ramp[:, None, None])
        whole[begin + overlap : begin + len(piece)] = piece[overlap:]
        return begin + len(piece)

    def expected(self, height: int, width: int, parts: int = 1) -> Expected:
        """The program for pictures of a size."""
        sides = tile_side(height, parts), tile_side(width, parts)
        return Expected(self.function("upscale", _upscale), ((1, *sides, 3, "float32"),))


def _filled(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


def _starts(length: int, side: int) -> list[int]:
    """Where tiles begin: evenly, and in step with networks that see several pixels as one."""
    gaps = max(0, -(-(length - side) // (side - _OVERLAP)))
    return [index * (length - side) // max(gaps, 1) // _MULTIPLE * _MULTIPLE for index in range(gaps + 1)]


def _upscale(network: Any, pictures: Any) -> Any:
    from keras import ops

    made = apply(network, pictures)
    return ops.cast(ops.round(ops.clip(made * 255, 0, 255)), "uint8"), ops.all(ops.isfinite(made))


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpscaleCost(StageCost):
    """The upscaler with one tile, and what the picture takes around it."""

    config: UpscalerConfig
    itemsize: int

    def need(self, micro_batch: MicroBatch) -> int:
        sides = [tile_side(length, micro_batch.parts) for length in (self.height, self.width)]
        around = 4 * 3 * self.config.scale**2 * self.width * (sides[0] + self.height // 2)
        return HEADROOM + upscaler_bytes(self.config, sides[0], sides[1], self.itemsize) + around
