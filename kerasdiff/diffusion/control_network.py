"""A network of its own that steers a model's steps, and what such networks see of a run."""

from __future__ import annotations

import abc
import collections
import dataclasses
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from kerasdiff.controls import Control, ImagePrompt
from kerasdiff.diffusion.denoise_step import ControlShapes, StepControls, StepInputs
from kerasdiff.diffusion.network import Network, Networks
from kerasdiff.images.reader import scaled

if TYPE_CHECKING:
    from kerasdiff.checkpoints.checkpoint import Checkpoint
    from kerasdiff.diffusion.stage import Expected, Overflow, Stage
    from kerasdiff.images.init_images import Pictures
    from kerasdiff.models.network_configs import UNetConfig
    from kerasdiff.request import Request
    from kerasdiff.runtime.compiled import Compiled
    from kerasdiff.runtime.precision import Execution
    from kerasdiff.runtime.program_cache import ProgramCache
    from kerasdiff.samplers.batched import BatchTable

T = TypeVar("T")
# What was made of so many hints is kept during a request, and of those that a batch needs.
_MOST_KEPT = 8
# Of a network that is not about as large as the one that it steers.
_MOST_BYTES = 10**8
# Of a mask: where the hint has no picture.
_COVERED = 0.5


class ControlNetwork(abc.ABC):
    """A network that steers a model, with its compiled stages; threads may share it.

    `overflow` is that of the U-Net which it steers: both go to float32 together.
    """

    # What it is called.
    kind: ClassVar[str] = "network"
    # Those of its checkpoint, in `models.networks.NETWORKS`.
    networks: ClassVar[tuple[str, ...]] = ()
    # What asks for it in a request.
    asked_by: ClassVar[type[Control | ImagePrompt]] = Control

    def __init__(self, model: Checkpoint, execution: Execution, programs: ProgramCache, overflow: Overflow) -> None:
        self.name: str = model.name
        self.own: Any = model.config
        self._networks = Networks(model, execution, programs)

    @property
    @abc.abstractmethod
    def stages(self) -> tuple[Stage, ...]:
        """Its compiled stages."""

    @classmethod
    @abc.abstractmethod
    def shapes(cls, acting: Sequence[tuple[Any, Any]], unet: UNetConfig, h: int, w: int) -> ControlShapes:
        """Shapes of what networks of this kind, each with its control, add to steps with latents of h x w."""

    @classmethod
    def expected(
        cls, acting: Sequence[tuple[Any, Any]], given: StepInputs, slices: int, tile: str | None
    ) -> list[Expected]:
        """The program of each network for a step with inputs of the shapes `given`; none if not each step runs them.

        `slices` are of attention, `tile` as in a request.
        """
        return []

    @classmethod
    @abc.abstractmethod
    def part(cls, acting: Sequence[tuple[Any, Any]], run: SteeredRun) -> StepControls:
        """What all networks of this kind do in a run, each with its control."""

    @property
    def compiled(self) -> tuple[Compiled, ...]:
        """The functions of its stages that were needed so far."""
        return tuple(compiled for stage in self.stages for compiled in stage.compiled)

    @property
    def members(self) -> list[Network]:
        """Its networks."""
        return [self._networks.network(name) for name in self.networks]

    @property
    def whole(self) -> tuple[Compiled, ...]:
        """The functions that read all weights of a network."""
        return self.compiled

    def step_bytes(self, unet: UNetConfig, h: int, w: int, rows: int, itemsize: int, slices: int) -> int:
        """What it takes besides weights, as `kerasdiff.models.footprint.unet_bytes` has it."""
        return _MOST_BYTES

    @property
    def nbytes(self) -> int:
        """What its weights take, if they are loaded."""
        return sum(network.nbytes for network in self._networks.known.values())

    def release(self) -> bool:
        """Unloads weights and programs, which come back when they are needed; whether there were any."""
        released = [network.release() for network in self.members]
        for compiled in self.compiled if any(released) else ():
            compiled.release()
        return any(released)


class HintCache:
    """What was made of hints during a request."""

    def __init__(self) -> None:
        self._made: collections.OrderedDict[Hashable, Any] = collections.OrderedDict()

    def each(self, keys: Sequence[Hashable], make: Callable[[int], T]) -> list[T]:
        """What `make(place)` makes of the hint at each place, or made before of one with the same key."""
        for place, key in enumerate(keys):
            if key not in self._made:
                self._made[key] = make(place)
            self._made.move_to_end(key)
        found = [self._made[key] for key in keys]
        while len(self._made) > max(_MOST_KEPT, len({*keys})):
            self._made.popitem(last=False)
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class SteeredRun:
    """A run of some of a request's images, as what steers it sees it."""

    request: Request
    table: BatchTable
    unet: UNetConfig
    latents: tuple[int, int]  # their height and width
    slices: int  # of attention
    tensor: Callable[[np.ndarray], Any]  # an array on the device
    hints: HintCache

    def scales(self, entry: Control | ImagePrompt) -> np.ndarray:
        """The scale of each image in each row, float32 (rows, B): 0 where it does not act.

        Shares are of an image's own steps, from its first one to the end of all noise, whoever does the rest.
        """
        first, steps = self.table.counted_from, self.table.steps
        first = np.array(self.request.first_steps) if first is None else first
        number, count = steps - first, np.maximum(self.request.num_steps - first, 1)
        acts = (steps >= 0) & (number / count >= entry.start) & ((number + 1) / count <= entry.end)
        return np.where(acts, np.array(entry.scale), 0).astype("float32")

    def pictures(self, control: Control) -> HintPictures:
        """The hint of each image."""
        pictures = self.request.pictures if control.image is None else control.image
        assert pictures is not None
        return HintPictures(pictures, self.request.height, self.request.width)


class HintPictures(Sequence[np.ndarray]):
    """The hint of each image of a run, from 0 to 1, float32 (height, width, 3), made when it is looked at.

    In a second pass they are enlarged as its images are. What a mask covers is -1.
    """

    def __init__(self, pictures: Pictures, height: int, width: int) -> None:
        self._pictures, self._size = pictures, (height, width)

    def __len__(self) -> int:
        return len(self._pictures.index)

    def __getitem__(self, place: Any) -> Any:
        index, masks = self._pictures.index[place], self._pictures.masks
        picture = self._pictures.images[index]
        if picture.shape[:2] != self._size:
            picture = scaled(picture, *self._size, crop=True)
        hint = picture.astype("float32") / 255
        return hint if masks is None else np.where(masks[index][..., None] > _COVERED, np.float32(-1), hint)

    @functools.cached_property
    def keys(self) -> list[Hashable]:
        """Of each image one that it shares with equal hints."""
        digests = [self._pictures.digests(place) for place in range(len(self))]
        return [(*digest.values(), self._size) for digest in digests]
