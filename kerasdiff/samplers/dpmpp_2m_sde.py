from collections.abc import Iterator

from kerasdiff import validation
from kerasdiff.samplers.exponential import multistep
from kerasdiff.samplers.sigmas import Levels
from kerasdiff.samplers.update import Update


def dpmpp_2m_sde(
    levels: Levels,
    *,
    eta: float = 1.0,
    solver_order: int = 2,
    solver_type: str = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Iterator[Update]:
    """DPM-Solver++(2M) SDE, with fresh noise at every step (Lu et al. 2022). Second order.

    arXiv:2211.01095, equation 19. Remembers the last D. `eta` is the share of fresh noise, 0 (DPM-Solver++(2M)) to 1;
    `solver_order` is 1 or 2 (3 is `dpmpp_3m_sde`); other options: see `dpmpp_2m`.
    """
    order = validation.integer("solver_order", solver_order, 1, 2)
    return multistep(levels, order, validation.real("eta", eta, 0, 1), solver_type, lower_order_final, euler_at_final)
