"""The language samplers are written in.

Inside, x = x0 + sigma * noise. Every fixed-step sampler's update is then linear in the current x,
at most four remembered tensors, the denoised prediction D and fresh noise, with coefficients that
depend on noise levels alone. The names below are the basis vectors of that space: arithmetic on
them builds coefficients, and the code of a sampler reads like its paper.
"""

import dataclasses

import numpy as np

TERMS = 7
MEMORIES = 4
X, M0, M1, M2, M3, D, NOISE = np.eye(TERMS)


@dataclasses.dataclass(frozen=True)
class Update:
    """One evaluation of the U-Net, which denoises x at `sigma`, and the update that follows it."""

    sigma: float
    # Coefficients (7,) of the next x in the basis above.
    x: np.ndarray
    # Those of the tensors to remember, the new M0 first; the rest become zero.
    keep: tuple[np.ndarray, ...] = ()
    # The U-Net's input; None is the run's timestep at that noise level.
    timestep: float | None = None
