"""Which adapters a request uses, and how strongly; nothing is opened here."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kerasdiff import validation
from kerasdiff.errors import RequestError

# Far beyond any use.
_MOST_SCALE = 100.0
_MOST_FILES = 100
_MOST_ENLARGED = 16
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_FILE = re.compile(r".*\.(safetensors|pt|pth|ckpt|bin|png)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Lora:
    """A LoRA, or one of its family, in a request.

    Attributes:
        file: a file or folder, or "org/name" or "org/name/file.safetensors" on the Hugging Face hub.
        scale: what its changes to the U-Net are multiplied by; 0 is none.
        text_scale: the same for the text encoder.
        sha256: of the file, 64 hex digits; None before it is opened.
        short_hash: of what follows the file's header, the 12 hex digits that AUTOMATIC1111's interface shows; the same.
    """

    file: str
    scale: float = 1.0
    text_scale: float = 1.0
    sha256: str | None = None
    short_hash: str | None = None


@dataclasses.dataclass(frozen=True)
class EmbeddingFile:
    """An embedding (textual inversion) in a request.

    Attributes:
        file: a file, or a folder of them before it is opened.
        trigger: the word in a prompt that it stands for; None is the one in the file, or else the file's name.
        sha256: of the file, 64 hex digits; None before it is opened.
    """

    file: str
    trigger: str | None = None
    sha256: str | None = None


@dataclasses.dataclass(frozen=True)
class UpscalerFile:
    """An upscaler of ESRGAN's kind in a request.

    Attributes:
        file: a file, or "org/name" or "org/name/file.pth" on the Hugging Face hub.
        scale: how many times larger images become; None is as large as the upscaler makes them.
        sha256: of the file, 64 hex digits; None before it is opened.
    """

    file: str
    scale: float | None = None
    sha256: str | None = None


def make_loras(name: str, value: Any) -> tuple[Lora, ...]:
    """A path, or a list of paths, (path, scale) and (path, scale, text_scale), as values."""
    return tuple(_lora(f"{name}[{index}]", entry) for index, entry in enumerate(_entries(name, value, Lora)))


def make_embedding_files(name: str, value: Any) -> tuple[EmbeddingFile, ...]:
    """A path, or a list of paths and (path, trigger), as values."""
    entries = _entries(name, value, EmbeddingFile)
    return tuple(_embedding(f"{name}[{index}]", entry) for index, entry in enumerate(entries))


def make_upscaler(name: str, value: Any) -> UpscalerFile | None:
    """A path, or (path, scale), as a value."""
    if value is None or isinstance(value, UpscalerFile):
        return value
    parts = _parts(name, value)
    if not 1 <= len(parts) <= 2 or not isinstance(parts[0], str | os.PathLike):
        raise RequestError(f"{name} must be the path of an upscaler or (path, scale), not {validation.kind(value)}")
    scale = validation.real(f"{name}'s scale", parts[1], 1, _MOST_ENLARGED) if len(parts) == 2 else None
    return UpscalerFile(validation.path(name, parts[0]), scale)


def split_upscaler(text: str) -> tuple[Any, ...]:
    """FILE or FILE:scale as a value of `upscale`."""
    file, colon, last = text.rpartition(":")
    return (file, float(last)) if file and colon and _NUMBER.fullmatch(last.strip()) else (text,)


def split_lora(text: str) -> tuple[Any, ...]:
    """FILE, FILE:scale or FILE:scale:text_scale as an entry of `loras`."""
    file = text
    numbers: list[float] = []
    while len(numbers) < 2:
        before, colon, last = file.rpartition(":")
        if not colon or not before or not _NUMBER.fullmatch(last.strip()):
            break
        file, numbers = before, [float(last), *numbers]
    return (file, *numbers)


def split_embedding(text: str) -> tuple[str, ...]:
    """FILE or FILE:trigger as an entry of `embeddings`."""
    file, colon, trigger = text.rpartition(":")
    # A drive's letter is no file, and the end of a file's name no trigger.
    whole = not colon or len(file) < 2 or trigger.startswith(("/", "\\")) or _FILE.fullmatch(trigger)
    return (text,) if whole else (file, trigger)


def strength(name: str, value: Any) -> float:
    """What a LoRA is multiplied by; RequestError if it is no number, or one far beyond any use."""
    return validation.real(name, value, -_MOST_SCALE, _MOST_SCALE)


def loras_of_column(name: str, value: Any) -> tuple[Lora, ...]:
    """A cell of a table, such as "a.safetensors:0.8, b.safetensors", or what JSON has in its place, as values."""
    return make_loras(name, _of_column(name, value, split_lora, {"file": None, "scale": 1.0, "text_scale": None}))


def embeddings_of_column(name: str, value: Any) -> tuple[EmbeddingFile, ...]:
    """The same of embeddings."""
    return make_embedding_files(name, _of_column(name, value, split_embedding, {"file": None, "trigger": None}))


def upscaler_of_column(name: str, value: Any) -> UpscalerFile | None:
    """A cell such as "a.pth:2", or what JSON has in its place, as a value."""
    if isinstance(value, str):
        value = split_upscaler(value)
    if isinstance(value, Mapping):
        if not isinstance(value.get("file"), str) or value.keys() - {"file", "scale"}:
            raise RequestError(f"{name} must be an object with file and scale")
        value = [value["file"], *([] if value.get("scale") is None else [value["scale"]])]
    return make_upscaler(name, value)


def _of_column(name: str, value: Any, split: Callable[[str], Any], fields: Mapping[str, Any]) -> Any:
    if isinstance(value, str):
        value = [part for part in map(str.strip, value.split(",")) if part]
    if not isinstance(value, list | tuple):
        return value
    entries = []
    for index, entry in enumerate(value):
        if isinstance(entry, Mapping):
            if not isinstance(entry.get("file"), str) or entry.keys() - fields:
                raise RequestError(f"{name}[{index}] must be an object with {', '.join(fields)}")
            parts = [default if entry.get(field) is None else entry[field] for field, default in fields.items()]
            entry = [part for part in parts if part is not None]
        entries.append(split(entry) if isinstance(entry, str) else entry)
    return entries


def _entries(name: str, value: Any, kind: type) -> Sequence[Any]:
    if value is None:
        return ()
    if isinstance(value, str | os.PathLike | kind):
        return (value,)
    if not isinstance(value, list | tuple):
        raise RequestError(f"{name} must be a path or a list of paths, not {validation.kind(value)}")
    with validation.reading(name):
        entries = list(value)
    if len(entries) > _MOST_FILES:
        raise RequestError(f"{name} has {len(entries)} entries; it may have at most {_MOST_FILES}")
    return entries


def _parts(name: str, entry: Any) -> list[Any]:
    """A path and what goes with it."""
    with validation.reading(name):
        return list(entry) if isinstance(entry, list | tuple) else [entry]


def _lora(name: str, entry: Any) -> Lora:
    if isinstance(entry, Lora):
        for value in (entry.scale, entry.text_scale):
            strength(name, value)
        return entry
    parts = _parts(name, entry)
    if not 1 <= len(parts) <= 3:
        raise RequestError(f"{name} must be a path, (path, scale) or (path, scale, text_scale)")
    if not isinstance(parts[0], str | os.PathLike):
        raise RequestError(
            f"{name} must be a path, not {validation.kind(parts[0])}; a file and its scale are [(path, scale)]"
        )
    file = validation.path(name, parts[0])
    scales = [strength(name, scale) for scale in parts[1:]] or [1.0]
    return Lora(file, scales[0], scales[-1])


def _embedding(name: str, entry: Any) -> EmbeddingFile:
    if isinstance(entry, EmbeddingFile):
        return entry
    parts = _parts(name, entry)
    if not 1 <= len(parts) <= 2:
        raise RequestError(f"{name} must be a path or (path, trigger)")
    trigger = validation.text(name, parts[1]).strip() if len(parts) == 2 else None
    if trigger == "":
        raise RequestError(f"{name} has an empty trigger")
    return EmbeddingFile(validation.path(name, parts[0]), trigger)
