"""Sampling of latent consistency models."""

from collections.abc import Iterator

import numpy as np

from kerasdiff import validation
from kerasdiff.samplers.sigmas import Levels
from kerasdiff.samplers.update import NOISE, D, Update, X

_SIGMA_DATA = 0.5


def lcm(levels: Levels, *, timestep_scaling: float = 10.0) -> Iterator[Update]:
    """LCM, for models distilled to 2 to 8 steps (Luo et al. 2023). Not an ODE solver.

    arXiv:2310.04378, algorithm 3: each step jumps to the data and adds noise of the next level. `timestep_scaling` is
    that of the boundary condition that the model was distilled with.
    """
    validation.real("timestep_scaling", timestep_scaling, 0)
    sigmas = levels.sigmas
    for step in range(len(sigmas) - 1):
        sigma = sigmas[step]
        time = levels.timestep(sigma) * timestep_scaling
        skip = _SIGMA_DATA**2 / (time**2 + _SIGMA_DATA**2)
        out = time / np.sqrt(time**2 + _SIGMA_DATA**2)
        data = out * D + skip * X * levels.unit(sigma)
        last = step == len(sigmas) - 2
        yield Update(sigma, data if last else data + sigmas[step + 1] * NOISE)
