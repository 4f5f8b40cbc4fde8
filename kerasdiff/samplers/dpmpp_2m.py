"""DPM-Solver++(2M)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from kerasdiff.samplers.rows import M0, D, Row, X


def dpmpp_2m(sigmas: np.ndarray) -> Iterator[Row]:
    """DPM-Solver++(2M), Lu et al. 2022 (arXiv:2211.01095), algorithm 2. Second order.

    Remembers the last D. The first step, and a last one to sigma = 0, are of first order.
    """
    h_previous = None
    for sigma, sigma_next in pairwise(sigmas):
        last = sigma_next == 0
        h = np.inf if last else np.log(sigma / sigma_next)
        denoised = D if h_previous is None or last else D + (D - M0) * h / (2 * h_previous)
        yield Row(sigma, sigma_next / sigma * X + (1 - sigma_next / sigma) * denoised, keep=(D,))
        h_previous = h
