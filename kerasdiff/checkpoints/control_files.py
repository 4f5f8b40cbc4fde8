"""Opens what steers a model: ControlNets, and what is like them, from any format."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from kerasdiff.checkpoints import hub, recognition
from kerasdiff.checkpoints.checkpoint import Checkpoint, Shapes
from kerasdiff.checkpoints.file_stamps import FileStamps, sha256
from kerasdiff.checkpoints.formats import diffusers_folder
from kerasdiff.checkpoints.formats.controlnet_file import is_pooled, open_tensors, shapes_config, what_shapes_read
from kerasdiff.checkpoints.formats.diffusers_controlnet import (
    WEIGHTS,
    check_inputs,
    controlnet_config,
    controlnet_slices,
    family_of,
    what_is_read,
)
from kerasdiff.checkpoints.formats.ip_adapter_file import is_ip_adapter, open_ip_adapter
from kerasdiff.checkpoints.formats.json_settings import JsonSettings
from kerasdiff.checkpoints.formats.t2i_adapter_file import open_t2i_adapter
from kerasdiff.checkpoints.mapped_source import LeftOverReport, MappedSource
from kerasdiff.errors import ModelError
from kerasdiff.models.config import FAMILIES, ModelConfig
from kerasdiff.models.control_configs import ControlModel, ControlNetConfig
from kerasdiff.runtime.safetensors_map import TORCH_ENDINGS, TensorFiles
from kerasdiff.validation import line, nearest

# How the names of files end; and where a pipeline of diffusers that was saved has its networks.
ENDINGS = (".safetensors", *TORCH_ENDINGS)
_INSIDE = re.compile(r"((?:controlnet|adapter)(?:_\d+)?)/config\.json")
_SETTINGS = "config.json"
_SHOWN = 3
# What else steers a model.
_ADAPTERS = ("a T2I-Adapter", "an IP-Adapter")


def find_control(reference: str) -> pathlib.Path:
    """The file, or the folder in diffusers' layout, that a path leads to, or a name on the Hugging Face hub.

    Such a name is "org/name", perhaps with a file or a folder behind it. Endings of files may be left out.
    """
    path = os.path.abspath(os.path.expanduser(reference))
    if os.path.isdir(path):
        return pathlib.Path(path, _among(reference, _names_in(path), "")[0])
    for there in (path, *(f"{path}{ending}" for ending in ENDINGS)):
        if os.path.lexists(there):
            return pathlib.Path(there)
    folder, name = os.path.split(path)
    near = None
    if os.path.dirname(reference) and os.path.isdir(folder):
        stems = (os.path.splitext(each) for each in os.listdir(folder))
        near = nearest(name, [stem for stem, ending in stems if ending in ("", *ENDINGS)])
    elif hub.is_place(reference):
        return _from_hub(reference)
    raise hub.not_found("ControlNet or adapter", reference, near)


def control_hash(path: pathlib.Path) -> str:
    """SHA-256 of a file or of a folder's weights, 64 hex digits; of several files that of their digests' lines."""
    files = diffusers_folder.weight_files(path, WEIGHTS, None) if path.is_dir() else [path]
    try:
        digests = [sha256(file) for file in files]
    except OSError as error:
        raise ModelError(f"{error.filename} cannot be read: {error.strerror}") from None
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


@functools.cache  # asking the hub again takes a second
def _from_hub(name: str) -> pathlib.Path:
    return hub.fetch_chosen(name, _among)


def _names_in(folder: str) -> list[str]:
    """The files of a folder, and of those in it that a pipeline has such networks in."""
    names = sorted(os.listdir(folder))
    for inner in [name for name in names if _INSIDE.fullmatch(f"{name}/{_SETTINGS}")]:
        if os.path.isdir(os.path.join(folder, inner)):
            names += [f"{inner}/{name}" for name in os.listdir(os.path.join(folder, inner))]
    return names


def _among(where: str, names: Iterable[str], place: str) -> tuple[str, Sequence[str]]:
    """The file or folder that is meant at a place among some names of files, and the files that it needs.

    `where` is what has them.
    """
    names = sorted(names)
    for file in (f"{place}{ending}" for ending in ("", *ENDINGS)):
        if file in names:
            beside = f"{place.rpartition('/')[0]}/{_SETTINGS}".lstrip("/")
            return file, [file, *([beside] if beside in names else [])]
    start, here = f"{place}/" if place else "", f"{where}/{place}" if place else where
    inside = [name.removeprefix(start) for name in names if name.startswith(start)]
    if not inside:
        some = ", ".join(names[:_SHOWN]) or "nothing"
        raise ModelError(f"{where} has no file or folder {line(place)}; it has {some}")
    sets = diffusers_folder.variants(inside, WEIGHTS)
    if _SETTINGS in inside and (None in sets or len(sets) == 1):
        taken = sets[diffusers_folder.chosen(sets, None)]
        return place, [start + each for each in (_SETTINGS, *diffusers_folder.with_shards(taken))]
    folders = sorted(match[1] for match in map(_INSIDE.fullmatch, inside) if match)
    if len(folders) == 1:
        return _among(where, names, start + folders[0])
    if not folders and "model_index.json" in inside:
        raise ModelError(f"{here} is a model without a ControlNet: give it as model= (--model)")
    files = [name for name in inside if "/" not in name and name.endswith(ENDINGS)]
    files = folders or [name for name in files if name.endswith(ENDINGS[0])] or files
    if len(files) == 1:
        return _among(where, names, start + files[0])
    shown_files = ", ".join(f"{where}/{start}{name}" for name in files[:_SHOWN])
    what = f"has several that may be meant: give one of them, {shown_files}" if files else "has no file of weights"
    raise ModelError(f"{here} {what}")


def open_control(reference: str, config: ModelConfig, encoder: str | None = None) -> Checkpoint:
    """What a path or a name on the hub leads to, as a model of its networks; `config` is that of the model it steers.

    `encoder` is where the image encoder of an IP-Adapter is, if it is not beside it.

    Raises:
        ModelError: it cannot be had, cannot be read, or was made for another family of models.
    """
    path = find_control(reference)
    if path.is_file() and is_ip_adapter(TensorFiles([path])):
        return open_ip_adapter(path, config, reference, encoder)
    stamps = FileStamps.of(path)
    read = _folder if path.is_dir() else _file
    found = open_t2i_adapter(path, config) or read(path, config)
    if FileStamps.of(path) != stamps:
        raise ModelError(f"{path} is being written at the moment; open it when that is done")
    return dataclasses.replace(found, stamps=stamps)


def control_facts(reference: str) -> dict[str, Any]:
    """What a path or a name on the hub leads to, as plain values, whatever model it is for.

    Raises:
        ModelError: it cannot be had or read, or is nothing that steers a model.
    """
    path = find_control(reference)
    if path.is_dir():
        kind, files = _kind_of(path / _SETTINGS), diffusers_folder.weight_files(path, WEIGHTS, None)
    else:
        files = [path]
        kind = recognition.of_tensors(TensorFiles(files))
    if kind is None or kind.name not in _ADAPTERS:
        recognition.refuse_as_control(path, kind, TensorFiles(files))
    told: dict[str, Any] = {
        "files": [str(file) for file in files],
        "sha256": control_hash(path),
        "kind": kind.name.partition(" ")[2] if kind is not None else None,
        "bytes": sum(file.stat().st_size for file in files),
    }
    if kind is not recognition.CONTROLNET:
        return told
    if path.is_dir():
        settings = JsonSettings(path / _SETTINGS)
        reads, pooled = what_is_read(settings), settings.get("global_pool_conditions", False, bool)
        order = settings.get("controlnet_conditioning_channel_order", "rgb", str)
    else:
        reads, pooled, order = what_shapes_read(path, open_tensors(files)[0]), is_pooled(path), "rgb"
    family = family_of(*reads)
    named = None if family is None else FAMILIES[family]
    return {**told, "family": named, "channel order": order, "global pooling": pooled}


def _folder(folder: pathlib.Path, model: ModelConfig) -> Checkpoint:
    """A ControlNet in the layout of diffusers."""
    recognition.refuse_as_control(folder, _kind_of(folder / _SETTINGS))
    config = controlnet_config(folder / _SETTINGS, model)
    return _checkpoint(folder, config, diffusers_folder.weight_files(folder, WEIGHTS, None), model)


def _file(path: pathlib.Path, model: ModelConfig) -> Checkpoint:
    recognition.refuse_settings_file(path)
    names = TensorFiles([path])
    recognition.refuse_as_control(path, recognition.of_tensors(names), names)
    beside = path.parent / _SETTINGS
    if path.name.startswith(WEIGHTS) and beside.is_file() and _kind_of(beside) is recognition.CONTROLNET:
        return _checkpoint(path, controlnet_config(beside, model), [path], model)
    return _checkpoint(path, shapes_config(path, open_tensors([path])[0], model), [path], model)


def _kind_of(settings: pathlib.Path) -> recognition.ForeignKind | None:
    """What the class in settings says; without one they are a ControlNet's."""
    values = recognition.settings_of(settings)
    return recognition.of_class(values["_class_name"]) if values.get("_class_name") else recognition.CONTROLNET


def _checkpoint(
    path: pathlib.Path, config: ControlNetConfig, files: list[pathlib.Path], model: ModelConfig
) -> Checkpoint:
    check_inputs(path, config, model)
    report = LeftOverReport()

    def source(network: str, shapes: Callable[[], Shapes]) -> MappedSource:
        tensors, ignored = open_tensors(files)
        made = MappedSource(tensors, shapes(), controlnet_slices, ignored)
        report(str(path), made.left_over)
        return made

    name = path.name if path.is_dir() else path.stem
    return Checkpoint(name, ControlModel(controlnet=config), None, source, lambda network: files)  # type: ignore[arg-type]
