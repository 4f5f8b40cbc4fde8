"""The last stage and its inverse: latents to images, images to latents, one at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from kerasdiff.engine import backend
from kerasdiff.engine.compiled import Compiled
from kerasdiff.engine.network import Runs
from kerasdiff.engine.store import Store
from kerasdiff.errors import RequestError


class Decode:
    """Latents (N, h, w, 4) to images uint8 (N, 8h, 8w, 3).

    Args:
        decoder: latents (1, h, w, 4) to pictures (1, 8h, 8w, 3) in -1 to 1.
        jit_compile: whether XLA compiles it.
        programs: where traced programs are kept; None keeps none.
    """

    def __init__(self, decoder: Runs, jit_compile: bool, programs: Store | None = None) -> None:
        self._decode = Compiled("decode", _decode, decoder, jit_compile, programs)

    @property
    def compiled(self) -> tuple[Compiled, ...]:
        """The decoder's."""
        return (self._decode,)

    def __call__(self, latents: np.ndarray) -> np.ndarray:
        images = [backend.to_numpy(self._decode(latents[row : row + 1])) for row in range(len(latents))]
        return np.concatenate(images)


class Encode:
    """Images uint8 (N, height, width, 3) to the means of their latents, float32 (N, h, w, 4).

    Args:
        build: makes the encoder, pictures (1, height, width, 3) in -1 to 1 to latents; called when the first
            image comes.
        factor: pixels a latent, along each side.
        jit_compile: whether XLA compiles the encoder.
        programs: where traced programs are kept; None keeps none.
    """

    def __init__(
        self, build: Callable[[], Runs], factor: int, jit_compile: bool, programs: Store | None = None
    ) -> None:
        self._build, self._factor, self._jit_compile, self._programs = build, factor, jit_compile, programs

    def __call__(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise RequestError(f"images must be uint8 (N, height, width, 3), not {images.dtype} {images.shape}")
        if images.shape[1] % self._factor or images.shape[2] % self._factor:
            raise RequestError(
                f"images are {images.shape[1]} x {images.shape[2]}; both must be multiples of {self._factor}"
            )
        return self.scaled(images.astype("float32") / 127.5 - 1)

    def scaled(self, pictures: np.ndarray) -> np.ndarray:
        """The same of pictures float32 in -1 to 1."""
        return np.concatenate([backend.to_numpy(self._encode(picture[None])) for picture in pictures])

    @property
    def compiled(self) -> tuple[Compiled, ...]:
        """The encoder's, once it was needed."""
        return (self._encode,) if "_encode" in self.__dict__ else ()

    @functools.cached_property
    def _encode(self) -> Compiled:
        return Compiled("encode", _encode, self._build(), self._jit_compile, self._programs)


def _encode(encoder: Any, pictures: Any) -> Any:
    from keras import ops

    return ops.cast(encoder(pictures), "float32")


def _decode(decoder: Any, latents: Any) -> Any:
    from keras import ops

    levels = ops.round(ops.clip((ops.cast(decoder(latents), "float32") + 1) * 127.5, 0, 255))
    return ops.cast(levels, "uint8")
