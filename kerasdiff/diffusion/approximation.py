"""What is left out of a run's arithmetic: deep features that are used again (DeepCache), and tokens that are merged."""

from __future__ import annotations

import dataclasses

import numpy as np

from kerasdiff.models.blocks import halved
from kerasdiff.models.network_configs import UNetConfig
from kerasdiff.models.token_order import CELL, num_cells, token_order
from kerasdiff.request import Request
from kerasdiff.samplers.batched import BatchTable
from kerasdiff.samplers.noise import Noise


@dataclasses.dataclass(frozen=True)
class Approximation:
    """What a request leaves out; by default nothing. No image depends on the others of its batch."""

    interval: int = 1
    branch: int = 0
    merging_ratio: float = 0.0
    # The level at which tokens are merged.
    merging_level: int = 0

    @classmethod
    def of(cls, request: Request, config: UNetConfig) -> Approximation:
        """That of a request."""
        branch, ratio = request.deep_cache_branch, request.token_merging_ratio
        return cls(request.deep_cache_interval, branch, ratio, config.finest_attention)

    @property
    def reuses(self) -> bool:
        """Whether there are rows that use deep features of an earlier one."""
        return self.interval > 1

    def merging_size(self, latents: tuple[int, ...]) -> tuple[int, int] | None:
        """Height and width of the tokens that are merged, for latents (B, h, w, C)."""
        if not self.merging_ratio:
            return None
        return halved(latents[1], self.merging_level), halved(latents[2], self.merging_level)

    def full_rows(self, run: BatchTable) -> np.ndarray:
        """Which rows evaluate the whole U-Net, bool (rows,): every `interval`th of the whole run, and the first one.

        A row is an evaluation: Heun's method has two in a step. An image that waits is evaluated at its first x: its
        first row finds its own deep features, whichever row was the last full one.
        """
        full = (run.skipped + np.arange(len(run))) % self.interval == 0
        full[:1] = True
        return full

    def guided_rows(self, guided: np.ndarray, full: np.ndarray) -> np.ndarray:
        """Which rows compute both halves of guidance: a full one, too, if one that uses its features does."""
        if not len(full):
            return guided
        starts = np.flatnonzero(full)
        needed = np.logical_or.reduceat(guided, starts)
        return np.where(full, needed[np.cumsum(full) - 1], guided)

    def token_order(self, noise: Noise, run: BatchTable, row: int, latents: tuple[int, ...]) -> np.ndarray | None:
        """The order of the tokens in a row, float32 (B, tokens), from each image's seed and its own row."""
        size = self.merging_size(latents)
        if size is None:
            return None
        own = np.maximum(row - np.sum(run.steps == -1, axis=0), 0)
        return token_order(noise.choices(own, num_cells(*size), CELL), *size)
