from collections.abc import Iterator

from kerasdiff.samplers.exponential import multistep
from kerasdiff.samplers.sigmas import Levels
from kerasdiff.samplers.update import Update


def dpmpp_2m(
    levels: Levels,
    *,
    solver_order: int = 2,
    solver_type: str = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Iterator[Update]:
    """DPM-Solver++(2M), the usual choice: good from 15 steps on (Lu et al. 2022). Second order.

    arXiv:2211.01095, algorithm 2. Remembers the last D, or the last two with `solver_order` 3, DPM-Solver++(3M); 1 is
    DDIM. A step to sigma = 0 is always of first order, and so is the first one, so that a whole run is of second order
    even with 3.

    Args:
        solver_type: weights of D's slope in a second-order step, "midpoint" or "heun".
        lower_order_final: lower the order in the last steps of runs shorter than 15.
        euler_at_final: make the last step first order in any case.
    """
    return multistep(levels, solver_order, 0.0, solver_type, lower_order_final, euler_at_final)
