"""What each stage of a model takes of memory, and how many images at once are worth it."""

import dataclasses
import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kerasdiff.diffusion.approximation import Approximation
from kerasdiff.diffusion.denoise_step import ControlShapes, ControlWork, DenoiseStage, StepInputs
from kerasdiff.diffusion.stage import Expected
from kerasdiff.errors import OutOfMemoryError
from kerasdiff.models.config import ModelConfig
from kerasdiff.models.footprint import decoder_bytes, deep_feature_bytes, unet_bytes
from kerasdiff.models.network_configs import AnyVAEConfig, UNetConfig
from kerasdiff.models.networks import config_of
from kerasdiff.request import Request
from kerasdiff.runtime import memory
from kerasdiff.runtime.batch_sizer import MAX_PARTS, BatchSizer, MicroBatch, StageCost
from kerasdiff.runtime.memory import HEADROOM
from kerasdiff.runtime.precision import Execution

# (device, large model) -> images beyond which time per image no longer falls (benchmarks/results/*/batch_sizes_*.json).
MAX_BATCH = {("CPU", True): 1, ("CPU", False): 32, ("GPU", True): 16, ("GPU", False): 128}
# A text of 77 tokens, or a picture of 224 x 224, through a network of CLIP's size.
_CLIP_BYTES = 10**8
# A tile of the decoder is not smaller than this many latents along a side.
_LEAST_TILE = 8
# What a single image may be expected to need, as a multiple of what is free: expectations are rough.
_HOPELESS = 4
_COVER = ": resize='cover' without height and width makes them the model's size"
_LOG = logging.getLogger("kerasdiff")


@dataclasses.dataclass(frozen=True)
class _CLIPCost(StageCost):
    """A text or a picture through a network of CLIP's kind; `first_run_bytes` are what its program takes for itself."""

    first_run_bytes: int = 0

    @property
    def work(self) -> int:
        return _CLIP_BYTES

    def need(self, micro_batch: MicroBatch) -> int:
        return _CLIP_BYTES + self.first_run_bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetCost(StageCost):
    """The steps of a run; `inputs` has the shapes for one image.

    `steering` is what networks that steer them do, and `lacking` the bytes of these that are still to be loaded.
    """

    config: UNetConfig
    itemsize: int
    denoise: DenoiseStage
    first_run_bytes: int
    inputs: StepInputs
    approximation: Approximation
    tile: str | None
    steering: tuple[ControlWork, ...] = ()
    lacking: int = 0

    def need(self, micro_batch: MicroBatch) -> int:
        rows, tokens, width = self.inputs.text
        rows *= micro_batch.images
        _, h, w, _ = self.inputs.x
        taken = unet_bytes(self.config, h, w, rows, self.itemsize, micro_batch.parts)
        if self.approximation.reuses:
            taken += deep_feature_bytes(self.config, h, w, rows, self.approximation.branch)
        for work in self.steering:
            taken += work.step_bytes(self.config, h, w, rows, self.itemsize, micro_batch.parts)
        # What they give goes from one program to another.
        taken += 2 * 4 * micro_batch.images * sum(map(math.prod, self.inputs.steering))
        first = 0 if self.expected(micro_batch).state == "ready" else self.first_run_bytes
        return HEADROOM + taken + rows * tokens * width * 4 + first + self.lacking

    @property
    def work(self) -> int:
        return dataclasses.replace(self, first_run_bytes=0, lacking=0).need(MicroBatch())

    def expected(self, micro_batch: MicroBatch) -> Expected:
        """The program for so many images."""
        return self.denoise.expected(self.shapes(micro_batch), micro_batch.parts, self.approximation, self.tile)

    def shapes(self, micro_batch: MicroBatch) -> StepInputs:
        """The inputs for so many images."""
        _, *latents = self.inputs.x
        _, tokens, width = self.inputs.text
        pools = None if self.inputs.pooled is None else (self.inputs.pooled[-1], self.inputs.time_ids[-1])
        channels = 0 if self.inputs.concat is None else self.inputs.concat[-1]
        merging = self.approximation.merging_size(self.inputs.x)
        joined = 0 if self.inputs.text_weights is None else self.inputs.text_weights[0]
        guided = self.inputs.guidance is not None
        shape = micro_batch.images, *latents
        embedding = None if self.inputs.guidance_embedding is None else self.inputs.guidance_embedding[-1]
        more = embedding, pools, ControlShapes.of(self.inputs), self.inputs.concat_per_text
        return StepInputs.shapes(shape, tokens, width, guided, channels, merging, joined, *more)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAECost(StageCost):
    """The autoencoder with latents (h, w, C) of one image."""

    config: AnyVAEConfig
    itemsize: int
    h: int
    w: int

    def need(self, micro_batch: MicroBatch) -> int:
        # Tiles overlap by a quarter of their side on both.
        side = 1 if micro_batch.parts == 1 else 1.5 / micro_batch.parts
        return HEADROOM + decoder_bytes(self.config, int(side * self.h), int(side * self.w), self.itemsize)


