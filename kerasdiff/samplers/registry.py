"""All samplers, by name, and the other names that people know them by."""

from __future__ import annotations

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
    SIGMA,
    SIGMA_WHOLE,
    SOLVER,
    SOLVER_TO_LAST,
    Convention,
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
    """A sampler and what its class in diffusers does when nothing is said.

    Attributes:
        rows: (levels, **options) -> the rows of a run; its docstring's first line describes it.
        convention: of its family.
        aliases: other names, the class in diffusers first.
        spacing: its own.
        steps_offset: what spacing "leading" adds, if the model's schedule does not say.
        final_sigmas_type: whether a run ends at no noise, or at the lowest trained level.
        asks_schedule: whether the model's `set_alpha_to_one` decides that, if it has one.

    Example:
        ```python
        sampler = kerasdiff.SAMPLERS["ddim"]
        sampler.summary  # "DDIM, deterministic unless eta > 0 (Song et al. 2020). First order."
        sampler.options  # {"eta": 0.0}
        sampler.aliases, sampler.spacing  # ("DDIMScheduler",), "leading"
        ```
    """

    rows: Callable[..., Iterable[Update]]
    convention: Convention
    aliases: tuple[str, ...] = ()
    spacing: str = "linspace"
    steps_offset: int = 0
    final_sigmas_type: str = "zero"
    asks_schedule: bool = False

    @property
    def summary(self) -> str:
        """One line that describes it."""
        return (self.rows.__doc__ or "").splitlines()[0]

    @property
    def options(self) -> dict[str, Any]:
        """Its own options and their defaults, for `sampler_options`."""
        parameters = list(inspect.signature(self.rows).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}

    def __str__(self) -> str:
        return self.summary


class Catalogue(dict[str, Any]):
    """A dict that prints as one line an entry."""

    def __repr__(self) -> str:
        width = max(map(len, self))
        return "\n".join(f"{name:{width}}  {_summary(entry)}" for name, entry in self.items())

    __str__ = __repr__


def _summary(entry: Any) -> str:
    return entry.summary if isinstance(entry, Sampler) else (entry.__doc__ or "").splitlines()[0]


SAMPLERS: Mapping[str, Sampler] = Catalogue(
    ddim=Sampler(ddim, ALPHA, ("DDIMScheduler",), "leading", 1, "sigma_min", asks_schedule=True),
    ddpm=Sampler(ddpm, ALPHA, ("DDPMScheduler",), "leading"),
    pndm=Sampler(pndm, ALPHA, ("PNDMScheduler", "plms"), "leading", 1, "sigma_min", asks_schedule=True),
    lms=Sampler(lms, SIGMA, ("LMSDiscreteScheduler",)),
    euler=Sampler(euler, SIGMA, ("EulerDiscreteScheduler",)),
    euler_a=Sampler(euler_a, SIGMA, ("EulerAncestralDiscreteScheduler", "euler_ancestral")),
    heun=Sampler(heun, SIGMA, ("HeunDiscreteScheduler",)),
    kdpm2=Sampler(kdpm2, SIGMA_WHOLE, ("KDPM2DiscreteScheduler", "dpm2")),
    kdpm2_a=Sampler(kdpm2_a, SIGMA_WHOLE, ("KDPM2AncestralDiscreteScheduler", "dpm2_a", "kdpm2_ancestral")),
    dpmpp_2m=Sampler(dpmpp_2m, SOLVER, ("DPMSolverMultistepScheduler",)),
    dpmpp_2m_sde=Sampler(dpmpp_2m_sde, SOLVER),
    dpmpp_3m_sde=Sampler(dpmpp_3m_sde, SOLVER),
    dpmpp_2s=Sampler(dpmpp_2s, SOLVER, ("DPMSolverSinglestepScheduler",)),
    dpmpp_sde=Sampler(dpmpp_sde, SIGMA, ("DPMSolverSDEScheduler",)),
    dpm_solver=Sampler(
        dpm_solver,
        SOLVER,
        ("dpmsolver", "dpm_solver_2m", "dpm_solver_multistep", "dpm_2m"),
        final_sigmas_type="sigma_min",
    ),
    deis=Sampler(deis, SOLVER_TO_LAST, ("DEISMultistepScheduler",), final_sigmas_type="sigma_min"),
    unipc=Sampler(unipc, SOLVER_TO_LAST, ("UniPCMultistepScheduler",)),
    lcm=Sampler(lcm, ALPHA, ("LCMScheduler",), "lcm"),
    tcd=Sampler(tcd, ALPHA, ("TCDScheduler",), "lcm", final_sigmas_type="sigma_min"),
)
"""All samplers by name; it prints as one line a sampler.

Example:
    ```python
    print(kerasdiff.SAMPLERS)
    kerasdiff.generate("a red circle", sampler="ddim", sampler_options={"eta": 0.5})
    ```
"""
SPACINGS: Mapping[str, Callable[..., Any]] = Catalogue({**spacings.OF_TIMESTEPS, **spacings.OF_SIGMAS})
"""All spacings by name, functions that choose a run's timesteps or noise levels; it prints as one line a spacing.

Example:
    ```python
    print(kerasdiff.SPACINGS)
    kerasdiff.generate("a red circle", sampler="dpmpp_2m", spacing="karras")
    ```
"""


def _plain(name: str) -> str:
    """A name as it is compared: "DPM++ 2M SDE" is "dpmpp_2m_sde"."""
    return name.strip().lower().replace("++", "pp").replace(" ", "_").replace("-", "_")


