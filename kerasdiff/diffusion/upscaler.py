"""Upscalers: each with its network and stage, and those that a model's requests use."""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasdiff.adapter_files import UpscalerFile
from kerasdiff.checkpoints.file_stamps import FileStamp
from kerasdiff.diffusion.network import Networks
from kerasdiff.diffusion.upscale_stage import MAX_PARTS, UpscaleCost, UpscaleStage
from kerasdiff.errors import RequestError
from kerasdiff.images.reader import check_area, scaled
from kerasdiff.runtime import loaded_models
from kerasdiff.runtime.retries import Retries

if TYPE_CHECKING:
    from kerasdiff.checkpoints.checkpoint import Checkpoint
    from kerasdiff.models.upscaler_config import UpscalerConfig
    from kerasdiff.request import Request
    from kerasdiff.runtime.batch_sizer import BatchSizer
    from kerasdiff.runtime.compiled import Compiled
    from kerasdiff.runtime.precision import Execution
    from kerasdiff.runtime.program_cache import ProgramCache

# Upscalers of one model that stay open.
_MOST_OPEN = 2


class Upscaler:
    """An upscaler's file with its network and its compiled stage; threads may share it."""

    def __init__(self, model: Checkpoint, execution: Execution, programs: ProgramCache, sizer: BatchSizer) -> None:
        self.name: str = model.name
        self.config: UpscalerConfig = model.config.upscaler  # type: ignore[attr-defined]
        self._itemsize = 4 if execution.precision == "float32" else 2
        self._networks, self._retries = Networks(model, execution, programs), Retries(sizer, self)
        network = self._networks.network("upscaler")
        self._stage = UpscaleStage(network, execution.jit_compile, programs, self.config)
        loaded_models.add(self)

    def size(self, height: int, width: int, scale: float | None = None) -> tuple[int, int]:
        """Height and width of what becomes of a picture; RequestError if that is too large, or cannot be."""
        factor = self.config.scale if scale is None else scale
        if factor > self.config.scale:
            raise RequestError(
                f"{self.name} makes pictures {self.config.scale} times as large, not {factor:g}; give a smaller scale"
            )
        larger = round(factor * height), round(factor * width)
        check_area("the upscaled image", self.config.scale * height, self.config.scale * width)
        return larger

    def tiles(self, height: int, width: int) -> int:
        """How many tiles a picture is computed in, where memory suffices."""
        return self._stage.tiles(height, width)

    def __call__(
        self, picture: np.ndarray, scale: float | None = None, advance: Callable[[], Any] = lambda: None
    ) -> np.ndarray:
        """A picture uint8 (h, w, 3) to uint8 of `size(h, w, scale)`; a smaller `scale` is by Lanczos' filter.

        `advance` is called after each tile.
        """
        height, width = self.size(picture.shape[0], picture.shape[1], scale)
        size = {"height": picture.shape[0], "width": picture.shape[1], "max_parts": MAX_PARTS}
        cost = UpscaleCost(
            f"upscaler {self.name}", network="upscaler", config=self.config, itemsize=self._itemsize, **size
        )
        for attempt in self._retries.attempts(cost):
            with attempt as micro_batch:
                larger = self._stage(picture, micro_batch.parts, advance)
        return larger if larger.shape[:2] == (height, width) else scaled(larger, height, width, crop=False)

    @property
    def compiled(self) -> tuple[Compiled, ...]:
        """The functions of its stage that were needed so far."""
        return self._stage.compiled

    @property
    def nbytes(self) -> int:
        """What its weights take, if they are loaded."""
        return sum(network.nbytes for network in self._networks.known.values())

    def release(self, but: str | None = None) -> bool:
        """Unloads weights and programs, as `loaded_models.Releasable` says."""
        released = but != "upscaler" and self._networks.network("upscaler").release()
        for compiled in self.compiled if released else ():
            compiled.release()
        return released


class UpscalerLibrary:
    """The upscalers that requests of one model use, each opened once while its file stays the same."""

    def __init__(self, execution: Execution, programs: ProgramCache, sizer: BatchSizer) -> None:
        self._runs = execution, programs, sizer
        self._opened: collections.OrderedDict[str, tuple[FileStamp | None, Upscaler]] = collections.OrderedDict()
        self._opening = threading.Lock()

    @property
    def opened(self) -> list[Upscaler]:
        return [upscaler for _, upscaler in self._opened.values()]

    def open(self, file: UpscalerFile) -> Upscaler:
        """An upscaler, whose weights are loaded when it is used. ModelError if it cannot be had, or is another one."""
        from kerasdiff.adapters.file_search import check_hash, find_upscaler, sha256
        from kerasdiff.checkpoints.formats.esrgan_file import open_upscaler

        path = find_upscaler(file.file)
        stamp = FileStamp.of(path)
        with self._opening:
            known = self._opened.get(str(path))
            if known is None or known[0] != stamp:
                known = self._opened[str(path)] = stamp, Upscaler(open_upscaler(path), *self._runs)
                while len(self._opened) > _MOST_OPEN:
                    self._opened.popitem(last=False)
            self._opened.move_to_end(str(path))
        if file.sha256 is not None:
            check_hash(file.file, file.sha256, sha256(path))
        return known[1]

    def settled_request(self, request: Request) -> Request:
        """A request with the hashes of its upscalers, once they were found to be such, and fit its images."""
        upscale, hires = request.upscale, request.hires
        if upscale is not None:
            upscale = self.settled(upscale)
        if hires is not None and hires.file is not None:
            self.open(hires.file).size(request.height, request.width)
            hires = hires.with_file(lambda file: dataclasses.replace(self.settled(file), scale=None))
        return dataclasses.replace(request, upscale=upscale, hires=hires)

    def settled(self, file: UpscalerFile) -> UpscalerFile:
        """The same with its hash, once it was found to be an upscaler."""
        from kerasdiff.adapters.file_search import find_upscaler, sha256

        factor = self.open(file).config.scale
        path, near = find_upscaler(file.file), pathlib.Path(os.path.abspath(os.path.expanduser(file.file)))
        # One on the hub keeps its name.
        name = str(path) if path == near else file.file
        return UpscalerFile(name, float(factor) if file.scale is None else file.scale, sha256(path))
