"""Interpolation, for the samplers that integrate a polynomial through remembered values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.polynomial import Polynomial
from numpy.polynomial.polynomial import polyfromroots


def basis(points: Sequence[float] | np.ndarray) -> list[Polynomial]:
    """For each point the polynomial that is 1 there and 0 at the others."""
    polynomials = []
    for place, point in enumerate(points):
        others = np.delete(points, place)
        polynomials.append(Polynomial(polyfromroots(others)) / np.prod(point - others))
    return polynomials
