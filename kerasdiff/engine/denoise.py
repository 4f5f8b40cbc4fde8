"""The denoising stage: one compiled step that every sampler goes through."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kerasdiff.engine import backend
from kerasdiff.engine.compiled import Compiled
from kerasdiff.engine.network import Runs
from kerasdiff.engine.store import Store
from kerasdiff.samplers.rows import MEMORIES
from kerasdiff.samplers.tables import Table

# The context's place among a step's arguments: texts stay the same for a whole run.
_LASTING = (2,)


class Denoise:
    """The U-Net inside a sampler's row, compiled once for each batch size and picture size.

    With guidance both halves of the batch, unconditional first, go through the U-Net in one call;
    without it, or in a row where its weight is 1, only the conditional half exists.

    Args:
        unet: the network.
        jit_compile: whether XLA compiles the step.
        programs: where traced steps are kept; None keeps none.
    """

    def __init__(self, unet: Runs, jit_compile: bool, programs: Store | None = None) -> None:
        self._guided = Compiled("guided", functools.partial(_step, True), unet, jit_compile, programs, _LASTING)
        self._plain = Compiled("plain", functools.partial(_step, False), unet, jit_compile, programs, _LASTING)

    @property
    def traces(self) -> int:
        """How often the step was traced so far."""
        return sum(compiled.traces for compiled in self.compiled)

    @property
    def compiled(self) -> tuple[Compiled, ...]:
        """The step with and without guidance."""
        return self._guided, self._plain

    def __call__(
        self,
        noise: np.ndarray,
        context: Any,
        guidance: np.ndarray | None,
        table: Table,
        fresh: Callable[[int], np.ndarray],
        guidance_rescale: float = 0.0,
    ) -> Iterator[Any]:
        """Runs a table and yields x after each row, float32 (B, h, w, 4) on the device.

        Args:
            noise: unit-variance starting noise, float32 (B, h, w, 4).
            context: text embeddings, an array (2B, T, C) with guidance (unconditional half first), else (B, T, C).
            guidance: the weight of each step and image, float32 (num_steps, B), or None to run without.
                A row whose weights are all 1 runs on the conditional half alone.
            table: the sampler's run.
            fresh: `fresh(row)`, noise for a row that takes some, float32 (B, h, w, 4).
            guidance_rescale: share of the guided prediction that is scaled back to the deviation of the
                conditional one (Lin et al. 2023, arXiv:2305.08891, section 3.4).
        """
        x = (noise * np.float32(table.initial_scale)).astype("float32")
        memories = np.zeros((MEMORIES, *x.shape), "float32")
        none = backend.tensor(np.zeros_like(x))
        conditional = backend.tensor(context if guidance is None else context[len(noise) :])
        context = backend.tensor(context)
        inputs, updates = table.inputs.astype("float32"), table.updates.astype("float32")
        rescale = np.float32(guidance_rescale)
        for row, noisy in enumerate(table.noisy):
            drawn = fresh(row) if noisy else none
            weight = None if guidance is None else guidance[table.steps[row]]
            if weight is None or np.all(weight == 1):
                x, memories = self._plain(x, memories, conditional, inputs[row], updates[row], drawn)
            else:
                weights = np.stack([weight, np.full_like(weight, rescale)])
                x, memories = self._guided(x, memories, context, inputs[row], updates[row], drawn, weights)
            yield x


def _step(guided, unet, x, memories, context, inputs, update, noise, weights=None):
    """One row: x (B, h, w, 4), memories (4, B, h, w, 4), inputs (4,), update (5, 7), noise as x.

    `weights` (2, B): guidance and its rescaling.
    """
    from keras import ops

    scale, timestep, skip, out = (inputs[place] for place in range(4))
    scaled = x * scale
    twice = guided and not getattr(unet, "shares_latents", False)
    batch = ops.concatenate([scaled, scaled], axis=0) if twice else scaled
    timesteps = ops.broadcast_to(timestep, (ops.shape(batch)[0],))
    predicted = ops.cast(unet(batch, timesteps, context), "float32")
    if guided:
        without, conditional = ops.split(predicted, 2, axis=0)
        predicted = _guide(without, conditional, *(weights[place][:, None, None, None] for place in range(2)))
    denoised = skip * x + out * predicted
    terms = [x, *(memories[place] for place in range(MEMORIES)), denoised, noise]
    # Sums of products, not a matrix product: a GPU would round its inputs to TF32.
    following = [sum(update[row, column] * term for column, term in enumerate(terms)) for row in range(1 + MEMORIES)]
    return following[0], ops.stack(following[1:])


def _guide(without, conditional, scale, rescale):
    from keras import ops

    guided = without + scale * (conditional - without)
    axes = (1, 2, 3)
    deviation = ops.maximum(ops.std(guided, axis=axes, keepdims=True), 1e-12)
    ratio = ops.std(conditional, axis=axes, keepdims=True) / deviation
    return guided * (1 + rescale * (ratio - 1))
