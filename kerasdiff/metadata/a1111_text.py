"""Reads the text that AUTOMATIC1111's interface, and those that came from it, embed in their images."""

import dataclasses
import json
import re
from collections.abc import Mapping

from kerasdiff import notices
from kerasdiff.adapter_files import EmbeddingFile
from kerasdiff.errors import RequestError
from kerasdiff.hires import UPSCALERS
from kerasdiff.metadata import foreign, prompt_texts
from kerasdiff.metadata.a1111 import SIZE_FIELDS
from kerasdiff.metadata.foreign import ForeignSettings
from kerasdiff.metadata.receipt import LARGEST
from kerasdiff.prompts.lora_tags import named_in_prompts

_NEGATIVE = re.compile(r"^Negative prompt:", re.MULTILINE)
_SETTINGS = re.compile(r"^Steps: *[^,\n]*,", re.MULTILINE)
_FIELD = re.compile(r"\s*([^:,\"\n]{1,60}):\s*(\"(?:[^\"\\]|\\.)*\"|[^,\n]*)(?:,|\n|$)")
# What that interface takes where it says "Automatic", or nothing: its other samplers go evenly in the timestep.
_AUTOMATIC = {
    "dpm++ 2m": "karras",
    "dpm++ 2s a": "karras",
    "dpm++ sde": "karras",
    "dpm2": "karras",
    "dpm2 a": "karras",
    "dpm++ 2m sde": "exponential",
    "dpm++ 3m sde": "exponential",
    **dict.fromkeys(("euler", "euler a", "heun", "lms"), "linspace"),
}
_SPACINGS = {
    "uniform": "linspace",
    "sgm uniform": "trailing",
    "simple": "trailing",
    "ddim": "leading",
    "normal": "linspace",
}
# Names of spacings that lead nearly, not exactly, to the same levels.
_NEARLY = ("sgm uniform", "simple", "ddim")
# Samplers there that leave out the first step of a run that starts from an image.
_TIMESTEPS = ("ddim", "plms", "unipc")
# Of a second pass, whichever of them a program writes.
_HIRES = ("Hires upscale", "Hires resize", "Hires steps", "Hires upscaler")
_OF_HIRES = {*_HIRES, "Hires prompt", "Hires negative prompt", "Hires sampler", "Hires schedule type"}
_OF_HIRES |= {"Hires CFG Scale", "Hires CFG scale", "Denoising strength"}
# Said elsewhere, or without a meaning for the image.
_SILENT = {"Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Model", "Version", "RNG", "Model hash"}
_SILENT |= {"Token merging ratio", "Clip skip", "Emphasis", "Prompt syntax", "Lora hashes", "TI hashes"}
_SILENT |= {*SIZE_FIELDS.values()}
_SILENT |= {"Image CFG scale", "Refiner", "Refiner switch at", "Refiner strength"}
# Of a unit of the ControlNet extension, 0 to 9 and more; older versions have other names for some of its parts.
_CONTROL = re.compile(r"controlnet \d{1,2}", re.IGNORECASE)
_PART = re.compile(r"\s*([^:,]{1,40}):((?:[^,(]++|\([^()]*+\))*+)(?:,|$)")
_LONGEST_UNIT = 4000
_CALLED = (("module", "preprocessor"), ("model", "model"))
# Its words, its names for them in programs, and its numbers -> ours.
CONTROL_MODES = {
    **dict.fromkeys(("balanced", "0"), "balanced"),
    **dict.fromkeys(("my prompt is more important", "prompt", "1"), "prompt"),
    **dict.fromkeys(("controlnet is more important", "control", "2"), "control"),
}
_RESIZES = {
    **dict.fromkeys(("just resize", "resize", "0"), "stretch"),
    **dict.fromkeys(("crop and resize", "inner fit", "scale to fit (inner fit)", "1"), "cover"),
}
# Tags of other kinds than LoRAs.
_TAG = re.compile(r"<(\w+):([^<>]+)>")
_NEUTRAL = {("Tiling", "True"), ("Tiling", "False"), ("ENSD", "0"), ("Eta", "1.0"), ("Eta", "1")}


