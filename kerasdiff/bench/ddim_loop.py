"""DDIM in NumPy, for subjects that are bare networks."""

from collections.abc import Callable

import numpy as np

from kerasdiff.models.config import ScheduleConfig
from kerasdiff.samplers import Levels, sampling_levels


def levels_of(schedule: ScheduleConfig, num_steps: int, spacing: str = "keras_cv") -> Levels:
    """Noise levels and timesteps of a run."""
    return sampling_levels(schedule, "ddim", num_steps, spacing=spacing)


def ddim(
    unet: Callable[[np.ndarray, float], np.ndarray], noise: np.ndarray, levels: Levels, guidance_scale: float
) -> np.ndarray:
    """Latents float32 (N, ...) by DDIM (Song et al. 2020, arXiv:2010.02502) without eta, as Euler's method in sigma.

    `unet` maps unit-variance latents and a timestep to the prediction: (N, ...) for a `guidance_scale` of 1, else
    (2N, ...) with the unconditional half first. The noise has unit variance.
    """
    x: np.ndarray = noise * np.float32(levels.initial_scale)
    for sigma, after, timestep in zip(levels.sigmas[:-1], levels.sigmas[1:], levels.timesteps, strict=True):
        scaled = x / np.float32(np.sqrt(1 + sigma**2))
        if guidance_scale == 1:
            predicted = unet(scaled, timestep)
        else:
            without, with_text = np.split(unet(np.concatenate([scaled, scaled]), timestep), 2)
            predicted = without + np.float32(guidance_scale) * (with_text - without)
        a, b = levels.denoised(sigma)
        denoised = np.float32(a) * x + np.float32(b) * predicted
        x = denoised + np.float32(after / sigma) * (x - denoised)
    return x
