"""The denoising stage: one compiled step that every sampler goes through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from keras import ops

from kerasdiff.engine.backend import Compiled
from kerasdiff.samplers.rows import MEMORIES
from kerasdiff.samplers.tables import Table


class Denoise:
    """The U-Net inside a sampler's row, compiled once for each batch size and picture size.

    With guidance both halves of the batch, unconditional first, go through the U-Net in one call;
    without it only the conditional half exists.
    """

    def __init__(self, unet: Callable[..., Any], jit_compile: bool) -> None:
        self._guided = Compiled(lambda *arguments: _step(unet, True, *arguments), jit_compile)
        self._plain = Compiled(lambda *arguments: _step(unet, False, *arguments), jit_compile)

    @property
    def traces(self) -> int:
        """How many times the step was traced so far."""
        return self._guided.traces + self._plain.traces

    def __call__(
        self,
        noise: np.ndarray,
        context: Any,
        guidance_scale: np.ndarray | None,
        table: Table,
        fresh: Callable[[int], np.ndarray],
    ) -> Iterator[Any]:
        """Runs a table and yields x after each row, float32 (B, h, w, 4) on the device.

        Args:
            noise: unit-variance starting noise, float32 (B, h, w, 4).
            context: text embeddings, (2B, T, C) with guidance (unconditional half first), else (B, T, C).
            guidance_scale: float32 (B,), or None to run without guidance.
            table: the sampler's run.
            fresh: `fresh(row)`, noise for a row that takes some, float32 (B, h, w, 4).
        """
        step = self._plain if guidance_scale is None else self._guided
        scale = ops.zeros(0, "float32") if guidance_scale is None else ops.convert_to_tensor(guidance_scale, "float32")
        x = ops.convert_to_tensor((noise * np.float32(table.initial_scale)).astype("float32"))
        memories = ops.zeros((MEMORIES, *x.shape), "float32")
        none = ops.zeros_like(x)
        inputs, updates = table.inputs.astype("float32"), table.updates.astype("float32")
        for row, noisy in enumerate(table.noisy):
            drawn = fresh(row) if noisy else none
            x, memories = step(x, memories, context, scale, inputs[row], updates[row], drawn)
            yield x


def _step(unet, guided, x, memories, context, guidance_scale, inputs, update, noise):
    """One row: x (B, h, w, 4), memories (4, B, h, w, 4), inputs (4,), update (5, 7), noise as x."""
    scale, timestep, skip, out = (inputs[place] for place in range(4))
    scaled = x * scale
    batch = ops.concatenate([scaled, scaled], axis=0) if guided else scaled
    timesteps = ops.broadcast_to(timestep, (ops.shape(batch)[0],))
    predicted = ops.cast(unet(batch, timesteps, context), "float32")
    if guided:
        without, conditional = ops.split(predicted, 2, axis=0)
        predicted = without + guidance_scale[:, None, None, None] * (conditional - without)
    denoised = skip * x + out * predicted
    terms = [x, *(memories[place] for place in range(MEMORIES)), denoised, noise]
    # Sums of products, not a matrix product: a GPU would round its inputs to TF32.
    following = [sum(update[row, column] * term for column, term in enumerate(terms)) for row in range(1 + MEMORIES)]
    return following[0], ops.stack(following[1:])
