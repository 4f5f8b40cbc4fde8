"""What the names and shapes of a single file's tensors tell."""

import re

from kerasdiff.errors import ModelError
from kerasdiff.runtime.safetensors_map import TensorFiles

# Where U-Net and autoencoder begin.
UNET, VAE = "model.diffusion_model.", "first_stage_model."


def shape_of(tensors: TensorFiles, key: str) -> tuple[int, ...]:
    """A tensor's shape; raises ModelError if the file has none of that name."""
    if key not in tensors:
        raise ModelError(f"{tensors.where} is no Stable Diffusion checkpoint: it has no {key}")
    return tensors.shape(key)


def count(tensors: TensorFiles, prefix: str) -> int:
    """One more than the largest number behind a prefix."""
    found = (re.match(re.escape(prefix) + r"(\d+)\.", key) for key in tensors)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def is_xl(tensors: TensorFiles) -> bool:
    """Whether it is Stable Diffusion XL or its refiner: a U-Net with an input for pooled text and sizes."""
    return UNET + "label_emb.0.0.weight" in tensors
