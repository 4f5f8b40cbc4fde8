from collections.abc import Iterator

import numpy as np

from kerasdiff import validation
from kerasdiff.samplers.exponential import SOLVER_TYPES
from kerasdiff.samplers.sigmas import Levels
from kerasdiff.samplers.update import M0, M1, D, Update, X


def dpmpp_2s(levels: Levels, *, solver_type: str = "midpoint", lower_order_final: bool = False) -> Iterator[Update]:
    """DPM-Solver++(2S), pairs of steps, the second one from the start of the first (Lu et al. 2022). Second order.

    arXiv:2211.01095, algorithm 1, laid out as in diffusers: one evaluation per step, orders 1, 2, 1, 2, ...,
    the last one 1 if it goes to sigma = 0, or above as well with `lower_order_final`. `solver_type`: see `dpmpp_2m`.
    """
    validation.choice("solver_type", solver_type, SOLVER_TYPES)
    validation.boolean("lower_order_final", lower_order_final)
    sigmas = levels.sigmas
    num_steps = len(sigmas) - 1
    lower_order_final = lower_order_final or sigmas[-1] == 0
    for step in range(num_steps):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        if step % 2 == 0 or (lower_order_final and step == num_steps - 1):
            ratio = sigma_next / sigma
            yield Update(sigma, ratio * X + (1 - ratio) * D, keep=(D, X))
            continue
        # From the start of the pair, whose x and D are remembered.
        start = sigmas[step - 1]
        h = np.log(start / sigma_next)
        ratio = sigma_next / start
        slope = (D - M0) * h / np.log(start / sigma)
        weight = (1 - ratio) / 2 if solver_type == "midpoint" else (ratio - 1) / h + 1
        yield Update(sigma, ratio * M1 + (1 - ratio) * M0 + weight * slope)
