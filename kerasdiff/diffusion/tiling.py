"""One image in tiles: a network then needs memory for a tile, not for all of it, and computes the overlaps twice.

An autoencoder's norms and attention look at everything they are given, so that each tile comes out with colours
slightly of its own. Neighbours therefore overlap, and one fades into the other.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from kerasdiff import validation
from kerasdiff.errors import RequestError

_LEAST_SIDE = 8


class Tiles:
    """One array, latents or a picture, in overlapping tiles of one shape, which one compiled program serves.

    Overlaps are blended with linear ramps in float32. diffusers' tiling cuts the last tile of a row to what is left.
    The array is (1, height, width, C), both sides at least 8 latents; along each side there are `parts` tiles, and per
    latent `cells` values of the array and `factor` of the result. `name` is for messages. Along the axes in `wraps`,
    "x", "y" or both, the last tile goes on at the other side, and fades into the first one.
    """

    def __init__(self, name: str, array: np.ndarray, parts: int, cells: int, factor: int, wraps: str = "") -> None:
        self._name, self._array, self._parts = name, np.asarray(array), parts
        self._cells, self._factor = cells, factor
        if parts == 1:
            return
        shape = self._array.shape
        if len(shape) != 4 or shape[0] != 1 or shape[1] % cells or shape[2] % cells:
            multiples = f" with height and width multiples of {cells}" if cells > 1 else ""
            raise RequestError(f"{name} have shape {shape}; they must be (1, height, width, channels){multiples}")
        sides = shape[1] // cells, shape[2] // cells
        self._shape, self._sides, round_ = tile_shape(*sides, parts, wraps), sides, [axis in wraps for axis in "yx"]
        lengths = zip(sides, self._shape, round_, strict=True)
        self._tops, self._lefts = (_starts(length, side, parts, wrap) for length, side, wrap in lengths)
        beyond = [(0, max(0, self._end(axis) - sides[axis]) * cells) for axis in range(2)]
        self._array = np.pad(self._array, ((0, 0), *beyond, (0, 0)), mode="wrap")

    def __iter__(self) -> Iterator[np.ndarray]:
        """Each tile (1, cells * th, cells * tw, C), row by row."""
        if self._parts == 1:
            yield self._array
            return
        height, width = (side * self._cells for side in self._shape)
        for top in self._tops:
            for left in self._lefts:
                y, x = top * self._cells, left * self._cells
                yield self._array[:, y : y + height, x : x + width]

    def join(self, results: Sequence[Any]) -> np.ndarray:
        """What was made of each tile, (1, factor * th, factor * tw, C') or RequestError, as one array of their type."""
        arrays = [np.asarray(result) for result in results]
        if self._parts == 1:
            return arrays[0]
        expected = tuple(side * self._factor for side in self._shape)
        for array in arrays:
            if array.ndim != 4 or array.shape[:3] != (1, *expected):
                raise RequestError(
                    f"a tile of {self._name} gave an array of shape {array.shape}; it must be (1, {expected[0]}, "
                    f"{expected[1]}, C)"
                )
        height, width = (side * self._factor for side in self._sides)
        rows = [arrays[first : first + self._parts] for first in range(0, len(arrays), self._parts)]
        strips = [_closed(_joined(row, [left * self._factor for left in self._lefts], 2), width, 2) for row in rows]
        whole = _closed(_joined(strips, [top * self._factor for top in self._tops], 1), height, 1)
        dtype = arrays[0].dtype
        # A mean of levels lies between them, so that there is nothing to clip.
        return (np.rint(whole) if np.issubdtype(dtype, np.integer) else whole).astype(dtype)

    def _end(self, axis: int) -> int:
        """Where the last tile ends."""
        return (self._tops, self._lefts)[axis][-1] + self._shape[axis]


def tile_shape(height: int, width: int, parts: int, wraps: str = "") -> tuple[int, int]:
    """The smallest height and width of parts x parts tiles of (height, width) latents that overlap by a quarter.

    RequestError if a side is less than 8, or `parts` not between 1 and the shorter side minus 1.
    """
    if min(height, width) < _LEAST_SIDE:
        raise RequestError(
            f"{height} x {width} latents are too few for tiles; both sides must be at least {_LEAST_SIDE}"
        )
    validation.integer("parts", parts, 1, min(height, width) - 1)
    return _side(height, parts, "y" in wraps), _side(width, parts, "x" in wraps)


def _side(length: int, parts: int, wraps: bool = False) -> int:
    if parts == 1:
        return length
    if wraps:
        return next((side for side in range(2, length) if 4 * math.ceil(length / parts) <= 3 * side), length)
    return next(side for side in range(2, length) if 4 * math.ceil((length - side) / (parts - 1)) <= 3 * side)


def _starts(length: int, side: int, parts: int, wraps: bool = False) -> list[int]:
    """Where tiles begin; the last one ends at `length`, or goes round."""
    if wraps:
        return [index * length // parts for index in range(parts)]
    return [index * (length - side) // max(parts - 1, 1) for index in range(parts)]


def _joined(pieces: Sequence[np.ndarray], starts: Sequence[int], axis: int) -> np.ndarray:
    """Pieces of one size that begin at `starts` along an axis as one, float32; each fades in over those before it.

    As first + (second - first) * ramp, which leaves a value that both agree on as it is, to the bit.
    """
    shape = list(pieces[0].shape)
    size = shape[axis]
    shape[axis] = starts[-1] + size
    whole = np.empty(shape, "float32")
    along, end = np.moveaxis(whole, axis, -1), 0
    for start, piece in zip(starts, pieces, strict=True):
        values = np.moveaxis(piece.astype("float32"), axis, -1)
        overlap = end - start
        before = along[..., start:end]
        before += (values[..., :overlap] - before) * _ramp(overlap)
        along[..., end : start + size] = values[..., overlap:]
        end = start + size
    return whole


def _closed(whole: np.ndarray, length: int, axis: int) -> np.ndarray:
    """What goes on beyond `length` along an axis, faded into where it begins."""
    along = np.moveaxis(whole, axis, -1)
    beyond = along.shape[-1] - length
    first, last = along[..., :beyond], along[..., length:]
    first[:] = last + (first - last) * _ramp(beyond)
    return np.moveaxis(along[..., :length], -1, axis)


def _ramp(length: int) -> np.ndarray:
    """Weights of what fades in; backwards, those of what fades out."""
    return (np.arange(length, dtype="float32") + 0.5) / length
