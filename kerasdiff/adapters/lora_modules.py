"""The layers of a LoRA file: tensors that belong together, checked by names, kinds and shapes before any is read."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping

import numpy as np

from kerasdiff.adapters import lora_names
from kerasdiff.adapters.weight_change import KINDS, kind_of, measured
from kerasdiff.checkpoints import recognition
from kerasdiff.errors import ModelError
from kerasdiff.runtime.safetensors_map import DTYPES, TensorFiles
from kerasdiff.validation import line

Shape = tuple[int, ...]
# What changes a bias, what is a single number, and what has a row for each output of a layer.
_OF_BIAS, _SINGLE = ("diff_b", "b_norm"), ("alpha", "scale", "on_input")
_WITH_ROWS = ("lora_up.weight", "diff", "diff_b", "dora_scale")
_MARKS = {mark for kind in KINDS.values() for mark in kind.marks}
_MOST_AXES = 5
# What has layers with the names of a LoRA's, and is none.
_NO_LORAS = ("an IP-Adapter", "a ControlNet")
# How much attention reads of a token -> what does so.
FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}
_FOREIGN_FAMILIES = {1280: "the refiner of Stable Diffusion XL", 2048: lora_names.XL}


@dataclasses.dataclass(frozen=True)
class LoraModule:
    """The tensors that change the weight of a layer, or its bias."""

    name: str
    bias: bool
    keys: Mapping[str, str]  # by suffix, as the shapes
    shapes: Mapping[str, Shape]
    kind: str
    rank: int | None
    inputs: int | None  # of the layer, if a change has as many whatever the layer is

    def valueless(self, parts: int = 1) -> dict[str, np.ndarray]:
        """Arrays of the shapes that one of `parts` equal parts of the layer's rows has; they take no memory."""
        zeros = {suffix: np.broadcast_to(np.float32(0), shape) for suffix, shape in self.shapes.items()}
        return {suffix: self.part(suffix, values, 0, parts) for suffix, values in zeros.items()}

    def part(self, suffix: str, values: np.ndarray, part: int, parts: int) -> np.ndarray:
        """What of a tensor belongs to one of `parts` equal parts of the layer's rows."""
        if parts == 1 or suffix not in _WITH_ROWS or len(values) % parts:
            return values
        return np.split(values, parts)[part]


def read_modules(tensors: TensorFiles) -> tuple[list[LoraModule], dict[str, str]]:
    """The changes in a file, and the tensors that are part of none, each with what is to be said of it.

    Raises:
        ModelError: the file is no LoRA, or has only half of one.
    """
    where = tensors.where
    for kind in recognition.KINDS:
        if kind.name in _NO_LORAS and any(map(kind.has, tensors)):
            raise ModelError(f"{where} is {kind.name}, not a LoRA")
    found: dict[tuple[str, bool], dict[str, str]] = collections.defaultdict(dict)
    others: dict[str, str] = {}
    for key in tensors:
        name, suffix = lora_names.split(key) or (None, "")
        if name is None:
            bundled = key.startswith("bundle_emb.")
            others[key] = "are embeddings, which embeddings= takes" if bundled else "have endings that are not known"
            continue
        keys = found[name, suffix in _OF_BIAS]
        if suffix in keys:
            raise ModelError(f"{where} has {line(name)}.{suffix} twice, in two spellings")
        keys[suffix] = key
    modules = []
    for (name, bias), keys in found.items():
        if _MARKS & keys.keys():
            modules.append(_module(tensors, name, bias, keys))
        for suffix, key in keys.items() if not _MARKS & keys.keys() else ():
            whole = suffix == "weight"
            others[key] = "are whole weights, no changes" if whole else "scale layers that the file does not have"
    if not modules:
        raise ModelError(f"{where} is not a LoRA: {_what_else(tensors)}")
    return modules, others


