"""A session of three bare networks in NCHW: text encoder, U-Net and decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kerasdiff.bench import checkpoint_files
from kerasdiff.bench.ddim_loop import ddim, levels_of
from kerasdiff.bench.task import Task
from kerasdiff.bench.worker import Session
from kerasdiff.checkpoints.formats.diffusers_config import read_config
from kerasdiff.models.tokenizer import Tokenizer, pad_ids


class NetworksSession(Session):
    """Text to images through three callables.

    Args:
        precision: what the networks compute in.
        text_encoder: ids (2, length) to context (2, length, width).
        unet: latents (N, C, h, w), sinusoids (N, width) of the timestep, context to the prediction.
        decoder: latents to images around [-1, 1].
    """

    def __init__(
        self,
        task: Task,
        precision: str,
        text_encoder: Callable[..., Any],
        unet: Callable[..., Any],
        decoder: Callable[..., Any],
    ) -> None:
        self.precision, self._workload = precision, task.workload
        self._text_encoder, self._unet, self._decoder = text_encoder, unet, decoder
        folder = checkpoint_files.diffusers_folder(task, "float32")
        config = read_config(folder)
        self._schedule, self._width = config.schedule, config.unet.widths[0]
        # Ours, as importing what diffusers tokenizes with takes seconds.
        tokenizer, length = Tokenizer.load_clip(folder / "tokenizer"), config.text_encoder.max_length
        texts = ("", task.workload.prompt)
        ids = [pad_ids(tokenizer.encode(text), length, tokenizer.pad_id) for text in texts]
        self._ids = np.stack(ids).astype("int64")

    def run(self, latents: np.ndarray, num_steps: int) -> np.ndarray:
        workload = self._workload
        texts = self._text_encoder(self._ids)
        context = np.repeat(texts if workload.guided else texts[1:], workload.batch_size, axis=0)
        final = ddim(
            lambda x, timestep: self._unet(x, np.repeat(sinusoids(timestep, self._width), len(x), axis=0), context),
            np.ascontiguousarray(latents.transpose(0, 3, 1, 2)),
            levels_of(self._schedule, num_steps),
            workload.guidance_scale,
        )
        images = self._decoder(final).transpose(0, 2, 3, 1).astype("float32")
        return np.round(np.clip((images + 1) * 127.5, 0, 255)).astype("uint8")


def sinusoids(timestep: float, width: int) -> np.ndarray:
    """A timestep as the U-Net reads it, cosines first: float32 (1, width)."""
    half = width // 2
    angles = timestep * np.exp(-np.log(10000) * np.arange(half) / half)
    return np.concatenate([np.cos(angles), np.sin(angles)])[None].astype("float32")
