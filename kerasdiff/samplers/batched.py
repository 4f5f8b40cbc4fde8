"""The tables of several images, stacked for one batch."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from kerasdiff.samplers.coefficients import Table
from kerasdiff.samplers.update import MEMORIES, TERMS, X


@dataclasses.dataclass(frozen=True, eq=False)
class BatchTable:
    """A run of B images that end together. An image with fewer rows waits at the start: its x stays the same.

    The fields are those of `Table`, with an axis B after the rows, `inputs` and `updates` in float32. `steps` counts in
    the whole run, and is -1 while an image waits; `draws`, int (rows, B), is the row of an image's own table that takes
    fresh noise, or -1. `skipped` is how many rows of the whole run come before these; `counted_from`, int (B,), is the
    step that prompts count an image's steps from, if it is not its first one; `ends_early` is whether noise is left.
    """

    inputs: np.ndarray
    updates: np.ndarray
    steps: np.ndarray
    draws: np.ndarray
    levels: np.ndarray
    scales: np.ndarray
    initial_sigmas: np.ndarray
    initial_scales: np.ndarray
    first_scales: np.ndarray
    skipped: int = 0
    counted_from: np.ndarray | None = None
    ends_early: bool = False

    def __len__(self) -> int:
        return len(self.updates)

    @property
    def own_steps(self) -> np.ndarray:
        """The steps as prompts count them, from each image's first one: int (rows, B), 0 while it waits."""
        waits, first = self.steps < 0, self.counted_from
        if first is None:
            first = np.min(self.steps, axis=0, initial=np.iinfo(int).max, where=~waits)
        return np.where(waits, 0, self.steps - first)

    def ends_step(self, row: int) -> bool:
        """Whether a row is the last one of its step, for every image that does not wait."""
        return row + 1 == len(self) or bool(np.all(self.steps[row] != self.steps[row + 1]))


def stack_tables(tables: Sequence[Table | None], first_steps: Sequence[int]) -> BatchTable:
    """One table per image, for the rest of its run from its first step; None is an image that has no step left."""
    longest = max((len(table) for table in tables if table is not None), default=0)
    pairs = list(zip(tables, first_steps, strict=True))
    distinct = {(id(table), first): (table, first) for table, first in pairs}
    parts = {key: _aligned(table, first, longest) for key, (table, first) in distinct.items()}
    images = [parts[id(table), first] for table, first in pairs]
    stacked: dict[str, Any] = {name: np.stack([image[name] for image in images], axis=1) for name in images[0]}
    starts = {"initial_sigma": 0.0, "initial_scale": 0.0, "first_scale": 1.0}
    stacked |= {
        f"{name}s": np.array([none if table is None else getattr(table, name) for table in tables])
        for name, none in starts.items()
    }
    return BatchTable(**stacked)


def same_for_all(table: Table, batch_size: int) -> BatchTable:
    """A run of `batch_size` images that share one table."""
    return stack_tables([table] * batch_size, [0] * batch_size)


def _aligned(table: Table | None, first_step: int, longest: int) -> dict[str, np.ndarray]:
    """One image's arrays, padded at the start with rows that change nothing."""
    waits = longest - (0 if table is None else len(table))
    idle = np.zeros((waits, 1 + MEMORIES, TERMS))
    idle[:, 0] = X
    nothing = np.full(waits, -1)
    if table is None:  # the U-Net's output is not used, but must be finite
        return {
            "inputs": np.tile(np.array([1, 0, 0, 0], "float32"), (waits, 1)),
            "updates": idle.astype("float32"),
            "steps": nothing,
            "draws": nothing,
            "levels": np.zeros(waits),
            "scales": np.ones(waits),
        }
    # The U-Net sees the image's first x at its own level.
    before = np.tile(table.inputs[:1] * np.array([1, 1, 0, 0]), (waits, 1))
    return {
        "inputs": np.concatenate([before, table.inputs]).astype("float32"),
        "updates": np.concatenate([idle, table.updates]).astype("float32"),
        "steps": np.concatenate([nothing, first_step + table.steps]),
        "draws": np.concatenate([nothing, np.where(table.noisy, np.arange(len(table)), -1)]),
        "levels": np.concatenate([np.full(waits, table.initial_sigma), table.levels]),
        "scales": np.concatenate([np.full(waits, table.first_scale), table.scales]),
    }
