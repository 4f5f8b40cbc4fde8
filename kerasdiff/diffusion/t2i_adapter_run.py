"""What T2I-Adapters do in a run: features are made of hints once, and added to each step in which they act."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasdiff.diffusion.control_network import ControlNetwork, SteeredRun
from kerasdiff.diffusion.denoise_step import ControlShapes, StepControls, StepInputs
from kerasdiff.diffusion.stage import Stage
from kerasdiff.errors import RequestError
from kerasdiff.models.blocks import feature_shapes

if TYPE_CHECKING:
    from kerasdiff.checkpoints.checkpoint import Checkpoint
    from kerasdiff.controls import Control
    from kerasdiff.diffusion.stage import Overflow
    from kerasdiff.models.control_configs import T2IAdapterConfig
    from kerasdiff.models.network_configs import UNetConfig
    from kerasdiff.runtime.precision import Execution
    from kerasdiff.runtime.program_cache import ProgramCache

# Of red, green and blue in a grey picture, in 2**-16, as Pillow and diffusers make one (ITU-R 601-2).
_LUMA = np.array([19595, 38470, 7471])


@dataclasses.dataclass(frozen=True)
class MakeFeatures:
    """Hints from 0 to 1 (K, height, width, C) to features in float32; to be traced."""

    tile: str | None = None

    def __call__(self, adapter: Any, hints: Any) -> Any:
        from keras import ops

        from kerasdiff.models.layers import wrapping

        with wrapping(self.tile):
            return tuple(ops.cast(feature, "float32") for feature in adapter(hints))


class T2IAdapterStage(Stage):
    """A T2I-Adapter, compiled once for each picture size."""

    name = "T2I-Adapter"

    def __call__(self, hint: np.ndarray, config: T2IAdapterConfig, tile: str | None = None) -> list[np.ndarray]:
        """A hint from 0 to 1 (height, width, 3) to features float32 (h, w, C); the larger half of odd sides remains.

        What is below 0, where a mask covers a request's own image, is black.
        """
        hint = np.maximum(hint, 0)
        if config.in_channels == 1:
            levels = np.rint(hint * 255).astype(int)
            hint = ((levels @ _LUMA + 2**15) >> 16)[..., None].astype("float32") / np.float32(255)
        missing = [-side % config.downscale_factor for side in hint.shape[:2]]
        filled = np.pad(hint, [*((0, count) for count in missing), (0, 0)], "edge")
        name = f"features, tile {tile}" if tile else "features"
        for check in self.checks():
            made = [np.asarray(each)[0] for each in self.function(name, MakeFeatures(tile))(filled[None])]
            check.finite = all(np.isfinite(each).all() for each in made)
        return made


class LoadedT2IAdapter(ControlNetwork):
    """A T2I-Adapter with its compiled stage."""

    kind, networks = "T2I-Adapter", ("t2i_adapter",)

    def __init__(self, model: Checkpoint, execution: Execution, programs: ProgramCache, overflow: Overflow) -> None:
        super().__init__(model, execution, programs, overflow)
        self.config: T2IAdapterConfig = self.own.t2i_adapter
        # With an overflow of its own: what it gives does not depend on the U-Net.
        self.stage = T2IAdapterStage(self._networks.network("t2i_adapter"), execution.jit_compile, programs)

    @property
    def stages(self) -> tuple[T2IAdapterStage]:
        return (self.stage,)

    @classmethod
    def shapes(cls, acting: Sequence[tuple[Any, Any]], unet: UNetConfig, h: int, w: int) -> ControlShapes:
        """Those of the one with the most features."""
        for network, control in acting:
            if control.mode != "balanced":
                raise RequestError(f"{network.name} is a T2I-Adapter, and has no mode {control.mode!r}; leave it out")
        most = max(len(network.config.features) for network, _ in acting)
        return ControlShapes(features=tuple(feature_shapes(unet, h, w)[:most]))

    @classmethod
    def part(cls, acting: Sequence[tuple[LoadedT2IAdapter, Control]], run: SteeredRun) -> StepControls:
        """The sum of what they add."""
        return _T2IAdapters(acting, run)


class _T2IAdapters:
    """What T2I-Adapters add to the steps of a run: zeros where none acts."""

    def __init__(self, acting: Sequence[tuple[LoadedT2IAdapter, Control]], run: SteeredRun) -> None:
        self._tensor, images = run.tensor, len(run.request)
        shapes = LoadedT2IAdapter.shapes(acting, run.unet, *run.latents).features
        self._shapes = [(images, *shape) for shape in shapes]
        # Of each adapter the scales (rows, B), and the features of each image.
        self._scales = np.stack([run.scales(control) for _, control in acting])
        self._features = [_features(network, control, run) for network, control in acting]
        self._added: tuple[bytes, Any] = (b"", None)

    def inputs(self, row: int, given: StepInputs) -> StepInputs:
        """As `StepControls` has it; the same tensors as long as scales are the same."""
        scales = self._scales[:, row]
        if self._added[0] != scales.tobytes():
            self._added = scales.tobytes(), tuple(map(self._tensor, self._sums(scales)))
        return given._replace(features=self._added[1])

    def _sums(self, scales: np.ndarray) -> list[np.ndarray]:
        sums = [np.zeros(shape, "float32") for shape in self._shapes]
        for own, of_images in zip(scales, self._features, strict=True):
            for image, (scale, features) in enumerate(zip(own, of_images, strict=True)):
                for total, feature in zip(sums, features if scale else (), strict=False):
                    total[image] += scale * feature
        return sums


def _features(network: LoadedT2IAdapter, control: Control, run: SteeredRun) -> list[list[np.ndarray]]:
    hints = run.pictures(control)
    keys = [(id(network), key) for key in hints.keys]
    return run.hints.each(keys, lambda place: network.stage(hints[place], network.config, run.request.tile))
