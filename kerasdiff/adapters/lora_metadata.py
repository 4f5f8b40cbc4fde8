"""What the header of a LoRA file, or a file beside it, says in words: scales of peft, and how it was trained."""

from __future__ import annotations

import collections
import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from kerasdiff.checkpoints.formats.json_settings import read_json
from kerasdiff.errors import ModelError
from kerasdiff.validation import line

# Where diffusers puts peft's settings, and the files that peft itself writes, without the ending of the first.
_IN_HEADER, PEFT_WEIGHTS, PEFT_SETTINGS = "lora_adapter_metadata", "adapter_model", "adapter_config.json"
_TAGS, _SHOWN = 5, 60
# Beginnings of names; without one, what is said holds for all.
_NETWORKS = ("unet.", "text_encoder.", "text_encoder_2.", "")
_MOST_PATTERNS, _LONGEST = 2000, 300
# Our name of a fact -> the keys of kohya, of the modelspec standard and of others, the first that is there.
FACTS = {
    "name": ("ss_output_name", "modelspec.title", "name"),
    "base model": ("ss_sd_model_name", "modelspec.architecture", "base_model"),
    "base version": ("ss_base_model_version",),
    "module": ("ss_network_module", "modelspec.implementation"),
    "steps": ("ss_steps",),
    "comment": ("ss_training_comment",),
    "trigger": ("modelspec.trigger_phrase", "trigger_word"),
}


def facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a file was trained on and by what, as short printable texts, and the tags that its captions had most."""
    found = {
        name: next((line(metadata[key], _SHOWN) for key in keys if metadata.get(key, "None") not in ("", "None")), None)
        for name, keys in FACTS.items()
    }
    return {name: value for name, value in found.items() if value} | {"tags": _tags(metadata)}


def _tags(metadata: Mapping[str, str]) -> dict[str, int]:
    """The most frequent ones of all its folders of pictures."""
    counts: collections.Counter[str] = collections.Counter()
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}"))
        for folder in folders.values():
            counts.update({tag.strip(): count for tag, count in folder.items() if type(count) is int})
    except (AttributeError, ValueError, RecursionError):  # only words for people
        return {}
    return {line(tag, _SHOWN): count for tag, count in counts.most_common(_TAGS)}


@dataclasses.dataclass(frozen=True)
class PeftSettings:
    """What peft multiplies layers by: `lora_alpha / r`, and exceptions from it by name."""

    where: str
    values: Mapping[str, Any]

    @classmethod
    def of(cls, path: pathlib.Path, metadata: Mapping[str, str]) -> PeftSettings:
        """The settings in a file's header, or in the folder of a file that peft wrote."""
        beside = path.with_name(PEFT_SETTINGS)
        if _IN_HEADER not in metadata:
            there = path.stem == PEFT_WEIGHTS and beside.is_file()
            return cls(str(beside), read_json(beside) if there else {})
        try:
            values = json.loads(metadata[_IN_HEADER])
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            raise ModelError(f"{path}: its {_IN_HEADER} is no JSON object, so that its scales are not known")
        return cls(f"{path}: {_IN_HEADER}", values)

    @property
    def alphas(self) -> set[float]:
        """The usual ones."""
        names = [name for name in self.values if name.rpartition(".")[2] == "lora_alpha"]
        return {self._number(name, self.values[name]) for name in names}

    def scale(self, module: str, rank: int | None) -> float | None:
        """What the product of a layer's factors is multiplied by; None if nothing is said of it."""
        name = module.removeprefix("base_model.model.")
        network = next((each for each in _NETWORKS if each and name.startswith(each)), "")
        alpha = self._get(network, "lora_alpha") if self._get(network, "alpha") is None else self._get(network, "alpha")
        if alpha is None or rank is None:
            return None
        inner = name.removeprefix(network)
        alpha = next((value for pattern, value in self._exceptions[network] if pattern.means(inner)), alpha)
        return self._number("lora_alpha", alpha) / (math.sqrt(rank) if self._get(network, "use_rslora") else rank)

    def _get(self, network: str, key: str) -> Any:
        return self.values.get(network + key, self.values.get(key))

    @functools.cached_property
    def _exceptions(self) -> dict[str, list[tuple[_Pattern, Any]]]:
        """By network."""
        found = {}
        for network in _NETWORKS:
            alphas = self._get(network, "alpha_pattern") or {}
            if not isinstance(alphas, dict) or len(alphas) > _MOST_PATTERNS:
                raise ModelError(f"{self.where}: alpha_pattern={line(str(alphas), _SHOWN)} is not supported")
            found[network] = [(_Pattern.of(pattern, self.where), value) for pattern, value in alphas.items()]
        return found

    def _number(self, name: str, value: Any) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9:
            return float(value)
        raise ModelError(f"{self.where}: {line(name)}={line(str(value), _SHOWN)} is not a number that can be used")


@dataclasses.dataclass(frozen=True)
class _Pattern:
    """A pattern of peft: the end of a layer's name, or all of it if `whole`; anything may be between its parts."""

    parts: tuple[str, ...]
    whole: bool

    @classmethod
    def of(cls, text: str, where: str) -> _Pattern:
        """ModelError for any other regular expression: one can be made to take for ever."""
        parts = tuple(
            part.replace(r"\.", ".") for part in text[:_LONGEST].removeprefix("^").removesuffix("$").split(".*")
        )
        if len(text) > _LONGEST or any(set(part) & set("\\^$*+?{}[]()|") for part in parts):
            raise ModelError(f"{where}: the pattern {line(text, _SHOWN)} is not supported; names and .* are")
        return cls(parts, text.startswith("^"))

    def means(self, name: str) -> bool:
        """Whether a layer of this name is meant."""
        first, *rest = self.parts
        if not name.endswith(self.parts[-1]):
            return False
        starts = [0] if self.whole else [0, *(index + 1 for index, letter in enumerate(name) if letter == ".")]
        return any(name.startswith(first, start) and _follow(rest, name[start + len(first) :]) for start in starts)


def _follow(parts: list[str], text: str) -> bool:
    """Whether a text consists of these parts in this order, with anything before each; the last one ends it."""
    for part in parts[:-1]:
        _, found, text = text.partition(part) if part else ("", "", text)
        if part and not found:
            return False
    return text.endswith(parts[-1]) if parts else not text
