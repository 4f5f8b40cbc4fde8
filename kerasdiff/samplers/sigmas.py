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
    floors_cosine: bool = False  # with the cosine schedule these timesteps are rounded down
    flow_from_one: bool = False  # "flow" starts from noise alone, and ends at the last step's level if not at zero
    # Name of a spacing of noise levels -> how its timesteps are rounded.
    timestep_rounding: Mapping[str, Callable[..., Any]] = dataclasses.field(default_factory=dict)


# DDIM, DDPM, PNDM and the distilled ones.
ALPHA = Convention(whole_timesteps=True, variance_preserving=True, smallest_alpha=schedules.VANISHING_ALPHA)
# Euler, LMS, Heun and the others that come from k-diffusion.
SIGMA = Convention()
SIGMA_WHOLE = dataclasses.replace(SIGMA, timestep_rounding={"karras": np.round})
# DPM-Solver in single steps and in several; DEIS and UniPC.
SOLVER = Convention(
    whole_timesteps=True,
    extra_point=True,
    variance_preserving=True,
    timestep_rounding={"karras": np.round, "lu": np.round, "exponential": np.floor, "beta": np.floor},
)
SOLVER_MULTISTEP = dataclasses.replace(SOLVER, floors_cosine=True)
SOLVER_TO_LAST = dataclasses.replace(SOLVER, ends_at_last=True)
SOLVER_UNIPC = dataclasses.replace(SOLVER_TO_LAST, flow_from_one=True)


@dataclasses.dataclass(frozen=True)
class LevelOptions:
    """What decides on the noise levels of a run besides its spacing; the names are diffusers' scheduler settings.

    Attributes:
        steps_offset: added by spacing "leading"; None is the schedule's, or else the sampler's own.
        final_sigmas_type: "zero", or "sigma_min" to end at the lowest trained level; None is the sampler's own.
        original_inference_steps: the steps that spacing "lcm" chooses from.
        original_share: the share of these, from the lowest on, that it chooses from.
        timestep_spacing: the spacing from which "karras", "lu", "exponential" and "beta" take their ends with the
            samplers of k-diffusion; the DPM-Solvers, DEIS and UniPC take the ends of training.
        sigma_min: the lowest level of these four; None is that end.
        sigma_max: the highest one.
        interpolation_type: how the timesteps of the other spacings become levels: "linear", or "log_linear", which
            leaves the timesteps as they are and spreads the levels evenly in log sigma.
        timestep_type: "continuous" gives a U-Net of v-prediction log(sigma) / 4 instead of the timestep.
        lambda_min_clipped: timesteps whose log of signal to noise is below are left out; None is none.
        flow_shift: how far spacing "flow" is shifted towards noise; 1 is not at all.
    """

    steps_offset: int | None = None
    final_sigmas_type: str | None = None
    original_inference_steps: int = spacings.ORIGINAL_STEPS
    original_share: float = 1.0
    timestep_spacing: str = "linspace"
    sigma_min: float | None = None
    sigma_max: float | None = None
    interpolation_type: str = "linear"
    timestep_type: str = "discrete"
    lambda_min_clipped: float | None = None
    flow_shift: float = 1.0

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) is not None:
                validation.choice(name, getattr(self, name), choices)
        if self.steps_offset is not None:
            validation.integer("steps_offset", self.steps_offset, 0)
        for name in ("sigma_min", "sigma_max"):
            if getattr(self, name) is not None:
                validation.real(name, getattr(self, name), _SMALLEST)
        validation.real("flow_shift", self.flow_shift, _SMALLEST)
        validation.real("original_share", self.original_share, 0, 1)
        if self.lambda_min_clipped is not None:
            validation.real("lambda_min_clipped", self.lambda_min_clipped)


_CHOICES = {
    "final_sigmas_type": ("zero", "sigma_min"),
    "timestep_spacing": ("leading", "linspace", "trailing"),
    "interpolation_type": ("linear", "log_linear"),
    "timestep_type": ("discrete", "continuous"),
}
LEVEL_OPTIONS = {field.name: field.default for field in dataclasses.fields(LevelOptions)}


