"""What the drawing program prints: lines for people, or JSON."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from kerasdiff.cli.program import tell, tell_json
from kerasdiff.plan import Plan
from kerasdiff.request import Request
from kerasdiff.result import Result
from kerasdiff.samplers import SAMPLERS, SPACINGS


def image_fields(request: Request, place: int) -> dict[str, Any]:
    """What was asked of one image of a request, as JSON has it."""
    return {
        "seed": request.seeds[place],
        "prompt": request.prompts[place],
        "negative_prompt": request.negative_prompts[place],
        "width": request.width,
        "height": request.height,
        "num_steps": request.num_steps,
        "sampler": request.sampler,
        "guidance_scale": request.guidance_scale.of_image(place),
    }


def tell_image(path: pathlib.Path, one: Result, as_json: bool) -> None:
    """Tells of an image that is saved.

    Args:
        path: of the image.
        one: it alone.
        as_json: whether for a program to read.
    """
    nsfw = None if one.nsfw is None else one.nsfw[0]
    if not as_json:
        tell(f"{path} (seed {one.seeds[0]}{', flagged by the safety filter' if nsfw else ''})")
        return
    place = 0 if one.places is None else one.places[0]
    tell_json({"type": "image", "path": str(path), **image_fields(one.request, place), "nsfw": nsfw})


def tell_grid(path: pathlib.Path, as_json: bool) -> None:
    """Tells of a sheet of all images that is saved."""
    if as_json:
        tell_json({"type": "grid", "path": str(path)})
    else:
        tell(str(path))


def tell_plan(plan: Plan, as_json: bool) -> None:
    """Tells how images would be drawn."""
    if as_json:
        tell_json({"type": "plan", **dataclasses.asdict(plan), "peak": plan.peak})
    else:
        tell(str(plan))


def tell_samplers(as_json: bool) -> None:
    """Lists samplers and spacings; as JSON, an object for each."""
    if not as_json:
        tell(f"samplers\n{SAMPLERS}\n\nspacings\n{SPACINGS}")
        return
    for name, sampler in SAMPLERS.items():
        told = {"summary": sampler.summary, "aliases": list(sampler.aliases), "options": sampler.options}
        tell_json({"type": "sampler", "name": name, **told})
    for name, function in SPACINGS.items():
        tell_json({"type": "spacing", "name": name, "summary": (function.__doc__ or "").splitlines()[0]})
