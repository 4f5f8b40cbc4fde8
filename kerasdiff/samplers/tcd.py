"""Trajectory consistency distillation."""

from collections.abc import Iterator

import numpy as np

from kerasdiff import validation
from kerasdiff.samplers.sigmas import Levels
from kerasdiff.samplers.update import NOISE, D, Update, X


def tcd(levels: Levels, *, eta: float = 0.3) -> Iterator[Update]:
    """TCD, for models distilled to 2 to 8 steps; eta sets the noise (Zheng et al. 2024). First order if eta is 0.

    arXiv:2402.19159, algorithm 4 (strategic stochastic sampling): each step goes below the next level
    and returns to it with fresh noise. `eta` is the paper's gamma, 0 to 1: how far below, as a share of the timestep.
    """
    validation.real("eta", eta, 0, 1)
    sigmas = levels.sigmas
    for step in range(len(sigmas) - 1):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        below = sigma_next
        if step < len(sigmas) - 2:
            timestep = (1 - eta) * levels.timestep(sigma_next)
            if levels.timestep(sigma_next).is_integer():
                timestep = np.floor(timestep + 1e-6)  # rounding must not make a whole number one less
            below = min(sigma_next, levels.sigma(timestep))
        sigma_up = np.sqrt(sigma_next**2 - below**2)
        yield Update(sigma, D + below * (X - D) / sigma + sigma_up * NOISE)
