"""Any sampler with any model, in float64 NumPy: the reference for the compiled step, and for research."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kerasdiff import validation
from kerasdiff.errors import RequestError
from kerasdiff.models.config import BETA_SCHEDULES, PREDICTION_TYPES, ScheduleConfig
from kerasdiff.samplers.coefficients import Table
from kerasdiff.samplers.names import sampler_and_spacing
from kerasdiff.samplers.registry import sampling_levels, sampling_table
from kerasdiff.samplers.sigmas import level_options
from kerasdiff.samplers.update import MEMORIES


def trajectory(
    sampler: str,
    model: Callable[[np.ndarray, float], np.ndarray],
    x: np.ndarray,
    *,
    num_steps: int | None = None,
    spacing: str | None = None,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    betas: str | Sequence[float] | np.ndarray = "scaled_linear",
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    num_train_timesteps: int = 1000,
    prediction_type: str = "epsilon",
    rescale_betas_zero_snr: bool = False,
    noise: Callable[[int, tuple[int, ...]], np.ndarray] | None = None,
    set_alpha_to_one: bool | None = None,
    clip_sample: bool | float = False,
    **options: Any,
) -> list[np.ndarray]:
    """Runs a sampler with your own model and returns the state after each evaluation.

    With only `num_steps` it does what the sampler's class in diffusers does with Stable Diffusion's settings. Other
    arguments: see `sampling_levels`.

    Args:
        model: `model(x, t)`, the U-Net's prediction; x is scaled to unit variance as the U-Net sees it, t is a
            timestep, which some spacings place between two trained ones.
        x: the unit-variance starting noise, any shape.
        betas: "scaled_linear", "linear", "squaredcos_cap_v2", or a list with one beta per training timestep.
        rescale_betas_zero_snr: rescale the betas so that no signal is left at the last timestep (Lin et al.
            2023, arXiv:2305.08891).
        noise: `noise(i, shape)`, the i-th fresh noise of a run, for samplers that take some.
        set_alpha_to_one: `final_sigmas_type` in the words of DDIM and PNDM: True is "zero", False "sigma_min".
        clip_sample: clip the denoised prediction to -1 .. 1, or to plus and minus this bound.
        **options: the sampler's own (`kerasdiff.SAMPLERS[name].options` has their names and defaults), and those of
            `LevelOptions`.

    Returns:
        float64 arrays of x's shape, in the scale of diffusers' class: unit variance for ddim, ddpm, pndm, the
        DPM-Solvers, deis, unipc, lcm and tcd, data scale for the others. The last one is the result, in data scale.

    Raises:
        RequestError: an argument is wrong, the sampler takes noise and there is none, or `model` or `noise`
            returns a shape other than x's.
        ModelError: a beta is not between 0 and 1.
    """
    name, spacing = sampler_and_spacing(sampler, spacing)
    trained, beta_schedule = None, "linear"
    if isinstance(betas, str):
        beta_schedule = validation.choice("betas", betas, BETA_SCHEDULES)
    else:
        trained = validation.reals("betas", betas)
        num_train_timesteps = len(trained)
    schedule = ScheduleConfig(
        num_train_timesteps=validation.integer("num_train_timesteps", num_train_timesteps, 1),
        beta_start=beta_start,
        beta_end=beta_end,
        beta_schedule=beta_schedule,  # type: ignore[arg-type]
        prediction_type=validation.choice("prediction_type", prediction_type, PREDICTION_TYPES),  # type: ignore[arg-type]
        trained_betas=trained,
        rescale_betas_zero_snr=rescale_betas_zero_snr,
    )
    if set_alpha_to_one is not None:
        to_one = validation.boolean("set_alpha_to_one", set_alpha_to_one)
        options = {"final_sigmas_type": "zero" if to_one else "sigma_min", **options}
    levels = sampling_levels(
        schedule, name, num_steps, spacing=spacing, timesteps=timesteps, sigmas=sigmas, **level_options(options)
    )
    table = sampling_table(levels, name, options)
    x = np.asarray(x, "float64")
    draws = np.cumsum(table.noisy) - 1
    if table.noisy.any() and noise is None:
        raise RequestError(f"sampler {name!r} takes fresh noise; give noise, a function of (i, shape)")
    states = run_table(
        table,
        model,
        x,
        fresh=lambda row: noise(int(draws[row]), x.shape),  # type: ignore[misc]
        clip=float(clip_sample) if clip_sample else None,
    )
    return [state * scale for state, scale in zip(states, table.scales, strict=True)]


def run_table(
    table: Table,
    model: Callable[[np.ndarray, float], np.ndarray],
    noise: np.ndarray,
    fresh: Callable[[int], np.ndarray] | None = None,
    clip: float | None = None,
) -> list[np.ndarray]:
    """Runs a table in float64, the reference for the compiled step: x after each row, in units of the data.

    `model(x, timestep)` is the U-Net's prediction for x scaled to unit variance; `noise` has unit variance and any
    shape, and `fresh(row)` is the noise of a noisy row. `clip` bounds the denoised prediction, for models of pixels.

    Raises:
        RequestError: `model` or `fresh` returns another shape.
    """
    x = np.asarray(noise, "float64") * table.initial_scale
    memories = [np.zeros_like(x)] * MEMORIES
    states = []
    for row, ((scale, timestep, skip, out), update) in enumerate(zip(table.inputs, table.updates, strict=True)):
        denoised = skip * x + out * _shaped("model", model(scale * x, float(timestep)), x)
        if clip is not None:
            denoised = np.clip(denoised, -clip, clip)
        fresh_noise = np.zeros_like(x)
        if fresh is not None and table.noisy[row]:
            fresh_noise = _shaped("noise", fresh(row), x)
        terms = np.stack([x, *memories, denoised, fresh_noise])
        x, *memories = np.tensordot(update, terms, axes=1)
        states.append(x)
    return states


def _shaped(name: str, values: Any, x: np.ndarray) -> np.ndarray:
    values = np.asarray(values, "float64")
    if values.shape != x.shape:
        raise RequestError(f"{name} gave an array of shape {values.shape}; x has shape {x.shape}")
    return values
