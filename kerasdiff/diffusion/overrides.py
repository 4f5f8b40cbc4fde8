"""Arrays that a user gave instead of a prompt or a seed."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

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
    pooled_prompt_embeds: Any = None  # (N or 1, P), where the model reads them
    negative_pooled_prompt_embeds: Any = None


# What takes the place of a prompt, and of a negative one.
OF_TEXTS = {
    "prompt": ("prompt_embeds", "pooled_prompt_embeds"),
    "negative_prompt": ("negative_prompt_embeds", "negative_pooled_prompt_embeds"),
}


class Names(NamedTuple):
    """What messages call the embeddings that are given instead of texts."""

    context: str = "prompt_embeds"
    negative_context: str = "negative_prompt_embeds"
    pooled: str = "pooled_prompt_embeds"
    negative_pooled: str = "negative_pooled_prompt_embeds"


OF_GENERATE = Names()


def check_given(overrides: Overrides, prompt: Any, arguments: Mapping[str, Any]) -> None:
    """RequestError if prompts and arrays, or other arguments of a request, say the same twice, or nothing at all."""
    if (prompt is None) == (overrides.prompt_embeds is None):
        raise RequestError("give prompt or prompt_embeds, and not both")
    if overrides.negative_prompt_embeds is not None and arguments.get("negative_prompt") is not None:
        raise RequestError("give negative_prompt or negative_prompt_embeds, not both")
    skips = prompt is None and validation.integer("clip_skip", arguments.get("clip_skip", 0), 0)
    if skips and (overrides.negative_prompt_embeds is not None or arguments.get("prompt_syntax", "plain") == "plain"):
        raise RequestError("clip_skip changes no embeddings that are given; give it to encode_text")


def contexts(name: str, value: Any, width: int) -> np.ndarray:
    """Embeddings of texts (N, T, width) that a user gave, float32; RequestError if they have another shape."""
    array = floats(name, value)
    if array.ndim != 3 or array.shape[2] != width or not len(array):
        raise RequestError(f"{name} has shape {array.shape}; it must be (N, tokens, {width}), as encode_text gives it")
    return array


def pooled(name: str, value: Any, width: int) -> np.ndarray:
    """Pooled embeddings of texts (N, P) that a user gave, float32; RequestError if they have another shape."""
    array = floats(name, value)
    if array.ndim != 2 or array.shape[1] != width or not len(array):
        raise RequestError(f"{name} has shape {array.shape}; it must be (N, {width}), as encode_pooled gives it")
    return array


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
