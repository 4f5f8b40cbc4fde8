"""What subjects that are three bare networks, in NCHW, do with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kerasdiff.bench import checkpoint_files
from kerasdiff.bench.case import Job
from kerasdiff.bench.ddim_loop import ddim, levels_of, to_uint8
from kerasdiff.bench.peers.modules import token_ids
from kerasdiff.checkpoints.formats.diffusers_config import read_config


class NetworksSession:
    """Text to images through three callables.

    Args:
        job: what to draw.
        precision: that the networks compute in.
        text_encoder: ids (2, length) to context (2, length, width).
        unet: latents (N, C, h, w), sinusoids (N, width) of the timestep, context to the prediction.
        decoder: latents to pictures around [-1, 1].
    """

    device_memory_gb: float | None = None

    def __init__(
        self,
        job: Job,
        precision: str,
        text_encoder: Callable[..., Any],
        unet: Callable[..., Any],
        decoder: Callable[..., Any],
    ) -> None:
        self.precision, self._settings = precision, job.settings
        self._text_encoder, self._unet, self._decoder = text_encoder, unet, decoder
        config = read_config(checkpoint_files.diffusers_folder(job, "float32"))
        self._schedule, self._width = config.schedule, config.unet.widths[0]
        self._ids = token_ids(job)
        self.times: Mapping[str, float] = {}

    def run(self, latents: np.ndarray, num_steps: int) -> np.ndarray:
        settings = self._settings
        texts = self._text_encoder(self._ids)
        context = np.repeat(texts if settings.guided else texts[1:], settings.batch_size, axis=0)
        final = ddim(
            lambda x, timestep: self._unet(x, np.repeat(sinusoids(timestep, self._width), len(x), axis=0), context),
            np.ascontiguousarray(latents.transpose(0, 3, 1, 2)),
            levels_of(self._schedule, num_steps),
            settings.guidance_scale,
        )
        return to_uint8(self._decoder(final).transpose(0, 2, 3, 1))


def sinusoids(timestep: float, width: int) -> np.ndarray:
    """A timestep as the U-Net reads it, cosines first: float32 (1, width)."""
    half = width // 2
    angles = timestep * np.exp(-np.log(10000) * np.arange(half) / half)
    return np.concatenate([np.cos(angles), np.sin(angles)])[None].astype("float32")
