"""Models that change a picture as a text says (Brooks et al. 2022, InstructPix2Pix, arXiv:2211.09800).

They make three predictions: with the negative prompt and no picture, with it and the picture, and with prompt and
picture. Guidance leads from the first to the second, and from that to the third.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kerasdiff.errors import RequestError
from kerasdiff.models.config import ModelConfig

# The weight of the picture where a request does not say it, as in diffusers.
_IMAGE_GUIDANCE = 1.5
# Why prompts are not joined.
JOINS = "and this model joins those with and without the picture"
_FROM_NOISE = "a model for editing does all steps from pure noise, beside the image"
# Arguments that such models take nothing of.
_REFUSED = {
    "mask": "a model for editing reads no mask",
    "strength": f"{_FROM_NOISE}; image_guidance_scale says how much of it stays",
    "hires": "a model for editing has one pass, at the size of the image",
    "denoising_start": _FROM_NOISE,
    "denoising_end": _FROM_NOISE,
    "guidance_rescale": "it is about two predictions, and a model for editing makes three",
}


def image_guidance(given: Mapping[str, Any], config: ModelConfig) -> float | None:
    """The weight of the picture; None where a model edits none. RequestError for what the model cannot do."""
    scale = given["image_guidance_scale"]
    if not config.edits:
        if scale is not None:
            raise RequestError(
                "image_guidance_scale is for models that edit (InstructPix2Pix), and this is none; leave it out"
            )
        return None
    for name, why in _REFUSED.items():
        if given[name] is not None and (name != "guidance_rescale" or given[name]):
            raise RequestError(f"{name}: {why}; leave it out")
    return _IMAGE_GUIDANCE if scale is None else scale


def weights(guidance: np.ndarray, image_guidance: float | None) -> np.ndarray:
    """The weights of the last two predictions, away from the first one, float32 (num_steps, 2, N).

    `guidance` is that of the text, float32 (num_steps, N).
    """
    whole = _IMAGE_GUIDANCE if image_guidance is None else image_guidance
    return np.stack([np.float32(whole) - guidance, guidance], axis=1)
