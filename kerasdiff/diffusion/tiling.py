"""One image in tiles: a network then needs memory for a tile, not for all of it, and computes the overlaps twice.

An autoencoder's norms and attention look at everything they are given, so that each tile comes out with colours
slightly of its own. Neighbours therefore overlap, and one fades into the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kerasdiff import validation
from kerasdiff.errors import RequestError

_LEAST_SIDE = 8


def decode_tiles(decode: Callable[[np.ndarray], Any], latents: np.ndarray, parts: int, factor: int) -> np.ndarray:
    """Latents (1, h, w, C) to a picture (1, factor h, factor w, 3) of the type that `decode` gives.

    All tiles have the shape that `tile_shape` tells, so that one compiled program serves them all; overlaps are blended
    with linear ramps in float32. diffusers' tiling cuts the last tile of a row to what is left.

    Args:
        decode: a tile (1, th, tw, C) to its picture (1, factor th, factor tw, 3).
        latents: of one image, both sides at least 8.
        parts: tiles along each side.
        factor: pixels a latent, along each side.

    Raises:
        RequestError: latents of another shape, `parts` out of range, or `decode` gives another size.

    Example:
        ```python
        decode_tiles(generator.decode, result.latents[:1], parts=2, factor=8)[0]
        ```
    """
    return _tiled("latents", decode, latents, parts, 1, factor)


def encode_tiles(encode: Callable[[np.ndarray], Any], pictures: np.ndarray, parts: int, factor: int) -> np.ndarray:
    """A picture (1, height, width, 3) to latents (1, height / factor, width / factor, C): `decode_tiles` the other way.

    Args:
        encode: a tile (1, factor th, factor tw, 3) to its latents (1, th, tw, C).
        pictures: one picture whose sides are multiples of `factor`, at least 8 of them.
        parts: tiles along each side.
        factor: pixels a latent, along each side.

    Raises:
        RequestError: a picture of another shape, `parts` out of range, or `encode` gives another size.

    Example:
        ```python
        encode_tiles(generator.encode_image, result.images[:1], parts=2, factor=8)
        ```
    """
    return _tiled("pictures", encode, pictures, parts, factor, 1)


def tile_shape(height: int, width: int, parts: int) -> tuple[int, int]:
    """Height and width of the parts x parts tiles of (height, width) latents: the smallest that overlap by a quarter.

    Raises:
        RequestError: a side is less than 8, or `parts` not between 1 and the shorter side minus 1.

    Example:
        ```python
        tile_shape(64, 96, 2)  # (37, 55)
        ```
    """
    if min(height, width) < _LEAST_SIDE:
        raise RequestError(
            f"{height} x {width} latents are too few for tiles; both sides must be at least {_LEAST_SIDE}"
        )
    validation.integer("parts", parts, 1, min(height, width) - 1)
    return _side(height, parts), _side(width, parts)


def _side(length: int, parts: int) -> int:
    if parts == 1:
        return length
    return next(side for side in range(2, length) if 4 * math.ceil((length - side) / (parts - 1)) <= 3 * side)


def _starts(length: int, side: int, parts: int) -> list[int]:
    """Where tiles begin; the last one ends at `length`."""
    return [index * (length - side) // max(parts - 1, 1) for index in range(parts)]


def _tiled(
    name: str, run: Callable[[np.ndarray], Any], array: np.ndarray, parts: int, cells: int, factor: int
) -> np.ndarray:
    """What `run` makes of tiles of an array that has `cells` values a latent; the result has `factor`."""
    array = np.asarray(array)
    if array.ndim != 4 or len(array) != 1 or array.shape[1] % cells or array.shape[2] % cells:
        multiples = f" with height and width multiples of {cells}" if cells > 1 else ""
        raise RequestError(f"{name} have shape {array.shape}; they must be (1, height, width, channels){multiples}")
    sides = array.shape[1] // cells, array.shape[2] // cells
    shape = tile_shape(*sides, parts)
    tops, lefts = (_starts(length, side, parts) for length, side in zip(sides, shape, strict=True))

    def tile(top: int, left: int) -> np.ndarray:
        rows, columns = (
            slice(start * cells, (start + side) * cells) for start, side in zip((top, left), shape, strict=True)
        )
        made = np.asarray(run(array[:, rows, columns]))
        expected = tuple(side * factor for side in shape)
        if made.ndim != 4 or made.shape[:3] != (1, *expected):
            raise RequestError(
                f"a tile of {name} gave an array of shape {made.shape}; it must be (1, {expected[0]}, {expected[1]}, C)"
            )
        return made

    tiles = [[tile(top, left) for left in lefts] for top in tops]
    strips = [_joined(row, [left * factor for left in lefts], 2) for row in tiles]
    whole = _joined(strips, [top * factor for top in tops], 1)
    dtype = tiles[0][0].dtype
    # A mean of levels lies between them, so that there is nothing to clip.
    return (np.rint(whole) if np.issubdtype(dtype, np.integer) else whole).astype(dtype)


def _joined(pieces: Sequence[np.ndarray], starts: Sequence[int], axis: int) -> np.ndarray:
    """Pieces of one size that begin at `starts` along an axis as one, float32; each fades in over those before it.

    As first + (second - first) * ramp, which leaves a value that both agree on as it is, to the bit.
    """
    size = pieces[0].shape[axis]
    shape = list(pieces[0].shape)
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


def _ramp(length: int) -> np.ndarray:
    """Weights of what fades in; backwards, those of what fades out."""
    return (np.arange(length, dtype="float32") + 0.5) / length
