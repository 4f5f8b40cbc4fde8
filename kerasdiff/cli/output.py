"""What the generate command prints: lines for people, or JSON."""

import pathlib
from typing import Any

from kerasdiff.cli.console import print_json, print_line
from kerasdiff.request import Request
from kerasdiff.result import Result
from kerasdiff.samplers import RECIPES, SAMPLERS, SPACINGS


def image_fields(request: Request, index: int) -> dict[str, Any]:
    """One image of a request, as JSON has it; width and height are the first pass's if there is a second one."""
    hires = {} if request.hires is None else {"hires": request.hires.text}
    return {
        "seed": request.seeds[index],
        "prompt": request.prompts[index],
        "negative_prompt": request.negative_prompts[index],
        "width": request.width,
        "height": request.height,
        "num_steps": request.num_steps,
        "sampler": request.sampler,
        "guidance_scale": request.guidance_scale.of_image(index),
        **hires,
    }


def print_image(path: pathlib.Path, single: Result, as_json: bool) -> None:
    """Prints the path of a saved image, and its seed; as JSON, all that its result says."""
    nsfw = None if single.nsfw is None else single.nsfw[0]
    index = 0 if single.places is None else single.places[0]
    line = f"{path} (seed {single.seeds[0]}{', flagged by the safety filter' if nsfw else ''})"
    height, width = single.images.shape[1:3]  # which an upscaler changes
    size = {"width": width, "height": height}
    values = {"path": str(path), **image_fields(single.request, index), **size, "nsfw": nsfw}
    print_either(line, {"type": "image", **values}, as_json)


def print_either(line: str, values: dict[str, Any], as_json: bool) -> None:
    """Prints a result for people, or as JSON."""
    if as_json:
        print_json(values)
    else:
        print_line(line)


def print_samplers(as_json: bool) -> None:
    """Lists samplers, spacings and recipes; as JSON, an object for each."""
    if not as_json:
        print_line(f"samplers\n{SAMPLERS}\n\nspacings\n{SPACINGS}\n\nrecipes\n{RECIPES}")
        return
    for name, sampler in SAMPLERS.items():
        fields = {"summary": sampler.summary, "aliases": list(sampler.aliases), "options": sampler.options}
        print_json({"type": "sampler", "name": name, **fields})
    for name, function in SPACINGS.items():
        print_json({"type": "spacing", "name": name, "summary": (function.__doc__ or "").splitlines()[0]})
    for name, recipe in RECIPES.items():
        print_json({"type": "recipe", "name": name, "summary": recipe.summary})
