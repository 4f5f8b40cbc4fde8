"""The autoencoder's stages: latents to images, and images to latents, one at a time."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from kerasdiff.diffusion.stage import Expected, Stage, apply
from kerasdiff.diffusion.tiling import Tiles, tile_shape
from kerasdiff.runtime.compiled import Traceable
from kerasdiff.runtime.program_cache import ProgramCache


class _VAEStage(Stage):
    def __init__(self, network: Traceable, jit_compile: bool, programs: ProgramCache | None, factor: int) -> None:
        """`factor`: pixels per latent, along each side."""
        super().__init__(network, jit_compile, programs)
        self._factor = factor


class DecodeStage(_VAEStage):
    """Latents of one image to pixels, with a decoder from (1, h, w, C) to (1, 8h, 8w, 3) in -1 to 1."""

    name = "decoder"

    def __call__(self, latents: np.ndarray, parts: int = 1, tile: str | None = None) -> np.ndarray:
        """Latents (h, w, C) to an image uint8 (8h, 8w, 3), in `parts` x `parts` tiles; seamless along `tile`."""
        tiles, decode = Tiles("latents", latents[None], parts, 1, self._factor, tile or ""), self._decode(parts, tile)
        for check in self.checks():
            results, check.finite = [], True
            for each in tiles:
                pixels, finite = self.function(*decode)(each)
                results.append(np.asarray(pixels))
                check.finite = check.finite and bool(np.asarray(finite))
        return tiles.join(results)[0]

    def expected(self, shape: tuple[int, int, int], parts: int = 1, tile: str | None = None) -> Expected:
        """The program for latents of a shape (h, w, C)."""
        height, width, channels = shape
        sides = (height, width) if parts == 1 else tile_shape(height, width, parts, tile or "")
        return Expected(self.function(*self._decode(parts, tile)), ((1, *sides, channels, "float32"),))

    def _decode(self, parts: int, tile: str | None) -> tuple[str, Callable[..., Any]]:
        """The function of a stage: a part of a picture does not wrap by itself."""
        return ("decode", _Decode()) if parts > 1 or not tile else (f"decode, tile {tile}", _Decode(tile))


class EncodeStage(_VAEStage):
    """One picture to the mean of its latents, with an encoder from (1, height, width, 3) to (1, h, w, C)."""

    name = "encoder"

    def __call__(self, picture: np.ndarray, parts: int = 1, tile: str | None = None) -> np.ndarray:
        """A picture in -1 to 1, float32 (height, width, 3), to latents float32 (h, w, C), as `DecodeStage` does it."""
        tiles = Tiles("pictures", picture[None], parts, self._factor, 1, tile or "")
        encode = ("encode", apply) if parts > 1 or not tile else (f"encode, tile {tile}", _Encode(tile))
        for check in self.checks():
            results = [np.asarray(self.function(*encode)(each)) for each in tiles]
            check.finite = all(bool(np.isfinite(result).all()) for result in results)
        return tiles.join(results)[0]


class PictureCache:
    """Latents of pictures that were encoded before, in one run."""

    def __init__(self, encode: Any, tile: str | None = None) -> None:
        self._encoder, self._tile = encode, tile
        self._latents: dict[bytes, np.ndarray] = {}

    def encode(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures in -1 to 1 (K, height, width, 3) to the means of their latents, float32 (K, h, w, C)."""
        digests = [hashlib.sha256(picture.tobytes()).digest() for picture in pictures]
        for digest, picture in zip(digests, pictures, strict=True):
            if digest not in self._latents:
                self._latents[digest] = self._encoder.encode(picture, self._tile)
        return np.stack([self._latents[digest] for digest in digests])


@dataclasses.dataclass(frozen=True)
class _Decode:
    """Latents to levels, and whether all pixels are finite; to be traced."""

    tile: str | None = None

    def __call__(self, decoder: Any, latents: Any) -> Any:
        from keras import ops

        pictures = _wrapped(self.tile, decoder, latents)
        levels = ops.round(ops.clip((pictures + 1) * 127.5, 0, 255))
        return ops.cast(levels, "uint8"), ops.all(ops.isfinite(pictures))


@dataclasses.dataclass(frozen=True)
class _Encode:
    """Pictures to latents; to be traced."""

    tile: str

    def __call__(self, encoder: Any, pictures: Any) -> Any:
        return _wrapped(self.tile, encoder, pictures)


def _wrapped(tile: str | None, network: Any, inputs: Any) -> Any:
    from kerasdiff.models.layers import wrapping

    with wrapping(tile):
        return apply(network, inputs)
