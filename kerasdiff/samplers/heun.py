from collections.abc import Iterator
from itertools import pairwise

from kerasdiff.samplers.sigmas import Levels
from kerasdiff.samplers.update import M0, M1, D, Update, X


def heun(levels: Levels) -> Iterator[Update]:
    """Heun, two evaluations per step, the mean of two slopes (Karras et al. 2022). Second order.

    arXiv:2206.00364, algorithm 1 without churn. The last step, to sigma = 0, is Euler's.
    """
    for sigma, sigma_next in pairwise(levels.sigmas):
        derivative = (X - D) / sigma
        yield Update(sigma, X + (sigma_next - sigma) * derivative, keep=(X, derivative))
        if sigma_next > 0:
            at_next = (X - D) / sigma_next
            yield Update(sigma_next, M0 + (sigma_next - sigma) * (M1 + at_next) / 2)
