"""Networks that steer a model's steps: those that its requests use, and what they do in a run."""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasdiff.diffusion.conditioning import TextInputs
from kerasdiff.diffusion.control_stage import ControlStage
from kerasdiff.diffusion.denoise_step import ControlShapes, StepInputs
from kerasdiff.diffusion.network import Network, Networks
from kerasdiff.models.blocks import residual_shapes
from kerasdiff.models.footprint import controlnet_bytes
from kerasdiff.runtime import backend

if TYPE_CHECKING:
    from kerasdiff.checkpoints.checkpoint import Checkpoint
    from kerasdiff.controls import Control
    from kerasdiff.models.config import ModelConfig
    from kerasdiff.models.control_configs import ControlNetConfig
    from kerasdiff.request import Request
    from kerasdiff.runtime.compiled import Compiled
    from kerasdiff.runtime.precision import Execution
    from kerasdiff.runtime.program_cache import ProgramCache
    from kerasdiff.samplers.batched import BatchTable

# Networks of one model that stay open.
_MOST_OPEN = 4


class ControlNetwork:
    """A ControlNet with its compiled stage; threads may share it."""

    kind = "ControlNet"

    def __init__(self, model: Checkpoint, execution: Execution, programs: ProgramCache) -> None:
        self.name: str = model.name
        self.config: ControlNetConfig = model.config.controlnet  # type: ignore[attr-defined]
        self._networks = Networks(model, execution, programs)
        self.stage = ControlStage(self._networks.network("controlnet"), execution.jit_compile, programs)

    @property
    def compiled(self) -> tuple[Compiled, ...]:
        """The functions of its stage that were needed so far."""
        return self.stage.compiled

    @property
    def nbytes(self) -> int:
        """What its weights take, if they are loaded."""
        return sum(network.nbytes for network in self._networks.known.values())

    @property
    def members(self) -> list[Network]:
        """The networks that it consists of."""
        return [self._networks.network("controlnet")]

    @property
    def whole(self) -> list[Compiled]:
        """The functions that keep all weights of a member."""
        return [compiled for compiled in self.compiled if not compiled.name.startswith("hint")]

    def step_bytes(self, unet: Any, h: int, w: int, rows: int, itemsize: int, slices: int) -> int:
        """What it takes besides weights, as `kerasdiff.models.footprint.unet_bytes` has it."""
        return controlnet_bytes(unet, h, w, rows, itemsize, slices)

    def release(self) -> bool:
        """Unloads weights and programs; whether there were any."""
        released = self._networks.network("controlnet").release()
        for compiled in self.compiled if released else ():
            compiled.release()
        return released