def level_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options of a request that are about noise levels."""
    return {name: options[name] for name in LEVEL_OPTIONS if name in options}


@dataclasses.dataclass(frozen=True, eq=False)
class Levels:
    """The noise levels of a run: the only input of a sampler.

    Attributes:
        sigmas: float64 (n + 1,), decreasing: the level of each step, then the one where the run ends.
        timesteps: float64 (n,), the U-Net's input at each step.
        trained: float64 (num_train_timesteps,), the levels of training, rising.
        prediction_type: what the U-Net predicts: "epsilon", "v_prediction", "sample" or "flow_prediction".
        initial_scale: unit-variance noise times this is where the run starts.
        before: steps skipped at the start, when an initial image takes the place of their result.
        continuous: whether timesteps are log(sigma) / 4 instead of those of training.
    """

    sigmas: np.ndarray
    timesteps: np.ndarray
    trained: np.ndarray
    prediction_type: str
    initial_scale: float
    before: int = 0
    continuous: bool = False

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
        if self.flow:
            return float(len(self.trained) * sigma / (1 + sigma))
        return float(np.log(sigma) / 4 if self.continuous else schedules.timesteps_at(self.trained, sigma))

    def sigma(self, timestep: float) -> float:
        """The noise level at a timestep from 0 to num_train_timesteps - 1, whole or not."""
        if self.flow:
            return float(timestep / (len(self.trained) - timestep))
        return float(np.exp(4 * timestep)) if self.continuous else float(schedules.sigmas_at(self.trained, timestep))

    @property
    def flow(self) -> bool:
        """Whether states are (1 - s) x0 + s noise, s from 0 to 1, whose sigma is s / (1 - s)."""
        return self.prediction_type == "flow_prediction"

    def unit(self, sigma: Any) -> Any:
        """What x at a noise level is multiplied with to be what the U-Net sees, and the state as diffusers has it."""
        return 1 / (1 + sigma) if self.flow else 1 / np.sqrt(1 + sigma**2)

    def denoised(self, sigma: float) -> tuple[float, float]:
        """(a, b) with D = a * x + b * F for x at a noise level and the U-Net's output F (Salimans & Ho 2022 for v)."""
        if self.prediction_type == "epsilon":
            return 1.0, -sigma
        if self.prediction_type == "v_prediction":
            return 1 / (1 + sigma**2), -sigma / np.sqrt(1 + sigma**2)
        if self.flow:
            return 1 / (1 + sigma), -sigma / (1 + sigma)
        return 0.0, 1.0


def run_levels(
    schedule: ScheduleConfig, convention: Convention, num_steps: int, spacing: str, options: LevelOptions
) -> Levels:
    """The levels of a run of `num_steps` steps; a RequestError if the spacing has no run of so many."""
    trained = schedules.trained_sigmas(schedule, convention.smallest_alpha)
    validation.integer("num_steps", num_steps, 1, len(trained))
    validation.choice("spacing", spacing, {**spacings.OF_TIMESTEPS, **spacings.OF_SIGMAS})
    if (spacing == "flow") != (schedule.prediction_type == "flow_prediction"):
        wanted = "needs spacing 'flow'" if spacing != "flow" else "does not go with spacing 'flow'"
        raise RequestError(f"a model with prediction type {schedule.prediction_type!r} {wanted}; leave spacing out")
    if spacing in spacings.OF_SIGMAS:
        low, high = _ends(trained, convention, num_steps, options)
        sigmas = spacings.OF_SIGMAS[spacing](num_steps, low, high)
        if num_steps > 1:
            sigmas[-1] = low
        rounding = convention.timestep_rounding.get(spacing, np.asarray)
        if rounding is np.round and convention.floors_cosine and schedule.beta_schedule == "squaredcos_cap_v2":
            rounding = np.floor
        timesteps = rounding(schedules.timesteps_at(trained, sigmas))
        if rounding is np.floor and timesteps[0] == len(trained) - 1 and schedules.top_rounds_down(schedule):
            timesteps[0] -= 1
    elif spacing == "flow":
        timesteps = spacings.flow(num_steps, len(trained), options.flow_shift, convention.flow_from_one)
        sigmas = timesteps / (len(trained) - timesteps)
        timesteps = np.floor(timesteps) if convention.whole_timesteps else timesteps
    else:
        timesteps = _timesteps(trained, convention, num_steps, spacing, options)
        sigmas = schedules.sigmas_at(trained, timesteps)
    # KerasCV always ends at no noise.
    final_sigmas_type = "zero" if spacing == "keras_cv" else options.final_sigmas_type or "zero"
    final = _final_level(trained, final_sigmas_type)
    if final > 0 and convention.ends_at_last and (spacing in spacings.OF_SIGMAS or spacing == "flow"):
        final = sigmas[-1]
    elif spacing == "flow":
        final = final / (1 - final)
    sigmas = np.append(sigmas, final)
    if options.interpolation_type == "log_linear" and spacing in spacings.OF_TIMESTEPS:
        sigmas = np.geomspace(trained[-1], trained[0], num_steps + 1)
    base = options.timestep_spacing if spacing in spacings.OF_SIGMAS else spacing
    unit_variance = convention.variance_preserving or base == "leading"
    return _levels(schedule, trained, sigmas, timesteps, unit_variance, options.timestep_type)


