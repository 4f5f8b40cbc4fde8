"""All samplers by name, and their aliases."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from kerasdiff import validation
from kerasdiff.errors import RequestError
from kerasdiff.models.config import ScheduleConfig
from kerasdiff.samplers import spacings
from kerasdiff.samplers.coefficients import Table, make_table
from kerasdiff.samplers.ddim import ddim
from kerasdiff.samplers.ddpm import ddpm
from kerasdiff.samplers.deis import deis
from kerasdiff.samplers.dpm_solver import dpm_solver
from kerasdiff.samplers.dpmpp_2m import dpmpp_2m
from kerasdiff.samplers.dpmpp_2m_sde import dpmpp_2m_sde
from kerasdiff.samplers.dpmpp_2s import dpmpp_2s
from kerasdiff.samplers.dpmpp_3m_sde import dpmpp_3m_sde
from kerasdiff.samplers.dpmpp_sde import dpmpp_sde
from kerasdiff.samplers.euler import euler
from kerasdiff.samplers.euler_a import euler_a
from kerasdiff.samplers.heun import heun
from kerasdiff.samplers.kdpm2 import kdpm2
from kerasdiff.samplers.kdpm2_a import kdpm2_a
from kerasdiff.samplers.lcm import lcm
from kerasdiff.samplers.lms import lms
from kerasdiff.samplers.pndm import pndm
from kerasdiff.samplers.sigmas import (
    ALPHA,
    LEVEL_OPTIONS,
    SIGMA,
    SIGMA_WHOLE,
    SOLVER,
    SOLVER_MULTISTEP,
    SOLVER_TO_LAST,
    SOLVER_UNIPC,
    Convention,
    LevelOptions,
    Levels,
    levels_of_sigmas,
    levels_of_timesteps,
    run_levels,
)
from kerasdiff.samplers.tcd import tcd
from kerasdiff.samplers.unipc import unipc
from kerasdiff.samplers.update import Update


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A sampler and the defaults of its class in diffusers.

    Attributes:
        rows: (levels, **options) -> the updates of a run; its docstring's first line is the `summary`.
        aliases: other names, the class in diffusers first.
        steps_offset: added by spacing "leading", unless the model's schedule has its own.
        final_sigmas_type: where a run ends: "zero" noise, or "sigma_min", the lowest trained level.
        asks_schedule: whether the model's `set_alpha_to_one`, if it has one, decides where a run ends.
        fixed_stride: whether the class steps T // n timesteps further, wherever the next step begins.
    """

    rows: Callable[..., Iterable[Update]]
    convention: Convention
    aliases: tuple[str, ...] = ()
    spacing: str = "linspace"
    steps_offset: int = 0
    final_sigmas_type: str = "zero"
    asks_schedule: bool = False
    fixed_stride: bool = False

    @property
    def summary(self) -> str:
        """One line that describes it."""
        return _summary(self.rows)

    @property
    def options(self) -> dict[str, Any]:
        """The names and defaults of its own `sampler_options`; those of `LevelOptions` go with any sampler."""
        parameters = list(inspect.signature(self.rows).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}

    def __str__(self) -> str:
        return self.summary


class Catalogue(dict[str, Any]):
    """A dict that prints as one line per entry."""

    def __repr__(self) -> str:
        width = max(map(len, self))
        summaries = {name: getattr(entry, "summary", None) or _summary(entry) for name, entry in self.items()}
        return "\n".join(f"{name:{width}}  {summary}" for name, summary in summaries.items())

    __str__ = __repr__


def _summary(function: Callable[..., Any]) -> str:
    return (function.__doc__ or "").splitlines()[0]


SAMPLERS: Mapping[str, Sampler] = Catalogue(
    ddim=Sampler(
        ddim,
        ALPHA,
        ("DDIMScheduler", "DDIMParallelScheduler"),
        "leading",
        1,
        "sigma_min",
        asks_schedule=True,
        fixed_stride=True,
    ),
    ddpm=Sampler(ddpm, ALPHA, ("DDPMScheduler", "DDPMParallelScheduler"), "leading"),
    pndm=Sampler(
        pndm,
        ALPHA,
        ("PNDMScheduler", "plms"),
        "leading",
        1,
        "sigma_min",
        asks_schedule=True,
        fixed_stride=True,
    ),
    lms=Sampler(lms, SIGMA, ("LMSDiscreteScheduler",)),
    euler=Sampler(euler, SIGMA, ("EulerDiscreteScheduler",)),
    euler_a=Sampler(euler_a, SIGMA, ("EulerAncestralDiscreteScheduler", "euler_ancestral")),
    heun=Sampler(heun, SIGMA, ("HeunDiscreteScheduler",)),
    kdpm2=Sampler(kdpm2, SIGMA_WHOLE, ("KDPM2DiscreteScheduler", "dpm2")),
    kdpm2_a=Sampler(kdpm2_a, SIGMA_WHOLE, ("KDPM2AncestralDiscreteScheduler", "dpm2_a", "kdpm2_ancestral")),
    dpmpp_2m=Sampler(dpmpp_2m, SOLVER_MULTISTEP, ("DPMSolverMultistepScheduler",)),
    dpmpp_2m_sde=Sampler(dpmpp_2m_sde, SOLVER_MULTISTEP),
    dpmpp_3m_sde=Sampler(dpmpp_3m_sde, SOLVER_MULTISTEP),
    dpmpp_2s=Sampler(dpmpp_2s, SOLVER, ("DPMSolverSinglestepScheduler",)),
    dpmpp_sde=Sampler(dpmpp_sde, SIGMA, ("DPMSolverSDEScheduler",)),
    dpm_solver=Sampler(
        dpm_solver,
        SOLVER_MULTISTEP,
        ("dpmsolver", "dpm_solver_2m", "dpm_solver_multistep", "dpm_2m"),
        final_sigmas_type="sigma_min",
    ),
    deis=Sampler(deis, SOLVER_TO_LAST, ("DEISMultistepScheduler",), final_sigmas_type="sigma_min"),
    unipc=Sampler(unipc, SOLVER_UNIPC, ("UniPCMultistepScheduler",)),
    lcm=Sampler(lcm, ALPHA, ("LCMScheduler",), "lcm"),
    tcd=Sampler(tcd, ALPHA, ("TCDScheduler",), "lcm", final_sigmas_type="sigma_min"),
)
"""All samplers by name; it prints as one line per sampler."""
SPACINGS: Mapping[str, Callable[..., Any]] = Catalogue({**spacings.OF_TIMESTEPS, **spacings.OF_SIGMAS})
"""All spacings by name: functions that choose a run's timesteps or noise levels. It prints as one line per spacing."""


