"""What the LoRAs of a request change in a network's parameters.

What reads and applies them is imported when there is one: most processes start without.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasdiff.errors import ModelError
from kerasdiff.models.config import ModelConfig
from kerasdiff.runtime.layout import converted, torch_axes

if TYPE_CHECKING:
    from kerasdiff.adapters.lora_file import Change, LoraFile

# A parameter in Keras' layout -> what becomes of it, float32.
Patch = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class OpenedLora:
    """A LoRA that was read, and what its changes to each network are multiplied by."""

    lora: LoraFile
    scales: Mapping[str, float]  # by network; others are not changed


@dataclasses.dataclass(frozen=True, eq=False)
class LoraStack:
    """The LoRAs of a request, which are applied one after the other."""

    config: ModelConfig | None = None  # of the model; None without any
    loras: tuple[OpenedLora, ...] = ()

    def key(self, network: str) -> tuple[tuple[str, float], ...]:
        """Says which changes of a network these are; () for none."""
        return tuple((each.lora.sha256, each.scales[network]) for each in self.loras if each.scales.get(network))

    def patches(self, network: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Patch]:
        """What is to be done to those of a network's parameters that change, by their names."""
        found: dict[str, list[tuple[LoraFile, Change, float]]] = {}
        for each in self.loras:
            scale = each.scales.get(network)
            if scale and self.config is not None:
                for name, change in each.lora.changes(network, shapes, self.config).items():
                    found.setdefault(name, []).append((each.lora, change, scale))
        return {name: functools.partial(_patched, name, changes) for name, changes in found.items()}


def _patched(name: str, changes: Sequence[tuple[LoraFile, Change, float]], value: Any) -> np.ndarray:
    """A parameter with some changes, float32."""
    from kerasdiff.adapters.weight_change import changed

    axes = torch_axes(name, value.ndim)
    weight = _in_order(value.transpose(axes)).astype("float32", copy=False)
    for lora, change, scale in changes:
        tensors = {suffix: read() for suffix, read in change.tensors.items()}
        try:
            weight = changed(tensors, weight, scale)
        except ModelError as error:
            raise ModelError(f"{lora.path}: {name.rpartition('.')[0]}: {error}") from None
    return weight.transpose(np.argsort(axes))


def _in_order(values: np.ndarray) -> np.ndarray:
    """Values in C's order, copied in pieces that stay in a processor's cache if they have another one."""
    return values if values.flags.c_contiguous else converted(values, values.dtype.name)
