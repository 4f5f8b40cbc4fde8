"""DPM-Solver, the one before DPM-Solver++."""

from collections.abc import Iterator

import numpy as np

from kerasdiff import validation
from kerasdiff.samplers.exponential import SOLVER_TYPES, phi2, phi3, step_orders
from kerasdiff.samplers.sigmas import Levels
from kerasdiff.samplers.update import M0, M1, NOISE, D, Update, X


def dpm_solver(
    levels: Levels,
    *,
    solver_order: int = 2,
    solver_type: str = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
    algorithm_type: str = "dpmsolver",
) -> Iterator[Update]:
    """DPM-Solver(2M), on the predicted noise instead of D (Lu et al. 2022). Second order.

    arXiv:2206.00927, as a multistep method. Ends at the lowest trained noise level. `solver_order` is 1 (DDIM) to 3;
    the first step, and one to sigma = 0, is always of first order. `algorithm_type` "sde-dpmsolver" goes twice as far
    and returns with fresh noise (diffusers). See `dpmpp_2m` for the other options.
    """
    validation.choice("solver_type", solver_type, SOLVER_TYPES)
    validation.choice("algorithm_type", algorithm_type, ("dpmsolver", "sde-dpmsolver"))
    sigmas = levels.sigmas
    orders = step_orders(levels, solver_order, lower_order_final)
    if validation.boolean("euler_at_final", euler_at_final):
        orders[-1] = 1
    for step, order in enumerate(orders):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        noise = (X - D) / sigma
        x = X + (sigma_next - sigma) * noise
        if 0 < sigma_next < sigma and order > 1:
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
        if algorithm_type == "sde-dpmsolver" and sigma_next > 0:
            x = 2 * x - X + np.sqrt(sigma**2 - sigma_next**2) * NOISE
        yield Update(sigma, x, keep=(noise, M0))
