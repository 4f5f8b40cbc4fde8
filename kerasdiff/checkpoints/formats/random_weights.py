"""Random parameters: a full-size model without a download, for benchmarks and tests."""

import math
import zlib

import numpy as np

# A prime, so that parameters cut from the pool one after the other do not line up.
_POOL = 1_048_583


class RandomSource:
    """Parameters as in a trained network's order of size, a function of the seed and their name.

    Values are cut from a pool of a million normals, which takes a second for 860 million parameters
    where drawing each takes ten. Kernels have variance 1 / fan-in; gains are around 1.
    """

    rereadable = True

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._pool = np.random.default_rng(seed).standard_normal(_POOL, "float32")

    def __call__(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        leaf = name.rpartition(".")[2]
        count = math.prod(shape)
        scale = {"kernel": math.prod(shape[:-1]) ** -0.5, "embeddings": 0.02}.get(leaf, 0.05)
        values = np.empty(count, "float32")
        start, done = zlib.crc32(f"{self._seed}/{name}".encode()) % _POOL, 0
        while done < count:
            part = self._pool[start : start + count - done]
            np.multiply(part, np.float32(scale), out=values[done : done + part.size])
            start, done = 0, done + part.size
        if leaf == "gamma":
            values += 1
        return values.reshape(shape)
