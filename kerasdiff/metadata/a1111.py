"""The text that AUTOMATIC1111's interface embeds in its images, and that galleries read."""

import json
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

from kerasdiff.adapter_files import Lora, UpscalerFile
from kerasdiff.metadata import prompt_texts
from kerasdiff.metadata.control_fields import acting
from kerasdiff.metadata.receipt import Receipt
from kerasdiff.request import Request
from kerasdiff.samplers import SAMPLERS

# Our names -> that interface's; it does not have the others.
SAMPLER_NAMES = {
    "ddim": "DDIM",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "euler": "Euler",
    "euler_a": "Euler a",
    "heun": "Heun",
    "kdpm2": "DPM2",
    "kdpm2_a": "DPM2 a",
    "lcm": "LCM",
    "lms": "LMS",
    "pndm": "PLMS",
    "unipc": "UniPC",
}
# "Uniform" there is linspace: evenly in the timestep.
SCHEDULE_TYPES = {"beta": "Beta", "exponential": "Exponential", "karras": "Karras", "linspace": "Uniform"}
# Ours: what a Stable Diffusion XL reads of sizes, as width x height or left x top, if it is not the picture's own.
SIZE_FIELDS = {
    f"{'negative_' if negative else ''}{name}": f"Negative {field}" if negative else field.capitalize()
    for negative in (False, True)
    for name, field in (("original_size", "original size"), ("crop", "crop"), ("target_size", "target size"))
}
# Of the ControlNet extension for that interface: what makes hints as ours are made, and its words for how.
_MODULES: dict[str | None, tuple[str, dict[str, Any]]] = {
    "canny": ("canny", {"Threshold A": 100, "Threshold B": 200}),
    "invert": ("invert (from white bg & black line)", {}),
}
_RESIZE_MODES = {"stretch": "Just Resize", **dict.fromkeys(("cover", "fit", None), "Crop and Resize")}
_CONTROL_MODES = {
    "balanced": "Balanced",
    "prompt": "My prompt is more important",
    "control": "ControlNet is more important",
}
# Characters that neither a text chunk nor UTF-16 can hold; the JSON next to it is exact.
_UNFIT = re.compile("[\0\ud800-\udfff]")


def parameters_text(receipt: Receipt) -> str:
    r"""A receipt's one image in AUTOMATIC1111's format: prompt, negative prompt, and a line of settings.

    As described at https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features#png-info. Guidance with a
    weight per step is given by its first one; NUL and halves of surrogate pairs become U+FFFD. Brackets and the like
    that are plain text here are written so that they are there, too: \(, \[, "and", "break", "< lora:". LoRAs are
    tags behind the prompt. Texts in compel's syntax are as they are, with a setting that says so.
    """
    request, index = receipt.request, receipt.index
    prompt = _as_there(request, request.prompts[index], False)
    negative = _as_there(request, request.negative_prompts[index] or "", True)
    lines = [_with_tags(prompt, request)]
    if negative:
        lines.append(f"Negative prompt: {negative}")
    settings = _settings(receipt).items()
    lines.append(", ".join(f"{name}: {_quoted(str(value))}" for name, value in settings if value is not None))
    return _UNFIT.sub("\ufffd", "\n".join(lines).strip())


def _settings(receipt: Receipt) -> dict[str, Any]:
    request, index = receipt.request, receipt.index
    scale = request.guidance_scale.of_image(index)
    return {
        "Steps": request.num_steps,
        "Sampler": SAMPLER_NAMES.get(request.sampler, request.sampler),
        "Schedule type": _schedule_type(request),
        "CFG scale": _plain(next(iter(scale), None) if isinstance(scale, list) else scale),
        "Image CFG scale": _plain(request.image_guidance_scale),
        "Seed": request.seeds[index],
        "Size": f"{request.width}x{request.height}",
        "Model hash": None if receipt.model_hash is None else receipt.model_hash[:10],
        "Model": _model_name(receipt.model),
        "VAE hash": None if receipt.vae_hash is None else receipt.vae_hash[:10],
        "VAE": None if receipt.vae is None else pathlib.PurePath(receipt.vae).name or None,
        "Denoising strength": None if request.strengths is None else _plain(request.strengths[index]),
        "Tiling": True if request.tile == "xy" else None,
        "Token merging ratio": request.token_merging_ratio or None,
        "Clip skip": request.clip_skip + 1 if request.clip_skip else None,
        "Emphasis": "No norm" if (request.prompt_syntax, request.emphasis) == ("a1111", "no_norm") else None,
        "Prompt syntax": "compel" if request.prompt_syntax == "compel" else None,
        **{field: _size(getattr(request, name)) for name, field in SIZE_FIELDS.items()},
        **_refiner_fields(receipt),
        **_hires_fields(request),
        **_control_fields(receipt),
        "Lora hashes": _hashes((_name(lora.file), lora.short_hash) for lora in request.loras),
        "TI hashes": _hashes(_used_embeddings(request, index)),
        **({} if request.upscale is None else upscaler_settings(request.upscale)),
        "Version": f"kerasdiff {receipt.version}",
    }


def _size(pair: tuple[int, int] | None) -> str | None:
    return None if pair is None else f"{pair[1]}x{pair[0]}"


def _model_name(model: str) -> str | None:
    return re.sub(r"\.(safetensors|ckpt)$", "", pathlib.PurePath(model).name) or None


