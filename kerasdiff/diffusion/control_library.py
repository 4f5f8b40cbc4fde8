"""Networks that steer a model's steps: those that its requests use, each opened once."""

from __future__ import annotations

import collections
import dataclasses
import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kerasdiff.controls import STEERING, Control, Controls, ImagePrompt, acts
from kerasdiff.diffusion.control_network import ControlNetwork, HintCache, SteeredRun
from kerasdiff.diffusion.controlnet_run import LoadedControlNet
from kerasdiff.diffusion.denoise_step import ControlShapes, StepControls, StepInputs
from kerasdiff.diffusion.image_prompt_run import LoadedIPAdapter
from kerasdiff.diffusion.t2i_adapter_run import LoadedT2IAdapter
from kerasdiff.errors import RequestError
from kerasdiff.runtime import backend

if TYPE_CHECKING:
    from kerasdiff.checkpoints.file_stamps import FileStamps
    from kerasdiff.diffusion.stage import Expected, Overflow
    from kerasdiff.models.config import ModelConfig
    from kerasdiff.request import Request
    from kerasdiff.runtime.precision import Execution
    from kerasdiff.runtime.program_cache import ProgramCache
    from kerasdiff.samplers.batched import BatchTable

# What runs a network, by the field of `ControlModel` that its checkpoint has; the order is that within a step.
KINDS: dict[str, type[ControlNetwork]] = {
    "controlnet": LoadedControlNet,
    "t2i_adapter": LoadedT2IAdapter,
    "ip_adapter": LoadedIPAdapter,
}
# Networks of one model that stay open, if a request does not use more.
_MOST_OPEN = 4


class ControlLibrary:
    """The networks that steer one model, each opened once while its files stay the same."""

    def __init__(self, config: ModelConfig, execution: Execution, programs: ProgramCache, overflow: Overflow) -> None:
        self._config, self._runs = config, (execution, programs, overflow)
        self._tensor = backend.of(execution.backend).tensor
        self._opened: collections.OrderedDict[tuple[str, Any], tuple[FileStamps, ControlNetwork]]
        self._opened = collections.OrderedDict()
        self._opening = threading.Lock()

    @property
    def opened(self) -> list[ControlNetwork]:
        return [network for _, network in [*self._opened.values()]]  # a copy, as other threads open more

    @property
    def named(self) -> dict[str, ControlNetwork]:
        """The same by name, such as "ControlNet canny"."""
        named: dict[str, ControlNetwork] = {}
        for network in self.opened:
            name, alike = f"{network.kind} {network.name}", [other.name for other in named.values()]
            named[f"{name} ({1 + alike.count(network.name)})" if network.name in alike else name] = network
        return named

    def used(self, request: Request) -> dict[str, ControlNetwork]:
        """Those that steer a request, by name."""
        used = [network for own in self._acting(request).values() for network, _ in own]
        return {name: network for name, network in self.named.items() if network in used}

    def open(self, entry: Control | ImagePrompt) -> ControlNetwork:
        """Its network, whose weights are loaded when it is used. ModelError if it cannot be had, or is another one."""
        from kerasdiff.adapters.file_search import check_hash
        from kerasdiff.checkpoints.control_files import control_hash, find_control, open_control
        from kerasdiff.checkpoints.file_stamps import FileStamps

        path = find_control(entry.model)
        encoder = getattr(entry, "encoder", None)
        key, stamps = (str(path), encoder), FileStamps.of(path)
        with self._opening:
            known = self._opened.get(key)
            if known is None or known[0] != stamps:
                model = open_control(entry.model, self._config, encoder)
                known = self._opened[key] = stamps, _kind_of(model.config)(model, *self._runs)
            self._opened.move_to_end(key)
        if not isinstance(entry, known[1].asked_by):
            is_, field = ("an", "image_prompts") if known[1].asked_by is ImagePrompt else ("no", "controls")
            kind = known[1].asked_by.__name__
            raise RequestError(f"{entry.model} is {is_} IP-Adapter: give it in {field}, as a kerasdiff.{kind}")
        if entry.sha256 is not None:
            check_hash(entry.model, entry.sha256, control_hash(path))
        return known[1]

    def settled(self, request: Request) -> Request:
        """A request with the hashes of the networks that steer it, once they were found to fit the model."""
        from kerasdiff.checkpoints.control_files import control_hash, find_control

        def known(entry: Any) -> Any:
            self.open(entry)
            path, near = find_control(entry.model), os.path.abspath(os.path.expanduser(entry.model))
            # One on the hub keeps its name; of another an ending, or a folder inside, may have been left out.
            name = str(path) if str(path).startswith(near) else entry.model
            encoder = getattr(entry, "encoder", None)
            own = {"encoder": os.path.abspath(encoder)} if encoder is not None and os.path.isdir(encoder) else {}
            return dataclasses.replace(entry, model=name, sha256=control_hash(path), **own)

        changed: dict[str, Any] = {}
        for field in STEERING:
            entries = getattr(request, field)
            if entries is not None:
                changed[field] = Controls(tuple(known(one) if acts(one) else one for one in entries))
        return dataclasses.replace(request, **changed)

    def shapes(self, request: Request, h: int, w: int) -> ControlShapes | None:
        """Shapes of what steers the steps of a request with latents of h x w; None if nothing does."""
        acting = self._acting(request)
        if not acting:
            return None
        shapes = ControlShapes()
        for kind, own in acting.items():
            shapes += KINDS[kind].shapes(own, self._config.unet, h, w)
        return shapes

    def expected(self, request: Request, given: StepInputs, slices: int) -> dict[str, Expected]:
        """The programs that each step of a request needs for inputs of the shapes `given`, by name."""
        names = {id(network): name for name, network in self.named.items()}
        return {
            names[id(network)]: expected
            for kind, own in self._acting(request).items()
            for (network, _), expected in zip(own, KINDS[kind].expected(own, given, slices, request.tile), strict=False)
        }

    def run(self, request: Request, table: BatchTable, slices: int, hints: HintCache) -> RunControls | None:
        """What steers the steps of a run; None if nothing does. `hints` has what was made of them in other runs."""
        acting = self._acting(request)
        if not acting:
            return None
        factor = self._config.latent_factor
        latents = request.height // factor, request.width // factor
        run = SteeredRun(request, table, self._config.unet, latents, slices, self._tensor, hints)
        return RunControls([KINDS[kind].part(own, run) for kind, own in acting.items()])

    def _acting(self, request: Request) -> dict[str, list[tuple[ControlNetwork, Any]]]:
        """What acts in any step of any image, with its networks, by kind."""
        opened = [(self.open(entry), entry) for entry in request.steering]
        with self._opening:
            while len(self._opened) > max(_MOST_OPEN, len(opened)):
                self._opened.popitem(last=False)
        found = {name: [pair for pair in opened if type(pair[0]) is kind] for name, kind in KINDS.items()}
        return {name: own for name, own in found.items() if own}


@dataclasses.dataclass(frozen=True)
class RunControls:
    """What steers the steps of a run, as `StepControls` has it: a part for each kind of network."""

    parts: Sequence[StepControls]

    def inputs(self, row: int, given: StepInputs) -> StepInputs:
        """The inputs of a row, with what each part adds."""
        for part in self.parts:
            given = part.inputs(row, given)
        return given


def _kind_of(model: Any) -> type[ControlNetwork]:
    """What runs the network of a checkpoint."""
    return next(kind for field, kind in KINDS.items() if getattr(model, field, None) is not None)
