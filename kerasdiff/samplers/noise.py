"""Noise as a function of (image seed, stream), the same whatever the batch, the split or the process."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

INITIAL = 0
MAX_SEED = 2**64 - 1
# torch generates values in blocks of this many.
_BLOCK = 16


def normal(seed: int, stream: int, shape: tuple[int, ...]) -> np.ndarray:
    """Unit normals, float32, of one image from Philox. Stream 0 is the starting noise, 1 + row a row's fresh noise."""
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, stream], "uint64")))
    return generator.standard_normal(shape, "float32")


def normals(seeds: Sequence[int], stream: int, shape: tuple[int, ...]) -> np.ndarray:
    """`normal` for each image: float32 (len(seeds), *shape)."""
    return np.stack([normal(seed, stream, shape) for seed in seeds])


class Noise(Protocol):
    """The noise of a run, from one seed per image and the `shape` (h, w, 4) of one image's latents."""

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...]) -> None: ...

    def initial(self) -> np.ndarray:
        """The starting noise, float32 (N, h, w, 4)."""

    def fresh(self, rows: Sequence[int]) -> np.ndarray:
        """The noise of each image's row, float32 (N, h, w, 4); zeros where that is -1."""


class PhiloxNoise(Noise):
    """Noise that depends on the image's seed and the row alone."""

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...]) -> None:
        self._seeds, self._shape = tuple(seeds), tuple(shape)

    def initial(self) -> np.ndarray:
        return normals(self._seeds, INITIAL, self._shape)

    def fresh(self, rows: Sequence[int]) -> np.ndarray:
        zeros = np.zeros(self._shape, "float32")
        pairs = zip(self._seeds, rows, strict=True)
        return np.stack([zeros if row < 0 else normal(seed, 1 + row, self._shape) for seed, row in pairs])


class TorchNoise(Noise):
    """The noise that diffusers' pipelines draw from one seeded CPU generator of torch per image.

    A sequence, channels first as in diffusers: the starting noise, if it is asked for, then one draw
    for each row that takes noise. torch truncates a seed to 32 bits.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...]) -> None:
        self._states = [np.random.RandomState(seed % 2**32) for seed in seeds]
        self._shape = tuple(shape)

    def initial(self) -> np.ndarray:
        return self.fresh([0] * len(self._states))

    def fresh(self, rows: Sequence[int]) -> np.ndarray:
        """The next draw of each image, whatever its row; where that is -1, zeros and no draw."""
        height, width, channels = shape = self._shape
        draws = [
            np.zeros(shape, "float32") if row < 0 else torch_normal(state, (channels, height, width)).transpose(1, 2, 0)
            for state, row in zip(self._states, rows, strict=True)
        ]
        return np.stack(draws)


RNGS: dict[str, type[Noise]] = {"philox": PhiloxNoise, "torch": TorchNoise}


def torch_normal(state: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
    """The values of `torch.randn` on a CPU in float32, to the last digits, for 16 values or more.

    The Mersenne Twister's words make 24-bit uniforms; Box-Muller takes 16 at a time, the first eight as
    radii and the last eight as angles (ATen, native/cpu/DistributionTemplates.h, `normal_fill`). A
    remainder is covered by drawing the last 16 values again.
    """
    count = math.prod(shape)
    if count < _BLOCK:
        raise ValueError(f"torch draws fewer than {_BLOCK} values differently")
    whole = count - count % _BLOCK
    values = np.empty(count, "float32")
    values[:whole] = _box_muller(_uniforms(state, count)[:whole])
    if whole < count:
        values[-_BLOCK:] = _box_muller(_uniforms(state, _BLOCK))
    return values.reshape(shape)


def _uniforms(state: np.random.RandomState, count: int) -> np.ndarray:
    words = np.frombuffer(state.bytes(4 * count), "<u4")
    return (words & 0xFFFFFF).astype("float32") * np.float32(2.0**-24)


def _box_muller(uniforms: np.ndarray) -> np.ndarray:
    pairs = uniforms.reshape(-1, 2, _BLOCK // 2)
    radius = np.sqrt(-2 * np.log(1 - pairs[:, 0]))
    angle = np.float32(2 * np.pi) * pairs[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
