"""Where the three stages meet: a request goes in, images come out."""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

import kerasdiff
from kerasdiff.engine import backend
from kerasdiff.engine.compiled import Compiled
from kerasdiff.engine.denoise import Denoise
from kerasdiff.engine.environment import processor, version
from kerasdiff.engine.images import Decode, Encode
from kerasdiff.engine.network import Network, Networks
from kerasdiff.engine.noise import RNGS, Noise
from kerasdiff.engine.precision import choose
from kerasdiff.engine.preview import preview
from kerasdiff.engine.process import is_inference_only
from kerasdiff.engine.safety import CheckSafety
from kerasdiff.engine.start import Start, from_noise, from_pictures
from kerasdiff.engine.store import open_store
from kerasdiff.engine.text import EncodeText, both
from kerasdiff.errors import RequestError
from kerasdiff.masks import paste_back
from kerasdiff.receipts import Origin
from kerasdiff.request import Request, make_request
from kerasdiff.result import Result
from kerasdiff.samplers import Table, sampling_levels, sampling_table
from kerasdiff.samplers.runs import Run, side_by_side
from kerasdiff.weights.identity import identity
from kerasdiff.weights.presets import open_model

_LOG = logging.getLogger("kerasdiff")
# (step, num_steps, preview); False stops the run.
Callback = Callable[[int, int, np.ndarray | None], Any]


class Denoised(NamedTuple):
    """Latents, what they look like (the same, unless the run was stopped), and after which step it was stopped."""

    latents: np.ndarray
    seen: np.ndarray
    stopped_after: int | None


