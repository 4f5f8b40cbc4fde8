"""The stages of a model, and the way of a request through them."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence

import numpy as np

from kerasdiff import notices, validation
from kerasdiff.adapters.library import AdapterLibrary
from kerasdiff.checkpoints.checkpoint import Checkpoint
from kerasdiff.diffusion import sampling_loop
from kerasdiff.diffusion.approximation import Approximation
from kerasdiff.diffusion.conditioning import Conditioning, ContextTable, TextConditioning
from kerasdiff.diffusion.denoise_step import DenoiseStage, StepInputs
from kerasdiff.diffusion.initial_state import InitialState, from_noise, from_pictures
from kerasdiff.diffusion.memory_model import MemoryModel, UNetCost
from kerasdiff.diffusion.network import Networks
from kerasdiff.diffusion.overrides import Overrides
from kerasdiff.diffusion.preview import DecodingPreviewer, Previewer
from kerasdiff.diffusion.safety_stage import SafetyStage
from kerasdiff.diffusion.sampling_loop import Callback, LatentBatch, StepMonitor
from kerasdiff.diffusion.text_encoding import TextEncoding
from kerasdiff.diffusion.text_stage import TextStage
from kerasdiff.diffusion.vae_stage import DecodeStage, EncodeStage, PictureCache
from kerasdiff.errors import OutOfMemoryError, RequestError
from kerasdiff.images.masks import paste_back
from kerasdiff.models.config import VAEConfig
from kerasdiff.models.networks import TEXT_TO_IMAGE
from kerasdiff.plan import Plan
from kerasdiff.prompts.schedule import Value
from kerasdiff.request import Request
from kerasdiff.runtime import memory, terminal, tf_setup
from kerasdiff.runtime.batch_sizer import BatchSizer, MicroBatch
from kerasdiff.runtime.compiled import Compiled
from kerasdiff.runtime.precision import Execution
from kerasdiff.runtime.program_cache import ProgramCache
from kerasdiff.runtime.retries import Retries
from kerasdiff.samplers.batched import BatchTable
from kerasdiff.samplers.noise import Noise

# Modules that traced functions come from: this one imports all stages, and their networks are made there.
MADE_OF = (__name__, "kerasdiff.models.networks")
_LOG = logging.getLogger("kerasdiff")
# What a single image may be expected to need, as a multiple of what is free: expectations are rough.
_HOPELESS = 4
_COVER = ": resize='cover' without height and width makes them the model's size"


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
    ) -> None:
        """`shown` is the model with the autoencoder of its previews."""
        self.name, self.config, self._execution = checkpoint.name, checkpoint.config, execution
        self.networks = Networks(checkpoint, execution, programs)
        self.costs, self.retries = MemoryModel(self.config, execution), Retries(sizer, self)
        network, run = self.networks.network, (execution.jit_compile, programs)
        self.text = TextStage(network("text_encoder"), *run, checkpoint.tokenizer, self.config.text_encoder)
        self.adapters = AdapterLibrary(self.config, lambda name: self.networks.network(name).shapes, self.text.ids)
        self.denoise = DenoiseStage(network("unet"), *run)
        self.decoder = DecodeStage(network("decoder"), *run, self.config.latent_factor)
        self.encoder = EncodeStage(network("encoder"), *run, self.config.latent_factor)
        self.previewer = Previewer(checkpoint.latents_of)
        if shown is not None:
            self.previewer = DecodingPreviewer(shown, execution, programs, sizer)
        self.safety = None
        if self.config.safety_checker is not None:
            self.safety = SafetyStage(network("safety_checker"), *run, self.config.safety_checker)
        for name in TEXT_TO_IMAGE:
            _ = network(name).values

    def images(
        self,
        request: Request,
        overrides: Overrides,
        progress: bool | None = False,
        callback: Callback | None = None,
        *,
        latents_only: bool = False,
        names: tuple[str, str] = ("prompt_embeds", "negative_prompt_embeds"),
    ) -> Iterator[GeneratedImage]:
        """The images of a request in its order, each as soon as it is finished; or only latents.

        `names` are what messages call the embeddings in `overrides`. RequestError if an array has the wrong shape,
        NonFiniteError if a stage's numbers are not finite, OutOfMemoryError if one image fits in no way.
        """
        self._check(request, progress, callback, latents_only)
        if self.config.unet.embeds_guidance and overrides.negative_prompt_embeds is not None:
            notices.warn(f"{names[1]} has no effect: {self.name} takes guidance as an input and makes no second half")
        self.networks.refresh()
        texts = self.texts(request, overrides, names)
        given = sampling_loop.checked_latents(self.config, request, overrides.latents)
        cost, pictures = self._denoise_cost(request, texts), PictureCache(self, request.tile)
        loras = self.adapters.stack(request.loras)
        self._check_memory(request, cost)
        shown, name = terminal.shows_progress(progress), terminal.short_name(self.name)
        with terminal.bar(shown, desc=name, unit="step") as bar:
            monitor = StepMonitor(bar, callback, self.previewer)
            for batch in self.retries.batches(cost, len(request), request.exact):
                for attempt in batch.attempts():
                    with attempt as micro_batch, self.networks.applying(loras):
                        part, noise = request.only(batch.rows), None if given is None else given[batch.rows]
                        self._prefetch(part, self._denoise_cost(part, texts, batch.rows), micro_batch, latents_only)
                        text = texts.table(batch.rows, self.halves(part))
                        monitor.begin(len(batch.indices), micro_batch.images, batch.left)
                        result = self._sample(part, text, noise, pictures, micro_batch.parts, monitor)
                for index, latents, denoised in zip(batch.indices, result.latents, result.denoised, strict=False):
                    image = nsfw = None
                    if not latents_only:
                        image = self._paste_back(request, index, self.decode(denoised, request.tile))
                        image, nsfw = self._filter(request, image)
                    yield GeneratedImage(index, image, latents, nsfw, result.stopped_after)
                if result.stopped_after is not None:
                    return

    def plan(self, request: Request) -> Plan:
        """How a request without pictures would be carried out now."""
        cost = self._denoise_cost(request, self.texts(request, Overrides()))
        batches = self.retries.batches(cost, len(request), request.exact, warn=False)
        micro_batches = [batch.micro_batch for batch in batches]
        shape = sampling_loop.latent_shape(self.config, request)
        decoding = self.costs.decode(*shape[:2])
        tiles = self.retries.sizer.largest(decoding)
        programs = {"text encoder": self.text.expected(request.clip_skip).state}
        programs |= {f"U-Net {size.images}": cost.expected(size).state for size in micro_batches}
        programs["decoder"] = self.decoder.expected(shape, tiles.parts, request.tile).state
        return Plan(
            len(request),
            request.height,
            request.width,
            tuple(micro_batch.images for micro_batch in micro_batches),
            micro_batches[0].parts,
            tiles.parts,
            {
                "weights": self.weight_bytes,
                "U-Net": cost.need(micro_batches[0]),
                "decoder": decoding.need(tiles),
                "images": len(request) * request.height * request.width * 3,
            },
            memory.free(),
            programs,
            memory.total(),
        )

    def texts(
        self,
        request: Request,
        overrides: Overrides,
        names: tuple[str, str] = ("prompt_embeds", "negative_prompt_embeds"),
    ) -> TextConditioning:
        """What a request's images read; `names` as in `images`."""
        words = self.adapters.words(request.embeddings)
        encoding = TextEncoding(self.text, request.clip_skip, request.emphasis, words)
        return TextConditioning(encoding, self.encode_text, request, overrides, self.halves(request), names)

    def halves(self, request: Request) -> bool:
        """Whether a request's steps run with and without the prompt; a U-Net may take guidance as an input instead."""
        return request.guided and not self.config.unet.embeds_guidance

    def encode_text(self, encoding: TextEncoding, value: Value, chunks: int) -> np.ndarray:
        """The embeddings of a text, float32 (chunks * length, width)."""
        for attempt in self.retries.attempts(self.costs.text()):
            with attempt:
                embeddings = encoding.encode(value, chunks)
        return embeddings

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
        always = (self.text, self.denoise, self.decoder, self.encoder)
        stages = always if self.safety is None else (*always, self.safety)
        return [compiled for stage in (*stages, self.previewer) for compiled in stage.compiled]

    @property
    def weight_bytes(self) -> int:
        """What the networks that are loaded take."""
        return sum(network.nbytes for network in self.networks.known.values()) + self.previewer.nbytes

    def release(self, but: str | None = None) -> bool:
        """Unloads weights, `but` those of one network, and programs. Returns whether there were any."""
        released = [network.release() for name, network in self.networks.known.items() if name != but]
        released.append(self.previewer.release())
        if any(released):
            for compiled in self.compiled:
                compiled.release()
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
        if self.safety is not None and request.safety != "off" and not latents_only:
            self.safety.load()

    def _prefetch(self, request: Request, cost: UNetCost, micro_batch: MicroBatch, latents_only: bool) -> None:
        """Begins to prepare what follows on the texts, if there is room for everything at once."""
        if self.retries.sizer.has_room(cost, micro_batch):
            cost.expected(micro_batch).prefetch()
            if not latents_only:
                self.decoder.expected(sampling_loop.latent_shape(self.config, request), tile=request.tile).prefetch()

    def _sample(
        self,
        request: Request,
        text: ContextTable,
        given: np.ndarray | None,
        pictures: PictureCache,
        slices: int,
        monitor: StepMonitor,
    ) -> LatentBatch:
        """Latents of a request, all of its images at once; `given` is noise (N, h, w, C) instead of the seeds'."""
        run = sampling_loop.batch_table(self.config, request)
        embedding = self.config.unet.time_cond_proj_dim
        guidance = request.guidance if text.guided or embedding is not None else None
        for check in self.denoise.checks():
            noise = sampling_loop.noise_of(self.config, request)
            start = self._start(request, run, noise, given, pictures)
            conditioning = Conditioning(text, start.concat)
            settings = request.guidance_rescale, slices, Approximation.of(request, self.config.unet)
            states = self.denoise(start, conditioning, guidance, run, noise, *settings, embedding, request.tile)
            result = monitor.follow(states, start, run, request.num_steps - min(request.first_steps))
            check.finite = result.finite
        return result

    def _start(
        self, request: Request, run: BatchTable, noise: Noise, given: np.ndarray | None, pictures: PictureCache
    ) -> InitialState:
        """Where a request's run starts."""
        if request.pictures is None:
            return from_noise(noise.initial() if given is None else given, run)
        if request.rng == "torch" and isinstance(self.config.encoder, VAEConfig):
            noise.initial()  # which diffusers takes to draw from around what the encoder gives
        starting = noise.initial() if given is None else given
        return from_pictures(request.pictures, request.from_noise, pictures, starting, run, self.config.inpaints)

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
        sizes = texts.tokens(rows), unet.context_width, self.halves(request), channels
        inputs = StepInputs.shapes(shape, *sizes, joined=texts.joined(request), embedding=unet.time_cond_proj_dim)
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

    def _check_memory(self, request: Request, cost: UNetCost) -> None:
        """Before anything is run: OutOfMemoryError for images far too large for this machine, or a warning."""
        h, w, _ = sampling_loop.latent_shape(self.config, request)
        total, free = memory.total(), memory.free()
        for stage in (cost, self.costs.decode(h, w)):
            need = stage.need(MicroBatch(1, stage.max_parts))
            takes = (
                f"the {stage.stage} takes about {need / 1e9:.1f} GB for one image of {request.width} x "
                f"{request.height}, even in {stage.max_parts} parts, and there are {total / 1e9:.1f} GB, "
                f"{free / 1e9:.1f} GB of them free"
            )
            if self.weight_bytes + need > total or need > _HOPELESS * free:
                raise OutOfMemoryError(f"{takes}; generate smaller images{_COVER if request.pictures else ''}")
            if need > free and not self.retries.sizer.has_worked(stage):
                _LOG.warning("%s: it may run out of memory; smaller images take less", takes)
