"""From a sampler's updates to the arrays that the compiled step takes as arguments."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from kerasdiff.samplers.sigmas import Convention, Levels
from kerasdiff.samplers.update import MEMORIES, NOISE, TERMS, Update


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    """A whole run as numbers, in float64.

    Attributes:
        initial_scale: unit-variance noise times this is the first x of a run from pure noise.
        first_scale: the first x times this is the state as diffusers has it.
        inputs: (rows, 4): scale of x for the U-Net, timestep, and `Levels.denoised`'s two coefficients.
        updates: (rows, 5, 7): next x and remembered tensors from (x, memories, D, noise).
        levels: (rows,): the noise level of x after each row.
        scales: (rows,): x after a row times this is the state as diffusers has it. The last one is the result.
        steps: int (rows,): the step, 0 to `num_steps` - 1, whose noise level a row is at, or last passed.
    """

    initial_scale: float
    initial_sigma: float
    first_scale: float
    inputs: np.ndarray
    updates: np.ndarray
    levels: np.ndarray
    scales: np.ndarray
    steps: np.ndarray
    num_steps: int

    def __len__(self) -> int:
        return len(self.updates)

    @property
    def noisy(self) -> np.ndarray:
        """Which rows take fresh noise: bool (rows,)."""
        return np.any(self.updates[:, :, np.argmax(NOISE)] != 0, axis=1)


def make_table(rows: Iterable[Update], levels: Levels, convention: Convention) -> Table:
    """The table of what a sampler yields, one row per evaluation of the model; `convention` is `Sampler.convention`."""
    rows = list(rows)
    sigmas = np.array([row.sigma for row in rows])
    updates = np.zeros((len(rows), 1 + MEMORIES, TERMS))
    for update, row in zip(updates, rows, strict=True):
        update[: 1 + len(row.keep)] = (row.x, *row.keep)
    unit = levels.unit(sigmas)
    timesteps = [levels.timestep(row.sigma) if row.timestep is None else row.timestep for row in rows]
    skip, out = np.array([levels.denoised(sigma) for sigma in sigmas]).T
    scales, first_scale = np.ones(len(rows)), 1.0
    if convention.variance_preserving:
        first_scale = float(levels.unit(levels.sigmas[0]))
        scales = np.append(unit[1:], levels.unit(levels.sigmas[-1]))
    # A level that equals a step's up to rounding belongs to that step.
    steps = np.array([np.count_nonzero(levels.sigmas[:-1] >= sigma * (1 - 1e-9)) - 1 for sigma in sigmas])
    return Table(
        initial_scale=levels.initial_scale,
        initial_sigma=float(levels.sigmas[0]),
        first_scale=first_scale,
        inputs=np.stack([unit, timesteps, skip, out], axis=1),
        updates=updates,
        levels=np.append(sigmas[1:], levels.sigmas[-1]),
        scales=scales,
        steps=np.maximum(steps, 0),
        num_steps=len(levels.timesteps),
    )
