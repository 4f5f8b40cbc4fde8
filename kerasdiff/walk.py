"""The request of a walk between prompts and between seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Unpack

import numpy as np

from kerasdiff import request_values, validation
from kerasdiff.errors import RequestError
from kerasdiff.models.config import ModelConfig
from kerasdiff.request import MAX_IMAGES, Request, check_names, make_request
from kerasdiff.request_arguments import RequestArguments
from kerasdiff.request_signature import with_request_arguments
from kerasdiff.request_values import Waypoint
from kerasdiff.samplers.noise import MAX_SEED


@with_request_arguments
def make_walk(
    config: ModelConfig,
    prompts: str | Sequence[str],
    frames: int = 60,
    *,
    loop: bool = False,
    **arguments: Unpack[RequestArguments],
) -> Request:
    """The request of a walk, for `Generator.run`, or for `Generator.each`, which gives each frame when it is finished.

    Args:
        config: of the model, `Generator.config`.
        prompts: as in `kerasdiff.interpolate`, as are the next two.
        **arguments: of the request.

    Raises:
        RequestError: as in `kerasdiff.interpolate`.

    Example:
        ```python
        from kerasdiff.walk import make_walk

        generator = kerasdiff.Generator("tiny")
        request = make_walk(generator.config, "a red circle", 12, loop=True, num_steps=10)
        for result in generator.each(request):
            result.places, result.images  # (0,), uint8 (1, height, width, 3)
        ```
    """
    check_names(arguments)
    frames, loop = validation.integer("frames", frames, 2, MAX_IMAGES), validation.boolean("loop", loop)
    texts, seeds = list(validation.texts("prompts", prompts)), _seeds(arguments.pop("seed", None))
    count = max(len(texts), len(seeds))
    for name, values in (("prompts", texts), ("seed", seeds)):
        if len(values) not in (1, count):
            raise RequestError(f"{name} has {len(values)} entries for {count} stops of the walk; give one, or {count}")
    circle = count == 1 and loop
    if count == 1 and not loop:
        raise RequestError("nothing changes from one prompt and one seed; give several of either, or loop=True")
    arguments.setdefault("exact", True)
    arguments["seed"] = seeds * (count // len(seeds)) if count > 1 else seeds[0]
    stops = make_request(config, texts * (count // len(texts)), **arguments)
    if len(stops) != count:
        what = "controls make" if arguments.get("image") is None else "image makes"
        raise RequestError(f"{what} {len(stops)} stops of the walk of {count}; give one, or one per prompt")
    if circle:
        seed = (stops.seeds[0] + 1) % (MAX_SEED + 1)
        towards = tuple(Waypoint(stops.prompts[0], seed, 4 * frame / frames) for frame in range(frames))
        return dataclasses.replace(stops.only([0] * frames), towards=towards)
    legs = count if loop else count - 1
    # The last frame is at the end of the last leg, unless that leads back to the first one.
    places = np.arange(frames) * legs / (frames if loop else frames - 1)
    starts = np.minimum(places.astype(int), legs - 1)
    towards = tuple(
        Waypoint(stops.prompts[end], stops.seeds[end], float(place - start))
        for place, start, end in zip(places, starts, (starts + 1) % count, strict=True)
    )
    return dataclasses.replace(stops.only(starts.tolist()), towards=towards)


def _seeds(seed: Any) -> list[int]:
    """One seed, which is drawn if none is given, or several."""
    values = validation.unwrapped("seed", seed)
    return list(request_values.seeds(seed, len(values) if isinstance(values, list) and values else 1))