class Generator:
    """A model with its weights and its compiled stages; make one and use it again and again.

    Args:
        model: "tiny" (ships with the package); "sd-v1-4" or "sd-v2-1", KerasCV's published weights; a folder
            of diffusers, of KerasCV's .h5 files or of ours; a single `.safetensors` file in the original
            layout; "org/name" or "hf://org/name" on the Hugging Face hub; or a live
            `keras_cv.models.StableDiffusion` or `StableDiffusionV2`, whose weights are copied.
        weights: "pretrained", or "random" to build the architecture without a download.
        revision: of a model on the hub: a branch, tag or commit.
        variant: which of several sets of weights to take, such as "fp16".
        precision: "float32", "mixed_float16", "mixed_bfloat16", "float16", "bfloat16" or "auto".
            The mixed ones keep float32 weights, the plain ones keep half-precision weights.
        jit_compile: whether XLA compiles the stages: True, False or "auto".

    Raises:
        ModelError: no such model, or its weights cannot be had.
        RequestError: an unknown precision or `jit_compile`.

    Example:
        ```python
        generator = kerasdiff.Generator("tiny")
        generator.warm_up(batch_size=3)
        result = generator.generate("a red circle on a blue background", batch_size=3, seed=1)
        ```
    """

    def __init__(
        self,
        model: Any = "tiny",
        *,
        weights: str = "pretrained",
        revision: str | None = None,
        variant: str | None = None,
        precision: str = "auto",
        jit_compile: bool | str = "auto",
    ) -> None:
        self._model = open_model(model, weights, revision=revision, variant=variant)
        asked = os.fspath(model) if isinstance(model, str | os.PathLike) else self._model.name
        self._asked: dict[str, Any] = {"model": asked, "revision": revision, "variant": variant, "weights": weights}
        self.config = self._model.config
        self.tokenizer = self._model.tokenizer
        self.execution = choose(precision, jit_compile, self.config.unet.large)
        _LOG.info("%s: %s", self.name, self.execution)
        started = time.perf_counter()
        device = " ".join([self.execution.device, *backend.devices()])
        jit, programs = self.execution.jit_compile, open_store(backend.name(), device)
        make = functools.partial(Network, model=self._model, execution=self.execution, programs=programs)
        self.networks = Networks(make)
        self._encode_text = EncodeText(
            self.tokenizer, self.config.text_encoder, self.networks.network("text_encoder"), jit, programs
        )
        self._denoise = Denoise(self.networks.network("unet"), jit, programs)
        self._decode = Decode(self.networks.network("decoder"), jit, programs)
        encoder = functools.partial(self.networks.network, "encoder")
        self._encode_image = Encode(encoder, self.config.latent_factor, jit, programs)
        self._check_safety = None
        if self.config.safety_checker is not None:
            checker = functools.partial(self.networks.network, "safety_checker")
            self._check_safety = CheckSafety(checker, self.config.safety_checker, jit, programs)
            _LOG.info("%s: images that its safety filter flags are black; safety='flag' or 'off' shows them", self.name)
        self._load_s = time.perf_counter() - started

    @functools.cached_property
    def origin(self) -> Origin:
        """What receipts say of this generator."""
        packages = ("kerasdiff", "keras", "numpy", backend.name())
        found = {package: version(package) for package in packages}
        return Origin(
            **self._asked,
            precision=self.execution.precision,
            jit_compile=self.execution.jit_compile,
            inference_only=is_inference_only(),
            backend=backend.name(),
            device=", ".join(backend.devices()) or processor(),
            versions={**{name: known for name, known in found.items() if known}, "kerasdiff": kerasdiff.__version__},
            identity=functools.partial(identity, self._model),
        )

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model.name

    @property
    def num_parameters(self) -> int:
        """Parameters of the networks that are built."""
        return sum(network.num_parameters for network in self.networks.made.values())

    @property
    def traces(self) -> int:
        """How often a stage was traced so far; what an earlier process traced is read, and does not count."""
        return sum(compiled.traces for compiled in self._compiled)

    @property
    def programs(self) -> int:
        """How many programs are ready, one for each stage and set of shapes; what more come has to be compiled."""
        return sum(compiled.programs for compiled in self._compiled)

    @property
    def times(self) -> dict[str, float]:
        """Seconds spent so far: "weights" to load them, "trace", "load" of traced programs, "first" run of each."""
        stages = {name: sum(compiled.times[name] for compiled in self._compiled) for name in ("trace", "load", "first")}
        return {"weights": self._load_s, **stages}

    @property
    def _compiled(self) -> list[Compiled]:
        return [one for stage in (self._encode_text, self._denoise, self._decode) for one in stage.compiled]

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        batch_size: int = 1,
        *,
        latents: np.ndarray | None = None,
        prompt_embeds: Any = None,
        negative_prompt_embeds: Any = None,
        callback: Callback | None = None,
        progress: bool = True,
        **arguments: Any,
    ) -> Result:
        """Draws `batch_size` images for each prompt.

        Args:
            prompt: a text or a list of texts; None if `prompt_embeds` says it.
            batch_size: images for each prompt.
            latents: unit-variance starting noise (N, height / 8, width / 8, 4) instead of the seeds'.
            prompt_embeds: (N or 1, T, C), as `encode_text` gives them, instead of `prompt`; `batch_size`
                images for each.
            negative_prompt_embeds: the same instead of `negative_prompt`.
            callback: called after each step as callback(step, num_steps, preview), with the steps done so far, how
                many there are, and what the pictures look like by then, uint8 (N, height / 8, width / 8, 3), in
                a rough way that costs nothing (None for an autoencoder of which that is not known). If it returns
                False, the run ends: the result has the latents of that step.
            progress: whether to show a progress bar on stderr.
            **arguments: `negative_prompt`, `height`, `width`, `num_steps`, `guidance_scale`,
                `guidance_interval`, `guidance_rescale`, `sampler`, `sampler_options`, `spacing`,
                `timesteps`, `sigmas`, `rng`, `long_prompts`, `seed`, `image`, `mask`, `strength`, `resize`,
                `feather`, `safety`, as in `kerasdiff.request.make_request`.

        Raises:
            RequestError: an argument is wrong.
        """
        if (prompt is None) == (prompt_embeds is None):
            raise RequestError("give prompt or prompt_embeds, and not both")
        if negative_prompt_embeds is not None and arguments.get("negative_prompt") is not None:
            raise RequestError("give negative_prompt or negative_prompt_embeds, not both")
        if prompt_embeds is not None:
            prompt_embeds = self._encode_text.check("prompt_embeds", prompt_embeds)
        texts = [""] * len(prompt_embeds) if prompt is None else prompt
        request = make_request(self.config, texts, batch_size=batch_size, **arguments)
        return self.run(
            request,
            latents=latents,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            callback=callback,
            progress=progress,
        )

    def run(
        self,
        request: Request,
        *,
        latents: np.ndarray | None = None,
        prompt_embeds: Any = None,
        negative_prompt_embeds: Any = None,
        callback: Callback | None = None,
        progress: bool = True,
    ) -> Result:
        """Carries out a request that was made for this model's configuration.

        Args:
            request: from `make_request`.
            latents: as in `generate`.
            prompt_embeds: as in `generate`.
            negative_prompt_embeds: as in `generate`.
            callback: as in `generate`.
            progress: whether to show a progress bar on stderr.

        Raises:
            RequestError: an array has the wrong shape.
        """
        self._check_channels(request)
        check_safety = None if request.safety == "off" else self._check_safety
        if check_safety is not None:
            check_safety.load()
        self.networks.follow()
        chunks = 1
        if request.long_prompts == "chunk":
            chunks = max(map(self._encode_text.chunks, {*request.prompts, *request.negative_prompts}))
        texts = self._encode_text.rows(request.prompts, "prompt_embeds", prompt_embeds, len(request), chunks)
        if request.guided:
            without = self._encode_text.rows(
                request.negative_prompts, "negative_prompt_embeds", negative_prompt_embeds, len(request), chunks
            )
            texts = both("prompt_embeds", texts, "negative_prompt_embeds", without)
        final = self._denoised(request, latents, texts, progress, callback)
        images = self._finished(request, self.decode(final.seen))
        nsfw = None
        if check_safety is not None:
            nsfw = tuple(check_safety(images).tolist())
            if request.safety == "on":
                images[list(nsfw)] = 0
        arrays = {
            "latents": latents,
            "prompt_embeds": prompt_embeds,
            "negative_prompt_embeds": negative_prompt_embeds,
            "callback": None if final.stopped_after is None else np.array(final.stopped_after),
        }
        given = {name: _sha256(array) for name, array in arrays.items() if array is not None}
        return Result(
            images,
            final.latents,
            request,
            self.name,
            nsfw=nsfw,
            origin=self.origin,
            given=given,
            stopped_after=final.stopped_after,
        )

    def initial_latents(
        self,
        batch_size: int = 1,
        *,
        height: int | None = None,
        width: int | None = None,
        seed: int | Sequence[int] = 0,
        rng: str = "philox",
    ) -> np.ndarray:
        """Unit-variance starting noise, each image's from its seed: float32 (N, height / 8, width / 8, 4).

        Args:
            batch_size: images.
            height: pixels; None is the model's own.
            width: pixels; None is the model's own.
            seed: a number, or one an image.
            rng: "philox" or "torch", as in `generate`.

        Raises:
            RequestError: an argument is wrong.
        """
        request = make_request(self.config, "", batch_size=batch_size, height=height, width=width, seed=seed, rng=rng)
        return self._noise(request).initial()

    def denoise(
        self,
        latents: np.ndarray,
        context: Any,
        negative_context: Any = None,
        *,
        callback: Callback | None = None,
        progress: bool = True,
        **arguments: Any,
    ) -> np.ndarray:
        """Takes starting noise to latents that `decode` makes images of: the middle stage on its own.

        Args:
            latents: unit-variance starting noise (N, h, w, 4), from `initial_latents`.
            context: (N or 1, T, C), from `encode_text`.
            negative_context: the same for what to stay away from; None is the empty text.
            callback: as in `generate`.
            progress: whether to show a progress bar on stderr.
            **arguments: `num_steps`, `guidance_scale`, `sampler` and the other arguments of `generate` that
                are about steps; `seed` and `rng` are of the fresh noise of samplers that take some.

        Returns:
            float32 (N, h, w, 4).

        Raises:
            RequestError: an argument is wrong.

        Example:
            ```python
            context = generator.encode_text(["a red circle"])
            latents = generator.denoise(generator.initial_latents(seed=1), context, num_steps=20)
            generator.decode(latents)[0]
            ```
        """
        latents = np.asarray(latents, "float32")
        if latents.ndim != 4:
            raise RequestError(f"latents have shape {latents.shape}; they must be (N, h, w, 4)")
        factor = self.config.latent_factor
        size = {"height": latents.shape[1] * factor, "width": latents.shape[2] * factor}
        self._check_channels(None)
        request = make_request(self.config, "", batch_size=len(latents), **size, **arguments)
        texts = self._encode_text.rows(request.prompts, "context", context, len(request))
        if request.guided:
            chunks = max(1, texts.shape[1] // self.config.text_encoder.max_length)
            without = self._encode_text.rows(
                request.negative_prompts, "negative_context", negative_context, len(request), chunks
            )
            texts = both("context", texts, "negative_context", without)
        return self._denoised(request, latents, texts, progress, callback).latents

    def _denoised(
        self, request: Request, latents: np.ndarray | None, context: Any, progress: bool, callback: Callback | None
    ) -> Denoised:
        run, noise = self.schedule(request), self._noise(request)
        start = self._start(request, run, noise, latents)
        states = self._denoise(
            start.x,
            context,
            request.guidance if request.guided else None,
            run,
            lambda row: noise.fresh(run.draws[row]),
            request.guidance_rescale,
            condition=start.condition,
            hold=start.hold,
        )
        if not len(run):
            return Denoised(start.x, start.x, None)
        num_steps, done = request.num_steps - min(request.first_steps), 0
        for row, state in enumerate(tqdm(states, total=len(run), disable=not progress, desc=self.name, unit="step")):
            if callback is None or not run.ends_step(row):
                continue
            done += 1
            answer = callback(done, num_steps, preview(self.config.vae, state.denoised))
            if answer is not None and not answer:
                break
        stopped_after = done if callback is not None and done < num_steps else None
        result = (backend.to_numpy(state.x) * run.scales[row][:, None, None, None]).astype("float32")
        if start.finish is not None and row + 1 == len(run):
            result = start.finish(result)
        return Denoised(result, result if stopped_after is None else backend.to_numpy(state.denoised), stopped_after)

    def _start(self, request: Request, run: Run, source: Noise, latents: np.ndarray | None) -> Start:
        """Where a request's run starts."""
        pictures = request.pictures
        if pictures is not None and request.rng == "torch":
            source.initial()  # which diffusers takes to draw from around what the encoder gives
        noise = source.initial() if latents is None else self._check_latents(request, latents)
        if pictures is None:
            return from_noise(noise, run)
        whole = np.array(request.first_steps) == 0
        return from_pictures(pictures, whole, self._encode_image.scaled, noise, run, self._conditioned)

    def _finished(self, request: Request, images: np.ndarray) -> np.ndarray:
        """Images with what a mask does not cover as it was."""
        pictures = request.pictures
        if pictures is None or pictures.masks is None:
            return images
        originals = ((pictures.images[place], pictures.masks[place]) for place in pictures.index)
        pairs = zip(images, originals, strict=True)
        return np.stack([paste_back(image, *original, request.feather) for image, original in pairs])

    def warm_up(
        self,
        batch_size: int = 1,
        *,
        height: int | None = None,
        width: int | None = None,
        guidance: bool | str = True,
    ) -> dict[str, float]:
        """Traces and compiles everything that a batch of this size needs, and runs it once.

        Args:
            batch_size: images in a batch.
            height: pixels; None is the model's own.
            width: pixels; None is the model's own.
            guidance: whether the batch will be guided; "both" if it will be in a part of its steps only.

        Returns:
            Seconds of each stage: "text", "denoise", "decode".

        Raises:
            RequestError: a size that the model cannot draw.
        """
        weights = {True: (2.0,), False: (1.0,), "both": (2.0, 1.0)}
        if not isinstance(guidance, bool | str) or guidance not in weights:
            raise RequestError(f"guidance={guidance!r} is unknown; known: True, False, 'both'")
        request = make_request(
            self.config,
            "",
            batch_size=batch_size,
            height=height,
            width=width,
            sampler="euler",
            spacing="trailing",
            num_steps=len(weights[guidance]),
            guidance_scale=weights[guidance],
            seed=0,
        )
        seconds = {}
        started = time.perf_counter()
        context = self._encode_text.rows(request.prompts, "", None, batch_size)
        if request.guided:
            context = np.concatenate([context, context])
        seconds["text"] = time.perf_counter() - started
        started = time.perf_counter()
        noise = self._noise(request).initial()
        run = self.schedule(request)
        guided = request.guidance if request.guided else None
        shape = (*noise.shape[:-1], 1 + noise.shape[-1])
        condition = np.zeros(shape, "float32") if self._conditioned else None
        for state in self._denoise(noise, context, guided, run, lambda row: noise, condition=condition):
            latents = backend.to_numpy(state.x)
        seconds["denoise"] = time.perf_counter() - started
        started = time.perf_counter()
        self.decode(latents[:1])
        seconds["decode"] = time.perf_counter() - started
        return seconds

    def table(self, request: Request, first_step: int = 0) -> Table:
        """The coefficients that a request's sampler, noise levels and number of steps come to, from a step on."""
        levels = sampling_levels(
            self.config.schedule,
            request.sampler,
            request.num_steps,
            spacing=request.spacing,
            timesteps=request.timesteps,
            sigmas=request.sigmas,
        )
        return sampling_table(levels.from_step(first_step), request.sampler, dict(request.sampler_options))

    def schedule(self, request: Request) -> Run:
        """What each image of a request goes through, side by side."""
        firsts = request.first_steps
        tables = {first: self.table(request, first) for first in {*firsts} if first < request.num_steps}
        return side_by_side([tables.get(first) for first in firsts], firsts)

    def encode_text(self, texts: Sequence[str], chunks: int = 1) -> np.ndarray:
        """Context of texts, float32 (len(texts), chunks * 77, width); each text is encoded by itself.

        Args:
            texts: what to encode.
            chunks: how often 75 tokens are read; what does not fit is cut off, with a warning.
        """
        return self._encode_text(texts, chunks)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents (N, h, w, 4) to images uint8 (N, 8h, 8w, 3), one at a time."""
        return self._decode(latents)

    def encode_image(self, images: np.ndarray) -> np.ndarray:
        """Images uint8 (N, height, width, 3) to the means of their latents, float32 (N, h, w, 4).

        Raises:
            RequestError: not uint8 images, or a size that the model cannot encode.
        """
        return self._encode_image(images)

    @property
    def _conditioned(self) -> bool:
        """Whether the U-Net has channels for a mask and a picture, as models for inpainting do."""
        return self.config.unet.in_channels == 2 * self.config.vae.latent_channels + 1

    def _check_channels(self, request: Request | None) -> None:
        """Refuses what the U-Net cannot do; None is a request without a picture."""
        masked = request is not None and request.pictures is not None and request.pictures.masks is not None
        channels, latent_channels = self.config.unet.in_channels, self.config.vae.latent_channels
        if channels == latent_channels or (self._conditioned and masked):
            return
        if self._conditioned:
            raise RequestError(
                f"{self.name} is a model for inpainting; it draws only into a picture: give image and mask, "
                "all white to draw all of it"
            )
        raise RequestError(f"the U-Net of {self.name} reads {channels} channels, which is no model known here")

    def _noise(self, request: Request) -> Noise:
        return RNGS[request.rng](request.seeds, self._latent_shape(request))

    def _latent_shape(self, request: Request) -> tuple[int, int, int]:
        factor = self.config.latent_factor
        return request.height // factor, request.width // factor, self.config.vae.latent_channels

    def _check_latents(self, request: Request, latents: np.ndarray) -> np.ndarray:
        latents = np.asarray(latents, "float32")
        expected = (len(request), *self._latent_shape(request))
        if latents.shape != expected:
            raise RequestError(f"latents have shape {latents.shape}, this request needs {expected}")
        return latents


def _sha256(array: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(np.asarray(array, "float32")).tobytes()).hexdigest()
