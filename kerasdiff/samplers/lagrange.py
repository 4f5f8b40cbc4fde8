"""Interpolation, for the samplers that integrate a polynomial through remembered values."""

from collections.abc import Sequence

import numpy as np
from numpy.polynomial import Polynomial
from numpy.polynomial.polynomial import polyfromroots


def basis(points: Sequence[float] | np.ndarray) -> list[Polynomial]:
    """For each point the polynomial that is 1 there and 0 at the others."""
    others = [np.delete(points, index) for index in range(len(points))]
    return [Polynomial(polyfromroots(rest)) / np.prod(point - rest) for point, rest in zip(points, others, strict=True)]
