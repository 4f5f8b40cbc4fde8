"""Noise as a function of (image seed, stream), the same whatever the batch, the split or the process."""

import abc
import math
from collections.abc import Sequence

import numpy as np

INITIAL = 0
MAX_SEED = 2**64 - 1
# Streams from here on are not of noise.
_CHOICES = 2**63
# torch generates values in blocks of this many.
_BLOCK = 16


def normal(seed: int, stream: int, shape: tuple[int, ...]) -> np.ndarray:
    """Unit normals, float32, of one image from Philox. Stream 0 is the starting noise, 1 + row a row's fresh noise."""
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, stream], "uint64")))
    return generator.standard_normal(shape, "float32")


def normals(seeds: Sequence[int], stream: int, shape: tuple[int, ...]) -> np.ndarray:
    """`normal` for each image: float32 (len(seeds), *shape)."""
    return np.stack([normal(seed, stream, shape) for seed in seeds])


class Noise(abc.ABC):
    """The noise of a run, from one seed per image and the `shape` (h, w, 4) of one image's latents."""

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...]) -> None:
        self._seeds, self._shape = tuple(seeds), tuple(shape)

    def initial(self) -> np.ndarray:
        """The starting noise, float32 (N, h, w, 4)."""
        return np.stack([self._draw(image, INITIAL) for image in range(len(self._seeds))])

    def fresh(self, rows: Sequence[int]) -> np.ndarray:
        """The noise of each image's row, float32 (N, h, w, 4); zeros, and no draw, where that is -1."""
        zeros = np.zeros(self._shape, "float32")
        return np.stack([zeros if row < 0 else self._draw(image, 1 + row) for image, row in enumerate(rows)])

    def choices(self, rows: Sequence[int], count: int, of: int) -> np.ndarray:
        """`count` integers below `of` for each image's row, (N, count), from its seed; no noise depends on them."""
        keys = (np.array([seed, _CHOICES + int(row)], "uint64") for seed, row in zip(self._seeds, rows, strict=True))
        return np.stack([np.random.Generator(np.random.Philox(key=key)).integers(of, size=count) for key in keys])

    @abc.abstractmethod
    def skip(self, rows: int, noisy: int) -> None:
        """Goes on after a run: behind its starting noise, and that of so many rows, of which some are noisy."""

    @abc.abstractmethod
    def _draw(self, image: int, stream: int) -> np.ndarray:
        """One image's noise, float32 (h, w, 4)."""


class PhiloxNoise(Noise):
    """Noise that depends on the image's seed and the row alone."""

    _skipped = 0

    def skip(self, rows: int, noisy: int) -> None:
        self._skipped += rows

    def _draw(self, image: int, stream: int) -> np.ndarray:
        return normal(self._seeds[image], self._skipped + stream, self._shape)


class TorchNoise(Noise):
    """The noise that diffusers' pipelines draw from one seeded CPU generator of torch per image.

    A sequence, whatever the stream, channels first as in diffusers: the starting noise, if it is asked for, then one
    draw for each row that takes noise. torch truncates a seed to 32 bits.
    """

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...]) -> None:
        super().__init__(seeds, shape)
        self._states = [np.random.RandomState(seed % 2**32) for seed in seeds]

    def skip(self, rows: int, noisy: int) -> None:
        for image in range(len(self._states)):
            for stream in range(1 + noisy):
                self._draw(image, stream)

    def _draw(self, image: int, stream: int) -> np.ndarray:
        height, width, channels = self._shape
        return torch_normal(self._states[image], (channels, height, width)).transpose(1, 2, 0)


class WalkNoise(Noise):
    """The noise of images on the way from one noise to another, of equal kind; `shares` of the way are done."""

    def __init__(self, first: Noise, second: Noise, shares: Sequence[float]) -> None:
        super().__init__(first._seeds, first._shape)
        self._first, self._second, self._shares = first, second, shares

    def skip(self, rows: int, noisy: int) -> None:
        self._first.skip(rows, noisy)
        self._second.skip(rows, noisy)

    def _draw(self, image: int, stream: int) -> np.ndarray:
        drawn = self._first._draw(image, stream)
        if self._seeds[image] == self._second._seeds[image]:
            return drawn
        return slerp(drawn, self._second._draw(image, stream), self._shares[image])


def slerp(first: np.ndarray, second: np.ndarray, share: float) -> np.ndarray:
    """What lies between noises, float32, on the great circle through both (Shoemake 1985, spherical interpolation).

    It goes on behind the second one: at share 2 is the opposite of the first, at 3 that of the second, at 4 the first.
    """
    quarters, part = divmod(share, 1)
    corners = [first, second, -first, -second]
    one, other = (corners[int(quarters + offset) % 4].astype("float64") for offset in range(2))
    cosine = np.sum(one * other) / np.sqrt(np.sum(one**2) * np.sum(other**2))
    angle = np.arccos(np.clip(cosine, -1, 1))
    weights = np.sin(angle * np.array([1 - part, part])) / np.sin(angle)
    return (weights[0] * one + weights[1] * other).astype("float32")


RNGS: dict[str, type[Noise]] = {"philox": PhiloxNoise, "torch": TorchNoise}


def torch_normal(state: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
    """The values of `torch.randn` on a CPU in float32, to the last digits; fewer than 16 values must be an even number.

    The Mersenne Twister's words make 24-bit uniforms; Box-Muller takes 16 at a time, the first eight as
    radii and the last eight as angles (ATen, native/cpu/DistributionTemplates.h, `normal_fill`). A
    remainder is covered by drawing the last 16 values again. Fewer values are made in pairs, in float64.
    """
    count = math.prod(shape)
    if count < _BLOCK:
        return _few(state, count).reshape(shape)
    whole, values = count - count % _BLOCK, np.empty(count, "float32")
    values[:whole] = _box_muller(_uniforms(state, count)[:whole])
    if whole < count:
        values[-_BLOCK:] = _box_muller(_uniforms(state, _BLOCK))
    return values.reshape(shape)


def _uniforms(state: np.random.RandomState, count: int) -> np.ndarray:
    words = np.frombuffer(state.bytes(4 * count), "<u4")
    return (words & 0xFFFFFF).astype("float32") * np.float32(2.0**-24)


def _few(state: np.random.RandomState, count: int) -> np.ndarray:
    """Pairs by Box-Muller of 53-bit uniforms, the angle's first (ATen, core/DistributionsHelper.h)."""
    words = np.frombuffer(state.bytes(8 * count), "<u4").reshape(-1, 2, 2).astype("uint64")
    drawn = ((words[..., 0] << np.uint64(32) | words[..., 1]) & np.uint64(2**53 - 1)).astype("float64") * 2.0**-53
    angle, radius = 2 * np.pi * drawn[:, 0], np.sqrt(-2 * np.log1p(-drawn[:, 1]))
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1).astype("float32")


def _box_muller(uniforms: np.ndarray) -> np.ndarray:
    pairs = uniforms.reshape(-1, 2, _BLOCK // 2)
    radius = np.sqrt(-2 * np.log(1 - pairs[:, 0]))
    angle = np.float32(2 * np.pi) * pairs[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)
