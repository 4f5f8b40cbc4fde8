"""The noise levels of one run, and the conventions of the sampler families that they depend on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kerasdiff import validation
from kerasdiff.errors import RequestError
from kerasdiff.models.config import ScheduleConfig
from kerasdiff.samplers import schedules, spacings

# A noise level written with few digits may lie a little above the largest one.
_MARGIN = 1.01
# Two levels relatively nearer than this are one in float32, and samplers divide by their difference.
_NEAREST = 1e-6
# Samplers divide by levels, and by their squares.
_SMALLEST = 1e-6


@dataclasses.dataclass(frozen=True)
class Convention:
    """How diffusers lays out the runs of a sampler family; published results depend on it."""

    whole_timesteps: bool = False  # "linspace" is rounded to trained timesteps
    extra_point: bool = False  # "linspace" and "leading" have one more point, and the lowest is left out
    # States have unit variance: a run starts from sqrt(1 + sigma ** 2) times the noise instead of sigma times it, and
    # its result is scaled back if noise is left.
    variance_preserving: bool = False
    smallest_alpha: float = schedules.SMALLEST_ALPHA  # stands in for no signal when the terminal SNR is zero
    ends_at_last: bool = False  # with a spacing of noise levels, "sigma_min" is the level of the last step
    # Name of a spacing of noise levels -> how its timesteps are rounded.
    timestep_rounding: Mapping[str, Callable[..., Any]] = dataclasses.field(default_factory=dict)


# DDIM, DDPM, PNDM and the distilled ones.
ALPHA = Convention(whole_timesteps=True, variance_preserving=True, smallest_alpha=schedules.VANISHING_ALPHA)
# Euler, LMS, Heun and the others that come from k-diffusion.
SIGMA = Convention()
SIGMA_WHOLE = dataclasses.replace(SIGMA, timestep_rounding={"karras": np.round})
# DPM-Solver; DEIS and UniPC.
SOLVER = Convention(
    whole_timesteps=True,
    extra_point=True,
    variance_preserving=True,
    timestep_rounding={"karras": np.round, "exponential": np.floor, "beta": np.floor},
)
SOLVER_TO_LAST = dataclasses.replace(SOLVER, ends_at_last=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Levels:
    """The noise levels of a run: the only input of a sampler.

    Attributes:
        sigmas: float64 (n + 1,), decreasing: the level of each step, then the one where the run ends.
        timesteps: float64 (n,), the U-Net's input at each step.
        trained: float64 (num_train_timesteps,), the levels of training, rising.
        prediction_type: what the U-Net predicts: "epsilon", "v_prediction" or "sample".
        initial_scale: unit-variance noise times this is where the run starts.
        before: steps skipped at the start, when an initial image takes the place of their result.
    """

    sigmas: np.ndarray
    timesteps: np.ndarray
    trained: np.ndarray
    prediction_type: str
    initial_scale: float
    before: int = 0

    @functools.cached_property
    def _timestep_of(self) -> dict[float, float]:
        return dict(zip(self.sigmas[:-1].tolist(), self.timesteps.tolist(), strict=True))

    def from_step(self, step: int) -> Levels:
        """The rest of the run, from a step between 0 and n - 1, as a run by itself."""
        before = self.before + step
        return dataclasses.replace(self, sigmas=self.sigmas[step:], timesteps=self.timesteps[step:], before=before)

    def timestep(self, sigma: float) -> float:
        """The timestep of a noise level above 0: the run's own at its levels, else interpolated."""
        known = self._timestep_of.get(float(sigma))
        return self.interpolated_timestep(sigma) if known is None else known

    def interpolated_timestep(self, sigma: float) -> float:
        """The timestep of a noise level above 0, even where the run has another one for it."""
        return float(schedules.timesteps_at(self.trained, sigma))

    def sigma(self, timestep: float) -> float:
        """The noise level at a timestep from 0 to num_train_timesteps - 1, whole or not."""
        return float(schedules.sigmas_at(self.trained, timestep))

    def denoised(self, sigma: float) -> tuple[float, float]:
        """(a, b) with D = a * x + b * F for x at a noise level and the U-Net's output F (Salimans & Ho 2022 for v)."""
        if self.prediction_type == "epsilon":
            return 1.0, -sigma
        if self.prediction_type == "v_prediction":
            return 1 / (1 + sigma**2), -sigma / np.sqrt(1 + sigma**2)
        return 0.0, 1.0


