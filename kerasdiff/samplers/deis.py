import operator
from collections.abc import Iterator

import numpy as np
from numpy.polynomial import Polynomial

from kerasdiff.samplers.exponential import step_orders
from kerasdiff.samplers.lagrange import basis
from kerasdiff.samplers.sigmas import Levels
from kerasdiff.samplers.update import M0, M1, D, Update, X


def deis(levels: Levels, *, solver_order: int = 2, lower_order_final: bool = True) -> Iterator[Update]:
    """DEIS, integrates a polynomial in log sigma through the last noise predictions (Zhang & Chen 2022). Second order.

    arXiv:2204.13902, the log-rho multistep method, on the noise prediction. Ends at the lowest trained noise level.
    `solver_order`, 1 to 3, is the most predictions that are used; `lower_order_final` lowers it in the last two steps
    of runs shorter than 15.
    """
    sigmas = levels.sigmas
    for step, count in enumerate(step_orders(levels, solver_order, lower_order_final)):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        noise = (X - D) / sigma
        noises = (noise, M0, M1)[:count]
        if sigma_next == 0:
            change = -sigma * noise
        else:
            polynomials = basis(np.log(sigmas[step + 1 - count : step + 1][::-1] / sigma))
            integrals = [_integral(polynomial, sigma, sigma_next) for polynomial in polynomials]
            change = sum(map(operator.mul, integrals, noises))
        yield Update(sigma, X + change, keep=(noise, M0))


def _integral(polynomial: Polynomial, start: float, end: float) -> float:
    """The integral over sigma of p(log(sigma / start)): p(log s) ds integrates to s (p - p' + p'' - ...)(log s)."""
    antiderivative = polynomial - polynomial.deriv(1) + polynomial.deriv(2)  # of degree 2 at most
    return float(end * antiderivative(np.log(end / start)) - start * antiderivative(0.0))
