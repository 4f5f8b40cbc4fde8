"""The linear multistep method."""

import operator
from collections.abc import Iterator

from kerasdiff import validation
from kerasdiff.samplers.lagrange import basis
from kerasdiff.samplers.sigmas import Levels
from kerasdiff.samplers.update import M0, M1, M2, D, Update, X


def lms(levels: Levels, *, order: int = 4) -> Iterator[Update]:
    """LMS, integrates the polynomial through the last four slopes (k-diffusion). Second order.

    `sample_lms` of https://github.com/crowsonkb/k-diffusion: Adams-Bashforth on uneven steps. Its
    first step is Euler's, which limits the order of a whole run; later steps have `order`, 1 to 4, the most slopes
    that are used.
    """
    validation.integer("order", order, 1, 4)
    sigmas = levels.sigmas
    for step in range(len(sigmas) - 1):
        count = min(step + 1, order)
        derivatives = ((X - D) / sigmas[step], M0, M1, M2)[:count]
        # Measured from this step's level, so that long runs lose no digits.
        points = sigmas[step + 1 - count : step + 1][::-1] - sigmas[step]
        width = sigmas[step + 1] - sigmas[step]
        integrals = [polynomial.integ()(width) for polynomial in basis(points)]
        change = sum(map(operator.mul, integrals, derivatives))
        yield Update(sigmas[step], X + change, keep=derivatives[:3])
