"""The adapters that a model's requests use: each file is opened once, while it stays the same."""

from __future__ import annotations

import collections
import dataclasses
import os
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence

from kerasdiff.adapter_files import Lora
from kerasdiff.adapters.lora_file import LoraFile, find_lora, read_lora
from kerasdiff.adapters.patches import LoraStack, OpenedLora
from kerasdiff.checkpoints.file_stamps import FileStamp
from kerasdiff.errors import ModelError
from kerasdiff.models.config import ModelConfig
from kerasdiff.request import Request

# Files that stay open.
_MOST_OPEN = 16


class AdapterLibrary:
    """The adapters of one model; threads may share it.

    `parameters` gives name and shape of every parameter of a network.
    """

    def __init__(self, config: ModelConfig, parameters: Callable[[str], Mapping[str, tuple[int, ...]]]) -> None:
        self._config, self._parameters = config, parameters
        self._loras: collections.OrderedDict[str, tuple[FileStamp | None, LoraFile]] = collections.OrderedDict()
        self._opening = threading.Lock()

    def settled(self, request: Request) -> Request:
        """The request with the hash of each file; ModelError if one cannot be had, or does not fit the model."""
        loras = tuple(dataclasses.replace(lora, sha256=self._open(lora).sha256) for lora in request.loras)
        return dataclasses.replace(request, loras=loras) if loras else request

    def stack(self, loras: Sequence[Lora]) -> LoraStack:
        """Some LoRAs, opened; ModelError as from `settled`."""
        opened = (OpenedLora(self._open(lora), {"unet": lora.scale, "text_encoder": lora.text_scale}) for lora in loras)
        return LoraStack(self._config, tuple(opened))

    def _open(self, lora: Lora) -> LoraFile:
        path = find_lora(lora.file)
        stamp = FileStamp.of(path)
        with self._opening:
            known = self._loras.get(str(path))
            if known is None or known[0] != stamp:
                known = self._loras[str(path)] = stamp, self._read(path)
                while len(self._loras) > _MOST_OPEN:
                    self._loras.popitem(last=False)
            self._loras.move_to_end(str(path))
        found = known[1]
        if lora.sha256 not in (None, found.sha256):
            raise ModelError(
                f"{lora.file} has changed: its SHA-256 was {lora.sha256:.12}..., and is {found.sha256:.12}..."
            )
        return found

    def _read(self, path: os.PathLike[str]) -> LoraFile:
        found = read_lora(path)
        left_over = found.check({name: self._parameters(name) for name in ("unet", "text_encoder")}, self._config)
        if left_over:
            warnings.warn(left_over, stacklevel=2)
        return found
