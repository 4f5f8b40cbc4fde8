"""Which tokens others may be merged into: one in each cell of 2 x 2."""

import numpy as np

_SIDE = 2
# Tokens in a cell.
CELL = _SIDE**2


def num_cells(height: int, width: int) -> int:
    """How many destinations height x width tokens have."""
    return (height // _SIDE) * (width // _SIDE)


def token_order(chosen: np.ndarray, height: int, width: int) -> np.ndarray:
    """The places of all tokens, destinations first, float32 (B, height * width).

    `chosen`, (B, cells), is which token of each cell is the destination, 0 to 3. At an odd side the last row or column
    is in no cell.
    """
    places = np.arange(height * width).reshape(height, width)
    high, wide = height // _SIDE, width // _SIDE
    inside = places[: high * _SIDE, : wide * _SIDE].reshape(high, _SIDE, wide, _SIDE)
    cells = inside.transpose(0, 2, 1, 3).reshape(1, high * wide, CELL)
    turns = (chosen[..., None] + np.arange(CELL)) % CELL
    turned = np.take_along_axis(np.broadcast_to(cells, turns.shape), turns, axis=2)
    outside = np.setdiff1d(places, inside)
    rows = len(chosen)
    sources = turned[..., 1:].reshape(rows, -1)
    return np.concatenate([turned[..., 0], sources, np.tile(outside, (rows, 1))], axis=1).astype("float32")
