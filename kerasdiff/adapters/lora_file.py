"""LoRA files, as all programs write them, as changes of our parameters.

Names, shapes and kinds are checked before a value is read.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import itertools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import safetensors

from kerasdiff.adapters import lora_names
from kerasdiff.adapters.lora_metadata import PEFT_SETTINGS, PEFT_WEIGHTS, PeftSettings, facts
from kerasdiff.adapters.lora_modules import FAMILIES, LoraModule, Shape, family_of, read_modules
from kerasdiff.adapters.weight_change import check
from kerasdiff.checkpoints import hub
from kerasdiff.checkpoints.file_stamps import FileStamp
from kerasdiff.checkpoints.mapped_source import LEAVES
from kerasdiff.errors import ModelError
from kerasdiff.models.config import ModelConfig
from kerasdiff.runtime.safetensors_map import TensorFiles, refuse_pickle
from kerasdiff.validation import line, nearest, shown

_CONVERT = "convert it to .safetensors in the program that it is from"
# Far more than Stable Diffusion's 700 layers need, and the words of a large set of pictures.
_MOST_TENSORS, _LARGEST_HEADER = 50_000, 32 * 2**20
# What is read to know what a file is called.
_LARGEST_NAMED = 2**20
_SHOWN = 3
# The names that diffusers and peft give, and how many files a folder is searched for.
_USUAL = ("pytorch_lora_weights.safetensors", PEFT_WEIGHTS)
_MOST_FILES = 10_000


@dataclasses.dataclass(frozen=True)
class Change:
    """What a file has for one of our parameters: suffix -> a function that reads a float32 array."""

    tensors: Mapping[str, Callable[[], np.ndarray]]


@dataclasses.dataclass(frozen=True)
class _Use:
    """What becomes of a change in the file: it changes a parameter whose shape in torch is `weight`."""

    module: LoraModule
    layer: lora_names.Layer
    weight: Shape


class LoraFile:
    """A LoRA or one of its family; `read_lora` opens it.

    Attributes:
        path: the file.
        name: its name without the ending.
        kind: "LoRA", "LoCon", "LoHa", "LoKr", "DoRA", ... or several, with commas.
        ranks: the different ranks of its layers, sorted.
        family: the models that it is for as far as widths tell, "Stable Diffusion 1.x" or "Stable Diffusion 2.x"; None
            if they do not.
        metadata: the texts in the file's header.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path, self.name = path, path.stem
        self._stamp = FileStamp.of(path)
        self._tensors = TensorFiles([path])
        with safetensors.safe_open(path, "np") as file:
            self.metadata: dict[str, str] = file.metadata() or {}
        self._peft = PeftSettings.of(path, self.metadata)
        self._modules, self._others = read_modules(self._tensors)
        self.kind = ", ".join(sorted({module.kind for module in self._modules}))
        self.ranks = tuple(sorted({module.rank for module in self._modules if module.rank is not None}))
        try:
            self._context, self._text, self.family = family_of(self._modules, self.metadata)
        except ModelError as error:
            raise ModelError(f"{path}{error}") from None

    @functools.cached_property
    def sha256(self) -> str:
        """Of the whole file, as 64 hexadecimal digits."""
        return self._digest(0)

    @functools.cached_property
    def data_sha256(self) -> str:
        """Of what follows the header; AUTOMATIC1111's "Lora hashes" have its first 12 digits."""
        with open(self.path, "rb") as file:
            return self._digest(8 + int.from_bytes(file.read(8), "little"))

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

    def check(self, parameters: Mapping[str, Mapping[str, Shape]], config: ModelConfig) -> str | None:
        """One line on the tensors that change nothing in a model, and why; None if there are none.

        `parameters` are the shapes of all networks of the model, by network.

        Raises:
            ModelError: nothing in the file is for this model, or it does not fit.
        """
        used, groups = self._sorted_out(parameters, config)
        said = "; ".join(f"{len(keys)} {reason} ({line(keys[0])})" for reason, keys in groups.items())
        if not used:
            raise ModelError(f"{self.path} changes nothing in this model; of its {len(self._tensors)} tensors, {said}")
        return f"{self.path} has tensors that are not used: {said}" if said else None

    def matched(self, parameters: Mapping[str, Mapping[str, Shape]], config: ModelConfig) -> tuple[int, int]:
        """How many tensors of the file change something in a model, and how many it has; otherwise as `check`."""
        return len(self._sorted_out(parameters, config)[0]), len(self._tensors)

    def _sorted_out(
        self, parameters: Mapping[str, Mapping[str, Shape]], config: ModelConfig
    ) -> tuple[set[str], dict[str, list[str]]]:
        """The tensors that a model uses, and the others by the reason why it does not."""
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
                groups[self._why_unused(module, second)] += module.keys.values()
        return used, groups

    def _why_unused(self, module: LoraModule, second: set[str]) -> str:
        foreign = lora_names.foreign(module.name)
        if foreign is not None:
            return f"belong to {foreign.part}"
        if module.name in second:
            return "are layers that it has under diffusers' names too"
        return f"name {'biases' if module.bias else 'layers'} that the model does not have"

    def _uses(
        self, network: str, parameters: Mapping[str, Shape], config: ModelConfig
    ) -> tuple[dict[str, _Use], set[str]]:
        """By our names, what changes them, and the layers whose names are second choice."""
        if network not in lora_names.NETWORKS:
            return {}, set()
        self._check_widths(config)
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
                uses[name] = _Use(module, layer, _as_torch(leaf, shape))
                try:
                    check(module.valueless(layer.parts), uses[name].weight)
                except ModelError as error:
                    misfits.append(f"{line(module.name)}: {error}")
        if misfits:
            more = f"; and {len(misfits) - _SHOWN} more" if len(misfits) > _SHOWN else ""
            raise ModelError(f"{self.path} does not fit this model: {'; '.join(misfits[:_SHOWN])}{more}")
        return uses, second

    def _check_widths(self, config: ModelConfig) -> None:
        for ours, theirs in ((config.unet.context_width, self._context), (config.text_encoder.width, self._text)):
            if theirs not in (None, ours):
                mine, other = (FAMILIES.get(width or 0, "another model") for width in (ours, theirs))
                raise ModelError(
                    f"{self.path} is a LoRA for {other}, and this model is {mine}: texts have {theirs} numbers a "
                    f"token there, and {ours} here"
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

    def _digest(self, start: int) -> str:
        with open(self.path, "rb") as file:
            file.seek(start)
            return hashlib.file_digest(file, "sha256").hexdigest()


def read_lora(path: str | os.PathLike[str]) -> LoraFile:
    """Opens a LoRA file; its values are read when they are used.

    Raises:
        ModelError: it is damaged, of another format, no LoRA, or one for another family of models.
    """
    path = pathlib.Path(path)
    refuse_pickle(path, _CONVERT)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        count = file.read(min(length, _LARGEST_HEADER)).count(b'"data_offsets"')
    if count > _MOST_TENSORS or _LARGEST_HEADER < length < path.stat().st_size:
        raise ModelError(f"{path} has a header of {length >> 20} MB, far more than the layers of a LoRA need")
    return LoraFile(path)


def find_lora(reference: str) -> pathlib.Path:
    """The file that a path leads to, or of "org/name" or "org/name/file.safetensors" on the Hugging Face hub.

    A folder has one file of the usual names, or only one. In an existing folder a file may be named without its
    ending, its subfolder, or as its training called it.
    """
    path = os.path.abspath(os.path.expanduser(reference))
    if os.path.isdir(path):
        return _in_folder(pathlib.Path(path))
    for there in (path, f"{path}.safetensors"):
        if os.path.lexists(there):
            return pathlib.Path(there)
    folder, name = os.path.split(path)
    near = None
    if os.path.dirname(reference) and os.path.isdir(folder):
        files = _files_below(folder)
        named = itertools.chain(
            (file for file in files if file.stem == name), (file for file in files if trained_as(file) == name)
        )
        found = next(named, None)
        if found is not None:
            return found
        near = nearest(name, [file.stem for file in files])
    elif hub.is_name(reference):
        return _from_hub(reference)
    hint = f"did you mean {near!r}? " if near else ""
    if os.path.isabs(reference) and not os.path.isdir(folder):
        hint = f"{line(folder)} is no folder; "
    raise ModelError(
        f"there is no LoRA {shown(reference)}; {hint}give a .safetensors file, a folder, or 'org/name' on the Hugging "
        "Face hub"
    )


@functools.cache  # asking the hub again takes a second
def _from_hub(name: str) -> pathlib.Path:
    return hub.fetch_adapter(name, _USUAL, [PEFT_SETTINGS])


def _in_folder(folder: pathlib.Path) -> pathlib.Path:
    """The file of a folder that is meant."""
    names = sorted(path.name for path in folder.iterdir())
    found = [name for name in names if name.endswith(".safetensors")]
    chosen = next((name for name in _USUAL if name in found), found[0] if len(found) == 1 else None)
    if chosen is not None:
        return folder / chosen
    if found:
        raise ModelError(f"{folder} has several files: give one of them, {', '.join(found[:_SHOWN])}")
    others = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    raise ModelError(f"{folder} has no .safetensors file" + (f", only {others[0]}: {_CONVERT}" if others else ""))


def _files_below(folder: str) -> list[pathlib.Path]:
    """The .safetensors files of a folder and of those in it, of so many as there may be."""
    walk = (pathlib.Path(place, name) for place, _, names in os.walk(folder) for name in sorted(names))
    return [path for path in itertools.islice(walk, _MOST_FILES) if path.suffix == ".safetensors"]


def trained_as(path: pathlib.Path) -> str | None:
    """What the training of a file called it, as AUTOMATIC1111's interface knows it too."""
    try:
        with open(path, "rb") as file:
            small = int.from_bytes(file.read(8), "little") < _LARGEST_NAMED
        if small:
            with safetensors.safe_open(path, "np") as opened:
                return (opened.metadata() or {}).get("ss_output_name")
    except (OSError, safetensors.SafetensorError):  # no LoRA, and nobody asked for it
        pass
    return None


def _as_torch(leaf: str, shape: Shape) -> Shape:
    if leaf != "kernel":
        return shape
    return shape[::-1] if len(shape) == 2 else (shape[3], shape[2], *shape[:2])
