"""How `controls` and `image_prompts` are written: in Python, on the command line, and in cells of tables."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kerasdiff import validation
from kerasdiff.controls import MODES, Control, Controls, ImagePrompt
from kerasdiff.errors import RequestError

_MOST = 16
# Far beyond any use.
_MOST_SCALE = 100.0
# What a tuple may have, in this order.
_PLACES = ("model", "image", "scale", "start", "end")
_SETTINGS = {Control: (*_PLACES, "mode", "hint"), ImagePrompt: (*_PLACES, "encoder")}
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
# A colon that neither follows a drive's letter nor is part of "hf://".
_COLON = re.compile(r"(?<!^[A-Za-z])(?<!:[A-Za-z]):(?!//)|:(?![\\/])")


def make_entries(name: str, value: Any, kind: type[Any]) -> tuple[Any, ...]:
    """What is given for an argument as checked values of a `kind`; their pictures are not read yet."""
    if value is None:
        return ()
    with validation.reading(name):
        several = isinstance(value, list | tuple | Controls)
        single = isinstance(value, kind | str | os.PathLike | Mapping)
        given = list(value) if several else [value]
    if not several and not single:
        raise RequestError(
            f"{name} must be a kerasdiff.{kind.__name__} or a list of them, not {validation.kind(value)}"
        )
    if len(given) > _MOST:
        raise RequestError(f"{name} has {len(given)} entries; it may have at most {_MOST}")
    return tuple(_checked(f"{name}[{index}]", _entry(f"{name}[{index}]", one, kind)) for index, one in enumerate(given))


def split_control(text: str) -> dict[str, Any]:
    """MODEL or MODEL:IMAGE, with :scale, :start and :end behind it, as an entry of `controls`."""
    rest, numbers = text, list[float]()
    while len(numbers) < len(_PLACES) - 2:
        before, colon, last = rest.rpartition(":")
        if not colon or not before or not _NUMBER.fullmatch(last):
            break
        rest, numbers = before, [float(last), *numbers]
    found = _COLON.search(rest)
    parts = [rest, None] if found is None else [rest[: found.start()], rest[found.end() :]]
    return dict(zip(_PLACES, [*parts, *numbers], strict=False))


def split_image_prompt(text: str) -> dict[str, Any]:
    """MODEL:IMAGE or MODEL:IMAGE,IMAGE, with the same behind it, as an entry of `image_prompts`."""
    entry = split_control(text)
    return entry | {"image": [part for part in (entry["image"] or "").split(",") if part.strip()] or None}


def entries_of_column(name: str, value: Any, kind: type[Any]) -> tuple[Any, ...]:
    """A cell such as "net:edges.png:0.8, other:depth.png", or what JSON has in its place, as checked values.

    Of image prompts a text is a single one, as a comma separates its pictures.
    """
    split: Callable[[str], Any] = split_control if kind is Control else split_image_prompt
    if isinstance(value, str):
        value = [part for part in map(str.strip, value.split(",")) if part] if kind is Control else [value]
    if isinstance(value, list | tuple):
        value = [split(entry) if isinstance(entry, str) else entry for entry in value]
    return make_entries(name, value, kind)


def with_words(controls: Sequence[Control], hints: Sequence[str], modes: Sequence[str]) -> tuple[Control, ...]:
    """Controls with a hint and a mode each, from one for all or one for each in order; the hint "none" is none."""
    for name, words in (("hint", hints), ("control_mode", modes)):
        if words and not controls:
            raise RequestError(f"{name} needs a control that it is for")
        if len(words) not in (0, 1, len(controls)):
            raise RequestError(
                f"{name} has {len(words)} entries for {len(controls)} controls; give one, or one for each in order"
            )
    changed: list[Control] = []
    for index, control in enumerate(controls):
        given = (("hint", hints), ("mode", modes))
        own: dict[str, Any] = {setting: words[index % len(words)] for setting, words in given if words}
        if own.get("hint") == "none":
            own["hint"] = None
        changed.append(dataclasses.replace(control, **own))
    return make_entries("controls", changed, Control)


def _entry(name: str, value: Any, kind: type[Any]) -> Any:
    """One entry, as it was given, as a value."""
    given: dict[str, Any]
    with validation.reading(name):
        if isinstance(value, kind):
            return value
        if isinstance(value, Mapping):
            for setting in value:
                validation.choice(f"{name} setting", setting, _SETTINGS[kind])
            given = {setting: one for setting, one in value.items() if one is not None}
        elif isinstance(value, list | tuple) and 1 <= len(value) <= len(_PLACES) and _is_path(value[0]):
            given = dict(zip(_PLACES, value, strict=False))
        elif _is_path(value):
            given = {"model": value}
        else:
            raise RequestError(
                f"{name} must be a kerasdiff.{kind.__name__} or (model, image, scale), not {validation.kind(value)}; "
                "a model and its image are [(model, image)]"
            )
    if "model" not in given:
        raise RequestError(f"{name} has no model; give a file, a folder, or 'org/name' on the Hugging Face hub")
    return kind(**{"image": None} | given)


def _is_path(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)


def _checked(name: str, entry: Any) -> Any:
    """An entry, checked as far as it does not depend on the request."""
    model = validation.path(f"{name}.model", entry.model)
    checked: dict[str, Any] = {"model": model, "scale": _scale(f"{name}.scale", entry.scale)}
    if not model.strip():
        raise RequestError(f"{name}.model is empty; give a file, a folder, or 'org/name' on the Hugging Face hub")
    start, end = (validation.real(f"{name}.{one}", getattr(entry, one), 0, 1) for one in ("start", "end"))
    if start > end:
        raise RequestError(f"{name}: start={start:g} is after end={end:g}; it acts between them")
    if entry.sha256 is not None:
        validation.text(f"{name}.sha256", entry.sha256)
    if isinstance(entry, Control):
        validation.choice(f"{name}.mode", entry.mode, MODES)
        if entry.hint is not None:
            from kerasdiff.hints import HINTS

            validation.choice(f"{name}.hint", entry.hint, HINTS)
    elif entry.image is None:
        raise RequestError(f"{name} has no image; give the picture that is read beside the prompt")
    elif entry.encoder is not None:
        checked["encoder"] = validation.path(f"{name}.encoder", entry.encoder)
    return dataclasses.replace(entry, **checked, start=start, end=end)


def _scale(name: str, value: Any) -> float | tuple[float, ...]:
    """A number, or several."""
    values = validation.unwrapped(name, value)
    if isinstance(values, list):
        return validation.reals(name, values, -_MOST_SCALE, _MOST_SCALE)
    return validation.real(name, values, -_MOST_SCALE, _MOST_SCALE)
