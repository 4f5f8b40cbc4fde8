"""The last stage and its inverse: latents to images, images to latents, one at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from kerasdiff.engine.backend import Compiled
from kerasdiff.errors import RequestError


class Decode:
    """Latents (N, h, w, 4) to images uint8 (N, 8h, 8w, 3).

    Args:
        decoder: latents (1, h, w, 4) to pictures (1, 8h, 8w, 3) in -1 to 1.
        jit_compile: whether XLA compiles it.
    """

    def __init__(self, decoder: Callable[..., Any], jit_compile: bool) -> None:
        self._decode = Compiled(lambda latents: _to_uint8(decoder(latents)), jit_compile)

    @property
    def traces(self) -> int:
        """How many times the decoder was traced so far."""
        return self._decode.traces

    def __call__(self, latents: np.ndarray) -> np.ndarray:
        images = [ops.convert_to_numpy(self._decode(latents[row : row + 1])) for row in range(len(latents))]
        return np.concatenate(images)


class Encode:
    """Images uint8 (N, height, width, 3) to the means of their latents, float32 (N, h, w, 4).

    Args:
        build: makes the encoder, pictures (1, height, width, 3) in -1 to 1 to latents; called when the first
            image comes.
        factor: pixels a latent, along each side.
        jit_compile: whether XLA compiles the encoder.
    """

    def __init__(self, build: Callable[[], Callable[..., Any]], factor: int, jit_compile: bool) -> None:
        self._build, self._factor, self._jit_compile = build, factor, jit_compile

    def __call__(self, images: np.ndarray) -> np.ndarray:
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise RequestError(f"images must be uint8 (N, height, width, 3), not {images.dtype} {images.shape}")
        if images.shape[1] % self._factor or images.shape[2] % self._factor:
            raise RequestError(
                f"images are {images.shape[1]} x {images.shape[2]}; both must be multiples of {self._factor}"
            )
        scaled = images.astype("float32") / 127.5 - 1
        rows = [ops.convert_to_numpy(self._encode(scaled[row : row + 1])) for row in range(len(images))]
        return np.concatenate(rows)

    @functools.cached_property
    def _encode(self) -> Compiled:
        encoder = self._build()
        return Compiled(lambda pictures: ops.cast(encoder(pictures), "float32"), self._jit_compile)


def _to_uint8(pictures: Any) -> Any:
    levels = ops.round(ops.clip((ops.cast(pictures, "float32") + 1) * 127.5, 0, 255))
    return ops.cast(levels, "uint8")
