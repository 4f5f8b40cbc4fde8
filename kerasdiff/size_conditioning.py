"""Sizes and crops, which Stable Diffusion XL reads beside the text (Podell et al. 2023, arXiv:2307.01952)."""

from __future__ import annotations

import dataclasses

import numpy as np

# What the refiner is told of how much an image is liked, where a request does not say it.
_AESTHETIC_SCORES = (6.0, 2.5)

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


def time_ids(sizes: SizeConditioning, height: int, width: int, count: int) -> np.ndarray:
    """The numbers beside an image's negative prompt, and those beside its prompt: float32 (2, count).

    They are 6, or 5 for a refiner, which reads an aesthetic score instead of the target size.
    """
    original, crop, target = (
        default if given is None else given
        for given, default in (
            (sizes.original_size, (height, width)),
            (sizes.crop, (0, 0)),
            (sizes.target_size, (height, width)),
        )
    )
    negative = (
        default if given is None else given
        for given, default in (
            (sizes.negative_original_size, original),
            (sizes.negative_crop, crop),
            (sizes.negative_target_size, target),
        )
    )
    scores = (
        default if given is None else given
        for given, default in zip(
            (sizes.aesthetic_score, sizes.negative_aesthetic_score), _AESTHETIC_SCORES, strict=True
        )
    )
    rows = [
        [*size, *corner, *(of if count == 6 else (score,))]
        for (size, corner, of), score in zip(((original, crop, target), (*negative,)), scores, strict=True)
    ]
    return np.array(rows[::-1], "float32")
