"""The arguments that all rows of a job share, as plain values."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kerasdiff import validation
from kerasdiff.adapter_files import EmbeddingFile, Lora, make_embedding_files, make_loras, make_upscaler
from kerasdiff.batch import row_controls
from kerasdiff.batch.file_names import absolute_path
from kerasdiff.batch.rows import PAIRS, hires_in_folder, in_folder
from kerasdiff.controls import STEERING
from kerasdiff.errors import RequestError
from kerasdiff.request_arguments import DEFAULTS
from kerasdiff.size_conditioning import pair_text
from kerasdiff.synonyms import advice

MAKE: Mapping[str, Callable[[str, Any], Sequence[Any]]] = {"loras": make_loras, "embeddings": make_embedding_files}
ADAPTERS = tuple(MAKE)


def changed_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that are not the defaults of `make_request`, as JSON has them; the seed went to the rows."""
    changed = {}
    for name, value in arguments.items():
        if name == "seed":
            continue
        if name not in DEFAULTS:
            told = advice(name, value, DEFAULTS)
            if told is not None:
                raise RequestError(told)
            validation.choice("argument", name, DEFAULTS)
        if name in ("image", "mask") and value is not None:
            value = absolute_path(os.curdir, validation.path(f"{name} of a job", value))
        if name == "lora_folder" and value is not None:
            value = os.path.abspath(validation.path(name, value))
        value = pair_text(name, value) if name in PAIRS else value
        if name == "hires":
            value = hires_in_folder(os.curdir, value)
        if name in ADAPTERS and value is not None:
            value = [_entry(each) for each in in_folder(os.curdir, MAKE[name](name, value))]
        if name == "upscale" and value is not None:
            (file,) = in_folder(os.curdir, [make_upscaler(name, value)])
            value = [file.file, *([] if file.scale is None else [file.scale])]
        if name in STEERING and value is not None:
            value = row_controls.plain(row_controls.in_place(os.curdir, row_controls.of_files(name, value))) or None
        plain = _plain(name, value)
        if plain != _plain(name, DEFAULTS[name]):
            changed[name] = plain
    for name in ("negative_prompt", "strength"):
        if isinstance(changed.get(name), list):
            raise RequestError(f"{name} of a job must be a single value; give others per row")
    scale = changed.get("guidance_scale")
    if isinstance(scale, list) and any(isinstance(value, list) for value in scale):
        raise RequestError("guidance_scale of a job must be one number, or one per step; give others per row")
    return changed


def _entry(adapter: Lora | EmbeddingFile) -> list[Any]:
    """An adapter as an entry of the argument."""
    values = (adapter.scale, adapter.text_scale) if isinstance(adapter, Lora) else (adapter.trigger,)
    return [adapter.file, *(value for value in values if value is not None)]


def _plain(name: str, value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, default=json_value))
    except (TypeError, ValueError):
        raise RequestError(f"{name} of a job must be plain numbers and strings, not {validation.kind(value)}") from None


def json_value(value: Any) -> Any:
    """For JSON: a NumPy number, or a path."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a {type(value).__name__} is not JSON")
