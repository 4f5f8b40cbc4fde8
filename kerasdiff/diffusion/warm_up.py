"""Running every stage once: what a batch of a size needs is traced and compiled then."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from kerasdiff import validation
from kerasdiff.diffusion.overrides import Overrides
from kerasdiff.diffusion.pipeline import Pipeline
from kerasdiff.diffusion.planning import blank, plan
from kerasdiff.errors import RequestError
from kerasdiff.hires import LATENT_UPSCALERS, make_hires
from kerasdiff.images.init_images import Pictures
from kerasdiff.models.config import ModelConfig
from kerasdiff.request import Request, make_request
from kerasdiff.run_bounds import all_of_it


def request_to_warm_up(
    config: ModelConfig, guidance: Any, interval: Any, hires: Any, controls: Any = None, **arguments: Any
) -> Request:
    """A request that needs every program of such requests: arguments as in `Generator.warm_up`, which are checked."""
    weights = {True: (2.0,), False: (1.0,), "both": (2.0, 1.0)}
    if not isinstance(guidance, bool | str) or guidance not in weights:
        raise RequestError(f"guidance={guidance!r} is unknown; known: True, False, 'both'")
    # Of each kind a whole evaluation and, with DeepCache, one that reuses its features.
    interval = validation.integer("deep_cache_interval", interval, 1)
    steps = [weight for weight in weights[guidance] for _ in range(min(interval, 2))]
    sized = make_hires("hires", hires)
    return make_request(
        config,
        "",
        sampler="euler",
        spacing="trailing",
        num_steps=len(steps),
        guidance_scale=[steps],
        seed=0,
        deep_cache_interval=min(interval, 2),
        hires=None if sized is None else sized.size_alone(weights[guidance][0]),
        refiner_strength=all_of_it(config, sized),
        **blank(controls, start=0.0, end=1.0),
        **arguments,
    )


def warm_up(pipeline: Pipeline, request: Request, image: bool) -> dict[str, float]:
    """Seconds of each stage: "text", "encode" (for an `image`), "denoise", "decode", and those that there are.

    These are "safety", and "upscale" for an upscaler's file in `hires`.
    """
    seconds: dict[str, float] = {}
    hires, plans = request.hires, [found := plan(pipeline, request)]
    if found.second_pass is not None:  # which needs what a request of its size does
        plans.append(found.second_pass)
    request, shape = dataclasses.replace(request, hires=None), (1, plans[-1].height, plans[-1].width, 3)
    if pipeline.config.needs_pictures:
        masks = np.ones(shape[:3], "float32") if pipeline.config.inpaints else None
        pictures = Pictures(np.zeros(shape, "uint8"), masks, (0,) * len(request))
        strengths = None if masks is None else (1.0,) * len(request)
        request = dataclasses.replace(request, pictures=pictures, strengths=strengths)
    in_pixels = hires is not None and hires.upscaler not in LATENT_UPSCALERS
    if hires is not None and hires.file is not None:
        with _timed(seconds, "upscale"):
            pipeline.upscale(hires.file, np.ones((plans[0].height, plans[0].width, 3), "uint8"))
    with _timed(seconds, "text"):
        pipeline.conditioner.texts(request, Overrides()).table([0], pipeline.conditioner.halves(request))
    if image or in_pixels or pipeline.config.needs_pictures:
        with _timed(seconds, "encode"):
            pipeline.encode(np.zeros(shape[1:], "float32"), request.tile)
    lasts = []
    with _timed(seconds, "denoise"):
        for one in plans:
            sized = dataclasses.replace(request, height=one.height, width=one.width)
            for size in dict.fromkeys(one.chunks):
                # One batch of each size that the request comes to.
                *_, last = pipeline.images(sized.only([0] * size), Overrides(), latents_only=True)
            lasts.append(last.latents)
    with _timed(seconds, "decode"):
        for latents in lasts if in_pixels else lasts[-1:]:
            picture = pipeline.decode(latents, request.tile)
    if pipeline.safety is not None:
        with _timed(seconds, "safety"):
            pipeline.safety(picture[None])
    return seconds


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
