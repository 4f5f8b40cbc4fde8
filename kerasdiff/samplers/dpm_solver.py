"""DPM-Solver, the one before DPM-Solver++."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kerasdiff import checks
from kerasdiff.samplers.exponential import SHORT, SOLVER_TYPES
from kerasdiff.samplers.levels import Levels
from kerasdiff.samplers.rows import M0, D, Row, X


def dpm_solver(levels: Levels, *, solver_type: str = "midpoint", lower_order_final: bool = True) -> Iterator[Row]:
    """DPM-Solver(2M), on the predicted noise instead of D (Lu et al. 2022). Second order.

    arXiv:2206.00927, as a multistep method. Ends at the lowest trained noise level.

    Args:
        levels: of the run.
        solver_type: how the slope of the noise is weighted, "midpoint" or "heun".
        lower_order_final: whether the last of fewer than 15 steps is of first order. To sigma = 0 it always is.
    """
    checks.choice("solver_type", solver_type, SOLVER_TYPES)
    checks.boolean("lower_order_final", lower_order_final)
    sigmas = levels.sigmas
    num_steps = len(sigmas) - 1
    for step in range(num_steps):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        noise = (X - D) / sigma
        x = X + (sigma_next - sigma) * noise
        first_order = step == num_steps - 1 and (sigma_next == 0 or (lower_order_final and num_steps < SHORT))
        if step > 0 and sigma_next < sigma and not first_order:
            h = np.log(sigma / sigma_next)
            slope = (noise - M0) * h / np.log(sigmas[step - 1] / sigma)
            middle = (sigma_next - sigma) / 2
            x = x + (middle if solver_type == "midpoint" else sigma_next - (sigma - sigma_next) / h) * slope
        yield Row(sigma, x, keep=(noise,))
