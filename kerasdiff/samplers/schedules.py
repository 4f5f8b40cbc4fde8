"""Noise schedules: from betas to noise levels, and which of them a run visits. Float64 NumPy."""

from __future__ import annotations

import numpy as np

from kerasdiff.models.config import ScheduleConfig


def betas(schedule: ScheduleConfig) -> np.ndarray:
    """Variances added at each training timestep: float64 (num_train_timesteps,).

    "scaled_linear" is latent diffusion's (linear in the square root), "linear" is DDPM's
    (Ho et al. 2020, arXiv:2006.11239).
    """
    count, start, end = schedule.num_train_timesteps, schedule.beta_start, schedule.beta_end
    if schedule.beta_schedule == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, count) ** 2
    return np.linspace(start, end, count)


def alphas_cumprod(schedule: ScheduleConfig) -> np.ndarray:
    """The share of signal variance left at each training timestep: float64 (num_train_timesteps,)."""
    return np.cumprod(1.0 - betas(schedule))


def sigmas_at(schedule: ScheduleConfig, timesteps: np.ndarray) -> np.ndarray:
    """Noise levels sqrt((1 - a) / a) at timesteps, which may lie between two trained ones."""
    alphas = alphas_cumprod(schedule)
    sigmas = np.sqrt((1 - alphas) / alphas)
    return np.interp(timesteps, np.arange(len(sigmas)), sigmas)


def timesteps_at(schedule: ScheduleConfig, sigmas: np.ndarray) -> np.ndarray:
    """The timesteps of noise levels, interpolated in log sigma: the inverse of `sigmas_at` on the grid."""
    trained = sigmas_at(schedule, np.arange(schedule.num_train_timesteps))
    return np.interp(np.log(sigmas), np.log(trained), np.arange(len(trained)))


def leading(num_steps: int, num_train_timesteps: int) -> np.ndarray:
    """Multiples of T // n, shifted by one: the spacing of Stable Diffusion's DDIM and PNDM."""
    return np.arange(num_steps)[::-1] * (num_train_timesteps // num_steps) + 1.0


def trailing(num_steps: int, num_train_timesteps: int) -> np.ndarray:
    """From the last timestep downwards (Lin et al. 2023, arXiv:2305.08891, table 2)."""
    return np.round(np.arange(num_train_timesteps, 0, -num_train_timesteps / num_steps)[:num_steps]) - 1


def linspace(num_steps: int, num_train_timesteps: int) -> np.ndarray:
    """Evenly from the last timestep to the first, between trained timesteps too."""
    return np.linspace(0, num_train_timesteps - 1, num_steps)[::-1]


def keras_cv(num_steps: int, num_train_timesteps: int) -> np.ndarray:
    """The rounded linspace of `keras_cv.models.StableDiffusion`; one step is at timestep 0, as there."""
    ratio = (num_train_timesteps - 1) / (num_steps - 1) if num_steps > 1 else num_train_timesteps
    return (np.arange(num_steps) * ratio).round()[::-1]


# Name -> function of (num_steps, num_train_timesteps) to decreasing timesteps, float64 (num_steps,).
SPACINGS = {"leading": leading, "trailing": trailing, "linspace": linspace, "keras_cv": keras_cv}


def run_sigmas(schedule: ScheduleConfig, spacing: str, num_steps: int) -> np.ndarray:
    """The noise levels of a whole run: a spacing's, then 0. Float64 (num_steps + 1,)."""
    return np.append(sigmas_at(schedule, SPACINGS[spacing](num_steps, schedule.num_train_timesteps)), 0.0)
