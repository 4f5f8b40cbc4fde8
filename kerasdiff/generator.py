"""A model with its weights and its compiled stages: where requests come in and images go out."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any, Unpack

import numpy as np

from kerasdiff import validation
from kerasdiff._version import __version__
from kerasdiff.adapter_files import make_embedding_files, make_loras
from kerasdiff.checkpoints.fingerprint import identities
from kerasdiff.checkpoints.resolve import is_current, open_model, with_vae
from kerasdiff.diffusion import sampling_loop
from kerasdiff.diffusion.network import Networks
from kerasdiff.diffusion.overrides import Overrides, check_given, contexts
from kerasdiff.diffusion.pipeline import MADE_OF, GeneratedImage, Pipeline
from kerasdiff.diffusion.planning import plan, request_to_plan
from kerasdiff.diffusion.sampling_loop import Callback
from kerasdiff.diffusion.warm_up import request_to_warm_up, warm_up
from kerasdiff.metadata import Provenance
from kerasdiff.plan import Plan
from kerasdiff.request import Request, check_names, make_request
from kerasdiff.request_arguments import RequestArguments
from kerasdiff.request_signature import with_request_arguments
from kerasdiff.result import Result, ResultBuilder
from kerasdiff.runtime import backend as backends
from kerasdiff.runtime import loaded_models, memory
from kerasdiff.runtime.batch_sizer import BatchSizer
from kerasdiff.runtime.platform_info import processor, versions
from kerasdiff.runtime.precision import choose
from kerasdiff.runtime.program_cache import open_cache
from kerasdiff.runtime.tf_setup import is_inference_only
from kerasdiff.samplers import recipes
from kerasdiff.single_stages import SingleStages
from kerasdiff.synonyms import explained

_LOG = logging.getLogger("kerasdiff")


class Generator(SingleStages):
    """A model with its weights and its compiled stages; make one and use it again and again, also from several threads.

    Args:
        model: "tiny" or, in SDXL's shape, "tiny-xl" (both ship with the package); "sd-v1-4" or "sd-v2-1", KerasCV's
            published weights; "sdxl" or "sdxl-refiner", Stability AI's in half precision; a folder of diffusers, of
            KerasCV's .h5 files or of ours; a single `.safetensors` or `.ckpt` file in the original layout; "org/name"
            or "hf://org/name" on the Hugging Face hub; or a live `keras_cv.models.StableDiffusion` or
            `StableDiffusionV2`, whose weights are shared and not copied.
        weights: "pretrained", or "random" to build the architecture without a download.
        revision: of a model on the hub: a branch, tag or commit.
        variant: which of several sets of weights to take, such as "fp16"; those that lack it are read from plain files.
        vae: an autoencoder in place of the model's own: a folder of diffusers (of an autoencoder, or of a model whose
            vae is meant), a file (also of a whole model), or "org/name" on the hub; "taesd" is a small one, which
            decodes in a fraction of the time and nearly as well.
        refiner: a second model of the same latents that finishes the images, such as "sdxl-refiner", named like
            `model` and with its `weights` and `variant`; `denoising_end` or `refiner_strength` of a request say how.
        preview_vae: the same for previews alone: a callback is given the pictures that this one decodes.
        precision: "float32", "mixed_float16", "mixed_bfloat16", "float16", "bfloat16" or "auto".
            The mixed ones keep float32 weights, the plain ones keep half-precision weights.
        jit_compile: whether XLA compiles the stages: True, False or "auto".
        loras: LoRAs of all requests that name none of their own, as in `generate`.
        embeddings: the same of embeddings.
        recipe: the recipe of all requests that name none, as in `generate`; None is what the model's files say, if they
            do, and "none" is none.
        backend: what runs the stages: "tensorflow", "jax", "openvino" (on a CPU, for weights that do not change) or
            "auto", which `python -m kerasdiff.info` explains.

    Attributes:
        config: the configurations of the networks, and the model's default size, sampler, steps and guidance.
        tokenizer: texts to the ids of their tokens.
        execution: device, precision, compiler and backend, after "auto" was resolved; prints as one line.

    Raises:
        ModelError: no such model, or its weights cannot be had.

    Example:
        ```python
        generator = kerasdiff.Generator("tiny")
        generator.warm_up(batch_size=3)
        result = generator.generate("a red circle on a blue background", batch_size=3, seed=1)

        generator.name  # "tiny"
        str(generator.execution)  # "CPU, float32, OpenVINO" on a CPU
        generator.programs, generator.traces  # neither rises with another sampler or more steps
        generator.networks["unet"].weights  # Keras variables; an assigned value holds from the next image on
        ```
    """

    @explained
    def __init__(
        self,
        model: Any = "tiny",
        *,
        weights: str = "pretrained",
        revision: str | None = None,
        variant: str | None = None,
        vae: str | os.PathLike[str] | None = None,
        refiner: str | os.PathLike[str] | None = None,
        preview_vae: str | os.PathLike[str] | None = None,
        precision: str = "auto",
        jit_compile: bool | str = "auto",
        backend: str = "auto",
        loras: Any = None,
        embeddings: Any = None,
        recipe: str | None = None,
    ) -> None:
        recipes.recipe_name(recipe)
        own: dict[str, Any] = {"loras": make_loras("loras", loras)}
        own["embeddings"] = make_embedding_files("embeddings", embeddings)
        self._checkpoint = open_model(model, weights, revision=revision, variant=variant, vae=vae, refiner=refiner)
        shown = None if preview_vae is None else with_vae(self._checkpoint, preview_vae, name="preview_vae")
        config = self._checkpoint.config
        own["recipe"] = config.defaults.recipe if recipe is None else recipe
        self.config = dataclasses.replace(config, defaults=dataclasses.replace(config.defaults, **own))
        self.tokenizer = self._checkpoint.tokenizer
        execution = choose(precision, jit_compile, self.config.unet.large, backend, self._checkpoint.fixed)
        self.execution = execution
        _LOG.info("%s: %s", self.name, self.execution)
        if recipe is None:
            recipes.report(self.name, self.config.defaults)
        started = time.perf_counter()
        device = " ".join([execution.device, *backends.of(execution.backend).devices()])
        programs, batches = (open_cache(execution.backend, device, MADE_OF, kind) for kind in ("programs", "batches"))
        fixed = (config, execution.precision, execution.jit_compile, memory.total())
        sizer = BatchSizer(batches, fixed, memory.free)
        self._pipeline = loaded_models.load_or_evict(
            self.name, lambda: Pipeline(self._checkpoint, self.execution, programs, sizer, shown)
        )
        if self._pipeline.safety is not None:
            _LOG.info("%s: images that its safety filter flags are black; safety='flag' or 'off' shows them", self.name)
        self._load_s = time.perf_counter() - started
        loaded_models.add(self._pipeline)

    @functools.cached_property
    def origin(self) -> Provenance:
        """What embedded metadata says of this generator: model, precision, backend, device and versions."""
        return Provenance(
            **self._checkpoint.origin,
            precision=self.execution.precision,
            jit_compile=self.execution.jit_compile,
            inference_only=is_inference_only(),
            backend=self.execution.backend,
            device=", ".join(backends.of(self.execution.backend).devices()) or processor(),
            versions={"kerasdiff": __version__, **versions("keras", "numpy", self.execution.backend)},
            **identities(self._checkpoint),
        )

    @property
    def name(self) -> str:
        """The model's name: of the preset, the folder or the file, or "org/name"."""
        return self._checkpoint.name

    @property
    def num_parameters(self) -> int:
        """Parameters of the networks that are in use; the encoder's count from the first picture on."""
        return self._pipeline.num_parameters

    @property
    def networks(self) -> Networks:
        """The Keras layers "text_encoder", "unet", "decoder" and "encoder", each built when it is first looked at.

        The next image is generated with the values that their variables have then.
        """
        return self._pipeline.networks

    @property
    def traces(self) -> int:
        """How often a stage was traced so far; what an earlier process traced is read, and does not count."""
        return sum(compiled.traces for compiled in self._pipeline.compiled)

    @property
    def programs(self) -> int:
        """How many programs are ready, one for each stage and set of shapes; any further one has to be compiled."""
        return sum(compiled.programs for compiled in self._pipeline.compiled)

    @property
    def times(self) -> dict[str, float]:
        """Seconds spent so far: "weights" to load them, "trace", "load" of traced programs, "first" run of each."""
        compiled = self._pipeline.compiled
        stages = {name: sum(one.times[name] for one in compiled) for name in ("trace", "load", "first")}
        return {"weights": self._load_s, **stages}

    @with_request_arguments
    def generate(
        self,
        prompt: str | Sequence[str] | None = None,
        batch_size: int = 1,
        *,
        latents: np.ndarray | None = None,
        prompt_embeds: Any = None,
        negative_prompt_embeds: Any = None,
        pooled_prompt_embeds: Any = None,
        negative_pooled_prompt_embeds: Any = None,
        callback: Callback | None = None,
        progress: bool | None = None,
        **arguments: Unpack[RequestArguments],
    ) -> Result:
        """Generates `batch_size` images for each prompt, in the order of the prompts.

        Args:
            prompt: a text or a list of texts; None if `prompt_embeds` says it.
            latents: unit-variance starting noise (N, height / 8, width / 8, 4) instead of the seeds'.
            prompt_embeds: (N or 1, T, C), as `encode_text` gives them, instead of `prompt`; `batch_size`
                images for each.
            negative_prompt_embeds: the same instead of `negative_prompt`.
            pooled_prompt_embeds: (N or 1, P), as `encode_pooled` gives them, with `prompt_embeds` of SDXL.
            negative_pooled_prompt_embeds: the same with `negative_prompt_embeds`.
            callback: called after each step as callback(step, num_steps, preview), with the steps done so far, how
                many there are, and what the images look like by then, uint8 (N, height / 8, width / 8, 3), in
                a rough way that costs nothing (None for an autoencoder of which that is not known), or
                (N, height, width, 3) with the generator's `preview_vae` (None if memory is too short). If it returns
                False, the run ends: the result has the latents of that step. Images that do not fit into one batch
                are generated batch by batch; each call is about one batch, and batches that were not begun when the
                run ends are not in the result.
            progress: whether to show a progress bar on stderr; None: if that is a terminal or a notebook.
            **arguments: of the request.

        Returns:
            All images; after Ctrl-C those that are finished, if there are any, which `places` tells.

        Raises:
            NonFiniteError: a stage gives infinities or NaNs, in float32 too.
            OutOfMemoryError: not even one image at a time fits into memory. Both have what was finished as `finished`.
        """
        pooled = pooled_prompt_embeds, negative_pooled_prompt_embeds
        overrides = Overrides(latents, prompt_embeds, negative_prompt_embeds, *pooled)
        request = self._request(prompt, batch_size, overrides, arguments)
        builder, images = self._begin(request, overrides, progress, callback)
        return builder.all(images)

    @with_request_arguments
    def stream(
        self,
        prompt: str | Sequence[str] | None = None,
        batch_size: int = 1,
        *,
        latents: np.ndarray | None = None,
        prompt_embeds: Any = None,
        negative_prompt_embeds: Any = None,
        pooled_prompt_embeds: Any = None,
        negative_pooled_prompt_embeds: Any = None,
        callback: Callback | None = None,
        progress: bool | None = None,
        **arguments: Unpack[RequestArguments],
    ) -> Iterator[Result]:
        """The images of `generate`, with its arguments, each as a `Result` of one as soon as it is finished.

        `Result.places` tells which of the request's images it is. Arguments are checked when this is called; the other
        errors of `generate` come when their image's turn comes.
        """
        pooled = pooled_prompt_embeds, negative_pooled_prompt_embeds
        overrides = Overrides(latents, prompt_embeds, negative_prompt_embeds, *pooled)
        request = self._request(prompt, batch_size, overrides, arguments)
        builder, images = self._begin(request, overrides, progress, callback)
        return builder.each(images)

    def each(
        self, request: Request, *, callback: Callback | None = None, progress: bool | None = None
    ) -> Iterator[Result]:
        """As `stream`, of a request from `kerasdiff.request.make_request` for this model's configuration."""
        builder, images = self._begin(request, Overrides(), progress, callback)
        return builder.each(images)

    def run(
        self,
        request: Request,
        *,
        latents: np.ndarray | None = None,
        prompt_embeds: Any = None,
        negative_prompt_embeds: Any = None,
        pooled_prompt_embeds: Any = None,
        negative_pooled_prompt_embeds: Any = None,
        callback: Callback | None = None,
        progress: bool | None = None,
    ) -> Result:
        """As `generate`, of a request from `kerasdiff.request.make_request` for this model's configuration."""
        pooled = pooled_prompt_embeds, negative_pooled_prompt_embeds
        overrides = Overrides(latents, prompt_embeds, negative_prompt_embeds, *pooled)
        builder, images = self._begin(request, overrides, progress, callback)
        return builder.all(images)

    @explained
    def plan(
        self,
        batch_size: int = 1,
        *,
        height: int | None = None,
        width: int | None = None,
        guidance: bool = True,
        tile: str | None = None,
        exact: bool = False,
        deep_cache_interval: int = 1,
        deep_cache_branch: int = 0,
        token_merging_ratio: float = 0.0,
        hires: Any = None,
        upscale: Any = None,
        controls: Any = None,
        image_prompts: Any = None,
    ) -> Plan:
        """How a batch would be generated now: how it is split, memory that is expected, what must still be compiled.

        Nothing is generated, traced or compiled to find out. `hires` and what follows are as in `generate`; controls
        need no image.
        """
        size = {"batch_size": batch_size, "height": height, "width": width, "tile": tile, "exact": exact}
        cached = {"deep_cache_interval": deep_cache_interval, "deep_cache_branch": deep_cache_branch}
        more = {"token_merging_ratio": token_merging_ratio, "upscale": upscale, "image_prompts": image_prompts}
        request = request_to_plan(self.config, guidance, hires, controls, **size, **cached, **more)
        return plan(self._pipeline, request)

    def is_current(self) -> bool:
        """Whether the model's name or path still leads to the files that it was opened from, and they are unchanged.

        Nothing is downloaded to find out. A generator goes on with what it has loaded; what it would have to read from
        a file that has changed is a `ModelError`.
        """
        return is_current(self._checkpoint)

    def release(self) -> bool:
        """Unloads weights and programs, but no layer that somebody looked at, until they are needed; if there are."""
        return self._pipeline.release()

    @explained
    def warm_up(
        self,
        batch_size: int = 1,
        *,
        height: int | None = None,
        width: int | None = None,
        guidance: bool | str = True,
        image: bool = False,
        tile: str | None = None,
        deep_cache_interval: int = 1,
        deep_cache_branch: int = 0,
        token_merging_ratio: float = 0.0,
        clip_skip: int = 0,
        hires: Any = None,
        controls: Any = None,
        image_prompts: Any = None,
    ) -> dict[str, float]:
        """Traces and compiles everything that a batch of this size needs, and runs it once.

        Args:
            guidance: whether the batch will be guided; "both" if it will be in a part of its steps only.
            image: whether the batch will start from pictures.
            tile: as in `generate`, as are the next five.
            deep_cache_interval: one interval compiles what all of them need.
            controls: as in `generate`, but without images; one scale, start and end compile what all of them need.
            image_prompts: as in `generate`, with as many pictures.

        Returns:
            Seconds of each stage: "text", "encode" if there are pictures, "denoise", "decode", and "safety" if
            the model comes with a safety filter.
        """
        size = {"batch_size": batch_size, "height": height, "width": width, "tile": tile, "clip_skip": clip_skip}
        more = {"deep_cache_branch": deep_cache_branch, "token_merging_ratio": token_merging_ratio}
        more |= {"controls": controls, "image_prompts": image_prompts}
        request = request_to_warm_up(self.config, guidance, deep_cache_interval, hires, **size, **more)
        return warm_up(self._pipeline, request, validation.boolean("image", image))

    def _request(
        self, prompt: str | Sequence[str] | None, batch_size: int, overrides: Overrides, arguments: RequestArguments
    ) -> Request:
        check_names(arguments)
        check_given(overrides, prompt, arguments)
        if prompt is None:
            prompt = [""] * len(contexts("prompt_embeds", overrides.prompt_embeds, self.config.unet.context_width))
        return make_request(self.config, prompt, batch_size=batch_size, **arguments)

    def _begin(
        self, request: Request, overrides: Overrides, progress: bool | None, callback: Callback | None
    ) -> tuple[ResultBuilder, Iterator[GeneratedImage]]:
        """A request's images, and what makes results of them."""
        request = self._pipeline.settled(request)
        *_, last = filter(None, (request, request.second_pass(self.config)))
        shapes = sampling_loop.latent_shape(self.config, last), self._pipeline.image_size(last)
        builder = ResultBuilder(request, overrides, self.name, self.origin, *shapes)
        return builder, self._pipeline.images(request, overrides, progress, callback)
