from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from kerasdiff.samplers.sigmas import Levels
from kerasdiff.samplers.update import M0, D, Update, X


def kdpm2(levels: Levels) -> Iterator[Update]:
    """DPM2, two evaluations per step, the slope at the middle in log sigma (k-diffusion). Second order.

    `sample_dpm_2` of https://github.com/crowsonkb/k-diffusion, inspired by Karras et al. 2022
    (arXiv:2206.00364) and DPM-Solver-2. The last step, to sigma = 0, is Euler's.
    """
    for sigma, sigma_next in pairwise(levels.sigmas):
        middle = np.sqrt(sigma * sigma_next)
        yield Update(sigma, X + (middle - sigma) * (X - D) / sigma, keep=(X,))
        if sigma_next > 0:
            yield Update(middle, M0 + (sigma_next - sigma) * (X - D) / middle)
