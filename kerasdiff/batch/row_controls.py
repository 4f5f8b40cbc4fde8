"""Controls and image prompts of rows and of jobs, whose pictures are files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from kerasdiff import validation
from kerasdiff.batch.file_names import absolute_path, adapter_path
from kerasdiff.checkpoints.control_files import control_hash, find_control
from kerasdiff.control_entries import entries_of_column, make_entries, with_words
from kerasdiff.controls import STEERING, Control, ImagePrompt
from kerasdiff.errors import KerasdiffError, RequestError
from kerasdiff.images import reader

# Columns about the controls of a row.
WORDS = ("hint", "control_mode")


def of_files(name: str, value: Any) -> tuple[Any, ...]:
    """Entries with a path as the image of a control, and paths as those of an image prompt, and with one scale."""
    return tuple(
        _of_files(f"{name}[{index}]", one) for index, one in enumerate(make_entries(name, value, STEERING[name]))
    )


def _of_files(name: str, entry: Any) -> Any:
    if isinstance(entry.scale, tuple):
        raise RequestError(f"{name}.scale must be one number; other rows may have others")
    if isinstance(entry, Control):
        image = None if entry.image is None else validation.path(f"{name}.image", entry.image)
        return dataclasses.replace(entry, image=image)
    several = entry.image if isinstance(entry.image, list | tuple) else [entry.image]
    if not several:
        raise RequestError(f"{name}.image is an empty list; give at least one picture")
    return dataclasses.replace(entry, image=tuple(validation.path(f"{name}.image", one) for one in several))


def of_columns(folder: str | os.PathLike[str], row: dict[str, Any]) -> dict[str, Any]:
    """What columns of a row say of them, with absolute paths; those of `WORDS` are taken out of it."""
    words = {name: [word.strip() for word in _texts(name, row.pop(name, None))] for name in WORDS}
    found = {name: entries_of_column(name, row[name], kind) for name, kind in STEERING.items() if name in row}
    if any(words.values()):
        found["controls"] = with_words(found.get("controls", ()), *words.values())
    return {name: in_place(folder, of_files(name, entries)) for name, entries in found.items()}


def _texts(name: str, cell: Any) -> Sequence[str]:
    return cell.split(",") if isinstance(cell, str) else () if cell is None else validation.texts(name, cell)


def in_place(folder: str | os.PathLike[str], entries: Sequence[Any]) -> tuple[Any, ...]:
    """Entries whose paths are relative to a folder, with absolute ones."""
    return tuple(_in_place(folder, entry) for entry in entries)


def _in_place(folder: str | os.PathLike[str], entry: Any) -> Any:
    changed: dict[str, Any] = {"model": adapter_path(folder, entry.model)}
    if isinstance(entry, ImagePrompt):
        changed["image"] = tuple(absolute_path(folder, path) for path in entry.image)
        changed["encoder"] = None if entry.encoder is None else adapter_path(folder, entry.encoder)
    elif entry.image is not None:
        changed["image"] = absolute_path(folder, entry.image)
    return dataclasses.replace(entry, **changed)


def plain(entries: Sequence[Any]) -> list[dict[str, Any]]:
    """Entries as JSON has them."""
    return [{name: value for name, value in vars(entry).items() if value is not None} for entry in entries]


def group(entries: Sequence[Any]) -> Hashable:
    """What is equal for rows that go into one request."""
    numbers = (len(entry.image) if isinstance(entry, ImagePrompt) else entry.image is None for entry in entries)
    both = zip(entries, numbers, strict=True)
    return tuple(dataclasses.replace(entry, image=number, scale=bool(entry.scale)) for entry, number in both)


def together(rows: Sequence[Sequence[Any]], hashes: Mapping[str, str | None]) -> list[Any]:
    """The entries of some rows of a group as those of one request, with hashes of their models."""
    made = []
    for column in zip(*rows, strict=True):
        images: Any = [list(one.image) if isinstance(one, ImagePrompt) else one.image for one in column]
        if all(image == images[0] for image in images):
            images = images[0]
        scales, digest = [one.scale for one in column], hashes.get(column[0].model)
        made.append(dataclasses.replace(column[0], image=images, scale=scales, sha256=digest))
    return made


def model_hash(model: str) -> str | None:
    """That of the file or folder that is meant, if it is on this machine; its row says what is wrong."""
    try:
        return control_hash(find_control(model)) if os.path.isabs(model) else None
    except KerasdiffError:
        return None


def try_entries(entries: Mapping[str, Sequence[Any]]) -> None:
    """RequestError or ModelError if a model or a picture of what all rows share cannot be had."""
    for name, several in entries.items():
        for index, entry in enumerate(several):
            find_control(entry.model)
            images = entry.image if isinstance(entry.image, tuple) else [entry.image]
            for image in images if entry.image is not None else ():
                reader.read(image, f"{name}[{index}].image")
