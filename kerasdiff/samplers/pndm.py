import operator
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from kerasdiff import validation
from kerasdiff.errors import RequestError
from kerasdiff.samplers.sigmas import Levels
from kerasdiff.samplers.update import M0, M1, M2, M3, D, Update, X

# Adams-Bashforth on even steps, by how many outputs there are, the newest first.
_WEIGHTS = {2: np.array([3, -1]) / 2, 3: np.array([23, -16, 5]) / 12, 4: np.array([55, -59, 37, -9]) / 24}
_RUNGE_KUTTA_STEPS = 3


def pndm(levels: Levels, *, skip_prk_steps: bool = True) -> Iterator[Update]:
    """PNDM, the sampler Stable Diffusion 1.x came with; also called PLMS (Liu et al. 2022). Second order.

    arXiv:2202.09778. As in diffusers, the multistep formula combines the U-Net's outputs, whatever they
    predict; the transfer to the next level (equation 11) is DDIM's. A run of n steps takes n + 1
    evaluations: the first step is done twice. With `skip_prk_steps` False the first three steps are Runge-Kutta's, with
    four evaluations each; True makes them multistep too, as in Stable Diffusion.
    """
    validation.boolean("skip_prk_steps", skip_prk_steps)
    transfers = list(pairwise(levels.sigmas))
    if skip_prk_steps:
        sigma, sigma_next = transfers[0]
        output = _output(levels, sigma)
        yield Update(sigma, _transfer(levels, X, output, sigma, sigma_next), keep=(output, X))
        if len(transfers) > 1:
            mean = (_output(levels, sigma_next) + M0) / 2
            yield Update(sigma_next, _transfer(levels, M1, mean, sigma, sigma_next), keep=(M0,))
        first = known = 1
    else:
        if len(transfers) <= _RUNGE_KUTTA_STEPS:
            raise RequestError(f"pndm with skip_prk_steps=False needs at least 4 steps, not {len(transfers)}")
        for pair in transfers[:_RUNGE_KUTTA_STEPS]:
            yield from _runge_kutta(levels, *pair)
        first = known = _RUNGE_KUTTA_STEPS
    for sigma, sigma_next in transfers[first:]:
        outputs = (_output(levels, sigma), M0, M1, M2)[: known + 1]
        combined = sum(map(operator.mul, _WEIGHTS[len(outputs)], outputs))
        yield Update(sigma, _transfer(levels, X, combined, sigma, sigma_next), keep=outputs[:3])
        known = min(known + 1, 3)


def _output(levels: Levels, sigma: float) -> np.ndarray:
    """What the U-Net gave at a level, from x and D."""
    skip, out = levels.denoised(sigma)
    return (D - skip * X) / out


def _transfer(levels: Levels, x: np.ndarray, output: np.ndarray, sigma: float, sigma_next: float) -> np.ndarray:
    """x taken from one level to another by a U-Net's output."""
    skip, out = levels.denoised(sigma)
    noise = (x - skip * x - out * output) / sigma
    return x + (sigma_next - sigma) * noise


def _runge_kutta(levels: Levels, sigma: float, sigma_next: float) -> Iterator[Update]:
    """One step with four evaluations, at its start, twice in its middle, and at its end.

    Older outputs come in as M0, M1 and go out, behind this step's first one, as M0, M1, M2.
    """
    end = levels.timestep(sigma_next) if sigma_next > 0 else 0.0
    half = np.floor((levels.timestep(sigma) - end) / 2)
    middle = levels.sigma(end + half)
    # diffusers evaluates the first trial, which is at start - half, as if it were at end + half.
    trial = levels.sigma(levels.timestep(sigma) - half)
    misread = np.sqrt((1 + middle**2) / (1 + trial**2))
    slope = _transfer(levels, 0 * X, X, sigma, sigma_next)[0]  # of the transfer in the output

    first = _output(levels, sigma)
    x = misread * _transfer(levels, X, first, sigma, trial)
    yield Update(sigma, x, keep=(X, first, M0, M1))
    # From here on M0 is x at the start, M1 the first output, M2 and M3 the older ones.
    second = _output(levels, middle)
    yield Update(middle, _transfer(levels, M0, second, sigma, middle), keep=(M0, M1, M2, M3))
    # There is no fifth place for the second output; but x was made from it and M0.
    at_zero = _transfer(levels, M0, 0 * X, sigma, middle)
    second = (X - at_zero) / _transfer(levels, 0 * X, X, sigma, middle)[0]
    third = _output(levels, middle)
    so_far = _transfer(levels, M0, M1 / 6 + second / 3 + third / 3, sigma, sigma_next)
    yield Update(middle, _transfer(levels, M0, third, sigma, sigma_next), keep=(so_far, M1, M2, M3))
    fourth = _output(levels, sigma_next)
    yield Update(sigma_next, M0 + slope * fourth / 6, keep=(M1, M2, M3))
