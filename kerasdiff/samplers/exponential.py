"""The exponential integrator that the multistep samplers of the DPM-Solver++ family share."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kerasdiff import validation
from kerasdiff.samplers.sigmas import Levels
from kerasdiff.samplers.update import M0, M1, NOISE, D, Update, X

SOLVER_TYPES = ("midpoint", "heun")
# Runs shorter than this end more carefully, as in diffusers.
SHORT = 15


def multistep(
    levels: Levels,
    order: int,
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
    validation.choice("solver_type", solver_type, SOLVER_TYPES)
    validation.boolean("lower_order_final", lower_order_final)
    validation.boolean("euler_at_final", euler_at_final)
    sigmas = levels.sigmas
    num_steps = len(sigmas) - 1
    careful = lower_order_final and levels.before + num_steps < SHORT
    for step in range(num_steps):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        left = num_steps - step
        step_order = min(order, step + 1, left if careful else order)
        if left == 1 and euler_at_final:
            step_order = 1
        if sigma_next == 0:
            yield Update(sigma, D)
            return
        h = np.log(sigma / sigma_next)
        weight = (1 + eta) * h
        k = np.exp(-weight)
        x = k * X + (1 - k) * D + sigma_next * np.sqrt(-np.expm1(-2 * eta * h)) * NOISE
        if step_order > 1:
            h_last = np.log(sigmas[step - 1] / sigma)
            slope = (D - M0) * h / h_last
            if step_order > 2:
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