def read(texts: Mapping[str, str]) -> ForeignSettings | None:
    """The settings in a file's texts; None if they are not of this kind."""
    found = texts.get("parameters", "")
    lines = list(_SETTINGS.finditer(found[:LARGEST]))
    if not lines:
        return None
    if len(found) > LARGEST:
        raise RequestError(f"the parameters text is too long: {len(found)} characters, {LARGEST} at most")
    begin = lines[-1].start()  # a prompt may look like settings, but the settings come last
    fields = {name.strip(): _plain(value) for name, value in _FIELD.findall(found[begin:])}
    version = fields.get("Version", "")
    ours = version.startswith("kerasdiff")
    settings = ForeignSettings(version if ours else f"AUTOMATIC1111 {version}".strip())
    prompt, negative, *_ = *_NEGATIVE.split(found[:begin], maxsplit=1), ""
    settings.arguments |= {"prompt": prompt.strip(), "negative_prompt": negative.strip()}
    if ours:
        settings.arguments["rng"] = "philox"
        settings.noise = "its own metadata is not in the file any more"
    elif fields.get("RNG") == "CPU":
        settings.noise = foreign.CPU_NOISE
    _take(settings, fields)
    if not settings.arguments["negative_prompt"]:  # which is zeros there, if the model was trained with them
        del settings.arguments["negative_prompt"]
    if ours:  # that interface leaves out layers of other models only
        settings.sdxl_clip_skip = settings.arguments.get("clip_skip", 0)
    return settings


def _take(settings: ForeignSettings, fields: Mapping[str, str]) -> None:
    settings.take("num_steps", fields.get("Steps"), foreign.steps, "steps")
    settings.take("guidance_scale", fields.get("CFG scale"), foreign.number, "CFG scale")
    edited = fields.get("Image CFG scale")
    settings.take("image_guidance_scale", edited, foreign.number, "Image CFG scale")
    settings.take("seed", fields.get("Seed"), foreign.seed, "seed")
    ratio = fields.get("Token merging ratio")
    settings.take("token_merging_ratio", ratio, foreign.merging_ratio, "token merging ratio")
    if fields.get("Tiling") == "True":
        settings.arguments["tile"] = "xy"
    tags = set(_TAG.findall(settings.arguments["prompt"]))
    _take_texts(settings, fields)
    width, _, height = fields.get("Size", "").partition("x")
    settings.take_size(width or None, height or None)
    sizes = {name: fields[field].split("x")[::-1] for name, field in SIZE_FIELDS.items() if field in fields}
    negative = {name.removeprefix("negative_"): pair for name, pair in sizes.items() if name.startswith("negative_")}
    settings.take_sizes(sizes, {**sizes, **negative})
    sampler, spacing = fields.get("Sampler"), fields.get("Schedule type")
    _take_sampler(settings, sampler, spacing)
    settings.model = fields.get("Model")
    if "Model hash" in fields:
        settings.leave_out("model hash", fields["Model hash"])
    silent = _SILENT | _take_controls(settings, fields)
    settings.refiner = fields.get("Refiner")
    if settings.refiner is not None:
        settings.take("denoising_end", fields.get("Refiner switch at"), foreign.share, "Refiner switch at")
        settings.take("refiner_strength", fields.get("Refiner strength"), foreign.share, "Refiner strength")
    strength = fields.get("Denoising strength")
    if any(name in fields for name in _HIRES):
        silent |= _OF_HIRES
        _take_hires(settings, fields, tags)
    elif edited is not None:  # in all steps, which a strength has no part in here
        settings.from_picture = True
    elif strength is not None:
        silent.add("Denoising strength")
        settings.from_picture = True
        _take_strength(settings, strength, (sampler or "").lower() in _TIMESTEPS)
    for name, value in fields.items():
        if name not in silent and (name, value) not in _NEUTRAL:
            settings.leave_out(name, value)