def sampling_levels(
    schedule: ScheduleConfig,
    sampler: str,
    num_steps: int | None = None,
    *,
    spacing: str | None = None,
    timesteps: Any = None,
    sigmas: Any = None,
    **options: Any,
) -> Levels:
    """The noise levels that a sampler visits, by its own conventions; `schedule` is `Generator.config.schedule`.

    Args:
        num_steps: 1 to the number of training timesteps; not needed with `timesteps` or `sigmas`.
        timesteps: instead of a spacing: falling, one per step.
        sigmas: instead of a spacing: falling noise levels; the run ends at the last one.
        **options: the fields of `LevelOptions`, such as `final_sigmas_type="sigma_min"`.

    Raises:
        RequestError: an argument is wrong, or more than one of `spacing`, `timesteps` and `sigmas` is given.

    Example:
        ```python
        from kerasdiff.samplers import run_table, sampling_levels, sampling_table

        schedule = kerasdiff.Generator("tiny").config.schedule
        levels = sampling_levels(schedule, "heun", 4, spacing="karras")
        levels.sigmas  # five noise levels, the last one 0
        table = sampling_table(levels, "heun", {})  # 7 rows, one per evaluation of the model
        run_table(table, lambda x, t: x, np.ones(4))[-1]  # float64 (4,)
        ```
    """
    entry = SAMPLERS[sampler]
    ways = {"spacing": spacing, "timesteps": timesteps, "sigmas": sigmas}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise RequestError(f"{' and '.join(given)} both say which noise levels to visit; give only one")
    chosen = LevelOptions(**options)
    final_sigmas_type, steps_offset = chosen.final_sigmas_type, chosen.steps_offset
    if final_sigmas_type is None:
        final_sigmas_type = entry.final_sigmas_type
        if entry.asks_schedule and schedule.set_alpha_to_one is not None:
            final_sigmas_type = "zero" if schedule.set_alpha_to_one else "sigma_min"
    if steps_offset is None:
        steps_offset = entry.steps_offset if schedule.steps_offset is None else schedule.steps_offset
    if sigmas is not None:
        levels = levels_of_sigmas(schedule, entry.convention, sigmas)
    elif timesteps is not None:
        levels = levels_of_timesteps(schedule, entry.convention, timesteps, final_sigmas_type)
    else:
        if num_steps is None:
            raise RequestError("num_steps is missing; it is needed unless timesteps or sigmas are given")
        spacing = entry.spacing if spacing is None else spacing
        chosen = dataclasses.replace(chosen, final_sigmas_type=final_sigmas_type, steps_offset=steps_offset)
        return run_levels(schedule, entry.convention, num_steps, spacing, chosen)
    count = len(levels.timesteps)
    if num_steps is not None and validation.integer("num_steps", num_steps, 1, len(levels.trained)) != count:
        raise RequestError(f"num_steps={num_steps}, but {given[0]} makes {count} steps; leave num_steps out")
    return levels


def sampling_table(levels: Levels, sampler: str, options: Mapping[str, Any]) -> Table:
    """The coefficients of a sampler's run over the levels from `sampling_levels`; options such as {"eta": 0.5}.

    Options of `LevelOptions` have done their work there.

    Raises:
        RequestError: the sampler has no such option, its value is wrong, or it gives numbers that are not finite.
    """
    entry = SAMPLERS[sampler]
    for name in options:
        if name not in entry.options and name not in LEVEL_OPTIONS:
            known = ", ".join(f"{key}={value!r}" for key, value in entry.options.items()) or "none"
            raise RequestError(
                f"sampler {sampler!r} has no option {validation.shown(name)}; its options and their defaults: {known}; "
                "those of noise levels (final_sigmas_type, ...) go with any sampler"
            )
    own = {name: value for name, value in options.items() if name in entry.options}
    try:
        with np.errstate(all="ignore"):
            table = make_table(entry.rows(levels, **own), levels, entry.convention)
            finite = all(np.isfinite(part.astype("float32")).all() for part in (table.inputs, table.updates))
    except (ArithmeticError, np.linalg.LinAlgError):
        finite = False
    if not finite:
        raise RequestError(
            f"sampler {sampler!r} gives numbers that are not finite with these sampler_options, timesteps or "
            "sigmas; change them, or leave them out"
        )
    return table
