from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from kerasdiff import validation
from kerasdiff.samplers.ancestral import split
from kerasdiff.samplers.sigmas import Levels
from kerasdiff.samplers.update import M0, M1, NOISE, D, Update, X


def dpmpp_sde(levels: Levels, *, eta: float = 1.0) -> Iterator[Update]:
    """DPM-Solver++ SDE, two evaluations per step on one Brownian path (k-diffusion). Second order.

    `sample_dpmpp_sde` of https://github.com/crowsonkb/k-diffusion with r = 1/2. The noise of the whole
    step continues that of its first half, as increments of one Brownian motion over sigma. `eta` is the share of
    fresh noise, 0 to 1.
    """
    validation.real("eta", eta, 0, 1)
    for sigma, sigma_next in pairwise(levels.sigmas):
        if sigma_next == 0:
            yield Update(sigma, D)
            continue
        middle = np.sqrt(sigma * sigma_next)
        sigma_down, sigma_up = split(sigma, middle, eta)
        ratio = sigma_down / sigma
        yield Update(sigma, ratio * X + (1 - ratio) * D + sigma_up * NOISE, keep=(X, NOISE))
        sigma_down, sigma_up = split(sigma, sigma_next, eta)
        ratio = sigma_down / sigma
        share = (sigma - middle) / (sigma - sigma_next)
        path = np.sqrt(share) * M1 + np.sqrt(1 - share) * NOISE
        yield Update(middle, ratio * M0 + (1 - ratio) * D + sigma_up * path)
