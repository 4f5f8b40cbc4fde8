"""The exponential integrator that the multistep samplers of the DPM-Solver++ family share."""

from collections.abc import Iterator

import numpy as np

from kerasdiff import validation
from kerasdiff.samplers.sigmas import Levels
from kerasdiff.samplers.update import M0, M1, NOISE, D, Update, X

SOLVER_TYPES = ("midpoint", "heun")
# Runs shorter than this end more carefully, as in diffusers.
_SHORT = 15


def step_orders(levels: Levels, solver_order: int, lower_order_final: bool) -> list[int]:
    """The order of each step: it rises from 1 to `solver_order`, 1 to 3, and at the end of short runs falls to 1."""
    validation.integer("solver_order", solver_order, 1, 3)
    validation.boolean("lower_order_final", lower_order_final)
    num_steps = len(levels.timesteps)
    careful = lower_order_final and levels.before + num_steps < _SHORT
    return [min(solver_order, step + 1, num_steps - step if careful else solver_order) for step in range(num_steps)]


def multistep(
    levels: Levels,
    solver_order: int,
    eta: float,
    solver_type: str = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
    curve_offset: float = 0.0,
) -> Iterator[Update]:
    """DPM-Solver++ on lambda = -log(sigma), with D extrapolated from its last values.

    Lu et al. 2022 (arXiv:2211.01095), section 4; the SDE's solution is section 5's. Between two levels
    x is k x + the integral of D, k = exp(-(1 + eta) h), and the fresh noise of the SDE. eta between
    0 and 1 is k-diffusion's mixture of the ODE and the SDE. `curve_offset` is added to the weight of
    the third-order term; 0 is exact (see `dpmpp_3m_sde.py` for diffusers' value).
    """
    orders = step_orders(levels, solver_order, lower_order_final)
    validation.choice("solver_type", solver_type, SOLVER_TYPES)
    if validation.boolean("euler_at_final", euler_at_final):
        orders[-1] = 1
    sigmas = levels.sigmas
    for step, order in enumerate(orders):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        if sigma_next == 0:
            yield Update(sigma, D)
            return
        h = np.log(sigma / sigma_next)
        weight = (1 + eta) * h
        k = np.exp(-weight)
        x = k * X + (1 - k) * D + sigma_next * np.sqrt(-np.expm1(-2 * eta * h)) * NOISE
        if order > 1 and h > 0:
            h_last = np.log(sigmas[step - 1] / sigma)
            slope = (D - M0) * h / h_last
            if order > 2:
                h_before = np.log(sigmas[step - 2] / sigmas[step - 1])
                slope_before = (M0 - M1) * h / h_before
                curve = (slope - slope_before) * h / (h_last + h_before)
                slope = slope + curve * h_last / h
                x = x + phi2(weight) * slope - (phi3(weight) + curve_offset) * curve
            elif solver_type == "heun":
                x = x + phi2(weight) * slope
            else:
                x = x + (1 - k) / 2 * slope
        yield Update(sigma, x, keep=(D, M0))


def phi2(h: float) -> float:
    """The weight of the slope of D over a step of h, 0 for h = 0."""
    return float(np.expm1(-h) / h + 1) if h else 0.0


def phi3(h: float) -> float:
    """The weight of its curve, 0 for h = 0; with -h those of the predicted noise."""
    return float((np.expm1(-h) + h) / h**2 - 0.5) if h else 0.0
