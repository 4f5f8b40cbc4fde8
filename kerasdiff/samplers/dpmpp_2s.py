from collections.abc import Iterator

import numpy as np

from kerasdiff import validation
from kerasdiff.samplers.exponential import SOLVER_TYPES, phi2, phi3
from kerasdiff.samplers.sigmas import Levels
from kerasdiff.samplers.update import M0, M1, M2, NOISE, D, Update, X

ALGORITHM_TYPES = ("dpmsolver++", "dpmsolver", "sde-dpmsolver++")


def dpmpp_2s(
    levels: Levels,
    *,
    solver_order: int = 2,
    solver_type: str = "midpoint",
    lower_order_final: bool = False,
    algorithm_type: str = "dpmsolver++",
) -> Iterator[Update]:
    """DPM-Solver++(2S), pairs of steps, the second one from the start of the first (Lu et al. 2022). Second order.

    arXiv:2211.01095, algorithm 1, laid out as in diffusers: one evaluation per step, orders 1, 2, 1, 2, ...,
    the last one 1 if it goes to sigma = 0, or above as well with `lower_order_final`. `solver_order` 3 makes groups of
    three; 1 is DDIM. `algorithm_type` "dpmsolver" works on the predicted noise (arXiv:2206.00927), "sde-dpmsolver++"
    with fresh noise. `solver_type`: see `dpmpp_2m`.
    """
    validation.integer("solver_order", solver_order, 1, 3)
    validation.choice("solver_type", solver_type, SOLVER_TYPES)
    validation.boolean("lower_order_final", lower_order_final)
    validation.choice("algorithm_type", algorithm_type, ALGORITHM_TYPES)
    sigmas = levels.sigmas
    for step, order in enumerate(_orders(levels, solver_order, lower_order_final)):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        prediction = (X - D) / sigma if algorithm_type == "dpmsolver" else D
        # x and the prediction at the start of the group, whose levels are `group`.
        group = sigmas[step + 1 - order : step + 1]
        x, first = ((X, prediction), (M1, M0), (M2, M1))[order - 1]
        start = group[0]
        ratio, fresh = sigma_next / start, 0.0
        if algorithm_type == "sde-dpmsolver++":
            ratio, fresh = ratio**2, sigma_next * np.sqrt(1 - ratio**2)
        on_noise = algorithm_type == "dpmsolver"
        constant = sigma_next - start if on_noise else 1 - ratio
        x = (x if on_noise else ratio * x) + constant * first + fresh * NOISE
        if order > 1:
            h = np.log(start / sigma_next)
            weight = -h if on_noise else -np.log(ratio)
            scale = sigma_next if on_noise else 1.0
            newest = (prediction - first) * h / np.log(start / sigma)
            if order == 2 and solver_type == "midpoint":
                x = x + constant / 2 * newest
            elif order == 2 or solver_type == "midpoint":
                x = x + scale * phi2(weight) * newest
            else:
                older = (M0 - first) * h / np.log(start / group[1])
                now, before = np.log(start / sigma) / h, np.log(start / group[1]) / h
                slope, curve = (now * older - before * newest) / (now - before), 2 * (newest - older) / (now - before)
                # With noise one sign is that of diffusers (see `dpmpp_3m_sde`).
                x = x + scale * (phi2(weight) * slope - (phi3(weight) + (fresh > 0)) * curve)
        yield Update(sigma, x, keep=(prediction, X) if order == 1 else (prediction, M0, M1))


def _orders(levels: Levels, solver_order: int, lower_order_final: bool) -> list[int]:
    """The order of each step: 1 to `solver_order` in turns, and at the end what makes the last one 1."""
    num_steps, to_zero = len(levels.timesteps), levels.sigmas[-1] == 0
    orders = [1 + step % solver_order for step in range(num_steps)]
    lower = lower_order_final or to_zero or num_steps % solver_order > 0
    if lower and orders[-1] == solver_order:
        orders[-3:] = [1, 2, 1][3 - len(orders[-3:]) :] if solver_order == 3 else [*orders[-3:-1], 1]
    if to_zero:
        orders[-1] = 1
    return orders
