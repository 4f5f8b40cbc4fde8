"""From rows to the arrays that the compiled step takes as arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from kerasdiff.models.config import ScheduleConfig
from kerasdiff.samplers.rows import MEMORIES, NOISE, TERMS, Row
from kerasdiff.samplers.schedules import timesteps_at

INPUTS = 4


@dataclasses.dataclass(frozen=True)
class Table:
    """A whole run as numbers, in float64.

    Attributes:
        initial_scale: unit-variance noise times this is the first x.
        inputs: (rows, 4): scale of x for the U-Net, timestep, and the two coefficients that make
            the denoised D from x and the U-Net's output.
        updates: (rows, 5, 7): next x and remembered tensors from (x, memories, D, noise).
    """

    initial_scale: float
    inputs: np.ndarray
    updates: np.ndarray

    def __len__(self) -> int:
        return len(self.updates)

    @property
    def noisy(self) -> np.ndarray:
        """Which rows take fresh noise: bool (rows,)."""
        return np.any(self.updates[:, :, np.argmax(NOISE)] != 0, axis=1)


def make_table(sampler: Callable[[np.ndarray], Iterable[Row]], sigmas: np.ndarray, schedule: ScheduleConfig) -> Table:
    """Runs a sampler's generator over decreasing noise levels (n + 1,), the last one being 0.

    Example:
        ```python
        schedule = ScheduleConfig()
        sigmas = np.append(sigmas_at(schedule, SPACINGS["trailing"](20, 1000)), 0)
        make_table(SAMPLERS["euler"], sigmas, schedule).updates.shape  # (20, 5, 7)
        ```
    """
    rows = list(sampler(sigmas))
    levels = np.array([row.sigma for row in rows])
    updates = np.zeros((len(rows), 1 + MEMORIES, TERMS))
    for update, row in zip(updates, rows, strict=True):
        update[0] = row.x
        for place, kept in enumerate(row.keep, start=1):
            update[place] = kept
    skip, out = denoised_coefficients(schedule.prediction_type, levels)
    scale = 1 / np.sqrt(1 + levels**2)
    inputs = np.stack([scale, timesteps_at(schedule, levels), skip, out], axis=1)
    return Table(float(np.sqrt(1 + levels[0] ** 2)), inputs, updates)


def denoised_coefficients(prediction_type: str, sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(a, b) with D = a * x + b * F, F being what the U-Net predicts (Salimans & Ho 2022 for v)."""
    one = np.ones_like(sigmas)
    if prediction_type == "epsilon":
        return one, -sigmas
    if prediction_type == "v_prediction":
        return 1 / (1 + sigmas**2), -sigmas / np.sqrt(1 + sigmas**2)
    if prediction_type == "sample":
        return 0 * one, one
    raise ValueError(f"unknown prediction type {prediction_type!r}")


def run_table(
    table: Table,
    model: Callable[[np.ndarray, float], np.ndarray],
    noise: np.ndarray,
    fresh: Callable[[int], np.ndarray] | None = None,
) -> list[np.ndarray]:
    """The reference of the compiled step: a table run by NumPy in float64.

    Args:
        table: from `make_table`.
        model: `model(x, timestep)`, x scaled to unit variance; the U-Net's prediction.
        noise: unit-variance starting noise, any shape.
        fresh: `fresh(row)`, the noise of a noisy row, shaped as `noise`.

    Returns:
        x after each row, the last one being the result.
    """
    x = np.asarray(noise, "float64") * table.initial_scale
    memories = [np.zeros_like(x)] * MEMORIES
    states = []
    for row, ((scale, timestep, skip, out), update) in enumerate(zip(table.inputs, table.updates, strict=True)):
        denoised = skip * x + out * model(scale * x, timestep)
        drawn = fresh(row) if fresh is not None and table.noisy[row] else np.zeros_like(x)
        terms = np.stack([x, *memories, denoised, drawn])
        x, *memories = np.tensordot(update, terms, axes=1)
        states.append(x)
    return states
