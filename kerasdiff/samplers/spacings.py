"""Spacings: which noise levels a run visits, whatever the sampler. Float64 NumPy.

Those in `OF_TIMESTEPS` return falling timesteps (num_steps,); those in `OF_SIGMAS` return falling noise levels
(num_steps,) between two ends. T is `num_train_timesteps`, how many timesteps the model was trained with.
"""

from collections.abc import Callable

import numpy as np

from kerasdiff import validation
from kerasdiff.errors import RequestError
from kerasdiff.models.config import ScheduleConfig
from kerasdiff.samplers.schedules import sigmas_at, timesteps_at, trained_sigmas

ORIGINAL_STEPS = 50


def leading(num_steps: int, num_train_timesteps: int, offset: int = 0) -> np.ndarray:
    """Multiples of T // n, plus an offset (1 in Stable Diffusion): never reaches the last timestep."""
    return np.arange(num_steps)[::-1] * float(num_train_timesteps // num_steps) + offset


def linspace(num_steps: int, num_train_timesteps: int) -> np.ndarray:
    """Evenly spaced from the last timestep to the first; a single step is at the first."""
    return np.linspace(0, num_train_timesteps - 1, num_steps)[::-1]


def trailing(num_steps: int, num_train_timesteps: int, last: int | None = None) -> np.ndarray:
    """Evenly spaced from the last timestep down, without the first (Lin et al. 2023, arXiv:2305.08891)."""
    last = num_train_timesteps if last is None else last
    return np.round(np.arange(last, 0, -num_train_timesteps / num_steps)[:num_steps]) - 1


def keras_cv(num_steps: int, num_train_timesteps: int) -> np.ndarray:
    """The rounded linspace of `keras_cv.models.StableDiffusion`; a single step is at timestep 0, as there."""
    ratio = (num_train_timesteps - 1) / (num_steps - 1) if num_steps > 1 else num_train_timesteps
    return (np.arange(num_steps) * ratio).round()[::-1]


def lcm(
    num_steps: int, num_train_timesteps: int, original_steps: int = ORIGINAL_STEPS, share: float = 1.0
) -> np.ndarray:
    """A subset of the timesteps that a latent consistency model was distilled on (arXiv:2310.04378).

    `share` is how many of these there are to choose from, from the lowest on.

    Raises:
        RequestError: `num_steps` is more than `original_steps`, those of the distillation, or than their share.
    """
    validation.integer("original_inference_steps", original_steps, 1, num_train_timesteps)
    if num_steps > original_steps:
        raise RequestError(
            f"num_steps={num_steps} is more than the {original_steps} steps that spacing='lcm' chooses from; "
            "use fewer steps or spacing='trailing'"
        )
    count = int(original_steps * share)
    if num_steps > count:
        raise RequestError(
            f"strength={share:g} leaves {count} of the {original_steps} timesteps that spacing='lcm' chooses from, for "
            f"num_steps={num_steps}; use more strength, at least {num_steps / original_steps:.3g}, or fewer steps"
        )
    original = np.arange(count, 0, -1) * (num_train_timesteps // original_steps) - 1.0
    return original[np.floor(np.linspace(0, count, num_steps, endpoint=False)).astype(int)]


def ays(num_steps: int, num_train_timesteps: int) -> np.ndarray:
    """Align Your Steps for Stable Diffusion 1.x (Sabour et al. 2024, arXiv:2404.14507): made for about 10 steps.

    10 steps are the published ones; other numbers are interpolated in the log of the noise level, as the authors do.
    """
    return _aligned(_AYS, num_steps, num_train_timesteps)


def ays_sdxl(num_steps: int, num_train_timesteps: int) -> np.ndarray:
    """Align Your Steps for Stable Diffusion XL, with more steps at low noise."""
    return _aligned(_AYS_SDXL, num_steps, num_train_timesteps)


# The timesteps of 10 steps, and the one whose noise level the last step comes near.
_AYS = (999, 850, 736, 645, 545, 455, 343, 233, 124, 24, 0)
_AYS_SDXL = (999, 845, 730, 587, 443, 310, 193, 116, 53, 13, 0)


def _aligned(table: tuple[int, ...], num_steps: int, num_train_timesteps: int) -> np.ndarray:
    """The timesteps of a table, or as many that lie between them by the noise levels of Stable Diffusion."""
    trained, times = trained_sigmas(ScheduleConfig()), np.array(table, "float64")
    if num_steps != len(table) - 1:
        places = np.linspace(0, len(table) - 1, num_steps + 1)
        levels = np.exp(np.interp(places, np.arange(len(table)), np.log(sigmas_at(trained, times))))
        times = timesteps_at(trained, levels)
    return times[:-1] * ((num_train_timesteps - 1) / (len(trained) - 1))


def karras(num_steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> np.ndarray:
    """Evenly spaced in sigma ** (1 / 7): more steps at low noise (Karras et al. 2022, arXiv:2206.00364, equation 5)."""
    return np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), num_steps) ** rho


def exponential(num_steps: int, sigma_min: float, sigma_max: float) -> np.ndarray:
    """Evenly spaced in log sigma."""
    return np.exp(np.linspace(np.log(sigma_max), np.log(sigma_min), num_steps))


def lu(num_steps: int, sigma_min: float, sigma_max: float) -> np.ndarray:
    """Evenly spaced in lambda, the log of signal to noise (Lu et al. 2022, arXiv:2206.00927): as "exponential"."""
    return exponential(num_steps, sigma_min, sigma_max)


def beta(num_steps: int, sigma_min: float, sigma_max: float, a: float = 0.6, b: float = 0.6) -> np.ndarray:
    """Quantiles of Beta(0.6, 0.6): more steps at both ends (Lee et al. 2024, arXiv:2407.12173)."""
    from scipy import stats  # takes a second to import, and only this spacing needs it

    return sigma_min + stats.beta.ppf(1 - np.linspace(0, 1, num_steps), a, b) * (sigma_max - sigma_min)


def flow(num_steps: int, num_train_timesteps: int, shift: float = 1.0, from_one: bool = False) -> np.ndarray:
    """Even shares of noise, shifted by `flow_shift`, for models of flow (Esser et al. 2024, arXiv:2403.03206)."""
    ends = (1.0, 1 / num_train_timesteps) if from_one else (1 - 1 / num_train_timesteps, 0.0)
    shares = np.linspace(*ends, num_steps + 1)[:-1]
    return num_train_timesteps * np.minimum(shift * shares / (1 + (shift - 1) * shares), 1 - 1e-6)


# (num_steps, num_train_timesteps) -> decreasing timesteps, float64 (num_steps,)
OF_TIMESTEPS: dict[str, Callable[..., np.ndarray]] = {
    "leading": leading,
    "linspace": linspace,
    "trailing": trailing,
    "keras_cv": keras_cv,
    "lcm": lcm,
    "flow": flow,
    "ays": ays,
    "ays_sdxl": ays_sdxl,
}
# (num_steps, sigma_min, sigma_max) -> decreasing noise levels, float64 (num_steps,)
OF_SIGMAS: dict[str, Callable[..., np.ndarray]] = {
    "karras": karras,
    "lu": lu,
    "exponential": exponential,
    "beta": beta,
}
