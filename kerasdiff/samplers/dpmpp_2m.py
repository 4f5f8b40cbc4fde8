"""DPM-Solver++(2M)."""

from __future__ import annotations

from collections.abc import Iterator

from kerasdiff.samplers.exponential import multistep
from kerasdiff.samplers.levels import Levels
from kerasdiff.samplers.rows import Row


def dpmpp_2m(levels: Levels, *, solver_type: str = "midpoint", lower_order_final: bool = True) -> Iterator[Row]:
    """DPM-Solver++(2M), the usual choice: good from 15 steps on (Lu et al. 2022). Second order.

    arXiv:2211.01095, algorithm 2. Remembers the last D.

    Args:
        levels: of the run.
        solver_type: how the slope of D is weighted, "midpoint" or "heun".
        lower_order_final: whether the last of fewer than 15 steps is of first order. To sigma = 0 it always is.
    """
    return multistep(levels, 2, 0.0, solver_type, lower_order_final)
