"""Where the three stages meet: a request goes in, images come out."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import kerasdiff
from kerasdiff import checks
from kerasdiff.engine import backend
from kerasdiff.engine.compiled import Compiled
from kerasdiff.engine.denoise import Denoise
from kerasdiff.engine.drawing import Callback, Drawing
from kerasdiff.engine.environment import processor, versions
from kerasdiff.engine.images import Decode, Encode
from kerasdiff.engine.network import Network, Networks
from kerasdiff.engine.precision import choose
from kerasdiff.engine.process import is_inference_only
from kerasdiff.engine.safety import CheckSafety
from kerasdiff.engine.store import open_store
from kerasdiff.engine.text import EncodeText, both
from kerasdiff.errors import RequestError
from kerasdiff.masks import paste_back
from kerasdiff.receipts import Origin
from kerasdiff.request import Request, make_request
from kerasdiff.result import Result
from kerasdiff.samplers import Table
from kerasdiff.samplers.runs import Run
from kerasdiff.weights.identity import identity
from kerasdiff.weights.presets import open_model

_LOG = logging.getLogger("kerasdiff")


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
        self._draw = Drawing(self.config, self.name, self._denoise, self._encode_image.scaled)
        self._check_safety = None
        if self.config.safety_checker is not None:
            checker = functools.partial(self.networks.network, "safety_checker")
            self._check_safety = CheckSafety(checker, self.config.safety_checker, jit, programs)
            _LOG.info("%s: images that its safety filter flags are black; safety='flag' or 'off' shows them", self.name)
        self._load_s = time.perf_counter() - started

    @functools.cached_property
    def origin(self) -> Origin:
        """What receipts say of this generator."""
        return Origin(
            **self._asked,
            precision=self.execution.precision,
            jit_compile=self.execution.jit_compile,
            inference_only=is_inference_only(),
            backend=backend.name(),
            device=", ".join(backend.devices()) or processor(),
            versions={"kerasdiff": kerasdiff.__version__, **versions("keras", "numpy", backend.name())},
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
        always = (self._encode_text, self._denoise, self._decode, self._encode_image)
        stages = always if self._check_safety is None else (*always, self._check_safety)
        return [one for stage in stages for one in stage.compiled]

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
        self._draw.check(request)
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
        final = self._draw(request, latents, texts, progress, callback)
        images = self._finished(request, self.decode(final.seen))
        nsfw = None
        if check_safety is not None:
            nsfw = check_safety(images).tolist()
            if request.safety == "on":
                images[nsfw] = 0
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
        return self._draw.noise(request).initial()

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
        self._draw.check(None)
        request = make_request(self.config, "", batch_size=len(latents), **size, **arguments)
        texts = self._encode_text.rows(request.prompts, "context", context, len(request))
        if request.guided:
            chunks = max(1, texts.shape[1] // self.config.text_encoder.max_length)
            without = self._encode_text.rows(
                request.negative_prompts, "negative_context", negative_context, len(request), chunks
            )
            texts = both("context", texts, "negative_context", without)
        return self._draw(request, latents, texts, progress, callback).latents

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
        image: bool = False,
    ) -> dict[str, float]:
        """Traces and compiles everything that a batch of this size needs, and runs it once.

        Args:
            batch_size: images in a batch.
            height: pixels; None is the model's own.
            width: pixels; None is the model's own.
            guidance: whether the batch will be guided; "both" if it will be in a part of its steps only.
            image: whether the batch will start from pictures.

        Returns:
            Seconds of each stage: "text", "encode" if there are pictures, "denoise", "decode", and "safety" if
            the model comes with a safety filter.

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
            guidance_scale=[weights[guidance]],
            seed=0,
        )
        seconds: dict[str, float] = {}
        with _timed(seconds, "text"):
            context = self._encode_text.rows(request.prompts, "", None, batch_size)
            if request.guided:
                context = np.concatenate([context, context])
        if checks.boolean("image", image) or self._draw.conditioned:
            with _timed(seconds, "encode"):
                self._encode_image(np.zeros((1, request.height, request.width, 3), "uint8"))
        with _timed(seconds, "denoise"):
            noise = self._draw.noise(request).initial()
            shape = (*noise.shape[:-1], 1 + noise.shape[-1])
            condition = np.zeros(shape, "float32") if self._draw.conditioned else None
            guided = request.guidance if request.guided else None
            run = self.schedule(request)
            for state in self._denoise(noise, context, guided, run, lambda row: noise, condition=condition):
                latents = backend.to_numpy(state.x)
        with _timed(seconds, "decode"):
            images = self.decode(latents[:1])
        if self._check_safety is not None:
            with _timed(seconds, "safety"):
                self._check_safety(images)
        return seconds

    def table(self, request: Request, first_step: int = 0) -> Table:
        """The coefficients that a request's sampler, noise levels and number of steps come to, from a step on."""
        return self._draw.table(request, first_step)

    def schedule(self, request: Request) -> Run:
        """What each image of a request goes through, side by side."""
        return self._draw.schedule(request)

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


def _sha256(array: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(np.asarray(array, "float32")).tobytes()).hexdigest()


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
