"""Euler's method on the probability-flow ODE."""

from collections.abc import Iterator
from itertools import pairwise

from kerasdiff.samplers.sigmas import Levels
from kerasdiff.samplers.update import D, Update, X


def euler(levels: Levels) -> Iterator[Update]:
    """Euler, the simplest: straight steps down the ODE (Karras et al. 2022). First order.

    arXiv:2206.00364, algorithm 2 without churn.
    """
    for sigma, sigma_next in pairwise(levels.sigmas):
        yield Update(sigma, X + (sigma_next - sigma) * ((X - D) / sigma))
