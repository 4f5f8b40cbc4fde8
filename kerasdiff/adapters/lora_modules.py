"""The layers of a LoRA file: tensors that belong together, checked by names, kinds and shapes before any is read."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from kerasdiff.adapters import lora_names
from kerasdiff.adapters.weight_change import KINDS, kind_of, measured
from kerasdiff.checkpoints import recognition
from kerasdiff.errors import ModelError
from kerasdiff.models.config import FAMILIES
from kerasdiff.runtime.safetensors_map import DTYPES, TensorFiles
from kerasdiff.validation import line

Shape = tuple[int, ...]
# What changes a bias, what is a single number, and what has a row for each output of a layer.
_OF_BIAS, _SINGLE = ("diff_b", "b_norm"), ("alpha", "scale", "on_input")
_WITH_ROWS = ("lora_up.weight", "diff", "diff_b", "dora_scale")
_MARKS = {mark for kind in KINDS.values() for mark in kind.marks}
_MOST_AXES = 5
# What has layers with the names of a LoRA's, and is none.
_NO_LORAS = ("an IP-Adapter", "a ControlNet", "a Control-LoRA", "a ControlLLLite")
_READERS = {"unet": ("attn2_to_k", "attn2_to_v")}
# How much attention reads of a token -> the family in which it does so.
_CONTEXTS = {768: "sd1", 1024: "sd2", 1280: "sdxl_refiner", 2048: "sdxl"}
# Widths of the first text encoder -> who has it; and whose is the only one, as kohya's names tell.
_TEXT_WIDTHS = {768: ("sd1", "sdxl"), 1024: ("sd2",)}
_ONLY_ENCODER, _OF_ONE_ENCODER = "lora_te_", ("sd1", "sd2")
# Where metadata name a model, and how one of Stable Diffusion XL's begins.
_TOLD = (("ss_base_model_version", "sdxl"), ("modelspec.architecture", "stable-diffusion-xl"))


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
            continue
        for suffix, key in keys.items():
            whole = suffix == "weight"
            others[key] = "are whole weights, no changes" if whole else "scale layers that the file does not have"
    if not modules:
        raise ModelError(f"{where} is not a LoRA: {_what_else(tensors)}")
    return modules, others


@dataclasses.dataclass(frozen=True)
class MadeFor:
    """What a LoRA is for: families, none if they are not known, how they are known, and the widths of networks.

    The width of "unet" is what its attention reads of a token.
    """

    widths: Mapping[str, int]
    families: tuple[str, ...] = ()
    reason: str = ""

    @property
    def name(self) -> str | None:
        """For people."""
        shown = [FAMILIES[each] for each in self.families if each == self.families[0] or each != "sdxl_refiner"]
        return " or ".join(shown) or None


def made_for(tensors: TensorFiles, modules: Sequence[LoraModule]) -> MadeFor:
    """What a LoRA is for, as far as widths, names and metadata tell.

    Raises:
        ModelError: it is for another one than Stable Diffusion 1.x, 2.x and XL.
    """
    others = [(found, module.name) for module in modules if (found := lora_names.foreign(module.name))]
    strange = [each for each in others if not each[0].families]
    names = {name for _, name in strange}
    own = [module for module in modules if module.name not in names]
    usual = any(lora_names.is_like_ours(network, module.name) for module in own for network in lora_names.NETWORKS)
    if strange and not usual:
        most, reason = _most(strange, modules)
        ours = "only Stable Diffusion 1.x, 2.x and XL are supported"
        raise ModelError(f"{tensors.where} is a LoRA for {most.family}: {reason}; {ours}")
    each_width = {network: _width(own, network) for network in lora_names.NETWORKS}
    widths = {network: width for network, width in each_width.items() if width is not None}
    if (context := widths.get("unet")) is not None:
        reason = f"its attention reads {context} numbers a token"
        return MadeFor(widths, (_CONTEXTS[context],) if context in _CONTEXTS else (), reason)
    if others := [each for each in others if each[0].families]:
        most, reason = _most(others, modules)
        return MadeFor(widths, most.families, reason)
    if any(tensors.metadata.get(key, "").startswith(xl) for key, xl in _TOLD):
        return MadeFor(widths, lora_names.OF_XL, "its metadata says so")
    width = widths.get("text_encoder", 0)
    families = _TEXT_WIDTHS.get(width, ())
    if any(module.name.startswith(_ONLY_ENCODER) for module in own):
        families = tuple(each for each in families if each in _OF_ONE_ENCODER)
    return MadeFor(widths, families, f"it changes a text encoder of width {width}")


def _most(
    others: Sequence[tuple[lora_names.ForeignLayers, str]], modules: Sequence[LoraModule]
) -> tuple[lora_names.ForeignLayers, str]:
    """What most of the layers of others belong to, and how many these are."""
    most, count = collections.Counter(found for found, _ in others).most_common(1)[0]
    example = next(name for found, name in others if found == most)
    return most, f"{count} of its {len(modules)} layers belong to {most.part} ({line(example, 60)})"


def _width(modules: Iterable[LoraModule], network: str) -> int | None:
    """How many inputs the layers of a network have that read a text, if they agree."""
    endings = _READERS.get(network, ("_q_proj", "_k_proj", "_v_proj", "_fc1"))
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
