"""From an image's latents to what the user gets: decoded, with what a mask keeps, filtered, and enlarged."""

from typing import Any

import numpy as np

from kerasdiff.images.masks import paste_back
from kerasdiff.request import Request


def finished(pipeline: Any, request: Request, index: int, latents: np.ndarray) -> tuple[np.ndarray, bool | None]:
    """An image of a request from its latents (h, w, C), and whether the safety filter flags it; None if it did not run.

    `pipeline` is the `Pipeline` whose stages do it.
    """
    image = _with_what_is_kept(request, index, pipeline.decode(latents, request.tile))
    nsfw = None
    if pipeline.safety is not None and request.safety != "off":
        nsfw = pipeline.flag(image)
        image = np.zeros_like(image) if nsfw and request.safety == "on" else image
    return image if request.upscale is None else pipeline.upscale(request.upscale, image), nsfw


def _with_what_is_kept(request: Request, index: int, image: np.ndarray) -> np.ndarray:
    """An image with what a mask does not cover as it was."""
    pictures = request.pictures
    if pictures is None or pictures.masks is None:
        return image
    original = pictures.index[index]
    return paste_back(image, pictures.images[original], pictures.masks[original], request.feather)
