"""DPM-Solver++(3M)."""

from __future__ import annotations

from collections.abc import Iterator

from kerasdiff.samplers.exponential import multistep
from kerasdiff.samplers.levels import Levels
from kerasdiff.samplers.rows import Row


def dpmpp_3m(levels: Levels, *, lower_order_final: bool = True) -> Iterator[Row]:
    """DPM-Solver++(3M), a third term: for unguided sampling (Lu et al. 2022). Second order.

    arXiv:2211.01095. Remembers two D. Its steps are of third order, but the first one is of first
    order, which limits the order of a whole run.

    Args:
        levels: of the run.
        lower_order_final: whether the order falls in the last two of fewer than 15 steps.
    """
    return multistep(levels, 3, 0.0, "midpoint", lower_order_final)
