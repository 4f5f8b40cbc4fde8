"""LoRA files, as all programs write them, as changes of our parameters.

Names, shapes and kinds are checked before a value is read.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from kerasdiff.adapters import lora_names
from kerasdiff.adapters.file_search import sha256
from kerasdiff.adapters.lora_metadata import PeftSettings, facts
from kerasdiff.adapters.lora_modules import LoraModule, Shape, made_for, read_modules
from kerasdiff.adapters.weight_change import check
from kerasdiff.checkpoints.file_stamps import FileStamp
from kerasdiff.checkpoints.mapped_source import LEAVES
from kerasdiff.errors import ModelError
from kerasdiff.models.config import FAMILIES, ModelConfig
from kerasdiff.runtime.layout import torch_axes
from kerasdiff.runtime.safetensors_map import TensorFiles, is_safetensors
from kerasdiff.validation import line

# Far more than Stable Diffusion's 700 layers need, and the words of a large set of pictures.
_MOST_TENSORS, _LARGEST_HEADER = 50_000, 32 * 2**20
_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Change:
    """What a file has for one of our parameters: suffix -> a function that reads a float32 array."""

    tensors: Mapping[str, Callable[[], np.ndarray]]


@dataclasses.dataclass(frozen=True)
class _Use:
    """A module of the file, and the layer of ours that it changes."""

    module: LoraModule
    layer: lora_names.Layer


class Fit(NamedTuple):
    """How many tensors a file has, how many of them a model uses, and one line on the others, or None."""

    tensors: int
    used: int
    unused: str | None


class LoraFile:
    """A LoRA or one of its family; `read_lora` opens it.

    Attributes:
        path: the file.
        name: its name without the ending.
        kind: "LoRA", "LoCon", "LoHa", "LoKr", "DoRA", ... or several, with commas.
        ranks: the different ranks of its layers, sorted.
        family: the models that it is for, "Stable Diffusion XL", as far as widths and names of layers tell; None if
            they do not.
        metadata: the texts in the file's header.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path, self.name = path, path.stem
        self._stamp = FileStamp.of(path)
        self._tensors = TensorFiles([path])
        self.metadata = self._tensors.metadata
        self._peft = PeftSettings.of(path, self.metadata)
        self._modules, self._others = read_modules(self._tensors)
        self.kind = ", ".join(sorted({module.kind for module in self._modules}))
        self.ranks = tuple(sorted({module.rank for module in self._modules if module.rank is not None}))
        self._made_for = made_for(self._tensors, self._modules)
        self.family = self._made_for.name

    @functools.cached_property
    def sha256(self) -> str:
        """Of the whole file, as 64 hexadecimal digits."""
        return sha256(self.path)

    @functools.cached_property
    def data_sha256(self) -> str:
        """Of what follows the header; AUTOMATIC1111's "Lora hashes" have its first 12 digits."""
        return sha256(self.path, behind_header=True)

    @functools.cached_property
    def summary(self) -> dict[str, Any]:
        """What the file is and what it was trained on, as far as it says so: numbers, and short printable texts."""
        alphas = {float(self._read(module, "alpha")) for module in self._modules if "alpha" in module.keys}
        return {
            "kind": self.kind,
            "family": self.family,
            "layers": len({module.name for module in self._modules}),
            "ranks": list(self.ranks),
            "alphas": sorted(alphas | self._peft.alphas),
            **facts(self.metadata),
        }

    def changes(self, network: str, parameters: Mapping[str, Shape], config: ModelConfig) -> dict[str, Change]:
        """What the file changes in a network, by our names of its parameters, whose shapes are given.

        Raises:
            ModelError: the file is for another model.
        """
        return {name: self._change(use) for name, use in self._uses(network, parameters, config)[0].items()}

    def fit(self, parameters: Mapping[str, Mapping[str, Shape]], config: ModelConfig) -> Fit:
        """What of the file a model uses; `parameters` are the shapes of the model's networks, by network.

        Raises:
            ModelError: nothing in the file is for this model, or it does not fit.
        """
        used: set[str] = set()
        second: set[str] = set()
        for network, shapes in parameters.items():
            uses, others = self._uses(network, shapes, config)
            used.update(key for use in uses.values() for key in use.module.keys.values())
            second |= others
        groups: dict[str, list[str]] = collections.defaultdict(list)
        for key, reason in self._others.items():
            groups[reason].append(key)
        for module in self._modules:
            if not used.intersection(module.keys.values()):
                groups[_why_unused(module, second, config.family)] += module.keys.values()
        count, said = len(self._tensors), [f"{len(keys)} {why} ({line(keys[0])})" for why, keys in groups.items()]
        if not used:
            raise ModelError(f"{self.path} changes nothing in this model; of its {count} tensors, {'; '.join(said)}")
        unused = f"{self.path} has tensors that are not used: {'; '.join(said)}" if said else None
        return Fit(count, len(used), unused)

    def _uses(
        self, network: str, parameters: Mapping[str, Shape], config: ModelConfig
    ) -> tuple[dict[str, _Use], set[str]]:
        """By our names, what changes them, and the layers whose names are second choice."""
        if network not in lora_names.NETWORKS:
            return {}, set()
        self._check_family(config)
        table = lora_names.layers(network, tuple(parameters), config)
        chosen: dict[tuple[str, bool], tuple[lora_names.Layer, LoraModule]] = {}
        second = set()
        for module in self._modules:
            for layer in table.get(lora_names.plain_name(network, module.name), ()):
                pair, place = (layer, module), (layer.path, module.bias)
                if place in chosen:
                    pair, other = sorted((pair, chosen[place]), key=lambda each: each[0].order)
                    second.add(other[1].name)
                chosen[place] = pair
        uses: dict[str, _Use] = {}
        misfits = []
        for name, shape in parameters.items():
            path, _, leaf = name.rpartition(".")
            place = (path, LEAVES[leaf] == "bias")
            if place in chosen:
                layer, module = chosen[place]
                weight = tuple(shape[axis] for axis in torch_axes(name, len(shape)))
                uses[name] = _Use(module, layer)
                try:
                    check(module.valueless(layer.parts), weight)
                except ModelError as error:
                    misfits.append(f"{line(module.name)}: {error}")
        if misfits:
            more = f"; and {len(misfits) - _SHOWN} more" if len(misfits) > _SHOWN else ""
            raise ModelError(f"{self.path} does not fit this model: {'; '.join(misfits[:_SHOWN])}{more}")
        return uses, second

    def _check_family(self, config: ModelConfig) -> None:
        meant = self._made_for
        if meant.families and config.family not in meant.families:
            raise ModelError(
                f"{self.path} is a LoRA for {meant.name}, and this model is {FAMILIES[config.family]}: {meant.reason}"
            )
        ours = {"unet": config.unet.context_width, **{name: each.width for name, each in config.text_encoders.items()}}
        for network, theirs in meant.widths.items():
            if theirs != ours.get(network, theirs):
                raise ModelError(
                    f"{self.path} is a LoRA for a model of another size than this one: texts have {theirs} numbers a "
                    f"token there, and {ours[network]} here"
                )

    def _change(self, use: _Use) -> Change:
        module, layer = use.module, use.layer
        read = lambda suffix: module.part(suffix, self._read(module, suffix), layer.part, layer.parts)  # noqa: E731
        tensors = {suffix: functools.partial(read, suffix) for suffix in module.keys}
        scale = self._peft.scale(module.name, module.rank)
        if scale is not None and not {"alpha", "scale"} & tensors.keys():
            return Change({**tensors, "scale": lambda: np.array(scale, "float32")})
        return Change(tensors)

    def _read(self, module: LoraModule, suffix: str) -> np.ndarray:
        """A tensor as float32, a copy."""
        key = module.keys[suffix]
        if FileStamp.of(self.path) != self._stamp:
            raise ModelError(f"{self.path} has changed since it was opened; open it anew")
        values = np.array(self._tensors.read(key), "float32")
        self._tensors.release(key)
        if not np.isfinite(values).all():
            raise ModelError(f"{self.path}: {line(key)} has numbers that are not finite; the file is damaged")
        return values.reshape(module.shapes[suffix])


def read_lora(path: str | os.PathLike[str]) -> LoraFile:
    """Opens a LoRA file; its values are read when they are used.

    Raises:
        ModelError: it is damaged, of another format, no LoRA, or one for another family of models.
    """
    path = pathlib.Path(path)
    if not is_safetensors(path):
        return LoraFile(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        count = file.read(min(length, _LARGEST_HEADER)).count(b'"data_offsets"')
    if count > _MOST_TENSORS or _LARGEST_HEADER < length < path.stat().st_size:
        raise ModelError(f"{path} has a header of {length >> 20} MB, far more than the layers of a LoRA need")
    return LoraFile(path)


def _why_unused(module: LoraModule, second: set[str], family: str) -> str:
    """What is to be said of a module that changes nothing; `second` are names of layers that have better ones."""
    foreign = lora_names.foreign(module.name, family)
    if foreign is not None:
        return f"belong to {foreign.part}"
    if module.name in second:
        return "are layers that it has under diffusers' names too"
    return f"name {'biases' if module.bias else 'layers'} that the model does not have"
