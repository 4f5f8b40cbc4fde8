from collections.abc import Iterator

from kerasdiff import validation
from kerasdiff.samplers.exponential import multistep
from kerasdiff.samplers.sigmas import Levels
from kerasdiff.samplers.update import Update

# The error in the weight of the third-order term.
THIRD_ORDERS = {"diffusers": 1.0, "exact": 0.0}


def dpmpp_3m_sde(
    levels: Levels,
    *,
    eta: float = 1.0,
    third_order: str = "diffusers",
    solver_type: str = "midpoint",
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Iterator[Update]:
    """DPM-Solver++(3M) SDE, a third term, with fresh noise at every step (k-diffusion). First order.

    `sample_dpmpp_3m_sde` of https://github.com/crowsonkb/k-diffusion. Remembers two D. In diffusers one
    sign of the third term differs from k-diffusion's, which makes a whole run first order instead of
    second (measured on Gaussian data). It is the default, so that a seed gives what it gives there; `third_order`
    "exact" is k-diffusion's term, of second order. `eta` is the share of fresh noise, 0 to 1; other options, of
    which `solver_type` is that of the steps of second order: see `dpmpp_2m`.
    """
    validation.choice("third_order", third_order, THIRD_ORDERS)
    eta = validation.real("eta", eta, 0, 1)
    offset = THIRD_ORDERS[third_order]
    return multistep(levels, 3, eta, solver_type, lower_order_final, euler_at_final, curve_offset=offset)
