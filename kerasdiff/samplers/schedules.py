"""Noise schedules: from the betas of training to noise levels and back. Float64 NumPy."""

import math

import numpy as np

from kerasdiff.models.config import ScheduleConfig

# With a zero terminal SNR the last noise level is infinite. Two substitutes: that of diffusers' classes with
# states at data scale, and one so large that no signal is left in float32.
SMALLEST_ALPHA = 2.0**-24
VANISHING_ALPHA = 2.0**-80


def betas(schedule: ScheduleConfig) -> np.ndarray:
    """Variances added at each training timestep: float64 (num_train_timesteps,).

    "scaled_linear" is latent diffusion's (linear in the square root), "linear" is DDPM's (Ho et al.
    2020, arXiv:2006.11239), "squaredcos_cap_v2" is the cosine of Nichol & Dhariwal 2021 (arXiv:2102.09672). "sigmoid",
    "laplace" and "exp" are diffusers' own; some of its classes have them.
    """
    if schedule.trained_betas is not None:
        return np.array(schedule.trained_betas, "float64")
    count, start, end = schedule.num_train_timesteps, schedule.beta_start, schedule.beta_end
    if schedule.beta_schedule == "scaled_linear":
        return np.linspace(start**0.5, end**0.5, count) ** 2
    if schedule.beta_schedule == "linear":
        return np.linspace(start, end, count)
    if schedule.beta_schedule == "sigmoid":
        return start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, count)))
    left = _SIGNALS[schedule.beta_schedule](np.linspace(0, 1, count + 1))
    return np.minimum(1 - left[1:] / left[:-1], 0.999)


def _laplace(time: np.ndarray) -> np.ndarray:
    ratio = np.exp(-0.5 * np.copysign(1, 0.5 - time) * np.log(1 - 2 * np.abs(0.5 - time) + 1e-6))
    return np.sqrt(ratio / (1 + ratio))


# The signal that is left, over the time from 0 to 1.
_SIGNALS = {
    "squaredcos_cap_v2": lambda time: np.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2,
    "laplace": _laplace,
    "exp": lambda time: np.exp(-12 * time),
}


def alphas_cumprod(schedule: ScheduleConfig) -> np.ndarray:
    """The fraction of signal variance left at each training timestep: float64 (num_train_timesteps,).

    With `rescale_betas_zero_snr` the last one is 0 (Lin et al. 2023, arXiv:2305.08891, algorithm 1).
    """
    alphas = np.cumprod(1.0 - betas(schedule))
    if schedule.rescale_betas_zero_snr:
        signal = np.sqrt(alphas)
        alphas = ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2
    return alphas


def trained_sigmas(schedule: ScheduleConfig, smallest_alpha: float = SMALLEST_ALPHA) -> np.ndarray:
    """Noise levels sqrt((1 - a) / a) of the training timesteps, rising; `smallest_alpha` stands for a last a of 0."""
    alphas = alphas_cumprod(schedule)
    if schedule.rescale_betas_zero_snr:
        alphas[-1] = smallest_alpha
    return np.sqrt((1 - alphas) / alphas)


def top_rounds_down(schedule: ScheduleConfig) -> bool:
    """Whether diffusers, whose tables are float32, finds the highest noise level below the last timestep.

    Then a timestep that is rounded down is one less. For Stable Diffusion's schedule it is.
    """
    last = _last_alpha_in_float32(schedule)
    top = float(np.sqrt((np.float32(1) - last) / last))
    return float(np.float32(math.log(top))) > math.log(top)


def _last_alpha_in_float32(schedule: ScheduleConfig) -> np.float32:
    """The last of `alphas_cumprod`, with each operation rounded as torch rounds it."""
    if schedule.rescale_betas_zero_snr:
        return np.float32(SMALLEST_ALPHA)
    if schedule.trained_betas is None and schedule.beta_schedule in ("linear", "scaled_linear"):
        power = 0.5 if schedule.beta_schedule == "scaled_linear" else 1.0
        start, end = np.float32(schedule.beta_start**power), np.float32(schedule.beta_end**power)
        count = schedule.num_train_timesteps
        step, index = float((end - start) / np.float32(max(1, count - 1))), np.arange(count)
        ramp = np.where(index < count // 2, start + step * index, end - step * (count - 1 - index))
        rounded = ramp.astype("float32") ** np.float32(1 / power)
    else:
        rounded = betas(schedule).astype("float32")
    return np.float32(np.prod((np.float32(1) - rounded).astype("float64")))


def sigmas_at(sigmas: np.ndarray, timesteps: np.ndarray | float) -> np.ndarray:
    """Noise levels at timesteps, which may lie between two trained ones; `sigmas` from `trained_sigmas`."""
    return np.interp(timesteps, np.arange(len(sigmas)), sigmas)


def timesteps_at(sigmas: np.ndarray, levels: np.ndarray | float) -> np.ndarray:
    """The timesteps of noise levels, interpolated in log sigma: the inverse of `sigmas_at` on the grid."""
    return np.interp(np.log(np.maximum(levels, 1e-10)), np.log(sigmas), np.arange(len(sigmas)))
