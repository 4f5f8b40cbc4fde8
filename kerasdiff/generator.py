"""A model with its weights and its compiled stages: where requests come in and images go out."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from kerasdiff import validation
from kerasdiff._version import __version__
from kerasdiff.checkpoints.fingerprint import identity
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.collecting import Collecting
from kerasdiff.diffusion.memory_model import MemoryModel
from kerasdiff.diffusion.network import Networks
from kerasdiff.diffusion.overrides import GivenArrays, floats
from kerasdiff.diffusion.pipeline import Pipeline
from kerasdiff.diffusion.sampling_loop import Callback, Drawing
from kerasdiff.diffusion.stages import MADE_OF, Stages
from kerasdiff.errors import RequestError
from kerasdiff.images.init_images import Pictures
from kerasdiff.metadata import Provenance
from kerasdiff.plan import Plan
from kerasdiff.request import Request, make_request
from kerasdiff.result import Result
from kerasdiff.runtime import backend, loaded_models, memory
from kerasdiff.runtime.batch_sizer import BatchSizer
from kerasdiff.runtime.platform_info import processor, versions
from kerasdiff.runtime.precision import choose
from kerasdiff.runtime.program_cache import open_cache
from kerasdiff.runtime.tf_setup import is_inference_only
from kerasdiff.samplers import Table
from kerasdiff.samplers.batched import BatchTable

_LOG = logging.getLogger("kerasdiff")


class Generator:
    """A model with its weights and its compiled stages; make one and use it again and again.

    Args:
        model: "tiny" (ships with the package); "sd-v1-4" or "sd-v2-1", KerasCV's published weights; a folder
            of diffusers, of KerasCV's .h5 files or of ours; a single `.safetensors` file in the original
            layout; "org/name" or "hf://org/name" on the Hugging Face hub; or a live
            `keras_cv.models.StableDiffusion` or `StableDiffusionV2`, whose weights are shared and not copied.
        weights: "pretrained", or "random" to build the architecture without a download.
        revision: of a model on the hub: a branch, tag or commit.
        variant: which of several sets of weights to take, such as "fp16".
        precision: "float32", "mixed_float16", "mixed_bfloat16", "float16", "bfloat16" or "auto".
            The mixed ones keep float32 weights, the plain ones keep half-precision weights.
        jit_compile: whether XLA compiles the stages: True, False or "auto".

    Attributes:
        config: the configurations of the networks, and the model's default size, sampler, steps and guidance.
        tokenizer: texts to the ids of their tokens.
        execution: device, precision and compiler, after "auto" was resolved; prints as one line.

    Raises:
        ModelError: no such model, or its weights cannot be had.
        RequestError: an unknown precision or `jit_compile`.

    Example:
        ```python
        generator = kerasdiff.Generator("tiny")
        generator.warm_up(batch_size=3)
        result = generator.generate("a red circle on a blue background", batch_size=3, seed=1)

        generator.name  # "tiny"
        generator.num_parameters  # of the text encoder, the U-Net and the decoder
        str(generator.execution)  # "CPU, float32, no XLA" on a CPU
        generator.programs, generator.traces  # neither rises with another sampler or more steps
        generator.times["weights"]  # seconds
        generator.origin.precision, generator.origin.versions
        generator.networks["unet"].weights  # Keras variables; an assigned value holds from the next image on
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
        programs, batches = (open_cache(backend.name(), device, MADE_OF, kind) for kind in ("programs", "batches"))
        self._stages = loaded_models.load_or_evict(self.name, lambda: Stages(self._model, self.execution, programs))
        self._drawing = Drawing(self.config, self.name)
        fixed = (self.config, self.execution.precision, self.execution.jit_compile, memory.total())
        self._pipeline = Pipeline(
            self.name,
            self._stages,
            self._drawing,
            MemoryModel(self.config, self.execution),
            BatchSizer(batches, fixed, memory.free),
            functools.partial(loaded_models.make_room, self._stages),
        )
        if self._stages.check_safety is not None:
            _LOG.info("%s: images that its safety filter flags are black; safety='flag' or 'off' shows them", self.name)
        self._load_s = time.perf_counter() - started
        loaded_models.add(self._stages)

    @functools.cached_property
    def origin(self) -> Provenance:
        """What receipts say of this generator: model, precision, backend, device and versions."""
        return Provenance(
            **self._asked,
            precision=self.execution.precision,
            jit_compile=self.execution.jit_compile,
            inference_only=is_inference_only(),
            backend=backend.name(),
            device=", ".join(backend.devices()) or processor(),
            versions={"kerasdiff": __version__, **versions("keras", "numpy", backend.name())},
            identity=functools.partial(identity, self._model),
        )

    @property
    def name(self) -> str:
        """The model's name: of the preset, the folder or the file, or "org/name"."""
        return self._model.name

    @property
    def num_parameters(self) -> int:
        """Parameters of the networks that are in use; the encoder's count from the first picture on."""
        return sum(network.num_parameters for network in self.networks.made.values())

    @property
    def networks(self) -> Networks:
        """The Keras layers "text_encoder", "unet", "decoder" and "encoder", each built when it is first looked at.

        The next image is drawn with the values that their variables have then.
        """
        return self._stages.networks

    @property
    def traces(self) -> int:
        """How often a stage was traced so far; what an earlier process traced is read, and does not count."""
        return sum(compiled.traces for compiled in self._stages.compiled)

    @property
    def programs(self) -> int:
        """How many programs are ready, one for each stage and set of shapes; what more come has to be compiled."""
        return sum(compiled.programs for compiled in self._stages.compiled)

    @property
    def times(self) -> dict[str, float]:
        """Seconds spent so far: "weights" to load them, "trace", "load" of traced programs, "first" run of each."""
        stages = {
            name: sum(compiled.times[name] for compiled in self._stages.compiled) for name in ("trace", "load", "first")
        }
        return {"weights": self._load_s, **stages}

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
                False, the run ends: the result has the latents of that step. Images that are not drawn all at once
                go through all steps block by block; each call is about one block, and what was not begun when the
                run ends is not in the result.
            progress: whether to show a progress bar on stderr.
            **arguments: `negative_prompt`, `height`, `width`, `num_steps`, `guidance_scale`,
                `guidance_interval`, `guidance_rescale`, `sampler`, `sampler_options`, `spacing`,
                `timesteps`, `sigmas`, `rng`, `long_prompts`, `seed`, `image`, `mask`, `strength`, `resize`,
                `feather`, `safety`, `exact`, as in `kerasdiff.request.make_request`.

        Returns:
            All images; after Ctrl-C those that are finished, if there are any, which `places` tells.

        Raises:
            RequestError: an argument is wrong.
            NonFiniteError: a stage gives infinities or NaNs, in float32 too.
            OutOfMemoryError: not even one image at a time fits into memory. Both have what was finished as `finished`.

        Example:
            ```python
            generator = kerasdiff.Generator("tiny")
            result = generator.generate(
                ["a red circle on a white background", "a blue star on a black background"],
                batch_size=2,
                negative_prompt="a square",
                sampler="unipc",
                num_steps=10,
                guidance_scale=4,
                seed=7,
            )
            result.seeds  # (7, 8, 9, 10): two images of the first prompt, then two of the second
            ```
        """
        request, given = self._asked_for(
            prompt, batch_size, latents, prompt_embeds, negative_prompt_embeds, **arguments
        )
        return self.run(request, **vars(given), callback=callback, progress=progress)

    def stream(
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
    ) -> Iterator[Result]:
        """Draws the same images as `generate` and gives each as soon as it is finished, in order.

        Args:
            prompt: as in `generate`, as are the other arguments.
            batch_size: images for each prompt.
            latents: as in `generate`.
            prompt_embeds: as in `generate`.
            negative_prompt_embeds: as in `generate`.
            callback: as in `generate`.
            progress: whether to show a progress bar on stderr.
            **arguments: as in `generate`.

        Returns:
            A `Result` of one image after the other; `places` tells which of the request's it is.

        Raises:
            RequestError: an argument is wrong; before anything is drawn.
            NonFiniteError: as in `generate`, when its image's turn comes.
            OutOfMemoryError: the same.

        Example:
            ```python
            generator = kerasdiff.Generator("tiny")
            for number, result in enumerate(generator.stream("a red circle", batch_size=3, seed=1)):
                result.save(f"out_{number}.png")
            ```
        """
        request, given = self._asked_for(
            prompt, batch_size, latents, prompt_embeds, negative_prompt_embeds, **arguments
        )
        return self._each(request, given, callback, progress)

    def each(self, request: Request, *, callback: Callback | None = None, progress: bool = True) -> Iterator[Result]:
        """As `stream`, of a request that was made for this model's configuration.

        Args:
            request: from `make_request`.
            callback: as in `generate`.
            progress: whether to show a progress bar on stderr.

        Yields:
            A result for each image, in order, as soon as it is finished.

        Raises:
            NonFiniteError: as in `generate`, when its image's turn comes.
            OutOfMemoryError: the same.

        Example:
            ```python
            from kerasdiff.request import make_request

            generator = kerasdiff.Generator("tiny")
            request = make_request(generator.config, "a red circle", batch_size=3, seed=1)
            for number, result in enumerate(generator.each(request)):
                result.save(f"out_{number}.png")
            ```
        """
        return self._each(request, GivenArrays(), callback, progress)

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

        Returns:
            As `generate`.

        Raises:
            RequestError: an array has the wrong shape.
            NonFiniteError: as in `generate`.
            OutOfMemoryError: as in `generate`.

        Example:
            ```python
            from kerasdiff.request import make_request

            generator = kerasdiff.Generator("tiny")
            request = make_request(generator.config, "a red circle", batch_size=2, seed=7)
            generator.run(request).images.shape  # (2, 128, 128, 3)
            ```
        """
        given = GivenArrays(latents, prompt_embeds, negative_prompt_embeds)
        draw = functools.partial(self._pipeline.images, request, given, progress, callback)
        return self._collecting(request, given).all(draw)

    def plan(
        self,
        batch_size: int = 1,
        *,
        height: int | None = None,
        width: int | None = None,
        guidance: bool = True,
        exact: bool = False,
    ) -> Plan:
        """How a batch would be drawn now: chunks, memory that is expected, and what must still be compiled.

        Args:
            batch_size: images.
            height: pixels; None is the model's own.
            width: pixels; None is the model's own.
            guidance: whether it is guided.
            exact: as in `kerasdiff.request.make_request`.

        Returns:
            What `generate` would do now. Nothing is drawn, traced or compiled to find out.

        Raises:
            RequestError: an argument is wrong.

        Example:
            ```python
            generator = kerasdiff.Generator("tiny")
            print(generator.plan(batch_size=200, height=192, width=192))
            ```
        """
        scale = 2.0 if validation.boolean("guidance", guidance) else 1.0
        request = make_request(
            self.config,
            "",
            batch_size=batch_size,
            height=height,
            width=width,
            guidance_scale=scale,
            exact=exact,
            seed=0,
        )
        return self._pipeline.plan(request)

    def release(self) -> bool:
        """Lets go of weights and programs, which come back when they are needed; whether there were any.

        Layers that somebody looked at, and may have changed, stay.

        Example:
            ```python
            generator = kerasdiff.Generator("tiny")
            generator.generate("a red circle", num_steps=5)
            generator.release()  # True
            ```
        """
        return self._stages.release()

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
            seed: a number, or one an image; a number n for several images means n, n + 1, ...
            rng: "philox", or "torch" for the noise of diffusers.

        Raises:
            RequestError: an argument is wrong.

        Example:
            ```python
            generator = kerasdiff.Generator("tiny")
            generator.initial_latents(batch_size=2, seed=7).shape  # (2, 16, 16, 4)
            ```
        """
        request = make_request(self.config, "", batch_size=batch_size, height=height, width=width, seed=seed, rng=rng)
        return self._drawing.noise(request).initial()

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
            generator = kerasdiff.Generator("tiny")
            context = generator.encode_text(["a red circle"])
            latents = generator.denoise(generator.initial_latents(seed=1), context, num_steps=20)
            generator.decode(latents)[0]  # uint8 (128, 128, 3)
            ```
        """
        latents = floats("latents", latents)
        if latents.ndim != 4:
            raise RequestError(f"latents have shape {latents.shape}; they must be (N, h, w, 4)")
        factor = self.config.latent_factor
        size = {"height": latents.shape[1] * factor, "width": latents.shape[2] * factor}
        self._drawing.check(None)
        self.networks.follow()
        request = make_request(self.config, "", batch_size=len(latents), **size, **arguments)
        texts = self._pipeline.context(request, (context, negative_context), names=("context", "negative_context"))
        blocks = self._pipeline.blocks(request, latents, texts, progress, callback)
        return np.concatenate([block.drawn.latents for block in blocks])

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

        Example:
            ```python
            generator = kerasdiff.Generator("tiny")
            seconds = generator.warm_up(batch_size=2)
            traces = generator.traces
            generator.generate("a red circle", batch_size=2, sampler="heun", num_steps=7)
            generator.traces == traces  # True: nothing was traced again
            ```
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
        conditioned = self._drawing.conditioned
        if conditioned:  # a model for inpainting draws into pictures only
            picture = np.zeros((1, request.height, request.width, 3), "uint8")
            pictures = Pictures(picture, np.ones(picture.shape[:3], "float32"), (0,) * batch_size)
            request = dataclasses.replace(request, pictures=pictures, strengths=(1.0,) * batch_size)
        context = self._pipeline.context(request, (None, None))
        with _timed(seconds, "text"):
            context.rows([0], request.guided)
        if validation.boolean("image", image) or conditioned:
            with _timed(seconds, "encode"):
                self._pipeline.encode(np.zeros((1, request.height, request.width, 3), "float32"))
        with _timed(seconds, "denoise"):
            for size in dict.fromkeys(self._pipeline.plan(request).chunks):
                # One chunk of each size that the batch comes to.
                some = request.only([0] * size)
                *_, block = self._pipeline.blocks(some, None, self._pipeline.context(some, (None, None)))
        with _timed(seconds, "decode"):
            picture = self._pipeline.decode(block.drawn.latents[0])
        if self._stages.check_safety is not None:
            with _timed(seconds, "safety"):
                self._stages.check_safety(picture[None])
        return seconds

    def table(self, request: Request, first_step: int = 0) -> Table:
        """The coefficients that a request's sampler, noise levels and number of steps come to, from a step on.

        Args:
            request: from `make_request`.
            first_step: the step, 0 to `num_steps` - 1, that the table begins with.

        Raises:
            RequestError: the sampler's options lead to numbers that are not finite.

        Example:
            ```python
            from kerasdiff.request import make_request

            generator = kerasdiff.Generator("tiny")
            request = make_request(generator.config, "a red circle", sampler="heun", num_steps=10)
            len(generator.table(request))  # 19 evaluations of the U-Net
            ```
        """
        return self._drawing.table(request, first_step)

    def schedule(self, request: Request) -> BatchTable:
        """What each image of a request goes through, side by side: one table an image, its rows aligned at the end.

        Args:
            request: from `make_request`.

        Example:
            ```python
            from kerasdiff.request import make_request

            generator = kerasdiff.Generator("tiny")
            request = make_request(generator.config, "a red circle", batch_size=2, num_steps=10)
            generator.schedule(request).levels.shape  # (10, 2): rows, images
            ```
        """
        return self._drawing.schedule(request)

    def encode_text(self, texts: Sequence[str], chunks: int = 1) -> np.ndarray:
        """Context of texts, float32 (len(texts), chunks * 77, width); each text is encoded by itself.

        Args:
            texts: what to encode.
            chunks: how often 75 tokens are read; what does not fit is cut off, with a warning.

        Example:
            ```python
            generator = kerasdiff.Generator("tiny")
            context = generator.encode_text(["a red circle"])  # (1, 77, width)
            generator.generate(prompt_embeds=context, seed=1)
            ```
        """
        self.networks.follow()
        return np.concatenate([self._pipeline.encode_text(text, chunks) for text in texts])

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents (N, h, w, 4) to images uint8 (N, 8h, 8w, 3), one at a time.

        Args:
            latents: as a `Result` has them.

        Raises:
            RequestError: another shape, or numbers that are not finite.

        Example:
            ```python
            generator = kerasdiff.Generator("tiny")
            latents = generator.generate("a red circle", seed=1).latents
            generator.decode(latents * 0.9).shape  # (1, 128, 128, 3)
            ```
        """
        latents = floats("latents", latents)
        if latents.ndim != 4 or not len(latents):
            raise RequestError(f"latents have shape {latents.shape}; they must be (N, h, w, 4)")
        self.networks.follow()
        return np.stack([self._pipeline.decode(one) for one in latents])

    def encode_image(self, images: np.ndarray) -> np.ndarray:
        """Images uint8 (N, height, width, 3) to the means of their latents, float32 (N, h, w, 4).

        Args:
            images: of a size whose sides are multiples of 8.

        Raises:
            RequestError: not uint8 images, or a size that the model cannot encode.

        Example:
            ```python
            generator = kerasdiff.Generator("tiny")
            images = generator.generate("a red circle", seed=1).images
            generator.encode_image(images).shape  # (1, 16, 16, 4)
            ```
        """
        images, factor = np.asarray(images), self.config.latent_factor
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not len(images):
            raise RequestError(f"images must be uint8 (N, height, width, 3), not {images.dtype} {images.shape}")
        if images.shape[1] % factor or images.shape[2] % factor:
            raise RequestError(f"images are {images.shape[1]} x {images.shape[2]}; both must be multiples of {factor}")
        self.networks.follow()
        return self._pipeline.encode(images.astype("float32") / 127.5 - 1)

    def _asked_for(
        self,
        prompt: str | Sequence[str] | None,
        batch_size: int,
        latents: Any,
        prompt_embeds: Any,
        negative_prompt_embeds: Any,
        **arguments: Any,
    ) -> tuple[Request, GivenArrays]:
        if (prompt is None) == (prompt_embeds is None):
            raise RequestError("give prompt or prompt_embeds, and not both")
        if negative_prompt_embeds is not None and arguments.get("negative_prompt") is not None:
            raise RequestError("give negative_prompt or negative_prompt_embeds, not both")
        if prompt_embeds is not None:
            prompt_embeds = self._stages.text.now.check("prompt_embeds", prompt_embeds)
        texts = [""] * len(prompt_embeds) if prompt is None else prompt
        request = make_request(self.config, texts, batch_size=batch_size, **arguments)
        return request, GivenArrays(latents, prompt_embeds, negative_prompt_embeds)

    def _each(
        self, request: Request, given: GivenArrays, callback: Callback | None, progress: bool
    ) -> Iterator[Result]:
        finished = self._pipeline.images(request, given, progress, callback)
        return self._collecting(request, given).each(finished)

    def _collecting(self, request: Request, given: GivenArrays) -> Collecting:
        return Collecting(request, given, self.name, self.origin, self._drawing.shape(request))


@contextlib.contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started
