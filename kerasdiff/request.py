"""A request: everything that determines some images, as one frozen and validated value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import numpy as np

from kerasdiff import editing, notices, request_values, validation
from kerasdiff.adapter_files import EmbeddingFile, Lora, UpscalerFile, make_embedding_files, make_loras, make_upscaler
from kerasdiff.control_entries import make_entries
from kerasdiff.control_values import make_controls, make_image_prompts, most_pictures
from kerasdiff.controls import STEERING, Control, Controls, ImagePrompt
from kerasdiff.errors import RequestError
from kerasdiff.guidance import GuidanceScale
from kerasdiff.hires import Hires, errors_of, make_hires
from kerasdiff.images.init_images import Pictures, per_image
from kerasdiff.models.config import ModelConfig
from kerasdiff.prompts.literal_signs import literal_signs
from kerasdiff.prompts.lora_tags import named_in_prompts
from kerasdiff.prompts.schedule import Prompt, parse
from kerasdiff.request_arguments import ARGUMENTS, DEFAULTS, PER_IMAGE, RequestArguments
from kerasdiff.request_signature import with_request_arguments
from kerasdiff.request_steps import chosen_steps, first_step
from kerasdiff.request_values import integer, own
from kerasdiff.run_bounds import RunBounds, bounds, check_bounds
from kerasdiff.samplers import recipes, sampling_levels, sampling_table
from kerasdiff.samplers.sigmas import level_options
from kerasdiff.size_conditioning import SizeConditioning, checked_sizes
from kerasdiff.synonyms import unknown_argument

MAX_IMAGES = 100_000
# Arguments that are fields of a request as they are, once checked.
_AS_GIVEN = (
    *("guidance_rescale", "rng", "long_prompts", "resize", "feather", "invert_mask", "exact"),
    *("deep_cache_interval", "token_merging_ratio", "prompt_syntax", "emphasis", "tile"),
)
# What `generate` has besides the arguments of a request.
_OF_CALL = (
    *("latents", "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
    *("callback", "progress"),
)


@dataclasses.dataclass(frozen=True)
class Request(SizeConditioning, RunBounds):
    """What to generate; `make_request` builds and checks one. `len` is the number of images.

    Attributes:
        prompts: one per image, as `negative_prompts`, `seeds` and `strengths` are.
        negative_prompts: "" where there is none; None where a model makes a difference between "" and none given.
        seeds: 0 to 2**64 - 1, each determining its image's noise on its own.
        guidance_scale: weight of classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598) per image and per
            step; 1 switches it off, and with it half of the work.
        sampler: a name from `kerasdiff.SAMPLERS`.
        spacing: a name from `kerasdiff.SPACINGS`: which noise levels the steps visit. None is the sampler's
            own, or is replaced by one of the next two.
        timesteps: the timestep of each step, or None.
        sigmas: the noise level of each step, then 0, or None.
        sampler_options: (name, value) pairs of the sampler's own options.
        guidance_interval: (start, end) as fractions of the run; outside of it guidance is off.
        guidance_rescale: 0 to 1, how far the guided prediction is scaled back to the deviation of the
            conditional one (Lin et al. 2023, arXiv:2305.08891, section 3.4).
        image_guidance_scale: the weight of the picture that a model for editing reads; None with other models.
        rng: where noise comes from: "philox", or "torch" for the noise of diffusers with a CPU generator.
        long_prompts: what happens to prompts longer than the text encoder reads, "cut" or "chunk".
        pictures: what images start from; None is noise alone.
        strengths: 0 to 1, how much of each picture is redrawn; None without pictures.
        resize: how pictures of another size were brought to this one: "cover", "fit", "stretch", or None.
        feather: width in pixels of the blend inside a mask's edge.
        invert_mask: whether what is black in the masks was taken to be redrawn.
        controls: networks that steer the images by hints, and their hints in the images' size; None is none.
        image_prompts: pictures that are read beside the prompts; None is none.
        hires: a second pass at a larger size, which images then have; None is none.
        deep_cache_interval: of so many evaluations of the U-Net one is whole (DeepCache); 1 is off.
        deep_cache_branch: the skip connection below which the others reuse deep features.
        token_merging_ratio: share of the tokens that self-attention at the finest level merges.
        prompt_syntax: what signs in the texts mean: "plain" (nothing), "a1111" or "compel".
        emphasis: whether weights of "a1111" keep the mean of a chunk, "original" or "no_norm".
        clip_skip: how many of the text encoder's last layers are left out.
        loras: LoRAs and how strongly they are applied, to all images.
        embeddings: files of embeddings (textual inversion).
        upscale: what makes finished images larger than `height` and `width`; None is nothing.
        safety: what the model's safety filter does: "on" blacks flagged images out, "flag" only reports them, "off".
        exact: whether every image is generated by itself, so that it is the same, bit for bit, in any batch.
        recipe: a name from `kerasdiff.RECIPES`, from which what was not said was taken, or None.
        all_steps: whether all steps of images from pictures are done, from a noise level that their strength decides,
            as image to image of latent consistency models is done.
        tile: along which axes images are seamless: "x", "y", "xy" or None.
        towards: for each image of a walk, where it goes from its prompt and seed; None is no walk.

    Example:
        ```python
        request = kerasdiff.generate("a red circle", batch_size=2, num_steps=10, seed=7).request
        request.seeds, request.sampler, request.spacing  # (7, 8), "dpmpp_2m", "trailing"
        request.guided, request.guidance.shape  # True, (10, 2): steps, images
        request.first_steps  # (0, 0): nothing is left out, as there are no pictures
        ```
    """

    prompts: tuple[str, ...]
    negative_prompts: tuple[str | None, ...]
    seeds: tuple[int, ...]
    height: int
    width: int
    num_steps: int
    guidance_scale: GuidanceScale
    sampler: str
    spacing: str | None = None
    timesteps: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    sampler_options: tuple[tuple[str, Any], ...] = ()
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0
    image_guidance_scale: float | None = None
    rng: str = "philox"
    long_prompts: str = "cut"
    pictures: Pictures | None = None
    strengths: tuple[float, ...] | None = None
    resize: str | None = None
    feather: int = 0
    invert_mask: bool = False
    controls: Controls | None = None
    image_prompts: Controls | None = None
    hires: Hires | None = None
    deep_cache_interval: int = 1
    deep_cache_branch: int = 0
    token_merging_ratio: float = 0.0
    prompt_syntax: str = "plain"
    emphasis: str = "original"
    clip_skip: int = 0
    loras: tuple[Lora, ...] = ()
    embeddings: tuple[EmbeddingFile, ...] = ()
    upscale: UpscalerFile | None = None
    safety: str = "off"
    exact: bool = False
    recipe: str | None = None
    all_steps: bool = False
    tile: str | None = None
    towards: tuple[request_values.Waypoint, ...] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def only(self, indices: Sequence[int]) -> Request:
        """The request of some of the images."""
        changed: dict[str, Any] = {}
        for name in PER_IMAGE:
            values = getattr(self, name)
            if isinstance(values, tuple):
                changed[name] = tuple(values[index] for index in indices)
            elif values is not None:
                changed[name] = values.only(indices)
        return dataclasses.replace(self, **changed)

    def arguments(self) -> dict[str, Any]:
        """The arguments of `make_request` that make this request, but for its pictures."""
        fields = {name: ARGUMENTS[name].per_image or name for name in ("prompt", *DEFAULTS)}
        left_out = ("pictures", "lora_folder")  # what a prompt named in that folder is in `loras`
        found = {name: getattr(self, field) for name, field in fields.items() if field not in left_out}
        levels = self.timesteps is not None or self.sigmas is not None
        return found | {
            "num_steps": None if levels else self.num_steps,
            "guidance_scale": self.guidance_scale.plain(),
            "sampler_options": dict(self.sampler_options),
        }

    def second_pass(self, config: ModelConfig) -> SecondPass | None:
        """The pass at the larger size, by a model's configuration; None if there is none."""
        if self.hires is None:
            return None
        changed = {"all_steps": False} | self.hires.run(self.sampler, self.spacing, self.num_steps)
        if request_values.all_steps(config, changed["sampler"], changed["spacing"]):
            steps = self.num_steps if self.hires.steps is None else self.hires.steps
            changed |= {"num_steps": steps, "strength": self.hires.strength, "all_steps": True}
        changed["strengths"] = (changed.pop("strength"),) * len(self)
        changed |= self.hires.subject(len(self), self.height, self.width, config.size_multiple, self.towards)
        scale = changed.get("guidance_scale", self.guidance_scale)
        changed["guidance_scale"] = request_values.meant_by(scale, config, self.recipe)
        return SecondPass(**vars(self) | changed, earlier=self.num_steps)

    @property
    def steering(self) -> tuple[Any, ...]:
        """The controls and image prompts that act in any step of any image."""
        return tuple(entry for name in STEERING for entry in (getattr(self, name) or Controls(())).acting)

    @property
    def prompt_steps(self) -> tuple[int, int | None]:
        """The steps that changes in prompts count, and those of an earlier pass if there is one."""
        return self.num_steps, None

    def parsed(self, text: str, negative: bool) -> Prompt:
        """What one of the texts means."""
        steps, earlier = self.prompt_steps
        return parse(text, self.prompt_syntax, steps, negative, earlier)

    @property
    def first_steps(self) -> tuple[int, ...]:
        """The step each image starts at; `num_steps` where nothing is left to do."""
        if self.strengths is None:
            return (0,) * len(self)
        if self.all_steps:
            return tuple(0 if strength else self.num_steps for strength in self.strengths)
        return tuple(first_step(self.num_steps, strength) for strength in self.strengths)

    @property
    def run_steps(self) -> int:
        """How many steps are run: the most of any image."""
        return self.num_steps - min(self.first_steps)

    @property
    def shares(self) -> tuple[float, ...]:
        """The share of a run's timesteps, from the lowest on, that the steps of each image are taken from."""
        return self.strengths if self.all_steps and self.strengths is not None else (1.0,) * len(self)

    @property
    def from_noise(self) -> np.ndarray:
        """Where nothing of a run is left out, so that what a mask covers begins as noise: bool (N,)."""
        return (np.array(self.first_steps) == 0) & (np.array(self.shares) == 1)

    @property
    def guidance(self) -> np.ndarray:
        """The weight of guidance at each step of each image, float32 (num_steps, N): 1 where it is off."""
        weights = self.guidance_scale.array(self.num_steps, len(self))
        start, end = self.guidance_interval
        fraction = np.arange(self.num_steps)[:, None] / self.num_steps
        return np.where((start <= fraction) & (fraction < end), weights, np.float32(1))

    @property
    def guided(self) -> bool:
        """Whether the U-Net also runs without the prompt, at any step that is done."""
        done = np.arange(self.num_steps)[:, None] >= np.array(self.first_steps)
        return bool(np.any((self.guidance != 1) & done))