def _refiner_fields(receipt: Receipt) -> dict[str, Any]:
    """The second model; that interface has no name for the strength of one that begins anew."""
    end, strength = receipt.request.denoising_end, receipt.request.refiner_strength
    if receipt.refiner is None or not (end if strength is None else strength):
        return {}
    digest = "" if receipt.refiner_hash is None else f" [{receipt.refiner_hash[:10]}]"
    how = {"Refiner switch at": end, "Refiner strength": strength}
    named = {"Refiner": f"{_model_name(receipt.refiner)}{digest}"}
    return named | {name: _plain(share) for name, share in how.items() if share is not None}


def _hires_fields(request: Request) -> dict[str, Any]:
    """The second pass; of what is as in the first one that interface says nothing."""
    hires = request.hires
    if hires is None:
        return {}
    fields: dict[str, Any] = {"Denoising strength": _plain(hires.strength)}
    if hires.sampler not in (None, request.sampler):
        fields["Hires sampler"] = SAMPLER_NAMES.get(hires.sampler, hires.sampler)
    if hires.spacing not in (None, request.spacing):
        fields["Hires schedule type"] = SCHEDULE_TYPES.get(hires.spacing, hires.spacing)
    if hires.guidance_scale is not None:
        fields["Hires CFG Scale"] = _plain(hires.guidance_scale)
    if hires.prompt:
        fields["Hires prompt"] = _with_tags(_as_there(request, hires.prompt, False), request)
    if hires.negative_prompt:
        fields["Hires negative prompt"] = _as_there(request, hires.negative_prompt, True)
    if hires.scale is None:
        fields["Hires resize"] = f"{hires.width or 0}x{hires.height or 0}"
    else:
        fields["Hires upscale"] = _plain(hires.scale)
    upscaler = hires.upscaler
    name = upscaler.capitalize() if isinstance(upscaler, str) else prompt_texts.stem(upscaler.file.rstrip("/"))
    return fields | {"Hires steps": hires.steps, "Hires upscaler": name}


def _control_fields(receipt: Receipt) -> dict[str, Any]:
    """Controls, then image prompts, as the ControlNet extension for that interface writes its units."""
    request, units = receipt.request, []
    for control in acting(request, "controls"):
        module, more = _MODULES.get(control.hint, ("none", {}))
        units.append(_unit(receipt, control, module, _RESIZE_MODES[request.resize], more))
        units[-1]["Control Mode"] = _CONTROL_MODES[control.mode]
    for prompt in acting(request, "image_prompts"):
        units.append(_unit(receipt, prompt, "ip-adapter-auto", "Crop and Resize", {}) | {"Control Mode": "Balanced"})
    return {
        f"ControlNet {number}": ", ".join(f"{name}: {value}" for name, value in unit.items())
        for number, unit in enumerate(units)
    }


def _unit(receipt: Receipt, entry: Any, module: str, resize: str, more: dict[str, Any]) -> dict[str, Any]:
    from kerasdiff.adapters.control_search import short_hash  # where something steers an image

    digest = short_hash(entry.model)  # of a folder there is none
    model = re.sub("[,:]", "_", prompt_texts.stem(entry.model.rstrip("/")))
    return {
        "Module": module,
        "Model": model if digest is None else f"{model} [{digest}]",
        "Weight": _plain(entry.scale[receipt.index]),
        "Resize Mode": resize,
        **more,
        "Guidance Start": _plain(entry.start),
        "Guidance End": _plain(entry.end),
        "Pixel Perfect": True,
    }


def _as_there(request: Request, text: str, negative: bool) -> str:
    """A text with the same meaning in that interface."""
    return prompt_texts.literal(text, negative) if request.prompt_syntax == "plain" else text


def _with_tags(prompt: str, request: Request) -> str:
    return " ".join([prompt, *map(_tag, request.loras)])


def upscaler_settings(upscaler: UpscalerFile) -> dict[str, Any]:
    """What that interface writes of an upscaler that images went through, without a scale if that is the file's own."""
    return {
        "Postprocess upscale by": _plain(upscaler.scale),
        "Postprocess upscaler": prompt_texts.stem(upscaler.file.rstrip("/")),
    }


def _tag(lora: Lora) -> str:
    scales = [lora.scale] if lora.scale == lora.text_scale else [lora.text_scale, lora.scale]
    return f"<lora:{':'.join([_name(lora.file), *(str(_plain(scale)) for scale in scales)])}>"


def _name(file: str) -> str:
    """What that interface calls a file, without what would end a tag."""
    return re.sub("[:<>,]", "_", prompt_texts.stem(file.rstrip("/")))


def _used_embeddings(request: Request, index: int) -> Iterator[tuple[str, str | None]]:
    own = ("", "") if request.hires is None else (request.hires.prompt or "", request.hires.negative_prompt or "")
    texts = "\n".join((request.prompts[index], request.negative_prompts[index] or "", *own)).casefold()
    for embedding in request.embeddings:
        name = embedding.trigger or prompt_texts.stem(embedding.file)
        if name.casefold() in texts:
            yield re.sub("[:,]", "_", name), embedding.sha256


def _hashes(files: Iterable[tuple[str, str | None]]) -> str | None:
    return ", ".join(f"{name}: {digest[:12]}" for name, digest in files if digest is not None) or None


def _schedule_type(request: Request) -> str | None:
    if request.timesteps is not None or request.sigmas is not None:
        return None
    spacing = request.spacing
    if spacing is None and request.sampler in SAMPLERS:
        spacing = SAMPLERS[request.sampler].spacing
    return None if spacing is None else SCHEDULE_TYPES.get(spacing, spacing)


def _plain(number: float | None) -> str | None:
    """7, not 7.0; None if a file from elsewhere has no number at all."""
    return None if number is None else str(number).removesuffix(".0")


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search('[,:\n]|^"', value) else value
