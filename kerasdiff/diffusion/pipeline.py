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
from kerasdiff.diffusion.denoise_step import DenoiseStage, StepInputs
from kerasdiff.diffusion.enlarging import enlarge
from kerasdiff.diffusion.initial_state import InitialState, from_latents, from_noise, from_noisy, from_pictures
from kerasdiff.diffusion.memory_model import MemoryModel, UNetCost, check_memory
from kerasdiff.diffusion.network import Networks
from kerasdiff.diffusion.overrides import OF_GENERATE, Names, Overrides
from kerasdiff.diffusion.passes import Pass, expected_rows, requests_of
from kerasdiff.diffusion.preview import DecodingPreviewer, Previewer
from kerasdiff.diffusion.refining import Continuation, give_way
from kerasdiff.diffusion.safety_stage import SafetyStage
from kerasdiff.diffusion.sampling_loop import Callback, LatentBatch, StepMonitor
from kerasdiff.diffusion.upscaler import UpscalerLibrary
from kerasdiff.diffusion.vae_stage import DecodeStage, EncodeStage, PictureCache
from kerasdiff.errors import RequestError
from kerasdiff.images.masks import paste_back
from kerasdiff.models.network_configs import VAEConfig
from kerasdiff.models.networks import text_to_image
from kerasdiff.request import Request
from kerasdiff.run_bounds import run_steps
from kerasdiff.runtime import terminal, tf_setup
from kerasdiff.runtime.batch_sizer import BatchSizer, MicroBatch
from kerasdiff.runtime.compiled import Compiled
from kerasdiff.runtime.precision import Execution
from kerasdiff.runtime.program_cache import ProgramCache
from kerasdiff.runtime.retries import Retries
from kerasdiff.samplers.batched import BatchTable
from kerasdiff.samplers.noise import Noise

# Modules that traced functions come from: this one imports all stages, and their networks are made there.
MADE_OF = (__name__, "kerasdiff.models.networks")


