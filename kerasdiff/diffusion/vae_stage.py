"""The autoencoder's stages: latents to images, and images to latents, one at a time."""

import hashlib
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

    def __call__(self, latents: np.ndarray, parts: int = 1) -> np.ndarray:
        """Latents (h, w, C) to an image uint8 (8h, 8w, 3), in `parts` x `parts` tiles."""
        tiles = Tiles("latents", latents[None], parts, 1, self._factor)
        for check in self.checks():
            results, check.finite = [], True
            for tile in tiles:
                pixels, finite = self.function("decode", _decode)(tile)
                results.append(np.asarray(pixels))
                check.finite = check.finite and bool(np.asarray(finite))
        return tiles.join(results)[0]

    def expected(self, shape: tuple[int, int, int], parts: int = 1) -> Expected:
        """The program for latents of a shape (h, w, C)."""
        height, width, channels = shape
        tile = (height, width) if parts == 1 else tile_shape(height, width, parts)
        return Expected(self.function("decode", _decode), ((1, *tile, channels, "float32"),))


class EncodeStage(_VAEStage):
    """One picture to the mean of its latents, with an encoder from (1, height, width, 3) to (1, h, w, C)."""

    name = "encoder"

    def __call__(self, picture: np.ndarray, parts: int = 1) -> np.ndarray:
        """A picture in -1 to 1, float32 (height, width, 3), to latents float32 (h, w, C), as `DecodeStage` does it."""
        tiles = Tiles("pictures", picture[None], parts, self._factor, 1)
        for check in self.checks():
            results = [np.asarray(self.function("encode", apply)(tile)) for tile in tiles]
            check.finite = all(bool(np.isfinite(result).all()) for result in results)
        return tiles.join(results)[0]


class PictureCache:
    """Latents of pictures that were encoded before, in one run."""

    def __init__(self, encode: Any) -> None:
        self._encoder = encode
        self._latents: dict[bytes, np.ndarray] = {}

    def encode(self, pictures: np.ndarray) -> np.ndarray:
        """Pictures in -1 to 1 (K, height, width, 3) to the means of their latents, float32 (K, h, w, C)."""
        digests = [hashlib.sha256(picture.tobytes()).digest() for picture in pictures]
        for digest, picture in zip(digests, pictures, strict=True):
            if digest not in self._latents:
                self._latents[digest] = self._encoder.encode(picture)
        return np.stack([self._latents[digest] for digest in digests])


def _decode(decoder: Any, latents: Any) -> Any:
    from keras import ops

    pictures = apply(decoder, latents)
    levels = ops.round(ops.clip((pictures + 1) * 127.5, 0, 255))
    return ops.cast(levels, "uint8"), ops.all(ops.isfinite(pictures))