@dataclasses.dataclass(frozen=True)
class SecondPass(Request):
    """A request's pass at the larger size, with latents to start from; `earlier` is the first one's number of steps."""

    earlier: int = 0

    @property
    def prompt_steps(self) -> tuple[int, int | None]:
        """Those that are run."""
        return self.run_steps, self.earlier


@with_request_arguments
def make_request(
    config: ModelConfig,
    prompt: str | Sequence[str],
    *,
    batch_size: int = 1,
    **arguments: Unpack[RequestArguments],
) -> Request:
    """Checks arguments, fills in the model's defaults, and draws a seed if none is given.

    Images are ordered by prompt: `batch_size` images of the first one, then of the second. A list may be a tuple or
    an array as well.

    Args:
        config: of the model, `Generator.config`.
        **arguments: those of `RequestArguments`.

    Raises:
        RequestError: an argument is wrong; one line says which, why, and what would be right.
        TypeError: there is no such argument.
    """
    check_names(arguments)
    given = {name: request_values.checked(name, value) for name, value in {**DEFAULTS, **arguments}.items()}
    recipe = recipes.recipe_name(own(given["recipe"], config.defaults.recipe))
    config = recipes.applied(config, recipe)
    defaults = config.defaults
    prompts = validation.texts("prompt", prompt)
    loras = make_loras("loras", own(given["loras"], defaults.loras))
    hires = make_hires("hires", given["hires"])
    if given["lora_folder"] is not None:
        more = () if hires is None or hires.prompt is None else (hires.prompt,)
        texts, tagged = named_in_prompts((*prompts, *more), given["lora_folder"])
        loras, prompts = make_loras("loras", (*loras, *tagged)), texts[: len(prompts)]
        if hires is not None and more:
            hires = dataclasses.replace(hires, prompt=texts[-1])
    batch_size = integer("batch_size", batch_size)
    for name, kind in (("controls", Control), ("image_prompts", ImagePrompt)):
        given[name] = make_entries(name, given[name], kind)
    if len(prompts) == batch_size == 1:
        prompts *= most_pictures(given)
    count = len(prompts) * batch_size
    if count > MAX_IMAGES:
        raise RequestError(
            f"prompt and batch_size make {validation.shown(count)} images; one request may have at most {MAX_IMAGES}"
        )
    image_guidance = editing.image_guidance(given, config)
    run = chosen_steps(given, config, recipe, len(prompts), batch_size)
    scale = defaults.guidance_scale if given["guidance_scale"] is None else given["guidance_scale"]
    pictures = request_values.pictures(given, config, len(prompts), batch_size)
    controls, height, width = make_controls(given, config, pictures, len(prompts), batch_size)
    negative_prompts = request_values.negative_prompts(given["negative_prompt"], config, len(prompts), batch_size)
    syntax = given["prompt_syntax"]
    if given["emphasis"] != DEFAULTS["emphasis"] and syntax != "a1111":
        raise RequestError("emphasis needs prompt_syntax='a1111', whose weights it is about")
    theirs = () if hires is None else [text for text in (hires.prompt, hires.negative_prompt) if text is not None]
    signs = literal_signs(dict.fromkeys(filter(None, (*prompts, *negative_prompts, *theirs))), syntax)
    if signs is not None:
        notices.warn(signs, stacklevel=3)
    request_values.check_guidance(given, config, recipe, scale, negative_prompts)
    if recipe is given["sampler"] is given["num_steps"] is given["recipe"] is None:
        request_values.hint_at_recipes(loras)
    request = Request(
        prompts=tuple(per_image("prompt", prompts, len(prompts), batch_size)),
        negative_prompts=negative_prompts,
        seeds=request_values.seeds(given["seed"], count),
        height=height,
        width=width,
        guidance_scale=request_values.guidance(scale, config, recipe, run["num_steps"], len(prompts), batch_size),
        guidance_interval=request_values.interval(given["guidance_interval"]),
        image_guidance_scale=image_guidance,
        pictures=pictures,
        clip_skip=integer("clip_skip", given["clip_skip"], config.most_clip_skip),
        loras=loras,
        embeddings=make_embedding_files("embeddings", own(given["embeddings"], defaults.embeddings)),
        controls=controls,
        image_prompts=make_image_prompts(given["image_prompts"], len(prompts), batch_size),
        hires=hires,
        upscale=make_upscaler("upscale", given["upscale"]),
        deep_cache_branch=request_values.branch(given["deep_cache_branch"], given["deep_cache_interval"], config),
        safety=request_values.safety(given["safety"], config.safety_checker is not None),
        recipe=recipe,
        **run,
        **checked_sizes(given, config),
        **{name: given[name] for name in _AS_GIVEN},
    )
    request = dataclasses.replace(request, **bounds(given, config))
    check_bounds(config, request)
    joins_no_more = request_values.EMBEDS if config.unet.embeds_guidance else editing.JOINS if config.edits else None
    for one in filter(None, (request, _second_pass(config, request))):
        read = [(text, False) for text in one.prompts] + [(text, True) for text in one.negative_prompts if text]
        for parts in (one.parsed(*each).parts for each in dict.fromkeys(read)):
            if joins_no_more is not None and [part.weight for part in parts] != [1.0]:
                raise RequestError(f"AND joins several predictions, {joins_no_more}; leave AND out")
    return request


