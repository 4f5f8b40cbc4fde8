"""Sizes and crops, which Stable Diffusion XL reads beside the text (Podell et al. 2023, arXiv:2307.01952)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from kerasdiff import validation
from kerasdiff.errors import RequestError
from kerasdiff.images.reader import MAX_SIDE
from kerasdiff.models.config import ModelConfig

# What the refiner is told of how much an image is liked, where a request does not say it.
_AESTHETIC_SCORES = (6.0, 2.5)
# Numbers of a refiner; other models take 6.
_OF_REFINER = 5

Pair = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SizeConditioning:
    """What a request says of sizes; None is the image's own size, its whole, and with negative prompts the same.

    Attributes:
        original_size: height and width of the picture that an image would be made of.
        crop: top and left of what was cut out of it.
        target_size: height and width of what was cut out.
        aesthetic_score: how much it is liked, from 0 to 10, for a refiner.
    """

    original_size: Pair | None = None
    crop: Pair | None = None
    target_size: Pair | None = None
    negative_original_size: Pair | None = None
    negative_crop: Pair | None = None
    negative_target_size: Pair | None = None
    aesthetic_score: float | None = None
    negative_aesthetic_score: float | None = None


def checked_sizes(given: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """The arguments that are fields of `SizeConditioning`; RequestError if one is wrong, or not of the model."""
    names = [field.name for field in dataclasses.fields(SizeConditioning)]
    for name in names:
        if given[name] is None:
            continue
        if not config.unet.embeds_sizes:
            raise RequestError(f"{name} is for Stable Diffusion XL, and this model reads no sizes; leave it out")
        if name.endswith("target_size") and config.unet.num_time_ids == _OF_REFINER:
            raise RequestError(f"{name}: a refiner reads no target size; leave it out")
        readers = [config] if config.refiner is None else [config, config.refiner]
        if name.endswith("score") and all(one.unet.num_time_ids != _OF_REFINER for one in readers):
            raise RequestError(f"{name} is read by SDXL's refiner alone; leave it out")
    return {name: given[name] if name.endswith("score") else make_pair(name, given[name]) for name in names}


def make_pair(name: str, value: Any) -> Pair | None:
    """Two numbers of pixels, or a text such as "768,1024", as a value; None is none."""
    values = validation.unwrapped(name, value)
    if isinstance(values, str):
        parts = validation.text(name, values).split(",")
        values = [int(part) if part.strip().isdecimal() and len(part) < 10 else part for part in parts]
    if values is None:
        return None
    if not isinstance(values, list) or len(values) != 2:
        what = "top and left, such as (0, 256)" if name.endswith("crop") else "height and width, such as (768, 1024)"
        raise RequestError(f"{name} must be two integers, {what}, not {validation.shown(value)}")
    first, second = (validation.integer(f"{name}[{place}]", one, 0, MAX_SIDE) for place, one in enumerate(values))
    return first, second


def pair_text(name: str, value: Any) -> str | None:
    """The same as a text, as columns of jobs have it."""
    pair = make_pair(name, value)
    return None if pair is None else f"{pair[0]},{pair[1]}"


def time_ids(sizes: SizeConditioning, height: int, width: int, count: int) -> np.ndarray:
    """The numbers beside an image's negative prompt, and those beside its prompt: float32 (2, count).

    They are 6, or 5 for a refiner, which reads an aesthetic score instead of the target size.
    """
    whole, score, negative_score = (height, width), *_AESTHETIC_SCORES
    positive = [
        _or(sizes.original_size, whole),
        _or(sizes.crop, (0, 0)),
        _or(sizes.target_size, whole),
        (_or(sizes.aesthetic_score, score),),
    ]
    negative = [
        _or(sizes.negative_original_size, positive[0]),
        _or(sizes.negative_crop, positive[1]),
        _or(sizes.negative_target_size, positive[2]),
        (_or(sizes.negative_aesthetic_score, negative_score),),
    ]
    last = 3 if count == _OF_REFINER else 2
    return np.array([[*row[0], *row[1], *row[last]] for row in (negative, positive)], "float32")


def _or(given: Any, default: Any) -> Any:
    return default if given is None else given
