"""Which steps a request runs: its sampler, spacing, levels and number, and where pictures come in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kerasdiff import request_values, validation
from kerasdiff.models.config import ModelConfig
from kerasdiff.request_values import integer
from kerasdiff.samplers import RECIPES, SAMPLERS, sampling_levels, sampling_table
from kerasdiff.samplers.checks import check_levels, check_stride
from kerasdiff.samplers.names import sampler_and_spacing
from kerasdiff.samplers.sigmas import level_options


def first_step(num_steps: int, strength: float) -> int:
    """The step that a picture's run starts at: the last int(num_steps * strength) are done, as in diffusers."""
    return num_steps - min(int(num_steps * strength), num_steps)


def chosen_steps(
    given: Mapping[str, Any], config: ModelConfig, recipe: str | None, prompts: int, batch_size: int
) -> dict[str, Any]:
    """The fields of a request that say which steps it runs, from its arguments and a model with a recipe's defaults."""
    # What a model for editing is given as an image is seen beside pure noise.
    defaults, pictured = config.defaults, given["image"] is not None and not config.edits
    num_steps, timesteps, sigmas = (given[name] for name in ("num_steps", "timesteps", "sigmas"))
    if recipe is not None and num_steps is given["spacing"] is timesteps is sigmas is None:
        timesteps = RECIPES[recipe].timesteps
    sampler = defaults.sampler if given["sampler"] is None else given["sampler"]
    sampler, spacing = sampler_and_spacing(sampler, given["spacing"])
    if timesteps is None and sigmas is None:
        num_steps = defaults.num_steps if num_steps is None else num_steps
        num_steps = integer("num_steps", num_steps, config.schedule.num_train_timesteps)
        spacing = defaults.spacing if spacing is None else spacing
    options = request_values.options(given["sampler_options"])
    if sampler == defaults.sampler:
        options = dict(defaults.sampler_options) | options
    levels = sampling_levels(
        config.schedule,
        sampler,
        num_steps,
        spacing=spacing,
        timesteps=timesteps,
        sigmas=sigmas,
        **level_options(options),
    )
    check_levels(levels, spacing, not pictured, recipe)
    unsaid = recipe is given["sampler"] is given["spacing"] is timesteps is sigmas is None
    if SAMPLERS[sampler].fixed_stride and unsaid:
        check_stride(levels, sampler, spacing)
    num_steps = len(levels.timesteps)
    strengths = request_values.strengths(given["strength"], pictured, given["mask"] is not None, prompts, batch_size)
    all_steps = pictured and timesteps is sigmas is None and request_values.all_steps(config, sampler, spacing)
    if all_steps:
        shared = {share: level_options(options) | {"original_share": share} for share in strengths or () if share}
        runs = [sampling_levels(config.schedule, sampler, num_steps, spacing=spacing, **of) for of in shared.values()]
    else:
        starts = {first_step(num_steps, one) for one in strengths or (1.0,)} - {num_steps} or {0}
        runs = [levels.from_step(start) for start in {min(starts), max(starts)}]
    for run in runs:
        sampling_table(run, sampler, options)
    return {
        "sampler": sampler,
        "spacing": spacing,
        "num_steps": num_steps,
        "timesteps": None if timesteps is None else validation.reals("timesteps", timesteps),
        "sigmas": None if sigmas is None else validation.reals("sigmas", sigmas),
        "sampler_options": tuple(sorted(options.items())),
        "strengths": strengths,
        "all_steps": all_steps,
    }
