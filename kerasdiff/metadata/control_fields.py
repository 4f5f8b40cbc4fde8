"""What a receipt says of controls and image prompts: all but their pictures, of which it has digests."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from typing import Any

from kerasdiff.controls import MODES, STEERING, Control, Controls, ImagePrompt
from kerasdiff.errors import RequestError
from kerasdiff.images.init_images import PictureSets
from kerasdiff.metadata.schema import read_fields
from kerasdiff.request import Request

_SHA256 = re.compile("[0-9a-f]{64}")


def acting(request: Request, name: str) -> tuple[Any, ...]:
    """As `Controls.acting`."""
    entries: Controls | None = getattr(request, name)
    return () if entries is None else entries.acting


def digests(request: Request, index: int) -> dict[str, str] | None:
    """SHA-256 of all pictures that one image was made from, as `Receipt.pictures` has them; None if of none."""
    found = {} if request.pictures is None else dict(request.pictures.digests(index))
    for number, control in enumerate(acting(request, "controls")):
        if control.image is not None:
            found[f"controls[{number}]"] = control.image.digests(index)["image"]
    for number, prompt in enumerate(acting(request, "image_prompts")):
        if read := prompt.image.digests[index]:
            found[f"image_prompts[{number}]"] = hashlib.sha256("\n".join(read).encode()).hexdigest()
    return found or None


def plain(request: Request, name: str) -> list[dict[str, Any]]:
    """Entries for JSON; what is as usual is left out, and so are the folders of files."""
    return [_entry(entry) for entry in acting(request, name)]


def restored(name: str, values: Any, version: str, images: int) -> Controls | None:
    """What `plain` has made, from a file that may be damaged; the entries have no pictures."""
    kind, damaged = (
        STEERING[name],
        RequestError(f"the metadata is damaged: its {name} is of a wrong kind or out of range"),
    )
    if values is None:
        return None
    if not isinstance(values, list) or not values:
        raise damaged
    entries = []
    empty = PictureSets(((),) * images) if kind is ImagePrompt else None
    optional = [field.name for field in dataclasses.fields(kind) if field.name not in ("model", "image")]
    for value in values:
        read = read_fields(kind, value, version, without=("image",), optional=optional)
        made = kind(**{"image": empty} | read)
        scales = made.scale if isinstance(made.scale, tuple) else (made.scale,) * images
        known = made.sha256 is None or _SHA256.fullmatch(made.sha256)
        numbers = all(type(scale) in (int, float) for scale in scales) and len(scales) == images
        if not (known and numbers and 0 <= made.start < made.end <= 1 and getattr(made, "mode", MODES[0]) in MODES):
            raise damaged
        entries.append(dataclasses.replace(made, scale=scales))
    return Controls(tuple(entries))


def without_pictures(request: Request) -> Request:
    """The same, as a receipt that was read has it."""
    found: dict[str, Any] = {}
    for name, empty in (("controls", None), ("image_prompts", PictureSets(((),) * len(request)))):
        entries = tuple(dataclasses.replace(entry, image=empty) for entry in acting(request, name))
        found[name] = Controls(entries) if entries else None
    return dataclasses.replace(request, pictures=None, **found)


def _entry(entry: Control | ImagePrompt) -> dict[str, Any]:
    scales = entry.scale if len(set(entry.scale)) > 1 else entry.scale[0]
    values = {"model": named(entry.model), "scale": scales}
    for field in dataclasses.fields(entry):
        value = getattr(entry, field.name)
        if field.name not in ("model", "image", "scale") and value != field.default:
            values[field.name] = named(value) if field.name == "encoder" else value
    return values


def named(place: str) -> str:
    """A file by its name, which leads nowhere, unless it is on the hub."""
    local = os.path.isabs(place) or os.path.isdir(os.path.dirname(place))
    return os.path.basename(place.rstrip("/")) if local else place