class ControlLibrary:
    """The networks that steer one model, each opened once while its files stay the same."""

    def __init__(self, config: ModelConfig, execution: Execution, programs: ProgramCache) -> None:
        self._config, self._runs = config, (execution, programs)
        self._opened: collections.OrderedDict[str, ControlNetwork] = collections.OrderedDict()
        self._opening = threading.Lock()

    @property
    def opened(self) -> list[ControlNetwork]:
        return list(self._opened.values())

    @property
    def named(self) -> dict[str, ControlNetwork]:
        """The same by name, such as "ControlNet canny"."""
        named: dict[str, ControlNetwork] = {}
        for network in self.opened:
            alike = sum(other.name == network.name for other in named.values())
            named[f"{network.kind} {network.name}" + (f" ({1 + alike})" if alike else "")] = network
        return named

    def used(self, request: Request) -> dict[str, ControlNetwork]:
        """Those that steer a request, by name."""
        used = [self.open(entry) for entry in self.acting(request)]
        return {name: network for name, network in self.named.items() if network in used}

    def open(self, control: Control) -> ControlNetwork:
        """The network of a control, whose weights are loaded when it is used. ModelError if it cannot be had."""
        from kerasdiff.checkpoints.control_files import open_control

        with self._opening:
            if control.model not in self._opened:
                self._opened[control.model] = ControlNetwork(open_control(control.model, self._config), *self._runs)
                while len(self._opened) > _MOST_OPEN:
                    self._opened.popitem(last=False)
            self._opened.move_to_end(control.model)
        return self._opened[control.model]

    def shapes(self, request: Request, h: int, w: int) -> ControlShapes | None:
        """Shapes of what steers the steps of a request with latents of h x w; None if nothing does."""
        if not self.acting(request):
            return None
        return ControlShapes(residuals=tuple(residual_shapes(self._config.unet, h, w)))

    def acting(self, request: Request) -> list[Control]:
        """The controls of a request that act in any step of any image."""
        return [control for control in request.controls or () if any(control.scale) and control.start < control.end]

    def run(self, request: Request, run: BatchTable, slices: int) -> RunControls | None:
        """What steers the steps of a run; None if nothing does."""
        acting = [
            _Acting(self.open(control), control, request, run, slices, self._config.unet)
            for control in self.acting(request)
        ]
        if not acting:
            return None
        factor, runs = self._config.latent_factor, backend.of(self._runs[0].backend)
        shapes = residual_shapes(self._config.unet, request.height // factor, request.width // factor)
        return RunControls(acting, shapes, runs.tensor)


class _Acting:
    """A control in a run."""

    def __init__(
        self, network: ControlNetwork, control: Control, request: Request, run: BatchTable, slices: int, unet: Any
    ) -> None:
        self._stage, self._control, self._slices, self._tile = network.stage, control, slices, request.tile
        pictures = control.image
        hints = [self._stage.encode(image.astype("float32") / 255, request.tile) for image in pictures.images]
        self._hint: Any = np.stack([hints[index] for index in pictures.index])
        self.pooled = network.config.global_pool
        count = len(residual_shapes(unet, 1, 1))
        # Less where details are decided: the first skip connection gets a tenth.
        soft = control.mode != "balanced" or self.pooled
        layers = np.logspace(-1, 0, count) if soft else np.ones(count)
        images, steps = np.array(control.scale), run.steps
        first = np.array(request.first_steps)
        number, of = steps - first, np.maximum(request.num_steps - first, 1)
        acts = (steps >= 0) & (number / of >= control.start) & ((number + 1) / of <= control.end)
        # (rows, residuals, B)
        self._scales = (np.where(acts, images, 0)[:, None, :] * layers[:, None]).astype("float32")
        self._halves = control.mode == "control" or self.pooled
        self._texts: dict[int, tuple[Any, TextInputs]] = {}

    def acts(self, row: int) -> bool:
        """Whether it acts on any image in a row."""
        return bool(np.any(self._scales[row]))

    def residuals(self, row: int, given: StepInputs, before: tuple[Any, ...]) -> tuple[Any, ...]:
        """What it adds in a row, to what others do."""
        batch, rows = len(given.x), len(given.text)
        halves = self._halves and rows > batch
        text = self._conditional(given, batch) if halves else TextInputs(given.text, given.pooled, given.time_ids)
        scales = np.tile(self._scales[row], (1, len(text.text) // batch))
        return self._stage.residuals(given, text, self._hint, scales, before, self._slices, self._tile, halves)

    def _conditional(self, given: StepInputs, batch: int) -> TextInputs:
        """What the conditional rows read, the same tensors as long as the whole is the same."""
        key = id(given.text)
        if key not in self._texts:
            both = given.text, given.pooled, given.time_ids
            self._texts = {key: (given.text, TextInputs(*(None if each is None else each[batch:] for each in both)))}
        return self._texts[key][1]


@dataclasses.dataclass
class RunControls:
    """What steers the steps of a run, as `StepControls` has it."""

    acting: Sequence[_Acting]
    shapes: Sequence[tuple[int, ...]]
    tensor: Callable[[np.ndarray], Any]
    _nothing: dict[int, tuple[Any, ...]] = dataclasses.field(default_factory=dict)

    def inputs(self, row: int, given: StepInputs) -> StepInputs:
        """The inputs of a row, with what the networks make of them; zeros where none acts."""
        residuals: tuple[Any, ...] = ()
        for acting in self.acting:
            if acting.acts(row):
                residuals = acting.residuals(row, given, residuals)
        if not residuals:
            residuals = self._zeros(len(given.text))
        return given._replace(residuals=residuals)

    def _zeros(self, rows: int) -> tuple[Any, ...]:
        if rows not in self._nothing:
            self._nothing[rows] = tuple(self.tensor(np.zeros((rows, *shape), "float32")) for shape in self.shapes)
        return self._nothing[rows]
