from collections.abc import Iterator
from itertools import pairwise

from kerasdiff import validation
from kerasdiff.samplers.ancestral import split
from kerasdiff.samplers.sigmas import Levels
from kerasdiff.samplers.update import NOISE, D, Update, X


def ddim(levels: Levels, *, eta: float = 0.0) -> Iterator[Update]:
    """DDIM, deterministic unless eta > 0 (Song et al. 2020). First order.

    arXiv:2010.02502, equation 12. In x = x0 + sigma * noise the step keeps the predicted noise and
    rescales it to the next level. Where diffusers' spacing does not divide the trained timesteps, its
    steps end at a level other than the one where the next starts; here they never do. `eta` is the share of
    fresh noise, 0 to 1; 1 is DDPM.
    """
    validation.real("eta", eta, 0, 1)
    for sigma, sigma_next in pairwise(levels.sigmas):
        sigma_down, sigma_up = split(sigma, sigma_next, eta)
        yield Update(sigma, D + sigma_down * (X - D) / sigma + sigma_up * NOISE)
