"""What ControlNets do in a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasdiff.diffusion.conditioning import TextInputs
from kerasdiff.diffusion.control_network import ControlNetwork, SteeredRun
from kerasdiff.diffusion.control_stage import ControlStage
from kerasdiff.diffusion.denoise_step import ControlShapes, StepControls, StepInputs
from kerasdiff.models.blocks import residual_shapes
from kerasdiff.models.footprint import controlnet_bytes

if TYPE_CHECKING:
    from kerasdiff.checkpoints.checkpoint import Checkpoint
    from kerasdiff.controls import Control
    from kerasdiff.diffusion.stage import Expected, Overflow
    from kerasdiff.models.network_configs import UNetConfig
    from kerasdiff.runtime.compiled import Compiled
    from kerasdiff.runtime.precision import Execution
    from kerasdiff.runtime.program_cache import ProgramCache


class LoadedControlNet(ControlNetwork):
    """A ControlNet with its compiled stage."""

    kind, networks = "ControlNet", ("controlnet",)

    def __init__(self, model: Checkpoint, execution: Execution, programs: ProgramCache, overflow: Overflow) -> None:
        super().__init__(model, execution, programs, overflow)
        network, unet = self._networks.network("controlnet"), self.own.controlnet.unet
        reads = ["guidance_embedding"] * unet.embeds_guidance + ["pooled", "time_ids"] * (unet.pooled_width is not None)
        runs = execution.jit_compile, programs, overflow
        self.stage = ControlStage(unet.widths[0], network, *runs, reads=tuple(reads))

    @property
    def stages(self) -> tuple[ControlStage]:
        return (self.stage,)

    @property
    def whole(self) -> tuple[Compiled, ...]:
        """Hints are encoded by little of it."""
        return tuple(compiled for compiled in self.compiled if not compiled.name.startswith("hint"))

    def step_bytes(self, unet: UNetConfig, h: int, w: int, rows: int, itemsize: int, slices: int) -> int:
        """Those of the half of a U-Net."""
        return controlnet_bytes(unet, h, w, rows, itemsize, slices)

    @classmethod
    def expected(
        cls, acting: Sequence[tuple[LoadedControlNet, Control]], given: StepInputs, slices: int, tile: str | None
    ) -> list[Expected]:
        """Those of a step."""
        return [
            network.stage.expected(given, len(acting) > 1, slices, tile, network.halves(control))
            for network, control in acting
        ]

    def halves(self, control: Control) -> bool:
        """Whether it runs beside the prompt alone."""
        return control.mode == "control" or self.own.controlnet.global_pool

    @classmethod
    def shapes(cls, acting: Sequence[tuple[Any, Any]], unet: UNetConfig, h: int, w: int) -> ControlShapes:
        """The same for any number of them."""
        return ControlShapes(residuals=tuple(residual_shapes(unet, h, w)))

    @classmethod
    def part(cls, acting: Sequence[tuple[LoadedControlNet, Control]], run: SteeredRun) -> StepControls:
        """The sum of what they add."""
        return _ControlNets([_Acting(network, control, run) for network, control in acting], run)


class _Acting:
    """A ControlNet with a hint for each image of a run."""

    def __init__(self, network: LoadedControlNet, control: Control, run: SteeredRun) -> None:
        self._stage, self._slices, self._tile = network.stage, run.slices, run.request.tile
        hints = run.pictures(control)
        keys = [(self._stage, self._stage.overflow.happened, key) for key in hints.keys]
        encoded = run.hints.each(keys, lambda place: self._stage.encode(hints[place], self._tile))
        self._hint: Any = run.tensor(np.stack(encoded))
        pooled = network.own.controlnet.global_pool
        count = len(residual_shapes(run.unet, 1, 1))
        # Less where details are decided: the first skip connection gets a tenth.
        soft = control.mode != "balanced" and not pooled
        layers = np.logspace(-1, 0, count) if soft else np.ones(count)
        # (rows, residuals, B)
        self._scales = (run.scales(control)[:, None, :] * layers[:, None]).astype("float32")
        self._halves = network.halves(control)
        self._texts: dict[int, tuple[Any, TextInputs]] = {}

    def acts(self, row: int) -> bool:
        """Whether it acts on any image in a row."""
        return bool(np.any(self._scales[row]))

    def residuals(self, row: int, given: StepInputs, before: tuple[Any, ...], count: int | None) -> tuple[Any, ...]:
        """What it adds in a row, to what others do; the first `count` of it, unless that is None."""
        batch, rows = len(given.x), len(given.text)
        halves = self._halves and rows > batch
        text = self._conditional(given, batch) if halves else TextInputs(given.text, given.pooled, given.time_ids)
        scales = np.tile(self._scales[row], (1, len(text.text) // batch))
        return self._stage.residuals(given, text, self._hint, scales, before, self._slices, self._tile, halves, count)

    def _conditional(self, given: StepInputs, batch: int) -> TextInputs:
        """What the conditional rows read, the same tensors as long as the whole is the same."""
        key = id(given.text)
        if key not in self._texts:
            both = given.text, given.pooled, given.time_ids
            self._texts = {key: (given.text, TextInputs(*(None if each is None else each[batch:] for each in both)))}
        return self._texts[key][1]


class _ControlNets:
    """What ControlNets add to the steps of a run: in a row where none acts, zeros."""

    def __init__(self, acting: Sequence[_Acting], run: SteeredRun) -> None:
        self._acting, self._tensor, self._shapes = acting, run.tensor, residual_shapes(run.unet, *run.latents)
        # What is added in a shallow row, to the skip connections that it has.
        self._shallow = run.request.deep_cache_branch + 1
        self._nothing: dict[int, tuple[Any, ...]] = {}

    def inputs(self, row: int, given: StepInputs) -> StepInputs:
        """As `StepControls` has it."""
        count = None if given.deep is None else self._shallow
        # Of several the first one, too, adds to something: which one that is changes from row to row.
        residuals = self._zeros(len(given.text))[:count] if len(self._acting) > 1 else ()
        for one in self._acting:
            if one.acts(row):
                residuals = one.residuals(row, given, residuals, count)
        return given._replace(residuals=residuals or self._zeros(len(given.text))[:count])

    def _zeros(self, rows: int) -> tuple[Any, ...]:
        if rows not in self._nothing:
            self._nothing[rows] = tuple(self._tensor(np.zeros((rows, *shape), "float32")) for shape in self._shapes)
        return self._nothing[rows]
