"""A checkpoint with LoRAs merged into it, to be written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kerasdiff.adapter_files import Lora
from kerasdiff.adapters.library import AdapterLibrary
from kerasdiff.adapters.patches import Patch
from kerasdiff.checkpoints.checkpoint import Checkpoint, Shapes


def merged(model: Checkpoint, loras: Sequence[Lora]) -> Checkpoint:
    """The checkpoint whose parameters have some LoRAs; ModelError if one cannot be had or does not fit."""
    if not loras:
        return model
    stack = AdapterLibrary(model.config, model.shapes).stack(loras)

    def source(network: str, shapes: Callable[[], Shapes]) -> Any:
        return _Patched(model.source(network, shapes), stack.patches(network, shapes()))

    # What it was opened from has other values.
    return dataclasses.replace(model, source=source, native=())


class _Patched:
    """Parameters of another source, some of them changed."""

    def __init__(self, source: Any, patches: Mapping[str, Patch]) -> None:
        self._source, self._patches = source, patches

    def __call__(self, name: str, shape: tuple[int, ...]) -> Any:
        value = self._source(name, shape)
        return self._patches[name](value) if name in self._patches else value

    def finish(self) -> None:
        """As the other source's."""
        if hasattr(self._source, "finish"):
            self._source.finish()
