"""What the generate command prints: lines for people, or JSON."""

import itertools
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from kerasdiff.cli.console import print_json, print_line
from kerasdiff.errors import RequestError
from kerasdiff.images.reader import read
from kerasdiff.images.writer import write
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


def save_hints(request: Request, path: pathlib.Path, as_json: bool) -> None:
    """Saves what --hint made of pictures beside the images of `path`, and prints where."""
    for number, control in enumerate(request.controls or (), 1):
        if control.hint is not None:
            images = control.image.images
            for place, pixels in enumerate(images):
                first = control.image.index.index(place) + 1
                name = f"{path.stem}_{first}" if len(images) > 1 else path.stem
                saved = _save_new(path.with_name(f"{name}.hint{number}.png"), pixels)
                values = {"type": "hint", "path": str(saved), "hint": control.hint}
                print_either(f"{saved} (hint {number}, {control.hint})", values, as_json)


def try_models(request: Request) -> None:
    """ModelError if there is no file of a control or of an image prompt; whether it fits is known when it is opened."""
    if not request.steering:
        return
    from kerasdiff.checkpoints.control_files import find_control

    for entry in request.steering:
        find_control(entry.model)


def _save_new(path: pathlib.Path, pixels: np.ndarray) -> pathlib.Path:
    """Saves a picture under a name that no other one has."""
    names = itertools.chain([path], (path.with_name(f"{path.stem}_{number}.png") for number in itertools.count(2)))
    free = next(name for name in names if not name.exists() or _shows(name, pixels))
    return free if free.exists() else write(Image.fromarray(pixels), free)


def _shows(path: pathlib.Path, pixels: np.ndarray) -> bool:
    try:
        return np.array_equal(read(path), pixels)
    except RequestError:
        return False


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
