"""DPM-Solver, the one before DPM-Solver++."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kerasdiff import validation
from kerasdiff.samplers.exponential import SHORT, SOLVER_TYPES, phi2, phi3
from kerasdiff.samplers.sigmas import Levels
from kerasdiff.samplers.update import M0, M1, D, Update, X


def dpm_solver(
    levels: Levels, *, solver_order: int = 2, solver_type: str = "midpoint", lower_order_final: bool = True
) -> Iterator[Update]:
    """DPM-Solver(2M), on the predicted noise instead of D (Lu et al. 2022). Second order.

    arXiv:2206.00927, as a multistep method. Ends at the lowest trained noise level. `solver_order` is 1 (DDIM) to 3;
    the first step, and one to sigma = 0, is always of first order. See `dpmpp_2m` for the other options.
    """
    validation.integer("solver_order", solver_order, 1, 3)
    validation.choice("solver_type", solver_type, SOLVER_TYPES)
    validation.boolean("lower_order_final", lower_order_final)
    sigmas = levels.sigmas
    num_steps = len(sigmas) - 1
    careful = lower_order_final and levels.before + num_steps < SHORT
    for step in range(num_steps):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        noise = (X - D) / sigma
        x = X + (sigma_next - sigma) * noise
        order = min(solver_order, step + 1, num_steps - step if careful else solver_order)
        if sigma_next > 0 and order > 1:
            h = np.log(sigma / sigma_next)
            h_last = np.log(sigmas[step - 1] / sigma)
            slope = (noise - M0) * h / h_last
            if order > 2:
                h_before = np.log(sigmas[step - 2] / sigmas[step - 1])
                curve = (slope - (M0 - M1) * h / h_before) * h / (h_last + h_before)
                slope = slope + curve * h_last / h
                x = x + sigma_next * (phi2(-h) * slope - phi3(-h) * curve)
            elif solver_type == "heun":
                x = x + sigma_next * phi2(-h) * slope
            else:
                x = x + (sigma_next - sigma) / 2 * slope
        yield Update(sigma, x, keep=(noise, M0))