def family_of(modules: Iterable[LoraModule], metadata: Mapping[str, str]) -> tuple[int | None, int | None, str | None]:
    """Widths of the context and of the text encoder that a LoRA is for, and the name of the family with these.

    Raises:
        ModelError: it is for another one than Stable Diffusion 1.x and 2.x; the message begins with " is".
    """
    modules = list(modules)
    others = [(found, module.name) for module in modules if (found := lora_names.foreign(module.name))]
    foreign = {name for _, name in others}
    own = [module for module in modules if module.name not in foreign]
    context = _width(own, "unet", ("attn2_to_k", "attn2_to_v"))
    text = _width(own, "text_encoder", ("_q_proj", "_k_proj", "_v_proj", "_fc1"))
    family = FAMILIES.get(context or text or 0)
    usual = any(lora_names.is_like_ours(network, module.name) for module in own for network in lora_names.NETWORKS)
    reason = None
    if context in _FOREIGN_FAMILIES:
        family, reason = _FOREIGN_FAMILIES[context], f"its attention reads {context} numbers a token"
    elif others and (not usual or (context is None and others[0][0].family == lora_names.XL)):
        counts = collections.Counter(found for found, _ in others)
        most, count = counts.most_common(1)[0]
        example = next(name for found, name in others if found == most)
        family, reason = (
            most.family,
            f"{count} of its {len(modules)} layers belong to {most.part} ({line(example, 60)})",
        )
    elif context is None and metadata.get("ss_base_model_version", "").startswith("sdxl"):
        family, reason = lora_names.XL, "its metadata says so"
    if reason is not None:
        raise ModelError(f" is a LoRA for {family}: {reason}; only Stable Diffusion 1.x and 2.x are supported")
    return context, text, family


def _width(modules: Iterable[LoraModule], network: str, endings: tuple[str, ...]) -> int | None:
    """How many inputs the layers have whose names end so, if they agree."""
    widths = {
        module.inputs
        for module in modules
        if module.inputs is not None
        and lora_names.is_like_ours(network, module.name)
        and lora_names.plain_name(network, module.name).endswith(endings)
    }
    return widths.pop() if len(widths) == 1 else None


def _module(tensors: TensorFiles, name: str, bias: bool, keys: dict[str, str]) -> LoraModule:
    where = f"{tensors.where}: {line(name)}"
    shapes = {suffix: tensors.shape(key) for suffix, key in keys.items()}
    for suffix, key in keys.items():
        dtype, count = tensors.dtype(key), math.prod(shapes[suffix])
        whole = dtype in ("I64", "I32", "BOOL") and suffix in _SINGLE
        if dtype not in DTYPES and not whole:
            raise ModelError(f"{where}.{suffix} holds {dtype}, not floating-point numbers")
        if count == 0 or (count > 1 and suffix in _SINGLE) or len(shapes[suffix]) > _MOST_AXES:
            raise ModelError(f"{where}.{suffix} has shape {line(str(list(shapes[suffix])))}, which it cannot have")
        if lora_names.is_magnitude(key):  # one number for each output, whatever the shape
            shapes[suffix] = (count,)
    module = LoraModule(name, bias, keys, shapes, "", None, None)
    try:
        kind, (shape, rank) = kind_of(module.valueless()), measured(module.valueless())
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from None
    return dataclasses.replace(module, kind=kind, rank=rank, inputs=None if bias else shape[1])


def _what_else(tensors: TensorFiles) -> str:
    """What a file is that has no layer of a LoRA."""
    if any(key.startswith("model.diffusion_model.") for key in tensors):
        return "it is a model, which model= takes"
    kind = recognition.of_tensors(tensors)
    if kind is not None and kind.name != "a LoRA":
        return f"it is {kind.name}"
    shown = ", ".join(line(key, 60) for key in itertools.islice(tensors, 3))
    return f"none of its {len(tensors)} tensors has a name of one" + (f" ({shown})" if shown else "")
