"""What is odd about the noise levels that a request comes to: warnings, and one error."""

import numpy as np

from kerasdiff import notices
from kerasdiff.errors import RequestError
from kerasdiff.samplers.recipes import RECIPES
from kerasdiff.samplers.registry import SAMPLERS
from kerasdiff.samplers.sigmas import Levels


def check_levels(levels: Levels, spacing: str | None, from_noise: bool, recipe: str | None) -> None:
    if spacing is None and levels.sigmas[-1] > levels.trained[0]:
        raise RequestError(
            f"sigmas end at {levels.sigmas[-1]:g}, which leaves noise in the image; let the last entry be 0"
        )
    last = len(levels.trained) - 1
    distilled = recipe is not None and RECIPES[recipe].timesteps == tuple(map(float, levels.timesteps))
    if from_noise and not distilled and levels.sigmas[0] < levels.trained[last // 2]:
        notices.warn(
            f"the run starts from pure noise at timestep {levels.timesteps[0]:g} of {last}, where the model expects an "
            "image with little noise; spacing='trailing' starts at the last timestep",
            stacklevel=5,
        )


def check_stride(levels: Levels, sampler: str, spacing: str | None) -> None:
    """Warns where this model's sampler and spacing make diffusers step to other levels than it goes on from."""
    stride = len(levels.trained) // len(levels.timesteps)
    if np.any(-np.diff(levels.timesteps) != stride):
        notices.warn(
            f"spacing={spacing!r} of this model: {SAMPLERS[sampler].aliases[0]} of diffusers takes each step {stride} "
            "timesteps further, wherever the next one begins; here a step ends where the next one begins",
            stacklevel=5,
        )