@dataclasses.dataclass(frozen=True, eq=False)
class _Work:
    """What all runs of a request share."""

    given: np.ndarray | None  # noise instead of the seeds'
    pictures: PictureCache
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
    """The stages of one model; text encoder, U-Net and decoder are loaded when it is made, the others when needed."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        execution: Execution,
        programs: ProgramCache,
        sizer: BatchSizer,
        shown: Checkpoint | None = None,
        load: Sequence[str] | None = None,
    ) -> None:
        """`shown` is the model with the autoencoder of its previews. A refiner's networks are loaded when needed."""
        self.name, self.config, self._execution = checkpoint.name, checkpoint.config, execution
        self.networks = Networks(checkpoint, execution, programs)
        self.costs, self.retries = MemoryModel(self.config, execution), Retries(sizer, self)
        network, run = self.networks.network, (execution.jit_compile, programs)
        self.conditioner = Conditioner(checkpoint, self.networks, run, self.costs, self.retries)
        self.adapters = self.conditioner.adapters
        self.denoise = DenoiseStage(network("unet"), *run)
        self.decoder = DecodeStage(network("decoder"), *run, self.config.latent_factor)
        self.encoder = EncodeStage(network("encoder"), *run, self.config.latent_factor)
        self.upscalers = UpscalerLibrary(execution, programs, sizer)
        self.previewer = Previewer(checkpoint.latents_of)
        if shown is not None:
            self.previewer = DecodingPreviewer(shown, execution, programs, sizer)
        self.safety = None
        if self.config.safety_checker is not None:
            self.safety = SafetyStage(network("safety_checker"), *run, self.config.safety_checker)
        self.refiner = None
        if checkpoint.refiner is not None:
            self.refiner = Pipeline(
                checkpoint.refiner, execution, programs, sizer.of(checkpoint.refiner.config), load=()
            )
        for name in text_to_image(self.config) if load is None else load:
            _ = network(name).values

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
        for one in passes:
            decoding = self.costs.decode(*sampling_loop.latent_shape(self.config, one.request)[:2])
            check_memory(one.request, (one.cost, decoding), one.model.weight_bytes, one.model.retries.sizer)
        shown, name = terminal.shows_progress(progress), terminal.short_name(self.name)
        with terminal.bar(shown, desc=name, unit="step") as bar:
            monitor = StepMonitor(bar, callback, self.previewer)
            start = None if request.denoising_start is None else given
            noise = given if start is None else None
            work = _Work(noise, PictureCache(self, request.tile), monitor, latents_only)
            for indices, result in self._runs(work, passes, range(len(request)), start):
                for index, latents, denoised in zip(indices, result.latents, result.denoised, strict=True):
                    image = nsfw = None
                    if not latents_only:
                        image = self._paste_back(request, index, self.decode(denoised, request.tile))
                        image, nsfw = self._filter(request, image)
                        if request.upscale is not None:
                            image = self.upscale(request.upscale, image)
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
        for batch in model.retries.batches(one.cost, len(indices), one.request.exact):
            if self.refiner is not None:
                unets = [each.networks.network("unet") for each in (self, self.refiner)]
                give_way(unets, model is not self, one.cost)
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

    def decode(self, latents: np.ndarray, tile: str | None = None) -> np.ndarray:
        """Latents (h, w, C) to an image uint8 (8h, 8w, 3), in tiles if memory asks for it; `tile` as in a request."""
        for attempt in self.retries.attempts(self.costs.decode(*latents.shape[:2])):
            with attempt as micro_batch:
                image = self.decoder(latents, micro_batch.parts, tile)
        return image

    def encode(self, picture: np.ndarray, tile: str | None = None) -> np.ndarray:
        """A picture in -1 to 1 (height, width, 3) to the mean of its latents, float32 (h, w, C); `tile` as above."""
        for attempt in self.retries.attempts(self.costs.encode(*picture.shape[:2])):
            with attempt as micro_batch:
                latents = self.encoder(picture, micro_batch.parts, tile)
        return latents

    def settled(self, request: Request) -> Request:
        """The request with the hashes of its files; ModelError if one cannot be had, or does not fit the model."""
        return self.upscalers.settled_request(self.adapters.settled(request, self.config.defaults.embeddings))

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
        for attempt in self.retries.attempts(self.costs.safety()):
            with attempt:
                flagged = bool(self.safety(image[None])[0])
        return flagged

    @property
    def compiled(self) -> list[Compiled]:
        """Every function of a stage that was needed so far."""
        always = (*self.conditioner.stages.values(), self.denoise, self.decoder, self.encoder)
        stages = always if self.safety is None else (*always, self.safety)
        every: tuple[Any, ...] = (*stages, self.previewer, *self.upscalers.opened)
        others = [] if self.refiner is None else self.refiner.compiled
        return [compiled for stage in every for compiled in stage.compiled] + others

    @property
    def num_parameters(self) -> int:
        """Those of the networks that were loaded so far."""
        others = 0 if self.refiner is None else self.refiner.num_parameters
        return others + sum(network.num_parameters for network in self.networks.known.values())

    @property
    def weight_bytes(self) -> int:
        """What the networks that are loaded take."""
        others = self.previewer.nbytes + sum(upscaler.nbytes for upscaler in self.upscalers.opened)
        others += 0 if self.refiner is None else self.refiner.weight_bytes
        return others + sum(network.nbytes for network in self.networks.known.values())

    def release(self, but: str | None = None) -> bool:
        """Unloads weights, `but` those of one network, and programs. Returns whether there were any."""
        released = [network.release() for name, network in self.networks.known.items() if name != but]
        released.append(self.previewer.release())
        if any(released):
            for compiled in self.compiled:
                compiled.release()
        released += [upscaler.release() for upscaler in self.upscalers.opened if but != "upscaler"]
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
        channels = self.config.unet.in_channels
        if channels != self.config.vae.latent_channels and not (self.config.inpaints and masked):
            if self.config.inpaints:
                raise RequestError(
                    f"{self.name} is a model for inpainting; it generates only into a picture: give image and mask, "
                    "all white to generate all of it"
                )
            raise RequestError(f"the U-Net of {self.name} reads {channels} channels, which is no model known here")
        self.image_size(request.second_pass(self.config) or request)
        if self.safety is not None and request.safety != "off" and not latents_only:
            self.safety.load()

    def _prefetch(self, request: Request, cost: UNetCost, micro_batch: MicroBatch, decodes: bool) -> None:
        """Begins to prepare what follows on the texts, if there is room for everything at once."""
        if self.retries.sizer.has_room(cost, micro_batch):
            cost.expected(micro_batch).prefetch()
            if decodes:
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
        guidance = request.guidance if text.guided or embedding is not None else None
        for check in self.denoise.checks():
            noise = sampling_loop.noise_of(self.config, request)
            start = self._start(request, run, noise, given, latents, work.pictures)
            conditioning = Conditioning(text, start.concat)
            settings = request.guidance_rescale, slices, Approximation.of(request, self.config.unet)
            states = self.denoise(start, conditioning, guidance, run, noise, *settings, embedding, request.tile)
            result = work.monitor.follow(states, start, run)
            check.finite = result.finite
        return result

    def _start(
        self,
        request: Request,
        run: BatchTable,
        noise: Noise,
        given: np.ndarray | None,
        latents: np.ndarray | None,
        pictures: PictureCache,
    ) -> InitialState:
        """Where a request's run starts."""
        if latents is not None and isinstance(request, Continuation) and not request.renoised:
            begun, given = from_noisy(latents, run), sampling_loop.noise_of(self.config, request, begins=True).initial()
        elif latents is not None:
            given = noise.initial()
            begun = from_latents(latents, given, run)
        if latents is not None and (request.pictures is None or request.pictures.masks is None):
            return begun
        if request.pictures is None:
            return from_noise(noise.initial() if given is None else given, run)
        if request.rng == "torch" and isinstance(self.config.encoder, VAEConfig):
            noise.initial()  # which diffusers takes to draw from around what the encoder gives
        starting = noise.initial() if given is None else given
        start = from_pictures(request.pictures, request.from_noise, pictures, starting, run, self.config.inpaints)
        return start if latents is None else dataclasses.replace(start, x=begun.x)

    def _paste_back(self, request: Request, index: int, image: np.ndarray) -> np.ndarray:
        """An image with what a mask does not cover as it was."""
        pictures = request.pictures
        if pictures is None or pictures.masks is None:
            return image
        original = pictures.index[index]
        return paste_back(image, pictures.images[original], pictures.masks[original], request.feather)

    def _filter(self, request: Request, image: np.ndarray) -> tuple[np.ndarray, bool | None]:
        """An image, black if the safety filter is on and flags it, and whether it is flagged."""
        if self.safety is None or request.safety == "off":
            return image, None
        nsfw = self.flag(image)
        return np.zeros_like(image) if nsfw and request.safety == "on" else image, nsfw

    def _denoise_cost(self, request: Request, texts: TextConditioning, rows: Sequence[int] | None = None) -> UNetCost:
        """What the steps of a request take, or of part of it, which has these of its images."""
        shape = (1, *sampling_loop.latent_shape(self.config, request))
        channels = self.config.vae.latent_channels + 1 if self.config.inpaints else 0
        unet = self.config.unet
        sizes = texts.tokens(rows), unet.context_width, self.conditioner.halves(request), channels
        pooled = None if unet.pooled_width is None else (unet.pooled_width, unet.num_time_ids)
        inputs = StepInputs.shapes(shape, *sizes, None, texts.joined(request), unet.time_cond_proj_dim, pooled)
        approximation = Approximation.of(request, self.config.unet)
        return self.costs.denoise(inputs, self.denoise, self._first_run_bytes("unet"), approximation, request.tile)

    def _first_run_bytes(self, network: str) -> int:
        """What a program of a network takes for itself when it first runs: weights in oneDNN's order.

        Where they are frozen, as OpenVINO takes them, it keeps them; measured, see docs/reliability.md.
        """
        if self._execution.device != "CPU" or self._execution.jit_compile:
            return 0
        keeps = tf_setup.is_inference_only() or self._execution.backend == "openvino"
        return int(self.networks.network(network).nbytes * (1.35 if keeps else 0.35))
