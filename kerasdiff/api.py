"""Whole jobs in one call: `kerasdiff.generate`, `kerasdiff.interpolate` and `kerasdiff.replay`."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, Unpack

import numpy as np
from PIL import Image

from kerasdiff import metadata, validation
from kerasdiff.adapter_files import make_embedding_files, make_loras, make_upscaler
from kerasdiff.adapters import by_hash, control_search
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.control_entries import make_entries
from kerasdiff.controls import Control, Controls, ImagePrompt
from kerasdiff.diffusion.sampling_loop import Callback
from kerasdiff.errors import RequestError
from kerasdiff.generator import Generator
from kerasdiff.metadata import ForeignSettings, Receipt, control_fields
from kerasdiff.models.config import ModelConfig
from kerasdiff.request import Request, check_names, make_request
from kerasdiff.request_arguments import RequestArguments
from kerasdiff.request_signature import with_request_arguments
from kerasdiff.result import Result
from kerasdiff.runtime.precision import check, is_available
from kerasdiff.walk import make_walk

_Checked = TypeVar("_Checked")
# The generator of the last call, by what was asked for: a second call with the same model starts at once.
_last: dict[str, Generator] = {}
# Held by the thread that opens a model, so that others wait for it instead of loading it as well.
_opening = threading.Lock()


@with_request_arguments
def generate(
    prompt: str | Sequence[str] | None = None,
    batch_size: int = 1,
    *,
    model: Any = "tiny",
    weights: str = "pretrained",
    revision: str | None = None,
    variant: str | None = None,
    vae: str | os.PathLike[str] | None = None,
    refiner: str | os.PathLike[str] | None = None,
    preview_vae: str | os.PathLike[str] | None = None,
    precision: str = "auto",
    jit_compile: bool | str = "auto",
    backend: str = "auto",
    latents: np.ndarray | None = None,
    prompt_embeds: Any = None,
    negative_prompt_embeds: Any = None,
    pooled_prompt_embeds: Any = None,
    negative_pooled_prompt_embeds: Any = None,
    callback: Callback | None = None,
    progress: bool | None = None,
    **arguments: Unpack[RequestArguments],
) -> Result:
    """Generates `batch_size` images for each prompt, in one call.

    The model of the last call stays loaded, so that a second call with the same one starts at once; a file or folder
    that was written since then is opened anew. A live KerasCV model is read anew each time: hold a `Generator` to use
    it repeatedly. `Generator` describes how a model is opened, `Generator.generate` the errors and the other arguments.

    Args:
        model: "tiny", a name, a path or a KerasCV model.
        latents: unit-variance starting noise instead of the seeds'.
        prompt_embeds: text embeddings instead of `prompt`.
        negative_prompt_embeds: the same instead of `negative_prompt`.
        pooled_prompt_embeds: pooled ones with `prompt_embeds`, if the model reads them.
        negative_pooled_prompt_embeds: the same with `negative_prompt_embeds`.
        callback: called after each step.
        **arguments: of the request.

    Returns:
        All images; after Ctrl-C those that are finished.
    """
    check_names(arguments)
    check(precision, jit_compile, backend)
    arrays = {
        "latents": latents,
        "prompt_embeds": prompt_embeds,
        "negative_prompt_embeds": negative_prompt_embeds,
        "pooled_prompt_embeds": pooled_prompt_embeds,
        "negative_pooled_prompt_embeds": negative_pooled_prompt_embeds,
    }

    def checked(config: ModelConfig) -> Request | None:
        if prompt is None or any(array is not None for array in arrays.values()):
            return None
        return make_request(config, prompt, batch_size=batch_size, **arguments)

    source = {"weights": weights, "revision": revision, "variant": variant, "vae": vae, "refiner": refiner}
    execution = {
        "preview_vae": preview_vae,
        "precision": precision,
        "jit_compile": jit_compile,
        "backend": backend,
    }
    generator, request = opened(model, source, execution, checked)
    if request is not None:
        return generator.run(request, callback=callback, progress=progress)
    return generator.generate(
        prompt,
        batch_size,
        callback=callback,
        progress=progress,
        **arrays,
        **arguments,
    )


@with_request_arguments
def interpolate(
    prompts: str | Sequence[str],
    frames: int = 60,
    *,
    loop: bool = False,
    generator: Generator | None = None,
    model: Any = "tiny",
    callback: Callback | None = None,
    progress: bool | None = None,
    **arguments: Unpack[RequestArguments],
) -> Result:
    """A walk from prompt to prompt, in so many frames: linear in the text, on a great circle in the noise.

    `Result.save_animation` writes the frames as a GIF, WebP or MP4, or one by one into a folder.

    Args:
        prompts: where the walk comes by, at equal distances; a single one if the seeds differ, or for a circle.
        frames: how many images there are in all, the first and the last prompt among them. (diffusers' example
            `walk` counts those from one prompt to the next.)
        loop: whether the last frame leads back to the first one, which is not repeated. With one prompt and one seed
            the walk is a circle in the plane of two noises, those of the seed and of the next one.
        generator: what generates; else `model` is opened as in `generate`, and stays loaded.
        model: "tiny", a name, a path or a KerasCV model.
        callback: as in `Generator.generate`.
        **arguments: of the request. One `seed` is the noise of all frames, several are one per prompt. What else is one
            per prompt holds from its prompt to the next. `exact` is on: each frame is generated by itself.

    Returns:
        All frames; after Ctrl-C those that are finished. `kerasdiff.replay` regenerates a frame that was saved.

    Raises:
        RequestError: nothing changes along the walk, or an argument is wrong.

    Example:
        ```python
        prompts = ["a red circle on a white background", "a blue star on a white background"]
        walk = kerasdiff.interpolate(prompts, 12, seed=3, num_steps=10)
        walk.save_animation("walk.gif", fps=6)
        ```
    """
    check_names(arguments)
    if generator is None:
        source = {"weights": "pretrained"} | dict.fromkeys(("revision", "variant", "vae", "refiner"))
        execution = {"preview_vae": None, "precision": "auto", "jit_compile": "auto", "backend": "auto"}
        make = lambda config: make_walk(config, prompts, frames, loop=loop, **arguments)  # noqa: E731
        generator, request = opened(model, source, execution, make)
    else:
        request = make_walk(generator.config, prompts, frames, loop=loop, **arguments)
    return generator.run(request, callback=callback, progress=progress)


def opened(
    model: Any, source: Mapping[str, Any], execution: Mapping[str, Any], checked: Callable[[ModelConfig], _Checked]
) -> tuple[Generator, _Checked]:
    """The generator of a model, which stays loaded until another one is asked for, and what its configuration came to.

    `source` and `execution` are arguments of `Generator`; `checked` is called before anything large is built.
    """
    named = isinstance(model, str | os.PathLike)
    key = repr((os.fspath(model) if named else id(model), *source.values(), *execution.values()))
    with _opening:
        generator = _last.get(key) if named else None
        if generator is not None and not generator.is_current():
            generator = None
        if generator is None:
            checkpoint = open_model(model, **source)
        result = checked(checkpoint.config if generator is None else generator.config)
        if generator is None:
            _last.clear()  # before the next one is loaded: two may not fit into memory
            generator = Generator(checkpoint, **execution)
        if named:
            _last[key] = generator
    return generator, result


def replay(
    path: str | os.PathLike[str],
    *,
    model: Any = None,
    revision: str | None = None,
    variant: str | None = None,
    vae: str | os.PathLike[str] | None = None,
    refiner: str | os.PathLike[str] | None = None,
    image: Any = None,
    mask: Any = None,
    controls: Any = None,
    image_prompts: Any = None,
    loras: Any = None,
    embeddings: Any = None,
    upscale: Any = None,
    progress: bool | None = None,
) -> Result:
    """Regenerates a saved image: the same pixels, on the same machine with the same versions.

    The whole batch is generated as before, because the last digits of an image depend on how many are generated at
    once; an image from a run with `exact=True` is generated alone. Each difference from the original run is one
    warning, and so is a PNG whose pixels come out differently.

    Of an image that AUTOMATIC1111, ComfyUI or InvokeAI made, what this package has as well is taken over: texts, size,
    steps, guidance, sampler, spacing and seed. One warning lists what is not.

    Args:
        path: an image that `Result.save` wrote, or one of those programs.
        model: the model to generate with instead of the one that the file names; for an image of another program it
            must be given.
        revision: of `model`, as in `Generator`.
        variant: of `model`, as in `Generator`.
        vae: the autoencoder instead of the one that the file names, or of the model's own.
        refiner: the refiner instead of the one that the file names; without it, an image of another program is not
            refined.
        image: the initial image, if there was one; files do not contain it.
        mask: the same for the mask.
        controls: the model and the image of each control that it was made with, in their order, such as
            `[kerasdiff.Control("canny.safetensors", "edges.png")]`. The model may be a folder in which it is found by
            its hash, or by its name for an image of another program; the image is the hint, or the picture that the
            hint was made of. Of an image of another program say with `hint` that it is such a picture.
        image_prompts: the same for image prompts, as `kerasdiff.ImagePrompt`.
        loras: files and folders in which the LoRAs that it was made with are found by their hashes; those on the hub
            need not be given. Those of an image of another program are found by their names as well, and their
            strengths are the image's.
        embeddings: the same for embeddings.
        upscale: the same for the upscalers of `upscale` and `hires`; a folder where there are two.

    Raises:
        RequestError: the file has no metadata, the run used arrays that files do not contain, or another image.
        ModelError: the model cannot be had.
    """
    receipt = metadata.read_any(path)
    if model is None and (revision, variant) != (None, None):
        raise RequestError("revision and variant are of a model; give model as well")
    given_loras, given_words = make_loras("loras", loras), make_embedding_files("embeddings", embeddings)
    given_upscaler = make_upscaler("upscale", upscale)
    given_upscalers = () if given_upscaler is None else (given_upscaler,)
    steering = {"controls": make_entries("controls", controls, Control)}
    steering["image_prompts"] = make_entries("image_prompts", image_prompts, ImagePrompt)
    if isinstance(receipt, ForeignSettings):
        receipt.find_adapters(given_loras, given_words)
        receipt.find_controls(path, **steering)
        if given_upscaler is not None:
            receipt.arguments["upscale"] = given_upscaler
        return _replay_foreign(path, receipt, model, revision, variant, vae, refiner, image, mask, progress)
    if "callback" in receipt.given:
        raise RequestError(f"{path} cannot be regenerated: its run was stopped by a callback")
    if receipt.given:
        raise RequestError(
            f"{path} cannot be regenerated: it was drawn with {' and '.join(receipt.given)} of its own, which are not "
            "in the file"
        )
    if "image" in (receipt.pictures or {}) and image is None:
        raise RequestError(f"{path} was made from a picture, which is not in the file; give it as image")
    if mask is not None and "mask" not in (receipt.pictures or {}):
        raise RequestError(f"{path} was made without a mask; leave mask out")
    if refiner is not None and receipt.refiner is None:
        raise RequestError(f"{path} was made without a refiner; leave refiner out")
    if model is None:
        model, revision, variant = receipt.model, receipt.revision, receipt.variant
    beside = {"vae": receipt.vae if vae is None else vae, "refiner": receipt.refiner if refiner is None else refiner}
    checkpoint = open_model(model, receipt.weights, revision=revision, variant=variant, **beside)
    # What a receipt does not have, its model did not have either.
    defaults = dataclasses.replace(checkpoint.config.defaults, spacing=None, sampler_options=(), recipe=None)
    config = dataclasses.replace(checkpoint.config, defaults=defaults)
    arguments = receipt.request.arguments()
    arguments["loras"] = by_hash.found(path, "loras", arguments["loras"], given_loras)
    arguments["embeddings"] = by_hash.found(path, "embeddings", arguments["embeddings"], given_words)
    hires = receipt.request.hires
    upscalers = {"upscale": arguments["upscale"], "hires": None if hires is None else hires.file}
    wanted = {name: file for name, file in upscalers.items() if file is not None}
    found = dict(zip(wanted, by_hash.found(path, "upscale", [*wanted.values()], given_upscalers), strict=True))
    arguments["upscale"] = found.get("upscale")
    arguments["hires"] = None if hires is None else hires.with_file(lambda _: found["hires"])
    arguments |= {
        name: control_search.found(path, name, getattr(receipt.request, name), given, receipt.pictures or ())
        for name, given in steering.items()
    }
    request = _steered(receipt, arguments, lambda given: make_request(config, **given, image=image, mask=mask))
    request = dataclasses.replace(request, towards=receipt.request.towards)
    _check_pictures(path, receipt, request)
    backend = receipt.backend if is_available(receipt.backend) else "auto"
    generator = Generator(checkpoint, precision=receipt.precision, jit_compile=receipt.jit_compile, backend=backend)
    now = generator.origin.receipt(request, receipt.index, {}, receipt.nsfw)
    for line in metadata.differences(receipt, now):
        warnings.warn(f"{path}: {line}", stacklevel=2)
    index = receipt.index
    if request.exact and len(request) > 1:
        alone = generator.run(request.only([index]), progress=progress)
        result = dataclasses.replace(alone, request=request, places=(index,))
    else:
        result = generator.run(request, progress=progress).only(index)
    _compare(pathlib.Path(path).expanduser(), result[0])
    return result


def _replay_foreign(
    path: str | os.PathLike[str],
    settings: ForeignSettings,
    model: Any,
    revision: str | None,
    variant: str | None,
    vae: str | os.PathLike[str] | None,
    refiner: str | os.PathLike[str] | None,
    image: Any,
    mask: Any,
    progress: bool | None,
) -> Result:
    """Generates what the settings of another program come to here."""
    if model is None:
        named = "" if settings.model is None else f" with {validation.shown(settings.model)}"
        raise RequestError(
            f"{path} was made by {settings.program}{named}; give the file or folder of its model as model"
        )
    if settings.from_picture and image is None:
        raise RequestError(f"{path} was made from a picture, which is not in the file; give it as image")
    if image is not None and not settings.from_picture:
        raise RequestError(f"{path} was made without an initial image; leave image out")
    checkpoint = open_model(model, revision=revision, variant=variant, vae=vae, refiner=refiner)
    if refiner is not None and settings.refiner is None:
        raise RequestError(f"{path} was made without a refiner; leave refiner out")
    settings.take_refiner(refiner is not None)
    settings.take_family(checkpoint.config.family)
    if vae is not None:
        settings.left_out = [entry for entry in settings.left_out if not entry.startswith("VAE ")]
    try:
        request = make_request(checkpoint.config, **{"prompt": "", **settings.arguments}, image=image, mask=mask)
    except RequestError as error:
        raise RequestError(f"{path}: {error}") from None
    warnings.warn(f"{path} was {settings.summary}", stacklevel=3)
    return Generator(checkpoint).run(request, progress=progress)


def _steered(receipt: Receipt, arguments: dict[str, Any], make: Callable[[dict[str, Any]], Request]) -> Request:
    """The request of a receipt: what is given for a control is its hint, or else what the hint was made of."""
    controls = arguments["controls"]
    hints = [dataclasses.replace(control, hint=None) for control in controls]
    request = make({**arguments, "controls": hints})
    now, had = control_fields.digests(request, receipt.index) or {}, receipt.pictures or {}
    for number, control in enumerate(controls):
        if now.get(f"controls[{number}]") != had.get(f"controls[{number}]"):
            hints[number] = control
    if any(control.hint for control in hints):
        request = make({**arguments, "controls": hints})
    if request.controls is None:
        return request
    named = [dataclasses.replace(one, hint=given.hint) for one, given in zip(request.controls, controls, strict=True)]
    return dataclasses.replace(request, controls=Controls(tuple(named)))


def _check_pictures(path: str | os.PathLike[str], receipt: Receipt, request: Request) -> None:
    had, given = receipt.pictures or {}, control_fields.digests(request, receipt.index) or {}
    for name in dict.fromkeys(("image", "mask", *had, *given)):
        if had.get(name) != given.get(name):
            was = "another one" if name in had and name in given else "one" if name in had else "none"
            raise RequestError(f"{path} was made with {was} for {name}")


def _compare(path: pathlib.Path, image: np.ndarray) -> None:
    with Image.open(path) as picture:
        if picture.format != "PNG":  # the others lose digits
            return
        before = np.asarray(picture.convert("RGB")).astype(int)
    if before.shape != image.shape:
        warnings.warn(f"{path} was given another size after it was drawn", stacklevel=3)
    elif np.any(before != image):
        different = np.abs(before - image)
        warnings.warn(
            f"{path}: {np.count_nonzero(different.max(axis=-1))} pixels differ, by up to {different.max()} grey levels",
            stacklevel=3,
        )
