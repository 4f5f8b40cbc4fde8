"""DPM-Solver++(2M), and (3M)."""

from __future__ import annotations

from collections.abc import Iterator

from kerasdiff import validation
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

    arXiv:2211.01095, algorithm 2. Remembers the last D, or with `solver_order` 3 the last two; as its
    first step is of first order, a whole run is of second order then as well.

    Args:
        levels: of the run.
        solver_order: 1 to 3; 1 is DDIM, 3 is DPM-Solver++(3M).
        solver_type: how the slope of D is weighted in a step of second order, "midpoint" or "heun".
        lower_order_final: whether the order falls in the last steps of fewer than 15. A step to sigma = 0
            is always of first order.
        euler_at_final: whether the last step is of first order in any case.

    Example:
        ```python
        kerasdiff.generate("a red circle", sampler="dpmpp_2m", sampler_options={"solver_order": 3}, num_steps=10)
        ```
    """
    order = validation.integer("solver_order", solver_order, 1, 3)
    return multistep(levels, order, 0.0, solver_type, lower_order_final, euler_at_final)
