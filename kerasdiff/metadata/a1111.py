"""The text that AUTOMATIC1111's interface embeds in its images, and that galleries read."""

import json
import pathlib
import re
from typing import Any

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
# Characters that neither a text chunk nor UTF-16 can hold; the JSON next to it is exact.
_UNFIT = re.compile("[\0\ud800-\udfff]")


def parameters_text(receipt: Receipt) -> str:
    """A receipt's one image in AUTOMATIC1111's format: prompt, negative prompt, and a line of settings.

    As described at https://github.com/AUTOMATIC1111/stable-diffusion-webui/wiki/Features#png-info. Guidance with a
    weight per step is given by its first one; NUL and halves of surrogate pairs become U+FFFD.
    """
    request, index = receipt.request, receipt.index
    lines = [request.prompts[index]]
    if request.negative_prompts[index]:
        lines.append(f"Negative prompt: {request.negative_prompts[index]}")
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
        "Seed": request.seeds[index],
        "Size": f"{request.width}x{request.height}",
        "Model hash": None if receipt.model_hash is None else receipt.model_hash[:10],
        "Model": pathlib.PurePath(receipt.model).name.removesuffix(".safetensors") or None,
        "Denoising strength": None if request.strengths is None else _plain(request.strengths[index]),
        "Token merging ratio": request.token_merging_ratio or None,
        "Version": f"kerasdiff {receipt.version}",
    }


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
    return json.dumps(value, ensure_ascii=False) if re.search("[,:\n]", value) else value