def _timesteps(
    trained: np.ndarray, convention: Convention, num_steps: int, spacing: str, options: LevelOptions
) -> np.ndarray:
    """The timesteps of a spacing that chooses some."""
    count = len(trained)
    if options.lambda_min_clipped is None:
        last = count
    else:
        last = max(1, int(np.count_nonzero(-np.log(trained) >= options.lambda_min_clipped)))
    points = num_steps + convention.extra_point
    if spacing == "leading":
        timesteps = spacings.leading(points, last, options.steps_offset or 0)[:num_steps]
    elif spacing == "linspace":
        timesteps = spacings.linspace(points, last)[:num_steps]
        timesteps = timesteps.round() if convention.whole_timesteps else timesteps
    elif spacing == "trailing":
        timesteps = spacings.trailing(num_steps, count, last)
    elif spacing == "lcm":
        timesteps = spacings.lcm(num_steps, count, options.original_inference_steps, options.original_share)
    else:
        timesteps = spacings.OF_TIMESTEPS[spacing](num_steps, count)
    if timesteps[0] >= count:
        raise RequestError(
            f"spacing={spacing!r} with num_steps={num_steps} visits a timestep that the model was not "
            f"trained on; use at most {count - 1} steps or another spacing"
        )
    if len(timesteps) < num_steps:
        raise RequestError(
            f"lambda_min_clipped={options.lambda_min_clipped:g} leaves {len(timesteps)} of the {num_steps} timesteps "
            "of spacing='trailing'; use another spacing"
        )
    if np.any(np.diff(timesteps) >= 0):
        raise RequestError(
            f"spacing={spacing!r} with num_steps={num_steps} visits a timestep twice; use fewer steps "
            "or spacing='trailing'"
        )
    return timesteps


def _ends(trained: np.ndarray, convention: Convention, num_steps: int, options: LevelOptions) -> tuple[float, float]:
    """The lowest and the highest level of a spacing of noise levels."""
    if convention.extra_point or options.interpolation_type == "log_linear":
        low, high = trained[0], trained[-1]
    else:
        timesteps = _timesteps(trained, convention, num_steps, options.timestep_spacing, options)
        high, low = schedules.sigmas_at(trained, timesteps[[0, -1]])
    low = low if options.sigma_min is None else options.sigma_min
    high = high if options.sigma_max is None else options.sigma_max
    if low >= high and num_steps > 1:
        raise RequestError(f"sigma_min={low:g} must be less than sigma_max={high:g}")
    return float(low), float(high)


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
    flow = schedule.prediction_type == "flow_prediction"
    sigmas = times / (len(trained) - times) if flow else schedules.sigmas_at(trained, times)
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
    flow = schedule.prediction_type == "flow_prediction"
    if levels[0] > trained[-1] * _MARGIN and not flow:
        raise RequestError(
            f"sigmas start at {validation.plain(levels[0])}; the model was trained up to a noise level of "
            f"{trained[-1]:.6g}"
        )
    smallest = levels[levels > 0].min()
    if smallest < _SMALLEST:
        raise RequestError(f"sigmas have a level of {validation.plain(smallest)}; above 0 the lowest is {_SMALLEST:g}")
    _check_apart("sigmas", levels, levels)
    above = levels[:-1]
    times = len(trained) * above / (1 + above) if flow else schedules.timesteps_at(trained, above)
    return _levels(schedule, trained, levels, times, convention.variance_preserving)


def _final_level(trained: np.ndarray, final_sigmas_type: str) -> float:
    """The noise level where a run ends: 0, or the lowest trained one."""
    return 0.0 if final_sigmas_type == "zero" else float(trained[0])


def _levels(
    schedule: ScheduleConfig,
    trained: np.ndarray,
    sigmas: np.ndarray,
    timesteps: np.ndarray,
    unit_variance: bool,
    timestep_type: str = "discrete",
) -> Levels:
    continuous = timestep_type == "continuous" and schedule.prediction_type == "v_prediction"
    if continuous:
        timesteps = np.log(sigmas[:-1]) / 4
    levels = Levels(sigmas, timesteps, trained, schedule.prediction_type, float(sigmas[0]), continuous=continuous)
    if unit_variance or levels.flow:
        return dataclasses.replace(levels, initial_scale=float(1 / levels.unit(sigmas[0])))
    return levels


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