def run_levels(
    schedule: ScheduleConfig,
    convention: Convention,
    num_steps: int,
    spacing: str,
    *,
    steps_offset: int = 0,
    final_sigmas_type: str = "zero",
    original_inference_steps: int = spacings.ORIGINAL_STEPS,
) -> Levels:
    """The levels of a run of `num_steps` steps; a RequestError if the spacing has no run of so many."""
    trained = schedules.trained_sigmas(schedule, convention.smallest_alpha)
    count = len(trained)
    validation.integer("num_steps", num_steps, 1, count)
    validation.choice("spacing", spacing, {**spacings.OF_TIMESTEPS, **spacings.OF_SIGMAS})
    points = num_steps + convention.extra_point
    if spacing in spacings.OF_SIGMAS:
        ends = schedules.sigmas_at(trained, spacings.linspace(points, count)[[0, -1]])
        sigmas = spacings.OF_SIGMAS[spacing](num_steps, ends[1], ends[0])
        if num_steps > 1:
            sigmas[-1] = ends[1]
        timesteps = convention.timestep_rounding.get(spacing, np.asarray)(schedules.timesteps_at(trained, sigmas))
    else:
        if spacing == "leading":
            timesteps = spacings.leading(points, count, validation.integer("steps_offset", steps_offset, 0))[:num_steps]
        elif spacing == "linspace":
            timesteps = spacings.linspace(points, count)[:num_steps]
            timesteps = timesteps.round() if convention.whole_timesteps else timesteps
        elif spacing == "lcm":
            timesteps = spacings.lcm(num_steps, count, original_inference_steps)
        else:
            timesteps = spacings.OF_TIMESTEPS[spacing](num_steps, count)
        if timesteps[0] >= count:
            raise RequestError(
                f"spacing={spacing!r} with num_steps={num_steps} visits a timestep that the model was not "
                f"trained on; use at most {count - 1} steps or another spacing"
            )
        if np.any(np.diff(timesteps) >= 0):
            raise RequestError(
                f"spacing={spacing!r} with num_steps={num_steps} visits a timestep twice; use fewer steps "
                "or spacing='trailing'"
            )
        sigmas = schedules.sigmas_at(trained, timesteps)
    # KerasCV always ends at no noise.
    final = _final_level(trained, "zero" if spacing == "keras_cv" else final_sigmas_type)
    if final > 0 and convention.ends_at_last and spacing in spacings.OF_SIGMAS:
        final = sigmas[-1]
    unit_variance = convention.variance_preserving or spacing == "leading"
    return _levels(schedule, trained, np.append(sigmas, final), timesteps, unit_variance)


def levels_of_timesteps(
    schedule: ScheduleConfig, convention: Convention, timesteps: Any, final_sigmas_type: str = "zero"
) -> Levels:
    """The levels of a run that visits these timesteps, one per step; they must fall, between trained ones."""
    trained = schedules.trained_sigmas(schedule, convention.smallest_alpha)
    times = np.array(validation.reals("timesteps", timesteps, most=len(trained)))
    _check_falling("timesteps", times)
    if times[0] > len(trained) - 1 or times[-1] < 0:
        first, last = validation.plain(times[0]), validation.plain(times[-1])
        raise RequestError(f"timesteps must lie between 0 and {len(trained) - 1}, not {first} to {last}")
    sigmas = schedules.sigmas_at(trained, times)
    _check_apart("timesteps", times, sigmas)
    sigmas = np.append(sigmas, _final_level(trained, final_sigmas_type))
    return _levels(schedule, trained, sigmas, times, convention.variance_preserving)


def levels_of_sigmas(schedule: ScheduleConfig, convention: Convention, sigmas: Any) -> Levels:
    """The levels of a run through these falling noise levels, two or more; the last one is where it ends."""
    trained = schedules.trained_sigmas(schedule, convention.smallest_alpha)
    levels = np.array(validation.reals("sigmas", sigmas, most=len(trained) + 1))
    if len(levels) < 2:
        raise RequestError("sigmas needs at least two levels: one to start from and one to end at, such as [14.6, 0]")
    _check_falling("sigmas", levels)
    if levels[-1] < 0:
        raise RequestError(f"sigmas end at {validation.plain(levels[-1])}; the lowest noise level is 0")
    if levels[0] > trained[-1] * _MARGIN:
        raise RequestError(
            f"sigmas start at {validation.plain(levels[0])}; the model was trained up to a noise level of "
            f"{trained[-1]:.6g}"
        )
    smallest = levels[levels > 0].min()
    if smallest < _SMALLEST:
        raise RequestError(f"sigmas have a level of {validation.plain(smallest)}; above 0 the lowest is {_SMALLEST:g}")
    _check_apart("sigmas", levels, levels)
    times = schedules.timesteps_at(trained, levels[:-1])
    return _levels(schedule, trained, levels, times, convention.variance_preserving)


def _final_level(trained: np.ndarray, final_sigmas_type: str) -> float:
    """The noise level where a run ends: 0, or the lowest trained one."""
    validation.choice("final_sigmas_type", final_sigmas_type, ("zero", "sigma_min"))
    return 0.0 if final_sigmas_type == "zero" else float(trained[0])


def _levels(
    schedule: ScheduleConfig, trained: np.ndarray, sigmas: np.ndarray, timesteps: np.ndarray, unit_variance: bool
) -> Levels:
    initial_scale = float(np.sqrt(1 + sigmas[0] ** 2) if unit_variance else sigmas[0])
    return Levels(sigmas, timesteps, trained, schedule.prediction_type, initial_scale)


def _check_falling(name: str, values: np.ndarray) -> None:
    for index in np.flatnonzero(values[1:] >= values[:-1]):
        value, after = map(validation.plain, values[index : index + 2])
        raise RequestError(f"{name} must fall from step to step, but {name}[{index}]={value} is followed by {after}")


def _check_apart(name: str, values: np.ndarray, sigmas: np.ndarray) -> None:
    for index in np.flatnonzero(sigmas[1:] > sigmas[:-1] * (1 - _NEAREST)):
        value, after = map(validation.plain, values[index : index + 2])
        raise RequestError(
            f"{name}[{index}]={value} and the {after} after it are the same noise level to the U-Net; leave one out"
        )
