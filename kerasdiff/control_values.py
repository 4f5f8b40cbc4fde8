"""What of `controls` and `image_prompts` the number of images and their size decide."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from kerasdiff import validation
from kerasdiff.controls import MODES, Control, Controls, ImagePrompt
from kerasdiff.errors import RequestError
from kerasdiff.images import reader
from kerasdiff.images.init_images import Size, make_pictures, per_image
from kerasdiff.models.config import ModelConfig

# Far beyond any use.
_MOST_SCALE = 100.0


def size_by_hint(
    given: Mapping[str, Any], config: ModelConfig, prompts: int, batch_size: int
) -> tuple[int | None, int | None]:
    """Height and width of a request: where nothing else says them, those of its first hint."""
    height, width = given["height"], given["width"]
    if any(given[name] is not None for name in ("image", "resize", "height", "width")):
        return height, width
    for control in entries("controls", given["controls"], Control):
        if control.image is not None:
            size = Size(None, None, config.defaults.height, config.defaults.width, config.size_multiple)
            shape = make_pictures(control.image, None, size, None, prompts, batch_size).images.shape
            return shape[1], shape[2]
    return height, width


def make_controls(
    given: Mapping[str, Any], config: ModelConfig, height: int, width: int, prompts: int, batch_size: int
) -> Controls | None:
    """Those of a request of a height and width, with their hints in that size."""
    made = []
    for index, control in enumerate(entries("controls", given["controls"], Control)):
        name = f"controls[{index}]"
        validation.choice(f"{name}.mode", control.mode, MODES)
        image = control.image
        if image is not None:
            size = Size(height, width, height, width, config.size_multiple)
            image = make_pictures(image, None, size, given["resize"], prompts, batch_size)
        elif given["image"] is None:
            raise RequestError(f"{name} has no image, and the request has none either; give one of them")
        made.append(dataclasses.replace(control, image=image, **_amounts(name, control, prompts, batch_size)))
    return Controls(tuple(made)) if made else None


def make_image_prompts(given: Mapping[str, Any], prompts: int, batch_size: int) -> Controls | None:
    """Those of a request, with the pictures of each image."""
    made = []
    for index, prompt in enumerate(entries("image_prompts", given["image_prompts"], ImagePrompt)):
        name, image = f"image_prompts[{index}]", prompt.image
        several = isinstance(image, list | tuple) and any(isinstance(one, list | tuple) for one in image)
        sets = [one if isinstance(one, list | tuple) else [one] for one in (image if several else [image])]
        read = [tuple(reader.read(picture, f"{name}.image") for picture in one) for one in sets]
        pictures = tuple(per_image(f"{name}.image", read, prompts, batch_size))
        made.append(dataclasses.replace(prompt, image=pictures, **_amounts(name, prompt, prompts, batch_size)))
    return Controls(tuple(made)) if made else None


def entries(name: str, value: Any, kind: type) -> Sequence[Any]:
    """The entries of a list of one kind."""
    if value is None:
        return ()
    values = list(value) if isinstance(value, list | tuple | Controls) else [value]
    for index, one in enumerate(values):
        if not isinstance(one, kind):
            raise RequestError(f"{name}[{index}] must be a kerasdiff.{kind.__name__}, not {validation.kind(one)}")
    return values


def _amounts(name: str, control: Any, prompts: int, batch_size: int) -> dict[str, Any]:
    scales = validation.unwrapped(f"{name}.scale", control.scale)
    scales = scales if isinstance(scales, list) else [scales]
    scales = [validation.real(f"{name}.scale", one, -_MOST_SCALE, _MOST_SCALE) for one in scales]
    start, end = (validation.real(f"{name}.{one}", getattr(control, one), 0, 1) for one in ("start", "end"))
    if start > end:
        raise RequestError(f"{name}: start={start:g} is after end={end:g}")
    return {"scale": tuple(per_image(f"{name}.scale", scales, prompts, batch_size)), "start": start, "end": end}
