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
from kerasdiff.diffusion.refining import Continuation
from kerasdiff.errors import RequestError
from kerasdiff.models.config import ModelConfig
from kerasdiff.request import Request
from kerasdiff.run_bounds import table
from kerasdiff.samplers.batched import BatchTable, stack_tables
from kerasdiff.samplers.noise import RNGS, Noise, WalkNoise

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

    def enlarged(self, enlarge: Callable[[np.ndarray], np.ndarray]) -> LatentBatch:
        """At another size; `denoised` alone is not needed of a whole run."""
        latents = enlarge(self.latents)
        denoised = latents if self.stopped_after is None else enlarge(self.denoised)
        return self._replace(latents=latents, denoised=denoised)

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
        whole = row + 1 == len(run) and not run.ends_early
        latents = (np.asarray(state.x) * run.scales[row][:, None, None, None]).astype("float32")
        if start.known is not None and whole:
            latents = start.known.blend_final(latents)
        denoised = latents if stopped_after is None and whole else np.asarray(state.denoised)
        return LatentBatch(latents, denoised, stopped_after)


def latent_shape(config: ModelConfig, request: Request) -> tuple[int, int, int]:
    """Of one image's latents, (h, w, C)."""
    factor = config.latent_factor
    return request.height // factor, request.width // factor, config.vae.latent_channels


def batch_table(config: ModelConfig, request: Request) -> BatchTable:
    """What each image of a request goes through, side by side."""
    first_steps = request.first_steps
    starts = list(zip(first_steps, request.shares, strict=True))
    tables = {start: table(config, request, *start) for start in {*starts} if start[0] < request.num_steps}
    run = stack_tables([tables.get(start) for start in starts], first_steps)
    run = dataclasses.replace(
        run,
        counted_from=request.counted_from if isinstance(request, Continuation) else None,
        ends_early=request.denoising_end is not None,
    )
    if request.deep_cache_interval == 1 or min(first_steps) == 0:
        return run
    return dataclasses.replace(run, skipped=len(table(config, request)) - len(run))


def noise_of(config: ModelConfig, request: Request, begins: bool = False) -> Noise:
    """Where a request's noise comes from, or where that of the run did that it goes on from (`begins`)."""
    draws, shape = RNGS[request.rng], latent_shape(config, request)
    noise = draws(request.seeds, shape)
    if request.towards is not None:
        ends = draws([waypoint.seed for waypoint in request.towards], shape)
        noise = WalkNoise(noise, ends, [waypoint.share for waypoint in request.towards])
    if isinstance(request, Continuation) and not begins:
        noise.skip(request.rows, request.noisy)
    return noise


def checked_latents(config: ModelConfig, request: Request, latents: Any) -> np.ndarray | None:
    """Latents or starting noise that a user gave, float32, or None; RequestError if they have the wrong shape."""
    if latents is None and request.denoising_start is not None:
        raise RequestError(
            "denoising_start goes on from noisy latents; give them as latents, as a result of denoising_end has them"
        )
    if latents is None:
        return None
    latents = floats("latents", latents)
    expected = (len(request), *latent_shape(config, request))
    if latents.shape != expected:
        raise RequestError(f"latents have shape {latents.shape}, this request needs {expected}")
    return latents
