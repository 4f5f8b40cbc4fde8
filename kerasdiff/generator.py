"""Where the three stages meet: a request goes in, images come out."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops
from tqdm.auto import tqdm

from kerasdiff.engine.backend import Compiled
from kerasdiff.engine.denoise import Denoise
from kerasdiff.engine.noise import RNGS, Noise
from kerasdiff.engine.precision import check, choose
from kerasdiff.engine.text import EncodeText
from kerasdiff.errors import RequestError
from kerasdiff.request import Request, make_request
from kerasdiff.result import Result
from kerasdiff.samplers import Table, sampling_levels, sampling_table
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
        self.config = self._model.config
        self.tokenizer = self._model.tokenizer
        self.execution = choose(precision, jit_compile, self.config.unet.large)
        _LOG.info("%s: %s", self.name, self.execution)
        jit = self.execution.jit_compile
        self.networks = {name: self._model.build(name, self.execution) for name in ("text_encoder", "unet", "decoder")}
        decoder = self.networks["decoder"]
        length = self.config.text_encoder.max_length
        self._encode_text = EncodeText(self.tokenizer, self.networks["text_encoder"], length, jit)
        self._denoise = Denoise(self.networks["unet"], jit)
        self._decode = Compiled(lambda latents: _to_uint8(decoder(latents)), jit)

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model.name

    @property
    def num_parameters(self) -> int:
        """Parameters of the networks that are built."""
        return sum(network.count_params() for network in self.networks.values())

    @property
    def traces(self) -> int:
        """How often a stage was traced and compiled so far."""
        return self._encode_text.traces + self._denoise.traces + self._decode.traces

    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        batch_size: int = 1,
        *,
        latents: np.ndarray | None = None,
        prompt_embeds: Any = None,
        negative_prompt_embeds: Any = None,
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
            progress: whether to show a progress bar on stderr.
            **arguments: `negative_prompt`, `height`, `width`, `num_steps`, `guidance_scale`,
                `guidance_interval`, `guidance_rescale`, `sampler`, `sampler_options`, `spacing`,
                `timesteps`, `sigmas`, `rng`, `long_prompts`, `seed`, as in `kerasdiff.request.make_request`.

        Raises:
            RequestError: an argument is wrong.
        """
        if (prompt is None) == (prompt_embeds is None):
            raise RequestError("give prompt or prompt_embeds, and not both")
        if negative_prompt_embeds is not None and arguments.get("negative_prompt") is not None:
            raise RequestError("give negative_prompt or negative_prompt_embeds, not both")
        if prompt_embeds is not None:
            prompt_embeds = self._check_embeds("prompt_embeds", prompt_embeds)
        texts = [""] * len(prompt_embeds) if prompt is None else prompt
        request = make_request(self.config, texts, batch_size=batch_size, **arguments)
        return self.run(
            request,
            latents=latents,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            progress=progress,
        )

    def run(
        self,
        request: Request,
        *,
        latents: np.ndarray | None = None,
        prompt_embeds: Any = None,
        negative_prompt_embeds: Any = None,
        progress: bool = True,
    ) -> Result:
        """Carries out a request that was made for this model's configuration.

        Args:
            request: from `make_request`.
            latents: as in `generate`.
            prompt_embeds: as in `generate`.
            negative_prompt_embeds: as in `generate`.
            progress: whether to show a progress bar on stderr.

        Raises:
            RequestError: an array has the wrong shape.
        """
        self._check_text_to_image()
        chunks = 1
        if request.long_prompts == "chunk":
            chunks = max(map(self._encode_text.chunks, {*request.prompts, *request.negative_prompts}))
        texts = self._rows(request.prompts, "prompt_embeds", prompt_embeds, len(request), chunks)
        if request.guided:
            without = self._rows(
                request.negative_prompts, "negative_prompt_embeds", negative_prompt_embeds, len(request), chunks
            )
            texts = _both("prompt_embeds", texts, "negative_prompt_embeds", without)
        result = self._denoised(request, latents, texts, progress)
        return Result(self.decode(result), result, request, self.name)

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
        progress: bool = True,
        **arguments: Any,
    ) -> np.ndarray:
        """Takes starting noise to latents that `decode` makes images of: the middle stage on its own.

        Args:
            latents: unit-variance starting noise (N, h, w, 4), from `initial_latents`.
            context: (N or 1, T, C), from `encode_text`.
            negative_context: the same for what to stay away from; None is the empty text.
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
        self._check_text_to_image()
        request = make_request(self.config, "", batch_size=len(latents), **size, **arguments)
        texts = self._rows(request.prompts, "context", context, len(request))
        if request.guided:
            chunks = max(1, texts.shape[1] // self.config.text_encoder.max_length)
            without = self._rows(request.negative_prompts, "negative_context", negative_context, len(request), chunks)
            texts = _both("context", texts, "negative_context", without)
        return self._denoised(request, latents, texts, progress)

    def _denoised(self, request: Request, latents: np.ndarray | None, context: Any, progress: bool) -> np.ndarray:
        source = self._noise(request)
        start = source.initial() if latents is None else self._check_latents(request, latents)
        table = self.table(request)
        guidance = np.repeat(request.guidance[:, None], len(request), axis=1) if request.guided else None
        steps = self._denoise(start, context, guidance, table, source.fresh, request.guidance_rescale)
        for state in tqdm(steps, total=len(table), disable=not progress, desc=self.name, unit="step"):
            last = state
        return ops.convert_to_numpy(last) * np.float32(table.scales[-1])

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
        self._check_text_to_image()
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
        context = self._rows(request.prompts, "", None, batch_size)
        if request.guided:
            context = ops.concatenate([context, context], axis=0)
        seconds["text"] = time.perf_counter() - started
        started = time.perf_counter()
        noise = self._noise(request).initial()
        guided = np.repeat(request.guidance[:, None], batch_size, axis=1) if request.guided else None
        for state in self._denoise(noise, context, guided, self.table(request), lambda row: noise):
            latents = ops.convert_to_numpy(state)
        seconds["denoise"] = time.perf_counter() - started
        started = time.perf_counter()
        self.decode(latents[:1])
        seconds["decode"] = time.perf_counter() - started
        return seconds

    def table(self, request: Request) -> Table:
        """The coefficients that a request's sampler, noise levels and number of steps come to."""
        levels = sampling_levels(
            self.config.schedule,
            request.sampler,
            request.num_steps,
            spacing=request.spacing,
            timesteps=request.timesteps,
            sigmas=request.sigmas,
        )
        return sampling_table(levels, request.sampler, dict(request.sampler_options))

    def encode_text(self, texts: Sequence[str], chunks: int = 1) -> Any:
        """Context of texts, (len(texts), chunks * 77, width) on the device; each text is encoded by itself.

        Args:
            texts: what to encode.
            chunks: how often 75 tokens are read; what does not fit is cut off, with a warning.
        """
        return self._encode_text(texts, chunks)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents (N, h, w, 4) to images uint8 (N, 8h, 8w, 3), one at a time."""
        images = [ops.convert_to_numpy(self._decode(latents[row : row + 1])) for row in range(len(latents))]
        return np.concatenate(images)

    def encode_image(self, images: np.ndarray) -> np.ndarray:
        """Images uint8 (N, height, width, 3) to the means of their latents, float32 (N, h, w, 4).

        Raises:
            RequestError: not uint8 images, or a size that the model cannot encode.
        """
        images = np.asarray(images)
        factor = self.config.latent_factor
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise RequestError(f"images must be uint8 (N, height, width, 3), not {images.dtype} {images.shape}")
        if images.shape[1] % factor or images.shape[2] % factor:
            raise RequestError(f"images are {images.shape[1]} x {images.shape[2]}; both must be multiples of {factor}")
        scaled = images.astype("float32") / 127.5 - 1
        rows = [ops.convert_to_numpy(self._encode_image(scaled[row : row + 1])) for row in range(len(images))]
        return np.concatenate(rows)

    @functools.cached_property
    def _encode_image(self) -> Compiled:
        encoder = self.networks["encoder"] = self._model.build("encoder", self.execution)
        return Compiled(lambda pictures: ops.cast(encoder(pictures), "float32"), self.execution.jit_compile)

    def _rows(self, texts: Sequence[str], name: str, given: Any, count: int, chunks: int = 1) -> Any:
        """Context of each row, (count, T, C): what was given, one for all or each for as many rows, or the texts'."""
        if given is not None:
            rows = self._check_embeds(name, given)
            if count % len(rows):
                raise RequestError(f"{name} has {len(rows)} rows for {count} images; give one, or one an image")
            return ops.repeat(ops.convert_to_tensor(rows), count // len(rows), axis=0)
        distinct = list(dict.fromkeys(texts))
        encoded = self.encode_text(distinct, chunks)
        return ops.take(encoded, np.array([distinct.index(text) for text in texts]), axis=0)

    def _check_embeds(self, name: str, embeds: Any) -> Any:
        width = self.config.unet.context_width
        shape = tuple(np.shape(embeds))
        if len(shape) != 3 or shape[2] != width or not shape[0]:
            raise RequestError(f"{name} has shape {shape}; it must be (N, tokens, {width}), as encode_text gives it")
        return ops.cast(ops.convert_to_tensor(embeds), self.networks["text_encoder"].compute_dtype)

    def _check_text_to_image(self) -> None:
        channels, latent_channels = self.config.unet.in_channels, self.config.vae.latent_channels
        if channels != latent_channels:
            raise RequestError(
                f"the U-Net of {self.name} reads {channels} channels, as inpainting models do, which need a picture "
                "and a mask; they cannot draw from text alone"
            )

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


def _both(name: str, texts: Any, negative_name: str, without: Any) -> Any:
    """Both halves of guidance, the unconditional one first."""
    if without.shape[1] != texts.shape[1]:
        raise RequestError(
            f"{name} has {texts.shape[1]} tokens and {negative_name} {without.shape[1]}; they must have the same number"
        )
    return ops.concatenate([without, texts], axis=0)


def _to_uint8(pictures: Any) -> Any:
    levels = ops.round(ops.clip((ops.cast(pictures, "float32") + 1) * 127.5, 0, 255))
    return ops.cast(levels, "uint8")


_ARRAYS = ("latents", "prompt_embeds", "negative_prompt_embeds")


@functools.lru_cache(maxsize=1)
def _generator(model: str, **arguments: Any) -> Generator:
    return Generator(model, **arguments)


def generate(
    prompt: str | Sequence[str] | None = None,
    batch_size: int = 1,
    *,
    model: Any = "tiny",
    weights: str = "pretrained",
    revision: str | None = None,
    variant: str | None = None,
    precision: str = "auto",
    jit_compile: bool | str = "auto",
    progress: bool = True,
    **arguments: Any,
) -> Result:
    """Draws `batch_size` images for each prompt, in one call.

    The model of the last call is kept, so that a second call with the same one starts at once. A
    live KerasCV model is read anew each time: hold a `Generator` to draw from it repeatedly.

    Args:
        prompt: a text or a list of texts.
        batch_size: images for each prompt.
        model: as in `Generator`.
        weights: as in `Generator`.
        revision: as in `Generator`.
        variant: as in `Generator`.
        precision: as in `Generator`.
        jit_compile: as in `Generator`.
        progress: whether to show a progress bar on stderr.
        **arguments: as in `Generator.generate`.

    Raises:
        RequestError: an argument is wrong.
        ModelError: no such model, or its weights cannot be had.

    Example:
        ```python
        result = kerasdiff.generate("a red circle above a blue square on a yellow background", batch_size=3)
        result.save("out.png")
        ```
    """
    check(precision, jit_compile)
    source: dict[str, Any] = {"weights": weights, "revision": revision, "variant": variant}
    if prompt is not None:
        # Arguments are checked before anything large is built.
        given = {name: value for name, value in arguments.items() if name not in _ARRAYS}
        make_request(open_model(model, **source).config, prompt, batch_size=batch_size, **given)
    make = _generator if isinstance(model, str | os.PathLike) else _generator.__wrapped__
    generator = make(model, **source, precision=precision, jit_compile=jit_compile)
    return generator.generate(prompt, batch_size, progress=progress, **arguments)
