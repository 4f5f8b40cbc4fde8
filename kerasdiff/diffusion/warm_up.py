"""Running every stage once: what a batch of a size needs is traced and compiled then."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

import numpy as np

from kerasdiff.diffusion.overrides import Overrides
from kerasdiff.diffusion.pipeline import Pipeline
from kerasdiff.images.init_images import Pictures
from kerasdiff.request import Request


def warm_up(pipeline: Pipeline, request: Request, image: bool) -> dict[str, float]:
    """Seconds of each stage: "text", "encode" (for an `image`), "denoise", "decode", and "safety" if there is one."""
    seconds: dict[str, float] = {}
    shape = 1, request.height, request.width, 3
    if pipeline.config.inpaints:  # a model for inpainting generates only into pictures
        pictures = Pictures(np.zeros(shape, "uint8"), np.ones(shape[:3], "float32"), (0,) * len(request))
        request = dataclasses.replace(request, pictures=pictures, strengths=(1.0,) * len(request))
    with _timed(seconds, "text"):
        pipeline.texts(request, Overrides()).table([0], pipeline.halves(request))
    if image or pipeline.config.inpaints:
        with _timed(seconds, "encode"):
            pipeline.encode(np.zeros(shape[1:], "float32"), request.tile)
    with _timed(seconds, "denoise"):
        for size in dict.fromkeys(pipeline.plan(request).chunks):
            # One batch of each size that the request comes to.
            *_, last = pipeline.images(request.only([0] * size), Overrides(), latents_only=True)
    with _timed(seconds, "decode"):
        picture = pipeline.decode(last.latents, request.tile)
    if pipeline.safety is not None:
        with _timed(seconds, "safety"):
            pipeline.safety(picture[None])
    return seconds


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
