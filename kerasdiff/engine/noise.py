"""Noise as a function of (image seed, stream), the same whatever the batch, the split or the process."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

INITIAL = 0
MAX_SEED = 2**64 - 1


def normal(seed: int, stream: int, shape: tuple[int, ...]) -> np.ndarray:
    """Unit normals float32 of one image from the counter-based Philox generator.

    Stream 0 is the starting noise, stream 1 + row the fresh noise of a row.
    """
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, stream], "uint64")))
    return generator.standard_normal(shape, "float32")


def normals(seeds: Sequence[int], stream: int, shape: tuple[int, ...]) -> np.ndarray:
    """`normal` for each image: float32 (len(seeds), *shape)."""
    return np.stack([normal(seed, stream, shape) for seed in seeds])
