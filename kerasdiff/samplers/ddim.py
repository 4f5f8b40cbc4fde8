"""DDIM without noise."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from kerasdiff.samplers.rows import D, Row, X


def ddim(sigmas: np.ndarray) -> Iterator[Row]:
    """DDIM with eta = 0, Song et al. 2020 (arXiv:2010.02502), equation 12. First order.

    In x = x0 + sigma * noise the step keeps the predicted noise and takes it at the next level.
    """
    for sigma, sigma_next in pairwise(sigmas):
        noise = (X - D) / sigma
        yield Row(sigma, D + sigma_next * noise)
