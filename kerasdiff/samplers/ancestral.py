"""What the samplers with fresh noise share."""

import numpy as np


def split(sigma: float, sigma_next: float, eta: float = 1.0) -> tuple[float, float]:
    """(sigma_down, sigma_up): a step from sigma goes down to the first by the ODE and up again by fresh noise.

    Their squares sum to sigma_next ** 2. With eta = 1 it is the posterior of DDPM (Ho et al. 2020,
    arXiv:2006.11239), with eta = 0 no noise (Song et al. 2020, arXiv:2010.02502, equation 16).
    """
    up = eta * sigma_next * np.sqrt((sigma**2 - sigma_next**2) / sigma**2)
    return float(np.sqrt(sigma_next**2 - up**2)), float(up)
