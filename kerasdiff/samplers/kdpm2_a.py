from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from kerasdiff import validation
from kerasdiff.samplers.ancestral import split
from kerasdiff.samplers.sigmas import Levels
from kerasdiff.samplers.update import M0, NOISE, D, Update, X


def kdpm2_a(levels: Levels, *, eta: float = 1.0) -> Iterator[Update]:
    """Ancestral DPM2, two evaluations per step and fresh noise (k-diffusion). Second order.

    `sample_dpm_2_ancestral` of https://github.com/crowsonkb/k-diffusion. `eta` is the share of fresh noise, 0 (DPM2)
    to 1.
    """
    validation.real("eta", eta, 0, 1)
    for sigma, sigma_next in pairwise(levels.sigmas):
        sigma_down, sigma_up = split(sigma, sigma_next, eta)
        middle = np.sqrt(sigma * sigma_down)
        yield Update(sigma, X + (middle - sigma) * (X - D) / sigma, keep=(X,))
        if sigma_next > 0:
            x = M0 + (sigma_down - sigma) * (X - D) / middle + sigma_up * NOISE
            # With eta = 1 the middle is sigma_next, whose timestep may be rounded; the middle's is not.
            yield Update(middle, x, timestep=levels.interpolated_timestep(middle))
