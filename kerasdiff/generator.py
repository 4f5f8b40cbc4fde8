"""Where the three stages meet: a request goes in, images come out."""

from __future__ import annotations

import functools
import logging
import os
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops
from tqdm.auto import tqdm

from kerasdiff.engine.backend import Compiled
from kerasdiff.engine.denoise import Denoise
from kerasdiff.engine.noise import RNGS
from kerasdiff.engine.precision import check, choose
from kerasdiff.errors import RequestError
from kerasdiff.models.tokenizer import pad_ids
from kerasdiff.request import Request, make_request
from kerasdiff.result import Result
from kerasdiff.samplers import Table, sampling_levels, sampling_table
from kerasdiff.weights.presets import open_model

_LOG = logging.getLogger("kerasdiff")


class Generator:
    """A model with its weights and its compiled stages; make one and use it again and again.

    Args:
        model: "tiny" (ships with the package), a folder in diffusers' layout, a single `.safetensors` file
            in the original layout, "org/name" or "hf://org/name" on the Hugging Face hub, or a live
            `keras_cv.models.StableDiffusion` or `StableDiffusionV2`, whose weights are copied. "sd-v1-4"
            and "sd-v2-1" are architectures for random weights.
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
        self._encode_text = Compiled(self.networks["text_encoder"], jit)
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
        self, prompt: str | Sequence[str], batch_size: int = 1, *, progress: bool = True, **arguments: Any
    ) -> Result:
        """Draws `batch_size` images for each prompt.

        Args:
            prompt: a text or a list of texts.
            batch_size: images for each prompt.
            progress: whether to show a progress bar on stderr.
            **arguments: `negative_prompt`, `height`, `width`, `num_steps`, `guidance_scale`,
                `guidance_interval`, `guidance_rescale`, `sampler`, `sampler_options`, `spacing`,
                `timesteps`, `sigmas`, `rng`, `seed`, as in `kerasdiff.request.make_request`.

        Raises:
            RequestError: an argument is wrong.
        """
        return self.run(make_request(self.config, prompt, batch_size=batch_size, **arguments), progress=progress)

    def run(self, request: Request, *, progress: bool = True, noise: np.ndarray | None = None) -> Result:
        """Carries out a request that was made for this model's configuration.

        Args:
            request: from `make_request`.
            progress: whether to show a progress bar on stderr.
            noise: unit-variance starting noise (N, height / 8, width / 8, 4) instead of the seeds'.

        Raises:
            RequestError: `noise` has the wrong shape.
        """
        source = RNGS[request.rng](request.seeds, self._latent_shape(request))
        latents = source.initial() if noise is None else self._check_noise(request, noise)
        table = self.table(request)
        guidance = np.repeat(request.guidance[:, None], len(request), axis=1) if request.guided else None
        steps = self._denoise(latents, self._context(request), guidance, table, source.fresh, request.guidance_rescale)
        for state in tqdm(steps, total=len(table), disable=not progress, desc=self.name, unit="step"):
            latents = state
        latents = ops.convert_to_numpy(latents) * np.float32(table.scales[-1])
        return Result(self.decode(latents), latents, request, self.name)

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
        context = self._context(request)
        seconds["text"] = time.perf_counter() - started
        started = time.perf_counter()
        noise = self.initial_noise(request)
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

    def initial_noise(self, request: Request) -> np.ndarray:
        """Unit-variance starting noise, each image's from its seed: float32 (N, height / 8, width / 8, 4)."""
        return RNGS[request.rng](request.seeds, self._latent_shape(request)).initial()

    def encode_text(self, texts: Sequence[str]) -> Any:
        """Context of texts, (len(texts), 77, width) on the device; each text is encoded by itself."""
        length = self.config.text_encoder.max_length
        rows = [ops.convert_to_tensor(self._tokens(text, length)[None]) for text in texts]
        return ops.concatenate([self._encode_text(row) for row in rows], axis=0)

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

    def _context(self, request: Request) -> Any:
        """Context of a request's rows: (2N, T, C) with guidance, unconditional half first, else (N, T, C)."""
        texts = [*request.negative_prompts, *request.prompts] if request.guided else list(request.prompts)
        distinct = list(dict.fromkeys(texts))
        encoded = self.encode_text(distinct)
        return ops.take(encoded, np.array([distinct.index(text) for text in texts]), axis=0)

    def _tokens(self, text: str, length: int) -> np.ndarray:
        ids = self.tokenizer.encode(text)
        if len(ids) > length:
            lost = self.tokenizer.decode(ids[length - 1 : -1])
            warnings.warn(
                f"the prompt has {len(ids)} tokens and the model reads {length}; this part is not used: {lost!r}",
                stacklevel=2,
            )
        return pad_ids(ids, length, getattr(self.tokenizer, "pad_id", None))

    def _latent_shape(self, request: Request) -> tuple[int, int, int]:
        factor = self.config.latent_factor
        return request.height // factor, request.width // factor, self.config.vae.latent_channels

    def _check_noise(self, request: Request, noise: np.ndarray) -> np.ndarray:
        noise = np.asarray(noise, "float32")
        expected = (len(request), *self._latent_shape(request))
        if noise.shape != expected:
            raise RequestError(f"noise has shape {noise.shape}, this request needs {expected}")
        return noise


def _to_uint8(pictures: Any) -> Any:
    levels = ops.round(ops.clip((ops.cast(pictures, "float32") + 1) * 127.5, 0, 255))
    return ops.cast(levels, "uint8")


@functools.lru_cache(maxsize=1)
def _generator(model: str, **arguments: Any) -> Generator:
    return Generator(model, **arguments)


def generate(
    prompt: str | Sequence[str],
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
    # Arguments are checked before anything large is built.
    opened = open_model(model, weights, revision=revision, variant=variant)
    request = make_request(opened.config, prompt, batch_size=batch_size, **arguments)
    check(precision, jit_compile)
    make = _generator if isinstance(model, str | os.PathLike) else _generator.__wrapped__
    generator = make(
        model, weights=weights, revision=revision, variant=variant, precision=precision, jit_compile=jit_compile
    )
    return generator.run(request, progress=progress)
