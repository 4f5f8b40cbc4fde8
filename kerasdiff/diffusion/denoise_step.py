"""The denoising stage: one compiled step that every sampler goes through."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from kerasdiff.runtime import backend
from kerasdiff.runtime.compiled import Compiled, Traceable
from kerasdiff.runtime.program_cache import ProgramCache
from kerasdiff.samplers.batched import BatchTable
from kerasdiff.samplers.update import MEMORIES, TERMS

# The context's place among a step's arguments: texts stay the same for a whole run.
_LASTING = (2,)


class State(NamedTuple):
    """Where a run is after a row, both float32 (B, h, w, 4) on the device.

    Attributes:
        x: x0 + sigma * noise.
        denoised: what the U-Net took for x0.
    """

    x: Any
    denoised: Any


class Denoise:
    """The U-Net inside a sampler's row, compiled once for each batch size and picture size.

    With guidance both halves of the batch, unconditional first, go through the U-Net in one call;
    without it, or in a row where its weight is 1, only the conditional half exists.

    Args:
        unet: the network.
        jit_compile: whether XLA compiles the step.
        programs: where traced steps are kept; None keeps none.
    """

    def __init__(self, unet: Traceable, jit_compile: bool, programs: ProgramCache | None = None) -> None:
        self._unet, self._jit_compile, self._programs = unet, jit_compile, programs
        self._steps: dict[tuple[bool, int], Compiled] = {}

    @property
    def traces(self) -> int:
        """How often the step was traced so far."""
        return sum(compiled.traces for compiled in self.compiled)

    @property
    def compiled(self) -> tuple[Compiled, ...]:
        """The step with and without guidance, whole and in slices, as far as each was needed."""
        return tuple(self._steps.values())

    def _compiled(self, guided: bool, slices: int) -> Compiled:
        if (guided, slices) not in self._steps:
            name = "guided" if guided else "plain"
            function = functools.partial(_step, guided, slices)
            self._steps[guided, slices] = Compiled(
                f"{name} {slices}", function, self._unet, self._jit_compile, self._programs, _LASTING
            )
        return self._steps[guided, slices]

    def state(
        self, shape: tuple[int, ...], text: tuple[int, int], guided: bool, channels: int = 0, slices: int = 1
    ) -> str:
        """For latents (B, h, w, C): "ready", "kept" or "new", as in `Compiled.state`.

        Args:
            shape: of the latents.
            text: tokens and width of the context.
            guided: whether with guidance.
            channels: of what the U-Net sees behind x.
            slices: of attention.
        """
        batch = shape[0]
        shapes = [shape, (MEMORIES, *shape), ((1 + guided) * batch, *text), (batch, 4), (batch, 1 + MEMORIES, TERMS)]
        shapes += [shape, *([(*shape[:-1], channels)] if channels else []), *([(2, batch)] if guided else [])]
        return self._compiled(guided, slices).state(tuple((*one, "float32") for one in shapes))

    def __call__(
        self,
        x: np.ndarray,
        context: Any,
        guidance: np.ndarray | None,
        run: BatchTable,
        fresh: Callable[[int], np.ndarray],
        guidance_rescale: float = 0.0,
        *,
        condition: np.ndarray | None = None,
        hold: Callable[[Any, np.ndarray], Any] | None = None,
        slices: int = 1,
    ) -> Iterator[State]:
        """Carries out a run and yields the state after each row.

        Args:
            x: where it starts, float32 (B, h, w, 4), at the run's initial noise levels.
            context: text embeddings, an array (2B, T, C) with guidance (unconditional half first), else (B, T, C).
            guidance: the weight of each step and image, float32 (num_steps, B), or None to run without.
                A row whose weights are all 1 runs on the conditional half alone.
            run: what each image goes through.
            fresh: `fresh(row)`, noise for a row that takes some, float32 (B, h, w, 4).
            guidance_rescale: share of the guided prediction that is scaled back to the deviation of the
                conditional one (Lin et al. 2023, arXiv:2305.08891, section 3.4).
            condition: what a U-Net with more channels sees behind x, float32 (B, h, w, C).
            hold: `hold(x, levels)` between rows, x at the noise levels (B,): gives the x to go on with.
            slices: in how many slices each attention goes through its queries, where it is large.
        """
        memories = np.zeros((MEMORIES, *x.shape), "float32")
        none = backend.tensor(np.zeros_like(x))
        conditional = backend.tensor(context if guidance is None else context[len(x) :])
        context = backend.tensor(context)
        rescale = np.float32(guidance_rescale)
        conditions = () if condition is None else (backend.tensor(condition),)
        for row, (inputs, update, step) in enumerate(zip(run.inputs, run.updates, run.steps, strict=True)):
            drawn = fresh(row) if np.any(run.draws[row] >= 0) else none
            weight = None if guidance is None else _weights(guidance, step)
            if weight is None or np.all(weight == 1):
                plain = self._compiled(False, slices)
                x, memories, denoised = plain(x, memories, conditional, inputs, update, drawn, *conditions)
            else:
                weights = np.stack([weight, np.full_like(weight, rescale)])
                arguments = (x, memories, context, inputs, update, drawn, *conditions, weights)
                x, memories, denoised = self._compiled(True, slices)(*arguments)
            if hold is not None and row + 1 < len(run):
                x = hold(x, run.levels[row])
            yield State(x, denoised)


def _weights(guidance: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """The weight of guidance of each image in a row, float32 (B,); 1 for those that wait."""
    images = np.arange(len(steps))
    return np.where(steps >= 0, guidance[steps, images], np.float32(1))


def _step(guided, slices, unet, x, memories, context, inputs, update, noise, *more):
    """One row: x (B, h, w, 4), memories (4, B, h, w, 4), inputs (B, 4), update (B, 5, 7), noise as x.

    `more`: what the U-Net sees behind x, (B, h, w, C), if it does; with guidance, its weights and rescaling, (2, B).
    """
    from keras import ops

    from kerasdiff.models.layers import attention_slices

    *conditions, weights = more if guided else (*more, None)
    scale, timesteps, skip, out = (inputs[:, place] for place in range(4))
    seen = ops.concatenate([_each(scale) * x, *conditions], axis=-1) if conditions else _each(scale) * x
    if guided and not getattr(unet, "shares_latents", False):
        seen, timesteps = ops.concatenate([seen, seen], axis=0), ops.concatenate([timesteps, timesteps], axis=0)
    with attention_slices(slices):
        predicted = ops.cast(unet(seen, timesteps, context), "float32")
    if guided:
        without, conditional = ops.split(predicted, 2, axis=0)
        predicted = _guide(without, conditional, _each(weights[0]), _each(weights[1]))
    denoised = _each(skip) * x + _each(out) * predicted
    terms = [x, *(memories[place] for place in range(MEMORIES)), denoised, noise]
    # Sums of products, not a matrix product: a GPU would round its inputs to TF32.
    following = [
        sum(_each(update[:, row, column]) * term for column, term in enumerate(terms)) for row in range(1 + MEMORIES)
    ]
    return following[0], ops.stack(following[1:]), denoised


def _each(values):
    """(B,) as (B, 1, 1, 1)."""
    return values[:, None, None, None]


def _guide(without, conditional, scale, rescale):
    from keras import ops

    guided = without + scale * (conditional - without)
    axes = (1, 2, 3)
    deviation = ops.maximum(ops.std(guided, axis=axes, keepdims=True), 1e-12)
    ratio = ops.std(conditional, axis=axes, keepdims=True) / deviation
    return guided * (1 + rescale * (ratio - 1))