def _take_sampler(settings: ForeignSettings, sampler: str | None, spacing: str | None) -> None:
    if sampler is None:
        return
    kind = (spacing or "").lower()
    if kind in _NEARLY:
        settings.leave_out(f"schedule type {spacing}, of which {_SPACINGS[kind]} is the nearest")
    if kind in ("", "automatic"):
        spacing = _AUTOMATIC.get(sampler.lower()) if kind or " karras" not in sampler.lower() else None
    settings.take_sampler(sampler, _SPACINGS.get(kind, spacing.lower() if spacing else None))


def _take_hires(settings: ForeignSettings, fields: Mapping[str, str], tags: set[tuple[str, str]]) -> None:
    """The second pass at a larger size; `tags` are those of the first one's prompt, which hold for both here."""
    found = ForeignSettings(settings.program, left_out=settings.left_out)
    found.arguments.clear()
    width, _, height = fields.get("Hires resize", "").partition("x")
    sides = {name: int(side) for name, side in (("width", width), ("height", height)) if foreign.side(side) is not None}
    if sides:
        found.arguments |= sides
    else:
        found.take("scale", fields.get("Hires upscale"), foreign.enlargement, "Hires upscale")
    found.take("strength", fields.get("Denoising strength"), foreign.share, "Denoising strength")
    if fields.get("Hires steps") != "0":
        found.take("steps", fields.get("Hires steps"), foreign.steps, "Hires steps")
    _take_upscaler(found, fields.get("Hires upscaler", "Latent"))
    for name, field in (("prompt", "Hires prompt"), ("negative_prompt", "Hires negative prompt")):
        if field in fields:
            found.arguments[name] = _TAG.sub("", fields[field]).strip()
    if "Hires prompt" in fields:
        for kind, tag in sorted(tags ^ set(_TAG.findall(fields["Hires prompt"]))):
            found.leave_out(f"Hires {kind}", tag)
    scale = fields.get("Hires CFG Scale", fields.get("Hires CFG scale"))
    found.take("guidance_scale", scale, foreign.number, "Hires CFG Scale")
    sampler, spacing = fields.get("Hires sampler"), fields.get("Hires schedule type")
    if sampler is not None or spacing is not None:
        known = [*found.left_out]
        _take_sampler(found, sampler or fields.get("Sampler"), spacing or fields.get("Schedule type"))
        found.left_out[len(known) :] = [f"Hires {one}" for one in found.left_out[len(known) :] if one not in known]
    sampler = sampler or fields.get("Sampler") or ""
    if sampler.lower() in _TIMESTEPS:
        found.leave_out(f"the first step of the second pass, which {sampler} leaves out there")
    settings.arguments["hires"] = found.arguments


def _take_controls(settings: ForeignSettings, fields: Mapping[str, str]) -> set[str]:
    """What the ControlNet extension did; returns the fields that say it."""
    taken = {name for name in fields if _CONTROL.fullmatch(name)}
    for name in sorted(taken):
        if len(fields[name]) > _LONGEST_UNIT:
            settings.leave_out(name, fields[name])
            continue
        unit = {key.strip().lower().replace("_", " "): value.strip() for key, value in _PART.findall(fields[name])}
        module, model = (unit.get(one, unit.get(other, "None")) for one, other in _CALLED)
        start, _, end = unit.get("starting/ending", "").strip("()").partition(",")
        ends = unit.get("guidance start", start.strip() or 0), unit.get("guidance end", end.strip() or 1)
        mode = CONTROL_MODES.get(_word(unit.get("control mode", "Balanced")))
        resize = _word(unit.get("resize mode", "Crop and Resize"))
        if model.lower() == "none":
            if module.lower() != "none":
                settings.leave_out(f"{name} ({module}), which has no model")
            continue
        picture = "ip-adapter" in f"{module} {model}".lower()
        if not settings.take_control(model, picture, unit.get("weight", 1), ends, mode, name) or picture:
            continue
        settings.resize = settings.resize or _RESIZES.get(resize, "cover")
        if resize not in _RESIZES:
            settings.leave_out(f"{name} Resize Mode", unit.get("resize mode"))
        passes = _word(unit.get("hr option", "Both"))
        if passes != "both" and any(hires in fields for hires in _HIRES):
            settings.leave_out(f"{name} Hr Option", passes)
    return taken


