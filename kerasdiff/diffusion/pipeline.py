"""The stages of a model, and the way of a request through them."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from kerasdiff import notices, validation
from kerasdiff.adapter_files import UpscalerFile
from kerasdiff.checkpoints.checkpoint import Checkpoint
from kerasdiff.diffusion import sampling_loop
from kerasdiff.diffusion.approximation import Approximation
from kerasdiff.diffusion.conditioner import Conditioner
from kerasdiff.diffusion.conditioning import Conditioning, ContextTable, TextConditioning
from kerasdiff.diffusion.control_library import ControlLibrary
from kerasdiff.diffusion.control_network import HintCache
from kerasdiff.diffusion.denoise_step import DenoiseStage, StepInputs
from kerasdiff.diffusion.enlarging import enlarge
from kerasdiff.diffusion.finishing import finished
from kerasdiff.diffusion.memory_model import MemoryModel, UNetCost, check_memory
from kerasdiff.diffusion.network import Networks
from kerasdiff.diffusion.overrides import OF_GENERATE, Names, Overrides
from kerasdiff.diffusion.passes import Pass, begun, expected_rows, requests_of
from kerasdiff.diffusion.preview import DecodingPreviewer, Previewer
from kerasdiff.diffusion.refining import give_way
from kerasdiff.diffusion.residency import Residency
from kerasdiff.diffusion.safety_stage import SafetyStage
from kerasdiff.diffusion.sampling_loop import Callback, LatentBatch, StepMonitor
from kerasdiff.diffusion.upscaler import UpscalerLibrary
from kerasdiff.diffusion.vae_stage import DecodeStage, EncodeStage, PictureCache
from kerasdiff.errors import RequestError
from kerasdiff.models.networks import text_to_image
from kerasdiff.request import Request
from kerasdiff.run_bounds import run_steps
from kerasdiff.runtime import terminal
from kerasdiff.runtime.batch_sizer import BatchSizer, MicroBatch, StageCost
from kerasdiff.runtime.compiled import Compiled
from kerasdiff.runtime.precision import Execution
from kerasdiff.runtime.program_cache import ProgramCache
from kerasdiff.runtime.retries import Retries

# Modules that traced functions come from: this one imports all stages, and their networks are made there.
MADE_OF = (__name__, "kerasdiff.models.networks")


@dataclasses.dataclass(frozen=True, eq=False)
class _Work:
    """What all runs of a request share."""

    given: np.ndarray | None  # noise instead of the seeds'
    pictures: PictureCache
    hints: HintCache
    monitor: StepMonitor
    latents_only: bool


@dataclasses.dataclass(frozen=True, eq=False)
class GeneratedImage:
    """One image of a request."""

    index: int
    image: np.ndarray | None  # uint8 (height, width, 3); None if only latents were asked for
    latents: np.ndarray  # float32 (h, w, C)
    nsfw: bool | None  # whether the safety filter flagged it; None if it did not run
    stopped_after: int | None  # the step after which a callback stopped its run


class Pipeline:
    """The stages of one model; those that every image needs are loaded when it is made if all fit, else when needed."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        execution: Execution,
        programs: ProgramCache,
        sizer: BatchSizer,
        shown: Checkpoint | None = None,
        refines: bool = False,
    ) -> None:
        """`shown` is the model with the autoencoder of its previews. A refiner's networks are loaded when needed."""
        self.name, self.config, self._execution = checkpoint.name, checkpoint.config, execution
        self.networks = Networks(checkpoint, execution, programs)
        self.costs, self.retries = MemoryModel(self.config, execution), Retries(sizer, self)
        network, run = self.networks.network, (execution.jit_compile, programs)
        self.residency = Residency(self.networks, execution, lambda: self._own_compiled, lambda: self.controls.named)
        self.conditioner = Conditioner(checkpoint, self.networks, run, self.costs, self.retries, self.residency)
        self.adapters = self.conditioner.adapters
        self.denoise = DenoiseStage(network("unet"), *run)
        self.decoder = DecodeStage(network("decoder"), *run, self.config.latent_factor)
        self.encoder = EncodeStage(network("encoder"), *run, self.config.latent_factor)
        self.upscalers = UpscalerLibrary(execution, programs, sizer)
        self.controls = ControlLibrary(self.config, execution, programs, self.denoise.overflow)
        self.previewer = Previewer(checkpoint.latents_of)
        if shown is not None:
            self.previewer = DecodingPreviewer(shown, execution, programs, sizer)
        self.safety = None
        if self.config.safety_checker is not None:
            self.safety = SafetyStage(network("safety_checker"), *run, self.config.safety_checker)
        self.refiner, self._refines, other = None, refines, checkpoint.refiner
        if other is not None:
            self.refiner = Pipeline(other, execution, programs, sizer.of(other.config), refines=True)
        needed = [] if refines else [network(name) for name in text_to_image(self.config)]
        # What is read late takes nothing until it runs, and is looked at here to know whether it fits the model.
        if all(one.backend.READS_LATE for one in needed) or self.residency.fits_together(one.name for one in needed):
            for one in needed:
                _ = one.values

    def images(
        self,
        request: Request,
        overrides: Overrides,
        progress: bool | None = False,
        callback: Callback | None = None,
        *,
        latents_only: bool = False,
        names: Names = OF_GENERATE,
    ) -> Iterator[GeneratedImage]:
        """The images of a request in its order, each as soon as it is finished; or only latents.

        `names` are what messages call the embeddings in `overrides`. RequestError if an array has the wrong shape,
        NonFiniteError if a stage's numbers are not finite, OutOfMemoryError if one image fits in no way.
        """
        self._check(request, progress, callback, latents_only)
        if self.config.unet.embeds_guidance and overrides.negative_prompt_embeds is not None:
            why = "takes guidance as an input and makes no second half"
            notices.warn(f"{names.negative_context} has no effect: {self.name} {why}")
        for model in filter(None, (self, self.refiner)):
            model.networks.refresh()
        given = sampling_loop.checked_latents(self.config, request, overrides.latents)
        passes = self.passes(request, overrides, names)
        for model in dict.fromkeys(one.model for one in passes):
            model.residency.decide(model.stage_costs(passes), self.retries.sizer.free)
        for one in passes:
            stages = [one.model.residency.making_room(cost) for cost in (one.cost, self._decoding(one.request))]
            check_memory(one.request, stages, one.model.residency.staying, one.model.retries.sizer)
        shown, name = terminal.shows_progress(progress), terminal.short_name(self.name)
        with terminal.bar(shown, desc=name, unit="step") as bar:
            monitor = StepMonitor(bar, callback, self.previewer)
            start = None if request.denoising_start is None else given
            noise = given if start is None else None
            work = _Work(noise, PictureCache(self, request.tile), HintCache(), monitor, latents_only)
            for indices, result in self._runs(work, passes, range(len(request)), start):
                for index, latents, denoised in zip(indices, result.latents, result.denoised, strict=True):
                    image = nsfw = None
                    if not latents_only:
                        image, nsfw = finished(self, request, index, denoised)
                    yield GeneratedImage(index, image, latents, nsfw, result.stopped_after)
                if result.stopped_after is not None:
                    return

    def _runs(
        self,
        work: _Work,
        passes: Sequence[Pass],
        indices: Sequence[int],
        start: np.ndarray | None = None,
        earlier: int = 0,
        later: int = 0,
    ) -> Iterator[tuple[list[int], LatentBatch]]:
        """Some of a request's images, as many at a time as fit, through one pass after the other.

        They start from the latents `start` (N, h, w, C), if given. `earlier` steps are done, and `later` rows expected
        to follow on other images.
        """
        one, *following = passes
        model = one.model
        for batch in model.retries.batches(model.residency.making_room(one.cost), len(indices), one.request.exact):
            if self.refiner is not None:
                give_way(model, self.refiner if model is self else self, one.cost)
            for attempt in batch.attempts():
                with attempt as micro_batch, model.networks.applying(one.loras):
                    rows = [indices[place] for place in batch.rows]
                    part = one.request.only(rows)
                    decodes = not work.latents_only and not following
                    model._prefetch(part, model._denoise_cost(part, one.texts, rows), micro_batch, decodes)
                    text = one.texts.table(rows, model.conditioner.halves(part))
                    steps = [run_steps(each.model.config, each.request) for each in following]
                    steps.insert(0, run_steps(model.config, part))
                    runs, after = math.ceil(batch.left / micro_batch.images), expected_rows(following, batch.left)
                    work.monitor.begin(len(batch.indices), runs, steps, earlier, later + after)
                    given = None if work.given is None or start is not None else work.given[rows]
                    latents = None if start is None else start[batch.rows]
                    result = model._sample(work, part, text, given, latents, micro_batch.parts)
            done, result = [indices[place] for place in batch.indices], result.first(len(batch.indices))
            if not following:
                yield done, result
                continue
            if one.request.hires is not None:
                result = result.enlarged(functools.partial(self._enlarged, one.request))
            if result.stopped_after is None:
                after = expected_rows(passes, batch.left - len(done))
                yield from self._runs(work, following, done, result.latents, earlier + steps[0], later + after)
            else:
                yield done, result

    def passes(self, request: Request, overrides: Overrides, names: Names = OF_GENERATE) -> list[Pass]:
        """A request's one pass, or its two: in whose pipeline, what images read, and what the steps take."""
        return [model._pass(one, given, names) for model, one, given in requests_of(self, request, overrides)]

    def _pass(self, request: Request, overrides: Overrides, names: Names) -> Pass:
        texts = self.conditioner.texts(request, overrides, names)
        return Pass(self, request, texts, self._denoise_cost(request, texts), self.adapters.stack(request.loras))

    def _enlarged(self, request: Request, latents: np.ndarray) -> np.ndarray:
        return enlarge(latents, request, self.config, self.decode, self.encode, self.upscale)

    def stage_costs(self, passes: Sequence[Pass]) -> list[StageCost]:
        """The stages of this model in passes, in the order in which they run, at their largest."""
        own = [one for one in passes if one.model is self]
        largest = max(own, key=lambda one: one.cost.work)
        costs = [self.costs.text(name) for name in self.conditioner.stages]
        if self._refines:  # the other model decodes
            return [*costs, largest.cost]
        if largest.request.pictures is not None or len(own) > 1:
            costs.append(self.costs.encode(largest.request.height, largest.request.width))
        costs += [largest.cost, self._decoding(largest.request)]
        filtered = self.safety is not None and largest.request.safety != "off"
        return [*costs, self.costs.safety()] if filtered else costs

    def _decoding(self, request: Request) -> StageCost:
        return self.costs.decode(*sampling_loop.latent_shape(self.config, request)[:2])

    def decode(self, latents: np.ndarray, tile: str | None = None) -> np.ndarray:
        """Latents (h, w, C) to an image uint8 (8h, 8w, 3), in tiles if memory asks for it; `tile` as in a request."""
        cost = self.residency.making_room(self.costs.decode(*latents.shape[:2]))
        self.residency.enter(cost.network)
        for attempt in self.retries.attempts(cost):
            with attempt as micro_batch:
                image = self.decoder(latents, micro_batch.parts, tile)
        return image

    def encode(self, picture: np.ndarray, tile: str | None = None) -> np.ndarray:
        """A picture in -1 to 1 (height, width, 3) to the mean of its latents, float32 (h, w, C); `tile` as above."""
        cost = self.costs.encode(*picture.shape[:2])
        self.residency.enter(cost.network)
        for attempt in self.retries.attempts(cost):
            with attempt as micro_batch:
                latents = self.encoder(picture, micro_batch.parts, tile)
        return latents

    def settled(self, request: Request) -> Request:
        """The request with the hashes of its files; ModelError if one cannot be had, or does not fit the model."""
        request = self.adapters.settled(request, self.config.defaults.embeddings)
        return self.controls.settled(self.upscalers.settled_request(request))

    def image_size(self, request: Request) -> tuple[int, int]:
        """Height and width of a request's images; RequestError if they would be too large."""
        height, width = request.height, request.width
        if request.upscale is None:
            return height, width
        return self.upscalers.open(request.upscale).size(height, width, request.upscale.scale)

    def upscale(self, file: UpscalerFile, image: np.ndarray) -> np.ndarray:
        """An image uint8 (h, w, 3), enlarged by an upscaler."""
        upscaler = self.upscalers.open(file)
        if not image.any():  # one that the safety filter blacked out stays black
            height, width = upscaler.size(image.shape[0], image.shape[1], file.scale)
            return np.zeros((height, width, 3), "uint8")
        return upscaler(image, file.scale)

    def flag(self, image: np.ndarray) -> bool:
        """Whether the safety checker flags an image, uint8 (height, width, 3)."""
        assert self.safety is not None
        self.residency.enter("safety_checker")
        for attempt in self.retries.attempts(self.costs.safety()):
            with attempt:
                flagged = bool(self.safety(image[None])[0])
        return flagged

    @property
    def compiled(self) -> list[Compiled]:
        """Every function of a stage that was needed so far."""
        return self._own_compiled + ([] if self.refiner is None else self.refiner.compiled)

    @property
    def _own_compiled(self) -> list[Compiled]:
        always = (*self.conditioner.stages.values(), self.denoise, self.decoder, self.encoder)
        stages = always if self.safety is None else (*always, self.safety)
        every: tuple[Any, ...] = (*stages, self.previewer, *self.upscalers.opened, *self.controls.opened)
        return [compiled for stage in every for compiled in stage.compiled]

    @property
    def num_parameters(self) -> int:
        """Those of the networks that were loaded so far."""
        others = 0 if self.refiner is None else self.refiner.num_parameters
        return others + sum(network.num_parameters for network in self.networks.known.values())

    @property
    def weight_bytes(self) -> int:
        """What the networks that are loaded take."""
        others = self.beside_bytes + (0 if self.refiner is None else self.refiner.weight_bytes)
        return others + sum(network.nbytes for network in self.networks.known.values())

    @property
    def beside_bytes(self) -> int:
        """What networks take that are not the model's own."""
        steering = sum(network.nbytes for network in self.controls.opened)
        return self.previewer.nbytes + sum(upscaler.nbytes for upscaler in self.upscalers.opened) + steering

    def release(self, but: str | None = None) -> bool:
        """Unloads weights, `but` those of one network, and programs. Returns whether there were any."""
        released = [network.release() for name, network in self.networks.known.items() if name != but]
        released.append(self.previewer.release())
        if any(released):
            for compiled in self._own_compiled:
                compiled.release()
        released += [upscaler.release() for upscaler in self.upscalers.opened if but != "upscaler"]
        released += [network.release() for network in self.controls.opened if but != "unet"]  # with which they run
        if self.refiner is not None:
            released.append(self.refiner.release())
        return any(released)

    def _check(self, request: Request, progress: bool | None, callback: Callback | None, latents_only: bool) -> None:
        """Refuses what the U-Net cannot do, before anything is run."""
        if progress is not None:
            validation.boolean("progress", progress)
        if callback is not None and not callable(callback):
            raise RequestError(f"callback must be a function, not {validation.kind(callback)}")
        masked = request.pictures is not None and request.pictures.masks is not None
        if self.config.inpaints and not masked:
            raise RequestError(
                f"{self.name} is a model for inpainting; it generates only into a picture: give image and mask, "
                "all white to generate all of it"
            )
        if self.config.edits and request.pictures is None:
            raise RequestError(f"{self.name} is a model for editing: give image, and a prompt that says what to change")
        channels = self.config.unet.in_channels
        if channels != self.config.vae.latent_channels and not self.config.needs_pictures:
            raise RequestError(f"the U-Net of {self.name} reads {channels} channels, which is no model known here")
        self.image_size(request.second_pass(self.config) or request)
        if self.safety is not None and request.safety != "off" and not latents_only:
            self.safety.load()

    def _prefetch(self, request: Request, cost: UNetCost, micro_batch: MicroBatch, decodes: bool) -> None:
        """Begins to prepare what follows on the texts, if there is room for everything at once."""
        if not self.residency.gives_way and self.retries.sizer.has_room(cost, micro_batch):
            cost.expected(micro_batch).prefetch()
            for expected in self.controls.expected(request, cost.shapes(micro_batch), micro_batch.parts).values():
                expected.prefetch()
            if decodes and not self._refines:
                self.decoder.expected(sampling_loop.latent_shape(self.config, request), tile=request.tile).prefetch()

    def _sample(
        self,
        work: _Work,
        request: Request,
        text: ContextTable,
        given: np.ndarray | None,
        latents: np.ndarray | None,
        slices: int,
    ) -> LatentBatch:
        """Latents of a request, all of its images at once; `given` is noise (N, h, w, C) instead of the seeds'.

        They start from `latents` (N, h, w, C), if there are any.
        """
        run = sampling_loop.batch_table(self.config, request)
        embedding = self.config.unet.time_cond_proj_dim
        weighs = text.guided and not self.config.edits  # whose texts have weights from step to step
        guidance = request.guidance if weighs or embedding is not None else None
        for check in self.denoise.checks():
            noise = sampling_loop.noise_of(self.config, request)
            start = begun(self.config, request, run, noise, given, latents, work.pictures)
            conditioning = Conditioning(text, start.concat)
            settings = request.guidance_rescale, slices, Approximation.of(request, self.config.unet)
            self.residency.enter("unet")
            controls = self.controls.run(request, run, slices, work.hints)
            more = embedding, request.tile, controls
            states = self.denoise(start, conditioning, guidance, run, noise, *settings, *more)
            result = work.monitor.follow(states, start, run)
            check.finite = result.finite
        return result

    def _denoise_cost(self, request: Request, texts: TextConditioning, rows: Sequence[int] | None = None) -> UNetCost:
        """What the steps of a request take, or of part of it, which has these of its images."""
        shape = (1, *sampling_loop.latent_shape(self.config, request))
        unet = self.config.unet
        channels = unet.in_channels - self.config.vae.latent_channels
        sizes = texts.tokens(rows), unet.context_width, self.conditioner.halves(request), channels
        pooled = None if unet.pooled_width is None else (unet.pooled_width, unet.num_time_ids)
        control = self.controls.shapes(request, *shape[1:3])
        more = unet.time_cond_proj_dim, pooled, control, self.config.edits
        inputs = StepInputs.shapes(shape, *sizes, None, texts.joined(request), *more)
        approximation = Approximation.of(request, self.config.unet)
        first, steering = self.residency.first_run_bytes("unet"), self.controls.used(request)
        lacking = sum(map(self.residency.lacking, steering))
        return self.costs.denoise(inputs, self.denoise, first, approximation, request.tile, steering, lacking)