class MemoryModel:
    """The costs of the stages of a model."""

    def __init__(self, config: ModelConfig, execution: Execution) -> None:
        self._config, self._execution = config, execution
        self.max_batch = MAX_BATCH[execution.device, config.unet.large]

    def text(self, network: str = "text_encoder", first_run_bytes: int = 0) -> StageCost:
        """A text through a text encoder."""
        return _CLIPCost(network.replace("_", " "), 0, 0, network, first_run_bytes=first_run_bytes)

    def safety(self) -> StageCost:
        """A look at an image."""
        return _CLIPCost("safety checker", 0, 0, "safety_checker")

    def denoise(
        self,
        inputs: StepInputs,
        denoise: DenoiseStage,
        first_run_bytes: int,
        approximation: Approximation,
        tile: str | None,
        steering: Mapping[str, ControlWork],
        lacking: int,
    ) -> UNetCost:
        """The steps of a run; `steering` has what steers them by name."""
        factor, (_, h, w, _) = self._config.latent_factor, inputs.x
        stage = "U-Net without guidance" if inputs.guidance is None else "U-Net"
        if inputs.text_weights is not None:
            stage = f"U-Net with {inputs.text_weights[0]} texts"
        if steering:
            stage += f"{' with' if inputs.text_weights is None else ' and'} {' and '.join(steering)}"
        return UNetCost(
            stage,
            factor * h,
            factor * w,
            "unet",
            self.max_batch,
            MAX_PARTS,
            beside=tuple(steering),
            config=self._config.unet,
            itemsize=_itemsize(self._execution),
            denoise=denoise,
            first_run_bytes=first_run_bytes,
            inputs=inputs,
            approximation=approximation,
            tile=tile,
            steering=tuple(steering.values()),
            lacking=lacking,
        )

    def decode(self, h: int, w: int) -> VAECost:
        """Latents (h, w, C) to an image."""
        return self._vae("decoder", h, w)

    def encode(self, height: int, width: int) -> VAECost:
        """A picture (height, width, 3) to latents."""
        factor = self._config.latent_factor
        return self._vae("encoder", height // factor, width // factor)

    def _vae(self, stage: str, h: int, w: int) -> VAECost:
        factor, max_parts = self._config.latent_factor, 1
        while min(h, w) // (2 * max_parts) >= _LEAST_TILE and max_parts < MAX_PARTS:
            max_parts *= 2
        size: dict[str, Any] = {"height": factor * h, "width": factor * w, "max_parts": max_parts}
        config = config_of(self._config, stage)
        itemsize = _itemsize(self._execution.upcast(config))
        return VAECost(stage, network=stage, config=config, itemsize=itemsize, h=h, w=w, **size)


def _itemsize(execution: Execution) -> int:
    """Bytes of a number that layers give."""
    return 4 if execution.precision == "float32" else 2


def check_memory(request: Request, stages: Iterable[Any], held: Callable[[str], int], sizer: BatchSizer) -> None:
    """Before anything is run: OutOfMemoryError for images far too large for this machine, or a warning.

    `held` gives what networks take while the stage of one of them runs.
    """
    total, free = memory.total(), memory.free()
    for stage in stages:
        need = stage.need(MicroBatch(1, stage.max_parts))
        takes = (
            f"the {stage.stage} takes about {need / 1e9:.1f} GB for one image of {request.width} x {request.height}, "
            f"even in {stage.max_parts} parts, and there are {total / 1e9:.1f} GB, {free / 1e9:.1f} GB of them free"
        )
        if held(stage.network) + need > total or need > _HOPELESS * (free + stage.leaving):
            fewer = "use fewer controls, or " if stage.beside else ""
            raise OutOfMemoryError(f"{takes}; {fewer}generate smaller images{_COVER if request.pictures else ''}")
        if need > free + stage.leaving and not sizer.has_worked(stage):
            _LOG.warning("%s: it may run out of memory; smaller images take less", takes)
