"""Where a request's run begins and ends, if not at its whole noise and at none: two models may share one.

An ensemble of experts (Balaji et al. 2022, arXiv:2211.01324), as Stable Diffusion XL's base model and its refiner are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from kerasdiff.errors import RequestError
from kerasdiff.models.config import ModelConfig
from kerasdiff.samplers import RECIPES, Table, experts, recipes, sampling_levels, sampling_table
from kerasdiff.samplers.sigmas import level_options

# How much of finished latents a refiner redraws unasked, as in diffusers.
_STRENGTH = 0.3
_NO_REFINER = "leave it out, or refine nothing with refiner_strength=0"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunBounds:
    """What of a run is done, and by which model.

    Attributes:
        denoising_start: the share of the noise levels of training that the latents it goes on from have passed.
        denoising_end: the share after which it ends, and a refiner goes on if there is one.
        refiner_strength: how much of the finished latents a refiner redraws; None without one, or where it goes on.
    """

    denoising_start: float | None = None
    denoising_end: float | None = None
    refiner_strength: float | None = None


def bounds(given: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """The fields of `RunBounds`, of the arguments of a request."""
    start, end, strength = (given[field.name] for field in dataclasses.fields(RunBounds))
    if config.refiner is None and strength:
        raise RequestError("refiner_strength needs a refiner; give one beside the model, refiner='org/name'")
    if config.refiner is None:
        strength = None
    elif end is None and strength is None:
        strength = _STRENGTH
    if end is not None and strength:
        raise RequestError("denoising_end and refiner_strength both say what the refiner does; leave one of them out")
    return {"denoising_start": start, "denoising_end": end, "refiner_strength": strength}


def all_of_it(config: ModelConfig, hires: Any) -> float | None:
    """The `refiner_strength` with which a refiner does all that it can, with a second pass (`hires`) or without."""
    return None if config.refiner is None else float(hires is None)


def refines(config: ModelConfig, request: Any) -> bool:
    """Whether a request goes through the model's refiner."""
    own = request.denoising_end if request.refiner_strength is None else request.refiner_strength
    return config.refiner is not None and bool(own)


def table(config: ModelConfig, request: Any, first_step: int = 0, share: float = 1.0, whole: bool = False) -> Table:
    """The coefficients that a request's sampler, noise levels and number of steps come to, from a step on.

    `share` is one of `Request.shares`. Without `whole` it ends where the request does.
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
    found = sampling_table(levels.from_step(first_step), request.sampler, options)
    if whole or request.denoising_end is None:
        return found
    return experts.until(found, cut(config, request.denoising_end))


def cut(config: ModelConfig, share: float) -> int:
    """The timestep at which a model has passed a share of its noise levels."""
    return experts.cut(share, config.schedule.num_train_timesteps)


def run_steps(config: ModelConfig, request: Any) -> int:
    """How many steps are run: the most of any image."""
    first = min(request.first_steps)
    if request.denoising_end is None or first == request.num_steps:
        return request.run_steps
    return int(table(config, request, first).steps[-1]) + 1


def check_bounds(config: ModelConfig, request: Any) -> None:
    """Refuses what leaves one of two models nothing to do, and what does not go together."""
    start, end, refined = request.denoising_start, request.denoising_end, refines(config, request)
    names = {"denoising_start": start, "denoising_end": end}
    given = [f"{name}={value:g}" for name, value in names.items() if value is not None]
    if not given and not refined:
        return
    if request.hires is not None:
        other = f"{given[0]}, which is about one pass" if given else "a refiner"
        raise RequestError(f"hires does not go with {other}; {_NO_REFINER if refined else 'leave one of them out'}")
    if start is not None and request.pictures is not None:
        raise RequestError("denoising_start goes on from latents; leave image out")
    if start is not None and end is not None and start >= end:
        raise RequestError(f"{given[0]} must be less than {given[1]}")
    if end is not None and request.all_steps:
        raise RequestError("denoising_end does not go with image here, as all steps are done; give another spacing")
    steps = f"of {request.num_steps} steps"
    if refined:
        _check_refiner(config, request, steps)
    run, begin = table(config, request, whole=True), max(request.first_steps)
    for name, share in names.items():
        if share is None:
            continue
        before, after = experts.evaluations(run, cut(config, share)), experts.next_step(run, cut(config, share))
        if not before or after == request.num_steps:
            side, way = ("before", "higher") if not before else ("after", "lower")
            raise RequestError(f"{name}={share:g} {steps} leaves none {side} it; give a {way} one, or more steps")
        if share == start:
            begin = after
        elif begin > run.steps[before - 1]:
            if request.strengths is not None:
                given.insert(0, f"strength={min(request.strengths):g}")
            raise RequestError(f"{' and '.join(given)} {steps} leave none between them; give more steps or strength")


def _check_refiner(config: ModelConfig, request: Any, steps: str) -> None:
    refiner, recipe, strength = config.refiner, request.recipe, request.refiner_strength
    assert refiner is not None
    if recipe is not None and request.timesteps is not None and request.timesteps == RECIPES[recipe].timesteps:
        raise RequestError(f"recipe {recipe!r} has timesteps for its own model and none for a refiner; {_NO_REFINER}")
    if strength is not None and int(request.num_steps * strength) == 0:
        raise RequestError(
            f"refiner_strength={strength:g} {steps} leaves the refiner none; give more of either, or "
            "refiner_strength=0 for none"
        )
    most = refiner.main_text_encoder.num_layers - 1
    if request.clip_skip > most:
        raise RequestError(f"clip_skip={request.clip_skip} is more than the {most} of the refiner's text encoder")
