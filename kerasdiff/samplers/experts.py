"""Where a run passes from one model to another: an ensemble of experts (Balaji et al. 2022, arXiv:2211.01324)."""

import dataclasses

import numpy as np

from kerasdiff.samplers.coefficients import Table


def cut(share: float, trained: int) -> int:
    """The timestep at which a share of the noise levels of training is passed, as diffusers rounds it."""
    return round(trained - share * trained)


def evaluations(table: Table, timestep: int) -> int:
    """How many evaluations of a run come before a cut, at its timestep or above."""
    return int(np.count_nonzero(table.inputs[:, 1] >= timestep))


def until(table: Table, timestep: int) -> Table:
    """What of a run comes before a cut."""
    count = evaluations(table, timestep)
    parts = {name: getattr(table, name)[:count] for name in ("inputs", "updates", "levels", "scales", "steps")}
    return dataclasses.replace(table, **parts)


def next_step(table: Table, timestep: int) -> int:
    """The step of a whole run that another model begins with after a cut.

    Where a step has two evaluations and the cut lies between them, that step is begun anew, as in diffusers.
    """
    if 1 < table.num_steps == (len(table) + 1) / 2:
        return evaluations(table, timestep) // 2
    return int(np.count_nonzero(np.unique(table.inputs[:, 1]) >= timestep))
