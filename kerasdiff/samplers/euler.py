"""Euler's method on the probability-flow ODE."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from kerasdiff.samplers.rows import D, Row, X


def euler(sigmas: np.ndarray) -> Iterator[Row]:
    """Euler, algorithm 2 of Karras et al. 2022 (arXiv:2206.00364) without churn. First order."""
    for sigma, sigma_next in pairwise(sigmas):
        derivative = (X - D) / sigma
        yield Row(sigma, X + (sigma_next - sigma) * derivative)
