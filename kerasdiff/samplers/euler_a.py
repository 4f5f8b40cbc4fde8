from collections.abc import Iterator
from itertools import pairwise

from kerasdiff import validation
from kerasdiff.samplers.ancestral import split
from kerasdiff.samplers.sigmas import Levels
from kerasdiff.samplers.update import NOISE, D, Update, X


def euler_a(levels: Levels, *, eta: float = 1.0) -> Iterator[Update]:
    """Ancestral Euler, with fresh noise: more steps keep changing the image (k-diffusion). First order.

    `sample_euler_ancestral` of https://github.com/crowsonkb/k-diffusion. `eta` is the share of fresh noise, 0 (Euler)
    to 1.
    """
    validation.real("eta", eta, 0, 1)
    for sigma, sigma_next in pairwise(levels.sigmas):
        sigma_down, sigma_up = split(sigma, sigma_next, eta)
        yield Update(sigma, X + (sigma_down - sigma) * ((X - D) / sigma) + sigma_up * NOISE)
