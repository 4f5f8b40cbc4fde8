"""What a request's run through the U-Net is made of, and following it: progress, previews, and a stop."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from kerasdiff.diffusion.denoise_step import State
from kerasdiff.diffusion.initial_state import InitialState
from kerasdiff.diffusion.overrides import floats
from kerasdiff.diffusion.preview import Previewer
from kerasdiff.errors import RequestError
from kerasdiff.models.config import ModelConfig
from kerasdiff.request import Request
from kerasdiff.samplers import Table, recipes, sampling_levels, sampling_table
from kerasdiff.samplers.batched import BatchTable, stack_tables
from kerasdiff.samplers.noise import RNGS, Noise, WalkNoise
from kerasdiff.samplers.sigmas import level_options

# (step, num_steps, preview); False stops the run.
Callback = Callable[[int, int, np.ndarray | None], Any]


class LatentBatch(NamedTuple):
    """What a run came to."""

    latents: np.ndarray  # float32 (N, h, w, C)
    denoised: np.ndarray  # the same, or what a run that was stopped took for its result
    stopped_after: int | None  # the step after which it was stopped

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.latents).all() and np.isfinite(self.denoised).all())

    def first(self, count: int) -> LatentBatch:
        """Without what a batch was filled up with."""
        return self._replace(latents=self.latents[:count], denoised=self.denoised[:count])


class StepMonitor:
    """Shows how far the runs of a request are, and asks a callback whether to go on."""

    def __init__(self, bar: tqdm, callback: Callback | None, previewer: Previewer) -> None:
        self._bar, self._callback, self._previewer = bar, callback, previewer
        self._count = self._runs = self._num_steps = 1
        self._earlier = self._later = 0

    def begin(self, count: int, runs: int, steps: Sequence[int], earlier: int, later: int) -> None:
        """Prepares for a run of `count` images, the first of `runs` that are left of its pass.

        `steps` are those of this pass and of each that follows it, after `earlier` ones; `later` rows are expected in
        runs of other passes.
        """
        self._count, self._runs = count, runs
        self._num_steps, self._earlier, self._later = earlier + sum(steps), earlier, later

    def follow(self, states: Iterable[State], start: InitialState, run: BatchTable) -> LatentBatch:
        """Carries out a run, which is empty if no image has a step to do, to its end or until the callback stops it."""
        self._bar.total = self._bar.n + self._runs * len(run) + self._later
        if not len(run):
            return LatentBatch(start.x, start.x, None)
        done, num_steps, stops = self._earlier, self._num_steps, False
        for row, state in enumerate(states):
            self._bar.update()
            if self._callback is None or not run.ends_step(row):
                continue
            done += 1
            image = self._previewer(np.asarray(state.denoised)[: self._count])
            answer = self._callback(done, num_steps, image)
            stops = answer is not None and not answer
            if stops:
                break
        stopped_after = done if stops and done < num_steps else None
        latents = (np.asarray(state.x) * run.scales[row][:, None, None, None]).astype("float32")
        if start.known is not None and row + 1 == len(run):
            latents = start.known.blend_final(latents)
        denoised = latents if stopped_after is None else np.asarray(state.denoised)
        return LatentBatch(latents, denoised, stopped_after)


def latent_shape(config: ModelConfig, request: Request) -> tuple[int, int, int]:
    """Of one image's latents, (h, w, C)."""
    factor = config.latent_factor
    return request.height // factor, request.width // factor, config.vae.latent_channels


def table(config: ModelConfig, request: Request, first_step: int = 0, share: float = 1.0) -> Table:
    """The coefficients that a request's sampler, noise levels and number of steps come to, from a step on.

    `share` is one of `Request.shares`.
    """
    options = dict(request.sampler_options) | ({} if share == 1 else {"original_share": share})
    levels = sampling_levels(
        recipes.schedule(config.schedule, request.recipe),
        request.sampler,
        request.num_steps,
        spacing=request.spacing,
        timesteps=request.timesteps,
        sigmas=request.sigmas,
        **level_options(options),
    )
    return sampling_table(levels.from_step(first_step), request.sampler, options)


def batch_table(config: ModelConfig, request: Request) -> BatchTable:
    """What each image of a request goes through, side by side."""
    first_steps = request.first_steps
    starts = list(zip(first_steps, request.shares, strict=True))
    tables = {start: table(config, request, *start) for start in {*starts} if start[0] < request.num_steps}
    run = stack_tables([tables.get(start) for start in starts], first_steps)
    if request.deep_cache_interval == 1 or min(first_steps) == 0:
        return run
    return dataclasses.replace(run, skipped=len(table(config, request)) - len(run))


def noise_of(config: ModelConfig, request: Request) -> Noise:
    """Where a request's noise comes from."""
    draws, shape = RNGS[request.rng], latent_shape(config, request)
    if request.towards is None:
        return draws(request.seeds, shape)
    ends = draws([waypoint.seed for waypoint in request.towards], shape)
    return WalkNoise(draws(request.seeds, shape), ends, [waypoint.share for waypoint in request.towards])


def checked_latents(config: ModelConfig, request: Request, latents: Any) -> np.ndarray | None:
    """Starting noise that a user gave, float32, or None; RequestError if it has the wrong shape."""
    if latents is None:
        return None
    latents = floats("latents", latents)
    expected = (len(request), *latent_shape(config, request))
    if latents.shape != expected:
        raise RequestError(f"latents have shape {latents.shape}, this request needs {expected}")
    return latents
