"""The last stage and its inverse: latents to images, images to latents, one at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from kerasdiff.diffusion.tiling import decode_tiles, encode_tiles, tile_shape
from kerasdiff.runtime import backend
from kerasdiff.runtime.compiled import Compiled, Traceable
from kerasdiff.runtime.program_cache import ProgramCache


class Decoded(NamedTuple):
    """What the decoder makes of one image's latents.

    Attributes:
        image: uint8 (8h, 8w, 3).
        finite: whether it was made of numbers that are.
    """

    image: np.ndarray
    finite: bool


class Decode:
    """Latents (h, w, 4) of one image to pixels.

    Args:
        decoder: latents (1, h, w, 4) to pictures (1, 8h, 8w, 3) in -1 to 1.
        factor: pixels a latent, along each side.
        jit_compile: whether XLA compiles it.
        programs: where traced programs are kept; None keeps none.
    """

    def __init__(
        self, decoder: Traceable, factor: int, jit_compile: bool, programs: ProgramCache | None = None
    ) -> None:
        self._factor = factor
        self._decode = Compiled("decode", _decode, decoder, jit_compile, programs)

    @property
    def compiled(self) -> tuple[Compiled, ...]:
        """The decoder's."""
        return (self._decode,)

    def __call__(self, latents: np.ndarray, parts: int = 1) -> Decoded:
        """Decodes latents (h, w, 4), in `parts` x `parts` tiles if there are more than one."""
        finite = []

        def decode(tile: np.ndarray) -> np.ndarray:
            pixels, sound = self._decode(tile)
            finite.append(bool(backend.to_numpy(sound)))
            return backend.to_numpy(pixels)

        one = latents[None]
        pixels = decode(one) if parts == 1 else decode_tiles(decode, one, parts, self._factor)
        return Decoded(pixels[0], all(finite))

    def state(self, shape: tuple[int, int, int], parts: int = 1) -> str:
        """For latents of a shape (h, w, 4): "ready", "kept" or "new", as in `Compiled.state`."""
        height, width, channels = shape
        tile = (height, width) if parts == 1 else tile_shape(height, width, parts)
        return self._decode.state(((1, *tile, channels, "float32"),))


class Encode:
    """Pictures in -1 to 1, float32 (K, height, width, 3), to the means of their latents, float32 (K, h, w, 4).

    Args:
        encoder: pictures (1, height, width, 3) to latents.
        factor: pixels a latent, along each side.
        jit_compile: whether XLA compiles the encoder.
        programs: where traced programs are kept; None keeps none.
    """

    def __init__(
        self, encoder: Traceable, factor: int, jit_compile: bool, programs: ProgramCache | None = None
    ) -> None:
        self._factor = factor
        self._encode = Compiled("encode", _encode, encoder, jit_compile, programs)

    @property
    def compiled(self) -> tuple[Compiled, ...]:
        """The encoder's."""
        return (self._encode,)

    def __call__(self, pictures: np.ndarray, parts: int = 1) -> np.ndarray:
        """Encodes each picture, in `parts` x `parts` tiles if there are more than one."""

        def encode(picture: np.ndarray) -> np.ndarray:
            return backend.to_numpy(self._encode(picture))

        if parts == 1:
            return np.concatenate([encode(picture[None]) for picture in pictures])
        return np.concatenate([encode_tiles(encode, picture[None], parts, self._factor) for picture in pictures])


def _encode(encoder: Any, pictures: Any) -> Any:
    from keras import ops

    return ops.cast(encoder(pictures), "float32")


def _decode(decoder: Any, latents: Any) -> Any:
    from keras import ops

    pictures = ops.cast(decoder(latents), "float32")
    levels = ops.round(ops.clip((pictures + 1) * 127.5, 0, 255))
    return ops.cast(levels, "uint8"), ops.all(ops.isfinite(pictures))
