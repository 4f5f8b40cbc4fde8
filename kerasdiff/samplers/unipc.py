import math
import operator
from collections.abc import Iterator, Sequence

import numpy as np

from kerasdiff import validation
from kerasdiff.samplers.sigmas import Levels
from kerasdiff.samplers.update import M0, M1, M2, M3, D, Update, X


def unipc(
    levels: Levels, *, solver_order: int = 2, solver_type: str = "bh2", lower_order_final: bool = True
) -> Iterator[Update]:
    """UniPC, corrects each step with the next evaluation: good below 10 steps (Zhao et al. 2023). Second order.

    arXiv:2302.04867, algorithms 5 to 8, in the data prediction. The correction needs no evaluation of
    its own: it uses the D that was predicted from the uncorrected x. Remembers the corrected x and p values of D, the
    paper's UniPC-p: p is `solver_order`, 1 to 3. A corrected step is of order p + 1; the last one, which is not
    corrected, limits a whole run. `solver_type`: B(h) = h ("bh1") or exp(h) - 1 ("bh2"). `lower_order_final` lowers the
    order towards the end; to sigma = 0 it is always lowered.
    """
    validation.integer("solver_order", solver_order, 1, 3)
    validation.choice("solver_type", solver_type, ("bh1", "bh2"))
    validation.boolean("lower_order_final", lower_order_final)
    sigmas = levels.sigmas
    num_steps = len(sigmas) - 1
    # M0, M1, M2: the last values of D; M3: the corrected x of the step before.
    corrected, order = X, 0
    for step in range(num_steps):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        if step > 0:
            past = sigmas[step - order : step][::-1]
            corrected = _update(M3, (M0, M1, M2)[:order], past, sigma, solver_type, corrector=D)
        left = num_steps - step
        order = min(solver_order, step + 1, left if lower_order_final or sigma_next == 0 else solver_order)
        past = sigmas[step + 1 - order : step + 1][::-1]
        x = _update(corrected, (D, M0, M1)[:order], past, sigma_next, solver_type)
        yield Update(sigma, x, keep=(D, M0, M1, corrected))


def _update(
    x: np.ndarray,
    predictions: Sequence[np.ndarray],
    past: np.ndarray,
    sigma_next: float,
    solver_type: str,
    corrector: np.ndarray | None = None,
) -> np.ndarray:
    """x at `sigma_next` from x at past[0], D at the levels `past` and, if it corrects, D at `sigma_next`."""
    order = len(predictions)
    sigma, newest = past[0], predictions[0]
    ratio = sigma_next / sigma
    first_order = ratio * x + (1 - ratio) * newest
    if sigma_next == 0 or sigma_next == sigma:
        return first_order
    h = np.log(sigma / sigma_next)
    scale = -h if solver_type == "bh1" else np.expm1(-h)
    shares = [np.log(sigma / level) / h for level in past[1:]]
    differences = [(older - newest) / share for older, share in zip(predictions[1:], shares, strict=True)]
    if corrector is not None:
        shares, differences = [*shares, 1.0], [*differences, corrector - newest]
    if not differences:
        return first_order
    if order + (corrector is not None) == 2:
        weights = np.array([0.5])  # instead of solving one equation, as the authors and diffusers do
    else:
        powers = np.array([np.power(shares, degree) for degree in range(len(shares))])
        weights = np.linalg.solve(powers, _moments(-h, len(shares)) / scale)
    residual = sum(map(operator.mul, weights, differences))
    return first_order - scale * residual


def _moments(h: float, count: int) -> np.ndarray:
    """The paper's g_1, ..., g_count: k! times phi functions of h times h."""
    moments = []
    phi = np.expm1(h) / h - 1
    for degree in range(1, count + 1):
        moments.append(phi * math.factorial(degree))
        phi = phi / h - 1 / math.factorial(degree + 1)
    return np.array(moments)