_ALIASES = {_plain(alias): name for name, sampler in SAMPLERS.items() for alias in (name, *sampler.aliases)}


def sampler_name(value: Any) -> str:
    """The name in `SAMPLERS` of a sampler that may be called as in diffusers or in a web interface.

    Args:
        value: such as "dpmpp_2m", "DPMSolverMultistepScheduler" or "DPM++ 2M".

    Raises:
        RequestError: no such sampler; the message has the nearest name and all that there are.

    Example:
        ```python
        from kerasdiff.samplers import sampler_name

        sampler_name("DPMSolverMultistepScheduler"), sampler_name("DPM++ 2M")  # dpmpp_2m, twice
        ```
    """
    plain = _plain(value) if isinstance(value, str) else ""
    if plain in _ALIASES:
        return _ALIASES[plain]
    near = validation.nearest(plain, _ALIASES)
    hint = f"did you mean {_ALIASES[near]!r}? " if near else ""
    raise RequestError(f"sampler={validation.shown(value)} is unknown; {hint}known: {', '.join(sorted(SAMPLERS))}")


def sampling_levels(
    schedule: ScheduleConfig,
    sampler: str,
    num_steps: int | None = None,
    *,
    spacing: str | None = None,
    timesteps: Any = None,
    sigmas: Any = None,
    steps_offset: int | None = None,
    final_sigmas_type: str | None = None,
    original_inference_steps: int = spacings.ORIGINAL_STEPS,
) -> Levels:
    """The noise levels that a sampler visits, by its own conventions.

    Args:
        schedule: of the model, `Generator.config.schedule`.
        sampler: a name in `SAMPLERS`.
        num_steps: how many; only with a spacing.
        spacing: a name in `SPACINGS`; None is the sampler's own.
        timesteps: instead of a spacing, falling, one a step.
        sigmas: instead of a spacing, falling noise levels, the last one being the end.
        steps_offset: what "leading" adds; None is the schedule's, or else the sampler's own.
        final_sigmas_type: "zero" or "sigma_min"; None is the sampler's own.
        original_inference_steps: what "lcm" takes its levels from.

    Raises:
        RequestError: one of them is wrong, or two of the ways to say the levels are used.

    Example:
        ```python
        from kerasdiff.samplers import sampling_levels

        schedule = kerasdiff.Generator("tiny").config.schedule
        sampling_levels(schedule, "euler", 4, spacing="karras").sigmas  # five noise levels, the last one 0
        ```
    """
    entry = SAMPLERS[sampler]
    ways = {"spacing": spacing, "timesteps": timesteps, "sigmas": sigmas}
    given = [name for name, value in ways.items() if value is not None]
    if len(given) > 1:
        raise RequestError(f"{' and '.join(given)} both say which noise levels to visit; give only one of them")
    final = final_sigmas_type
    if final is None and entry.asks_schedule and schedule.set_alpha_to_one is not None:
        final = "zero" if schedule.set_alpha_to_one else "sigma_min"
    if final is None:
        final = entry.final_sigmas_type
    if sigmas is not None:
        levels = levels_of_sigmas(schedule, entry.convention, sigmas)
    elif timesteps is not None:
        levels = levels_of_timesteps(schedule, entry.convention, timesteps, final)
    else:
        if num_steps is None:
            raise RequestError("num_steps is missing; only timesteps or sigmas make it superfluous")
        if steps_offset is None:
            steps_offset = entry.steps_offset if schedule.steps_offset is None else schedule.steps_offset
        return run_levels(
            schedule,
            entry.convention,
            num_steps,
            entry.spacing if spacing is None else spacing,
            steps_offset=steps_offset,
            final_sigmas_type=final,
            original_inference_steps=original_inference_steps,
        )
    count = len(levels.timesteps)
    if num_steps is not None and validation.integer("num_steps", num_steps, 1, len(levels.trained)) != count:
        raise RequestError(f"num_steps={num_steps}, but {given[0]} makes {count} steps; leave num_steps out")
    return levels


def sampling_table(levels: Levels, sampler: str, options: Mapping[str, Any]) -> Table:
    """The coefficients of a sampler's run over these levels.

    Args:
        levels: from `sampling_levels`.
        sampler: a name in `SAMPLERS`.
        options: of the sampler, such as {"eta": 0.5}.

    Raises:
        RequestError: the sampler has no such option, or its value is wrong, or leads to numbers that are not finite.

    Example:
        ```python
        from kerasdiff.samplers import sampling_levels, sampling_table

        levels = sampling_levels(kerasdiff.Generator("tiny").config.schedule, "heun", 10)
        len(sampling_table(levels, "heun", {}))  # 19 rows, one for each evaluation of the model
        ```
    """
    entry = SAMPLERS[sampler]
    for name in options:
        if name not in entry.options:
            known = ", ".join(f"{key}={value!r}" for key, value in entry.options.items()) or "none"
            raise RequestError(
                f"sampler {sampler!r} has no option {validation.shown(name)}; its options and their defaults: {known}"
            )
    try:
        with np.errstate(all="ignore"):
            table = make_table(entry.rows(levels, **options), levels, entry.convention)
            finite = all(np.isfinite(part.astype("float32")).all() for part in (table.inputs, table.updates))
    except (ArithmeticError, np.linalg.LinAlgError):
        finite = False
    if not finite:
        raise RequestError(
            f"sampler {sampler!r} comes to numbers that are not finite with these sampler_options, timesteps or "
            "sigmas; give others, or leave them out"
        )
    return table
