"""A request's ways through a U-Net, one after the other: its own, one at a larger size, or one of a refiner's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from kerasdiff.adapters.patches import LoraStack
from kerasdiff.diffusion import sampling_loop
from kerasdiff.diffusion.conditioning import TextConditioning
from kerasdiff.diffusion.initial_state import (
    InitialState,
    from_edited,
    from_latents,
    from_noise,
    from_noisy,
    from_pictures,
)
from kerasdiff.diffusion.memory_model import UNetCost
from kerasdiff.diffusion.overrides import OF_TEXTS, Overrides
from kerasdiff.diffusion.refining import Continuation, continued, refinement
from kerasdiff.diffusion.vae_stage import PictureCache
from kerasdiff.errors import RequestError
from kerasdiff.models.config import ModelConfig
from kerasdiff.models.network_configs import VAEConfig
from kerasdiff.request import Request
from kerasdiff.samplers.batched import BatchTable
from kerasdiff.samplers.noise import Noise


@dataclasses.dataclass(frozen=True, eq=False)
class Pass:
    """A request's way through the U-Net of a model, what its images read, and what its steps take."""

    model: Any  # the `Pipeline` that it runs in
    request: Request
    texts: TextConditioning
    cost: UNetCost
    loras: LoraStack


def requests_of(pipeline: Any, request: Request, overrides: Overrides) -> list[tuple[Any, Request, Overrides]]:
    """The pipeline, the request and the arrays of each pass of a request; RequestError if a refiner cannot read it."""
    request = continued(pipeline.config, request)
    passes = [(pipeline, request, overrides)]
    second = request.second_pass(pipeline.config)
    if second is not None and request.hires is not None:
        said = [name for name in ("prompt", "negative_prompt") if name in request.hires.given]
        own = [each for name in said for each in OF_TEXTS[name]]
        passes.append((pipeline, second, dataclasses.replace(overrides, **dict.fromkeys(own))))
    refined = refinement(pipeline.config, request)
    if refined is not None and pipeline.refiner is not None:
        if any(getattr(overrides, each) is not None for own in OF_TEXTS.values() for each in own):
            raise RequestError("a refiner reads texts and no embeddings; give prompt, or refiner_strength=0")
        passes.append((pipeline.refiner, refined, Overrides()))
    return passes


def expected_rows(passes: Sequence[Pass], count: int) -> int:
    """How many rows some images are expected to take in passes."""
    rows = 0
    for one in passes:
        at_once = 1 if one.request.exact else one.model.retries.sizer.largest(one.cost).images
        run = sampling_loop.batch_table(one.model.config, one.request.only([0]))
        rows += math.ceil(count / at_once) * len(run)
    return rows


def begun(
    config: ModelConfig,
    request: Request,
    run: BatchTable,
    noise: Noise,
    given: np.ndarray | None,
    latents: np.ndarray | None,
    pictures: PictureCache,
) -> InitialState:
    """Where a request's run starts: from noise (`given` instead of the seeds'), from pictures, or from latents."""
    if latents is not None and isinstance(request, Continuation) and not request.renoised:
        goes_on, given = from_noisy(latents, run), sampling_loop.noise_of(config, request, begins=True).initial()
    elif latents is not None:
        given = noise.initial()
        goes_on = from_latents(latents, given, run)
    if latents is not None and (request.pictures is None or request.pictures.masks is None):
        return goes_on
    if request.pictures is None:
        return from_noise(noise.initial() if given is None else given, run)
    if config.edits:
        starting = noise.initial() if given is None else given
        return from_edited(request.pictures, pictures, config.encoder.scaling_factor, starting, run)
    if request.rng == "torch" and isinstance(config.encoder, VAEConfig):
        noise.initial()  # which diffusers takes to draw from around what the encoder gives
    starting = noise.initial() if given is None else given
    start = from_pictures(request.pictures, request.from_noise, pictures, starting, run, config.inpaints)
    return start if latents is None else dataclasses.replace(start, x=goes_on.x)