def _second_pass(config: ModelConfig, request: Request) -> SecondPass | None:
    """The pass at the larger size, checked."""
    if request.hires is None:
        return None
    if request.pictures is not None or config.inpaints:
        raise RequestError("hires is for images from text alone; resize='cover' enlarges an image to start from")
    if request.guidance_scale.per_step and request.hires.guidance_scale is None:
        raise RequestError("hires needs a guidance_scale of its own, one number, where each step has its own")
    second, most = request.second_pass(config), config.schedule.num_train_timesteps
    assert second is not None
    if second.num_steps > most:
        raise RequestError(
            f"hires runs {second.prompt_steps[0]} steps at strength={request.hires.strength:g}, which are the last of "
            f"{second.num_steps}, and there may be at most {most}; give fewer steps or more strength"
        )
    with errors_of("hires"):
        options = dict(second.sampler_options)
        levels = sampling_levels(
            recipes.schedule(config.schedule, second.recipe),
            second.sampler,
            second.num_steps,
            spacing=second.spacing,
            **level_options(options),
        )
        sampling_table(levels.from_step(min(second.first_steps[0], second.num_steps - 1)), second.sampler, options)
    return second


def check_names(arguments: Mapping[str, Any]) -> None:
    """Refuses an argument that a request does not have, with a TypeError that says what to write."""
    for name, value in arguments.items():
        if name not in DEFAULTS:
            raise TypeError(unknown_argument("make_request", name, value, (*ARGUMENTS, *_OF_CALL)))
