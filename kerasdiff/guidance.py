"""Weights of classifier-free guidance, per image and per step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from kerasdiff import validation
from kerasdiff.errors import RequestError
from kerasdiff.images.init_images import per_image
from kerasdiff.request_arguments import ARGUMENTS

# Numbers in all, where each image has its own for each step.
_MOST = 1_000_000


@dataclasses.dataclass(frozen=True)
class GuidanceScale:
    """Weights of guidance: a row per image, or one for all; in a row a weight per step, or one for all."""

    weights: tuple[tuple[float, ...], ...]
    per_image: bool = False
    per_step: bool = False

    @classmethod
    def from_plain(cls, value: Any) -> GuidanceScale:
        """What `plain` gave."""
        if not isinstance(value, Sequence):
            return cls(((value,),))
        if not any(isinstance(row, Sequence) for row in value):
            return cls((tuple(value),), per_step=True)
        rows = tuple(tuple(row) for row in value)
        return cls(rows, per_image=True, per_step=any(len(row) != 1 for row in rows))

    def plain(self) -> float | list[float] | list[list[float]]:
        """As `make_request` takes it and files have it: a number, one per step, or a list for each image."""
        return [list(row) for row in self.weights] if self.per_image else self.of_image(0)

    def of_image(self, index: int) -> float | list[float]:
        """Of one image: a number, or one per step."""
        row = self.weights[index if self.per_image else 0]
        return list(row) if self.per_step else row[0]

    def only(self, indices: Sequence[int]) -> GuidanceScale:
        """Of some of the images."""
        if not self.per_image:
            return self
        return dataclasses.replace(self, weights=tuple(self.weights[index] for index in indices))

    def as_in_diffusers(self) -> GuidanceScale:
        """The weights with 1, which is without guidance, for all below, as diffusers does with them."""
        return dataclasses.replace(self, weights=tuple(tuple(max(one, 1.0) for one in row) for row in self.weights))

    def array(self, num_steps: int, images: int) -> np.ndarray:
        """The weights, float32 (num_steps, images)."""
        return np.broadcast_to(np.array(self.weights, "float32").T, (num_steps, images))


def make_guidance(value: Any, num_steps: int, prompts: int, batch_size: int) -> GuidanceScale:
    """Checks the argument `guidance_scale`: a number, one per step, per prompt or per image, or a list per image."""
    bounds = ARGUMENTS["guidance_scale"].bounds
    entries = validation.unwrapped("guidance_scale", value, _MOST)
    if not isinstance(entries, list):
        return GuidanceScale(((validation.real("guidance_scale", entries, *bounds),),))
    count = prompts * batch_size
    if len(entries) > max(count, num_steps):
        raise RequestError(_wrong_length(len(entries), num_steps, count))
    rows = [validation.unwrapped(f"guidance_scale[{index}]", row, num_steps) for index, row in enumerate(entries)]
    if rows and all(isinstance(row, list) for row in rows):
        if sum(map(len, rows)) > _MOST:
            raise RequestError(f"guidance_scale has more than {_MOST} numbers; generate fewer images at once")
        each = [validation.reals(f"guidance_scale[{index}]", row, *bounds) for index, row in enumerate(rows)]
        if len({len(row) for row in each}) > 1 or len(each[0]) not in (1, num_steps):
            raise RequestError(f"guidance_scale must have one number per image, or {num_steps}, one per step")
        return GuidanceScale.from_plain(per_image("guidance_scale", each, prompts, batch_size))
    weights = validation.reals("guidance_scale", rows, *bounds)
    images = {prompts, count} - {1}
    if len(weights) == num_steps and num_steps in images and num_steps > 1:
        raise RequestError(
            f"guidance_scale has {num_steps} entries, and there are as many steps as images; "
            f"write [[a], [b], ...] for one per image, or [[a, b, ...]] for one per step"
        )
    if len(weights) in images:
        return GuidanceScale.from_plain(per_image("guidance_scale", [(one,) for one in weights], prompts, batch_size))
    if len(weights) != num_steps:
        raise RequestError(_wrong_length(len(weights), num_steps, count))
    return GuidanceScale.from_plain(weights)


def _wrong_length(entries: int, num_steps: int, count: int) -> str:
    return (
        f"guidance_scale has {entries} entries for {num_steps} steps and {count} images; "
        "give one number, one per step or one per image"
    )
