from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from kerasdiff import validation
from kerasdiff.samplers.ancestral import split
from kerasdiff.samplers.sigmas import Levels
from kerasdiff.samplers.update import NOISE, D, Update, X


def ddpm(levels: Levels, *, variance_type: str = "fixed_small") -> Iterator[Update]:
    """DDPM, fresh noise at every step: meant for hundreds of steps (Ho et al. 2020). First order.

    arXiv:2006.11239, algorithm 2. `variance_type` is "fixed_small" (the posterior's) or "fixed_large" (the forward
    step's), which leaves noise after a last step that does not begin at timestep 0, as in diffusers.
    """
    validation.choice("variance_type", variance_type, ("fixed_small", "fixed_large"))
    for sigma, sigma_next in pairwise(levels.sigmas):
        sigma_down, sigma_up = split(sigma, sigma_next)
        if variance_type == "fixed_large" and (sigma_next > 0 or levels.timestep(sigma) > 0):
            sigma_up = np.sqrt((sigma**2 - sigma_next**2) * (1 + sigma_next**2) / (1 + sigma**2))
        yield Update(sigma, D + sigma_down * (X - D) / sigma + sigma_up * NOISE)
