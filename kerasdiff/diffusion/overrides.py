"""Arrays that a user gave instead of a prompt or a seed."""

import dataclasses
from typing import Any

import numpy as np

from kerasdiff import validation
from kerasdiff.errors import RequestError

# Two GB in float32.
MOST = 2**29


@dataclasses.dataclass(frozen=True, eq=False)
class Overrides:
    """What takes the place of prompts and seeds; None where nothing does."""

    latents: Any = None  # unit-variance noise (N, h, w, C)
    prompt_embeds: Any = None  # (N or 1, T, width), as are those of negative prompts
    negative_prompt_embeds: Any = None


def floats(name: str, value: Any) -> np.ndarray:
    """An array float32 of finite numbers; RequestError if it is something else."""
    with validation.reading(name):
        array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise RequestError(f"{name} must be an array of numbers, not {validation.kind(value)}")
    if array.size > MOST:
        raise RequestError(f"{name} has {array.size} numbers; it may have at most {MOST}")
    with np.errstate(over="ignore"):  # which is found out below
        array = array.astype("float32")
    if not np.isfinite(array).all():
        raise RequestError(f"{name} has values that are not finite in float32")
    return array
