"""What of `controls` and `image_prompts` the number of images and their size decide."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kerasdiff.controls import Control, Controls, ImagePrompt
from kerasdiff.errors import RequestError
from kerasdiff.images import reader
from kerasdiff.images.init_images import MAX_PIXELS, Pictures, PictureSets, as_list, make_pictures, per_image
from kerasdiff.models.config import ModelConfig
from kerasdiff.request_values import check_taken_size, size_of


def most_pictures(given: Mapping[str, Any]) -> int:
    """How many images one prompt makes: as many as there are pictures to start from, or hints of a control."""
    named = {"image": given["image"]}
    named |= {f"controls[{index}].image": control.image for index, control in enumerate(given["controls"])}
    return max(1, *(len(as_list(name, value) or ()) for name, value in named.items()))


def make_controls(
    given: Mapping[str, Any], config: ModelConfig, pictures: Pictures | None, prompts: int, batch_size: int
) -> tuple[Controls | None, int, int]:
    """Those of a request with their hints in its size, and its height and width.

    The size is that of the `pictures` that it starts from, or else of the first hint, by the same rules.
    """
    size, resize = size_of(given, config), given["resize"]
    shape = None if pictures is None else pictures.images.shape[1:3]
    first, made, pixels = "image", [], 0
    for index, control in enumerate(given["controls"]):
        name, image = f"controls[{index}]", control.image
        if isinstance(image, Pictures):  # of another request, and prepared
            _check_count(f"{name}.image", len(image.index), prompts * batch_size)
        elif image is not None:
            image = make_pictures(image, None, size, resize, prompts, batch_size, name=f"{name}.image")
            image = _hinted(image, control.hint)
        elif pictures is None:
            raise RequestError(f"{name} has no image, and the request has none either; give one of them")
        elif control.hint is not None:
            image = _hinted(pictures, control.hint)
        if image is not None:
            found = image.images.shape[1:3]
            if shape is None:
                shape, first = found, f"{name}.image"
                if resize is None and None in (given["height"], given["width"]):
                    check_taken_size(config, found[0], found[1], first)
            elif found != shape:
                raise RequestError(
                    f"{name}.image is {found[1]} x {found[0]} pixels and {first} {shape[1]} x {shape[0]}; their sizes "
                    "must be the same: give resize='cover'"
                )
            pixels += image.images[..., 0].size
            _check_pixels("controls", pixels)
        made.append(dataclasses.replace(control, image=image, scale=_scales(name, control, prompts, batch_size)))
    height, width = size.both(*((given["height"], given["width"]) if shape is None else shape))
    return Controls(tuple(made)) if made else None, height, width


def make_image_prompts(entries: Sequence[ImagePrompt], prompts: int, batch_size: int) -> Controls | None:
    """Those of a request, with the pictures of each image."""
    made, pixels = [], 0
    for index, prompt in enumerate(entries):
        name = f"image_prompts[{index}]"
        if isinstance(prompt.image, PictureSets):
            sets = prompt.image
            _check_count(f"{name}.image", len(sets), prompts * batch_size)
        else:
            read = []
            for one in _sets(f"{name}.image", prompt.image):
                pictures = []
                for picture in one:
                    pictures.append(reader.read(picture, f"{name}.image"))
                    pixels += pictures[-1][..., 0].size
                    _check_pixels("image_prompts", pixels)
                read.append(tuple(pictures))
            sets = PictureSets(tuple(per_image(f"{name}.image", read, prompts, batch_size)))
        made.append(dataclasses.replace(prompt, image=sets, scale=_scales(name, prompt, prompts, batch_size)))
    return Controls(tuple(made)) if made else None


def _sets(name: str, value: Any) -> list[list[Any]]:
    """Pictures that are read together, one list of them for all images, or several."""
    several = as_list(name, value)
    if several is None:
        return [[value]]
    nested = any(isinstance(one, list | tuple) for one in several)
    sets = [as_list(name, one) or ([one] if not isinstance(one, list | tuple) else []) for one in several]
    sets = sets if nested else [several]
    if not sets or not all(sets):
        raise RequestError(f"{name} is an empty list; give at least one picture")
    return sets


def _hinted(pictures: Pictures, hint: str | None) -> Pictures:
    """The hints that are made of some pictures."""
    if hint is None:
        return pictures
    from kerasdiff.hints import make_hint

    return Pictures(np.stack([make_hint(hint, image) for image in pictures.images]), None, pictures.index)


def _scales(name: str, control: Control | ImagePrompt, prompts: int, batch_size: int) -> tuple[float, ...]:
    scale = control.scale if isinstance(control.scale, tuple) else (control.scale,)
    return tuple(per_image(f"{name}.scale", scale, prompts, batch_size))


def _check_count(name: str, count: int, images: int) -> None:
    if count != images:
        raise RequestError(f"{name} is that of a request of {count} images, and this one has {images}")


def _check_pixels(name: str, pixels: int) -> None:
    if pixels > MAX_PIXELS:
        raise RequestError(
            f"the pictures of {name} may have at most {MAX_PIXELS} pixels together: split them over several calls"
        )
