import math
import operator
from collections.abc import Iterator, Sequence

import numpy as np

from kerasdiff import validation
from kerasdiff.errors import RequestError
from kerasdiff.samplers.sigmas import Levels
from kerasdiff.samplers.update import M0, M1, M2, M3, D, Update, X


def unipc(
    levels: Levels,
    *,
    solver_order: int = 2,
    solver_type: str = "bh2",
    lower_order_final: bool = True,
    predict_x0: bool = True,
    disable_corrector: Sequence[int] = (),
) -> Iterator[Update]:
    """UniPC, corrects each step with the next evaluation: good below 10 steps (Zhao et al. 2023). Second order.

    arXiv:2302.04867, algorithms 5 to 8, in the data prediction. The correction needs no evaluation of
    its own: it uses the D that was predicted from the uncorrected x. Remembers the corrected x and p values of D, the
    paper's UniPC-p: p is `solver_order`, 1 to 3. A corrected step is of order p + 1; the last one, which is not
    corrected, limits a whole run. `solver_type`: B(h) = h ("bh1") or exp(h) - 1 ("bh2"). `lower_order_final` lowers the
    order towards the end; to sigma = 0 it is always lowered. `predict_x0` False is the paper's version on the predicted
    noise. `disable_corrector` lists steps, from 0, that are not corrected.
    """
    validation.integer("solver_order", solver_order, 1, 3)
    validation.choice("solver_type", solver_type, ("bh1", "bh2"))
    validation.boolean("lower_order_final", lower_order_final)
    validation.boolean("predict_x0", predict_x0)
    steps = validation.unwrapped("disable_corrector", disable_corrector)
    if not isinstance(steps, list):
        raise RequestError(f"disable_corrector must be a list of steps such as [0, 1], not {validation.shown(steps)}")
    uncorrected = {validation.integer("disable_corrector", step, 0) for step in steps}
    sigmas = levels.sigmas
    num_steps = len(sigmas) - 1
    # M0, M1, M2: the last predictions; M3: the corrected x of the step before.
    order = 0
    for step in range(num_steps):
        sigma, sigma_next = sigmas[step], sigmas[step + 1]
        prediction = D if predict_x0 else (X - D) / sigma
        corrected = X
        if step > 0 and step - 1 + levels.before not in uncorrected:
            past = sigmas[step - order : step][::-1]
            corrected = _update(M3, (M0, M1, M2)[:order], past, sigma, solver_type, predict_x0, corrector=prediction)
        left = num_steps - step
        order = min(solver_order, step + 1, left if lower_order_final or sigma_next == 0 else solver_order)
        past = sigmas[step + 1 - order : step + 1][::-1]
        x = _update(corrected, (prediction, M0, M1)[:order], past, sigma_next, solver_type, predict_x0)
        yield Update(sigma, x, keep=(prediction, M0, M1, corrected))


def _update(
    x: np.ndarray,
    predictions: Sequence[np.ndarray],
    past: np.ndarray,
    sigma_next: float,
    solver_type: str,
    predict_x0: bool,
    corrector: np.ndarray | None = None,
) -> np.ndarray:
    """x at `sigma_next` from x at past[0], predictions at the levels `past` and, if it corrects, at `sigma_next`."""
    order = len(predictions)
    sigma, newest = past[0], predictions[0]
    ratio = sigma_next / sigma
    first_order = ratio * x + (1 - ratio) * newest if predict_x0 else x + (sigma_next - sigma) * newest
    if sigma_next == 0 or sigma_next == sigma:
        return first_order
    h = np.log(sigma / sigma_next)
    hh = -h if predict_x0 else h
    scale = hh if solver_type == "bh1" else np.expm1(hh)
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
        weights = np.linalg.solve(powers, _moments(hh, len(shares)) / scale)
    residual = sum(map(operator.mul, weights, differences))
    return first_order - (scale if predict_x0 else sigma_next * scale) * residual


def _moments(h: float, count: int) -> np.ndarray:
    """The paper's g_1, ..., g_count: k! times phi functions of h times h."""
    moments = []
    phi = np.expm1(h) / h - 1
    for degree in range(1, count + 1):
        moments.append(phi * math.factorial(degree))
        phi = phi / h - 1 / math.factorial(degree + 1)
    return np.array(moments)