def _word(value: str) -> str:
    """A choice, which some versions write as "ControlMode.BALANCED"."""
    return value.rpartition(".")[2].replace("_", " ").strip().lower()


def _take_upscaler(settings: ForeignSettings, upscaler: str) -> None:
    known = {"none": "lanczos"} | dict(zip(UPSCALERS, UPSCALERS, strict=True))
    name = known.get(upscaler.lower())
    if name is None:
        settings.leave_out(f"Hires upscaler {upscaler}, for which lanczos is taken")
    settings.arguments["upscaler"] = name or "lanczos"


def _take_texts(settings: ForeignSettings, fields: Mapping[str, str]) -> None:
    """What prompts mean: their syntax, the LoRAs and embeddings that they name, and the layer of the text encoder."""
    texts = settings.arguments
    hashes = _hashes(fields.get("Lora hashes", ""))
    try:
        with notices.suppressed():
            (texts["prompt"],), named = named_in_prompts([texts["prompt"]], None)
    except RequestError as error:
        settings.leave_out(str(error))
        named = ()
    for kind, tag in _TAG.findall(texts["prompt"]):
        settings.leave_out(kind, tag)
    texts["prompt"] = _TAG.sub("", texts["prompt"]).strip()
    settings.loras = [dataclasses.replace(lora, short_hash=hashes.pop(lora.file, None)) for lora in named]
    if hashes:
        settings.leave_out("Lora hashes", ", ".join(": ".join(pair) for pair in hashes.items()))
    words = _hashes(fields.get("TI hashes", ""))
    settings.embeddings = [EmbeddingFile(name, name, digest) for name, digest in words.items()]
    syntax, emphasis = fields.get("Prompt syntax", "a1111"), fields.get("Emphasis", "Original")
    if emphasis not in ("Original", "No norm", "None"):
        settings.leave_out("Emphasis", emphasis)
    own = (fields.get("Hires prompt", ""), fields.get("Hires negative prompt", ""))
    is_read = [prompt_texts.is_a1111(_TAG.sub("", text)) for text in (texts["prompt"], texts["negative_prompt"], *own)]
    if syntax == "compel" or (emphasis != "None" and any(is_read)):
        more = {"emphasis": "no_norm"} if emphasis == "No norm" else {}
        settings.take_syntax(prompt_syntax="compel" if syntax == "compel" else "a1111", **more)
    layer = fields.get("Clip skip", "1")
    if layer != "1":
        skipped = foreign.clip_skip(layer)
        settings.take("clip_skip", skipped - 1 if skipped else layer, foreign.clip_skip, "Clip skip")


def _hashes(field: str) -> dict[str, str]:
    """Names and hashes of files, as in "style: 1a2b3c, other: 4d5e6f"."""
    pairs = (entry.rpartition(":") for entry in field.split(","))
    return {name.strip(): digest.strip() for name, colon, digest in pairs if colon}


def _take_strength(settings: ForeignSettings, strength: str, timesteps: bool) -> None:
    """How much is redrawn, as the steps that are done there."""
    found, steps = foreign.share(strength), settings.arguments.get("num_steps")
    if found is None or steps is None:
        settings.leave_out("denoising strength", strength)
        return
    done = int(min(found, 0.999) * steps) + (0 if timesteps else 1)
    settings.arguments["strength"] = min(1.0, (done + 1e-6) / steps)


def _plain(value: str) -> str:
    """A value without the quotes that it may have."""
    if value.startswith('"'):
        try:
            found = json.loads(value)
        except ValueError:
            return value.strip('"')
        return found if isinstance(found, str) else value
    return value.strip()
