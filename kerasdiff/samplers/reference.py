"""Any sampler with any model, in float64 NumPy: the reference of the compiled step, and for research."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kerasdiff import validation
from kerasdiff.errors import RequestError
from kerasdiff.models.config import BETA_SCHEDULES, PREDICTION_TYPES, ScheduleConfig
from kerasdiff.samplers.coefficients import Table
from kerasdiff.samplers.registry import sampler_name, sampling_levels, sampling_table
from kerasdiff.samplers.spacings import ORIGINAL_STEPS
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
    steps_offset: int | None = None,
    final_sigmas_type: str | None = None,
    set_alpha_to_one: bool | None = None,
    original_inference_steps: int = ORIGINAL_STEPS,
    clip_sample: bool | float = False,
    **options: Any,
) -> list[np.ndarray]:
    """Traceable a sampler with a model of your own and returns every state on the way.

    With nothing but `num_steps` it does what the sampler's class in diffusers does with Stable Diffusion's settings.

    Args:
        sampler: a name in `kerasdiff.SAMPLERS`, or of a class in diffusers.
        model: `model(x, t)`, what the U-Net would predict; x is scaled to unit variance as the U-Net
            sees it, t is a timestep, between two trained ones with some spacings.
        x: the unit-variance starting noise, any shape.
        num_steps: 1 to `num_train_timesteps`; not needed with `timesteps` or `sigmas`.
        spacing: a name in `kerasdiff.SPACINGS`; None is the sampler's own.
        timesteps: instead of a spacing: falling, one a step.
        sigmas: instead of a spacing: falling noise levels; the last one is where the run ends.
        betas: "scaled_linear", "linear", "squaredcos_cap_v2", or all of them, as many as the model was
            trained with timesteps.
        beta_start: the first of the first two.
        beta_end: their last.
        num_train_timesteps: how many timesteps the model was trained with, if `betas` does not say.
        prediction_type: "epsilon", "v_prediction" or "sample".
        rescale_betas_zero_snr: whether the betas are rescaled so that no signal is left at the last
            timestep (Lin et al. 2023, arXiv:2305.08891).
        noise: `noise(i, shape)`, the i-th fresh noise of a run, for samplers that take some.
        steps_offset: what spacing "leading" adds; None is the sampler's own, 1 for ddim and pndm.
        final_sigmas_type: "zero", or "sigma_min" to end at the lowest trained level; None is the sampler's own.
        set_alpha_to_one: the same in the words of DDIM and PNDM: True is "zero", False "sigma_min".
        original_inference_steps: what spacing "lcm" takes its levels from.
        clip_sample: whether the denoised prediction is clipped to -1 .. 1, or to a bound of your own.
        **options: the sampler's own: `kerasdiff.SAMPLERS[name].options` has their names and defaults.

    Returns:
        The state after each evaluation of the model, as float64 arrays shaped as x, in the scale in which
        diffusers' class has it: unit variance for ddim, ddpm, pndm, the DPM-Solvers, deis, unipc, lcm and
        tcd, data scale for the others. The last one is the result, in data scale.

    Raises:
        RequestError: an argument is wrong, the sampler takes noise and there is none, or the model or the
            noise gives another shape than that of x.
        ModelError: betas that are not between 0 and 1.

    Example:
        ```python
        import numpy as np
        from kerasdiff.samplers import trajectory

        x = np.random.default_rng(0).standard_normal(4)
        trajectory("dpmpp_2m", lambda x, t: x, x, num_steps=10, spacing="karras")[-1]
        ```
    """
    name = sampler_name(sampler)
    validation.choice("prediction_type", prediction_type, PREDICTION_TYPES)
    trained = None
    if isinstance(betas, str):
        validation.choice("betas", betas, BETA_SCHEDULES)
    else:
        trained = validation.reals("betas", betas)
        num_train_timesteps = len(trained)
    schedule = ScheduleConfig(
        num_train_timesteps=validation.integer("num_train_timesteps", num_train_timesteps, 1),
        beta_start=beta_start,
        beta_end=beta_end,
        beta_schedule=betas if isinstance(betas, str) else "linear",  # type: ignore[arg-type]
        prediction_type=prediction_type,  # type: ignore[arg-type]
        trained_betas=trained,
        rescale_betas_zero_snr=rescale_betas_zero_snr,
    )
    if set_alpha_to_one is not None:
        final_sigmas_type = "zero" if validation.boolean("set_alpha_to_one", set_alpha_to_one) else "sigma_min"
    levels = sampling_levels(
        schedule,
        name,
        num_steps,
        spacing=spacing,
        timesteps=timesteps,
        sigmas=sigmas,
        steps_offset=steps_offset,
        final_sigmas_type=final_sigmas_type,
        original_inference_steps=original_inference_steps,
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
    """The reference of the compiled step: a table run by NumPy in float64.

    Args:
        table: from `make_table`.
        model: `model(x, timestep)`, x scaled to unit variance; the U-Net's prediction.
        noise: unit-variance starting noise, any shape.
        fresh: `fresh(row)`, the noise of a noisy row, shaped as `noise`.
        clip: bounds of the denoised prediction, for models of pixels.

    Returns:
        x after each row, in units of the data (x = x0 + sigma * noise).

    Raises:
        RequestError: the model or the noise gives another shape than that of `noise`.

    Example:
        ```python
        from kerasdiff.samplers import run_table, sampling_levels, sampling_table

        levels = sampling_levels(kerasdiff.Generator("tiny").config.schedule, "heun", 10)
        table = sampling_table(levels, "heun", {})
        run_table(table, lambda x, t: x, np.ones(4))[-1]  # float64 (4,)
        ```
    """
    x = np.asarray(noise, "float64") * table.initial_scale
    memories = [np.zeros_like(x)] * MEMORIES
    states = []
    for row, ((scale, timestep, skip, out), update) in enumerate(zip(table.inputs, table.updates, strict=True)):
        denoised = skip * x + out * _shaped("model", model(scale * x, float(timestep)), x)
        if clip is not None:
            denoised = np.clip(denoised, -clip, clip)
        drawn = np.zeros_like(x)
        if fresh is not None and table.noisy[row]:
            drawn = _shaped("noise", fresh(row), x)
        terms = np.stack([x, *memories, denoised, drawn])
        x, *memories = np.tensordot(update, terms, axes=1)
        states.append(x)
    return states


def _shaped(name: str, values: Any, x: np.ndarray) -> np.ndarray:
    values = np.asarray(values, "float64")
    if values.shape != x.shape:
        raise RequestError(f"{name} gave an array of shape {values.shape}; x has shape {x.shape}")
    return values
