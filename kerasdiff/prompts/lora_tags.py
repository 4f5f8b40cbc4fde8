"""Tags in prompts that name a LoRA, as in AUTOMATIC1111's interface: <lora:name:0.8>."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from kerasdiff import notices
from kerasdiff.adapter_files import Lora, strength
from kerasdiff.errors import RequestError
from kerasdiff.validation import line

_TAG = re.compile(r"<(?:lora|lyco):([^<>]+)>", re.IGNORECASE)


def named_in_prompts(texts: Sequence[str], folder: str) -> tuple[tuple[str, ...], tuple[Lora, ...]]:
    """Prompts without their tags, and what these name in a folder.

    RequestError if the prompts do not all name the same.
    """
    found = [tuple(_lora(text, tag, folder) for tag in _TAG.findall(text)) for text in texts]
    for text, loras in zip(texts, found, strict=True):
        if loras != found[0]:
            raise RequestError(
                f"all prompts of a call must name the same LoRAs in the same strength, and {text[:60]!r} does not name "
                f"those of the first one; use one call for each"
            )
    return tuple(_without(text) for text in texts), found[0]


def _without(text: str) -> str:
    """A text without tags, and without the space that one leaves behind."""
    return re.sub(r" {2,}", " ", _TAG.sub("", text)).strip() if _TAG.search(text) else text


def _lora(text: str, tag: str, folder: str) -> Lora:
    """What a tag says: name, the text encoder's scale, and the U-Net's, which is the same if there is only one."""
    name, *values = (part.strip() for part in tag.split(":"))
    named = dict(value.split("=", 1) for value in values if "=" in value)
    scales = [value for value in values if "=" not in value]
    shown = f"<lora:{line(tag)}>"
    try:
        text_scale = float(named.pop("te", scales[0] if scales else 1))
        scale = float(named.pop("unet", scales[1] if len(scales) > 1 else text_scale))
    except ValueError:
        raise RequestError(f"{shown} in a prompt is not of the form <lora:name:0.8>") from None
    if not name:
        raise RequestError(f"{shown} in a prompt names no file")
    # Whoever writes a prompt need not be the one who chose the folder.
    if os.path.isabs(name) or ".." in re.split(r"[/\\]", name):
        raise RequestError(f"{shown} in a prompt leads out of lora_folder; give such a file in loras")
    others = [*scales[2:], *(f"{key}={value}" for key, value in named.items())]
    if others:  # a rank of one's own (dyn), and what that program's extensions read
        notices.warn(f"{shown}: {line(':'.join(others))!r} is not supported; the whole LoRA is used", stacklevel=4)
    scale, text_scale = (strength(f"{shown}: the strength", value) for value in (scale, text_scale))
    # In a folder, a path that cannot be taken for a name on the hub.
    return Lora(os.path.join(os.path.abspath(folder), name) if folder else name, scale, text_scale)
