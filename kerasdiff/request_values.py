"""Values of a request that several arguments, or the number of images, decide."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from kerasdiff import notices, validation
from kerasdiff.adapter_files import Lora
from kerasdiff.errors import RequestError
from kerasdiff.guidance import GuidanceScale, make_guidance
from kerasdiff.images.init_images import Pictures, Size, make_pictures, per_image
from kerasdiff.models.config import ModelConfig
from kerasdiff.models.footprint import least_bytes
from kerasdiff.request_arguments import ARGUMENTS, DEFAULTS, NO_SEED
from kerasdiff.runtime.batch_sizer import MAX_PARTS
from kerasdiff.samplers import SAMPLERS, recipes

# How many times the pixels of the model's size an image may have whose size the result takes over unasked.
_FAR_ABOVE = 16
# What is special about latent consistency models.
EMBEDS = "and this model takes guidance as an input and makes only one"

# A walk beyond its second noise comes to the opposite of the first one at 2, and to the first one again at 4.
_ROUND = 4.0


@dataclasses.dataclass(frozen=True)
class Waypoint:
    """What an image of a walk goes towards from its own prompt and seed; `share` of the way is done.

    Texts are mixed linearly and noises on a great circle, on which a share may go on up to 4, the whole of it.
    """

    prompt: str
    seed: int
    share: float

    def __post_init__(self) -> None:
        validation.integer("seed", self.seed, *ARGUMENTS["seed"].bounds)
        validation.real("share", self.share, 0.0, _ROUND)


def options(value: Any) -> dict[str, Any]:
    """Options of a sampler, lists among them as tuples."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RequestError(f"sampler_options must be a dict such as {{'eta': 0.5}}, not {validation.kind(value)}")
    with validation.reading("sampler_options"):
        options = {name: validation.unwrapped("sampler_options", one) for name, one in value.items()}
    return {name: tuple(one) if isinstance(one, list) else one for name, one in options.items()}


def safety(safety: str | None, available: bool) -> str:
    """What the safety filter does; a model may come without one."""
    if safety is None:
        return "on" if available else "off"
    if safety != "off" and not available:
        raise RequestError(f"safety={safety!r}: this model comes without a safety filter; leave safety out")
    return safety


def strengths(value: Any, pictured: bool, masked: bool, prompts: int, batch_size: int) -> tuple[float, ...] | None:
    """How much of each picture is redrawn, one per image; None without pictures."""
    if not pictured:
        if value is not None:
            raise RequestError("strength needs image")
        return None
    if value is None:
        value = 1.0 if masked else 0.8
    bounds = ARGUMENTS["strength"].bounds
    values = validation.unwrapped("strength", value)
    if not isinstance(values, list):
        values = [validation.real("strength", values, *bounds)]
    return tuple(per_image("strength", validation.reals("strength", values, *bounds), prompts, batch_size))


def interval(value: Any) -> tuple[float, float]:
    """The part of a run in which guidance is on."""
    interval = validation.reals("guidance_interval", value)
    if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
        raise RequestError(
            f"guidance_interval must be (start, end) with 0 <= start <= end <= 1, not {validation.shown(interval)}; "
            "(0.1, 0.8) leaves guidance out of the first tenth and the last fifth of the steps"
        )
    return interval[0], interval[1]


def seeds(seed: Any, count: int) -> tuple[int, ...]:
    """One seed per image: those that were given, or counted up from the first."""
    if seed is None:
        seed = secrets.randbits(32)
    low, high = ARGUMENTS["seed"].bounds
    seeds = validation.unwrapped("seed", seed)
    if isinstance(seeds, list):
        if len(seeds) != count:
            raise RequestError(f"seed has {len(seeds)} entries for {count} images; give one number, or one per image")
        return tuple(validation.integer(f"seed[{index}]", one, low, high) for index, one in enumerate(seeds))
    with validation.advising(NO_SEED):
        first = validation.integer("seed", seeds, low, high - count + 1)
    return tuple(range(first, first + count))


def negative_prompts(value: Any, config: ModelConfig, prompts: int, batch_size: int) -> tuple[str | None, ...]:
    """One per image; None is not given, which most models read as ""."""
    given = [value] if value is None else validation.unwrapped("negative_prompt", value)
    if not isinstance(given, list) or not given:
        given = list(validation.texts("negative_prompt", value))
    absent = None if config.force_zeros_for_empty_prompt else ""
    named = ((f"negative_prompt[{index}]", one) for index, one in enumerate(given))
    texts = [absent if one is None else validation.text(name, one) for name, one in named]
    if len(texts) not in (1, prompts):
        raise RequestError(
            f"negative_prompt has {len(texts)} strings for {prompts} prompts; give one string, or one per prompt"
        )
    return tuple(per_image("negative_prompt", texts, prompts, batch_size))


def pictures(given: Mapping[str, Any], config: ModelConfig, prompts: int, batch_size: int) -> Pictures | None:
    """What images start from, in their size."""
    image, mask, resize, height, width = (given[name] for name in ("image", "mask", "resize", "height", "width"))
    if image is not None:
        for name in ("feather", "invert_mask"):
            if mask is None and given[name]:
                raise RequestError(f"{name} needs mask")
        masked = {"invert_mask": given["invert_mask"], "whole": config.inpaints}
        made = make_pictures(image, mask, size_of(given, config), resize, prompts, batch_size, **masked)
        if resize is None and (height is None or width is None):
            check_taken_size(config, *made.images.shape[1:3])
        return made
    hinted = any(control.image is not None for control in given["controls"])
    if mask is not None or given["feather"] or (resize is not None and not hinted):
        raise RequestError("mask, resize and feather need image")
    if given["invert_mask"]:
        raise RequestError("invert_mask needs image and mask")
    return None


def size_of(given: Mapping[str, Any], config: ModelConfig) -> Size:
    """The size that a request asks for."""
    defaults = config.defaults
    return Size(given["height"], given["width"], defaults.height, defaults.width, config.size_multiple)


def check_taken_size(config: ModelConfig, height: int, width: int, name: str = "image") -> None:
    """Refuses to take over a picture's size that is far above the model's."""
    defaults = config.defaults
    if height * width > _FAR_ABOVE * defaults.height * defaults.width:
        need = least_bytes(config, height, width, MAX_PARTS)
        raise RequestError(
            f"{name} is {width} x {height} pixels, and the result would be, far above the model's {defaults.width} x "
            f"{defaults.height}; it would take at least {need / 1e9:.3g} GB of memory. Give resize='cover' for the "
            f"model's size, or height={height} and width={width} if you mean it"
        )


def branch(branch: Any, interval: int, config: ModelConfig) -> int:
    """The skip connection below which features are reused."""
    branch = validation.integer("deep_cache_branch", branch, 0, config.unet.branches - 1)
    if branch and interval == 1:
        raise RequestError("deep_cache_branch needs deep_cache_interval; 3 is usual")
    return branch


def all_steps(config: ModelConfig, sampler: str, spacing: str | None) -> bool:
    """Whether the steps of a run from a picture are all done, at timesteps that its strength leaves."""
    return config.unet.embeds_guidance and (SAMPLERS[sampler].spacing if spacing is None else spacing) == "lcm"


def check_guidance(
    given: Mapping[str, Any],
    config: ModelConfig,
    recipe: str | None,
    scale: Any,
    negative_prompts: Sequence[str | None],
) -> None:
    """Refuses what a model that takes guidance as an input cannot do, and warns where a negative prompt is not read."""
    why = None
    if config.unet.embeds_guidance:
        values = {
            "guidance_interval": interval(given["guidance_interval"]),
            "guidance_rescale": given["guidance_rescale"],
        }
        for name, value in values.items():
            if value != DEFAULTS[name]:
                raise RequestError(f"{name} is about two predictions, {EMBEDS}; guidance_scale may be one per step")
        why = f"it needs a second prediction, {EMBEDS}"
    elif recipe is not None and given["guidance_scale"] is None and scale == 1:
        why = f"recipe {recipe!r} is without guidance; guidance_scale above 1 is with it, in twice the time"
    if why is not None and any(negative_prompts):
        notices.warn(f"negative_prompt has no effect: {why}", stacklevel=4)


def meant_by(scale: GuidanceScale, config: ModelConfig, recipe: str | None) -> GuidanceScale:
    """Weights of guidance, of which all up to 1 are without it with a recipe: their authors write 0."""
    return scale if recipe is None or config.unet.embeds_guidance else scale.as_in_diffusers()


def guidance(value: Any, config: ModelConfig, recipe: str | None, *counts: int) -> GuidanceScale:
    """Weights of guidance, with a warning of those that weaken a prompt; `counts` are those of `make_guidance`."""
    made = meant_by(make_guidance(value, *counts), config, recipe)
    largest = max(weight for row in made.weights for weight in row)
    if largest < 1 and not config.unet.embeds_guidance:
        does = "weakens" if largest > 0 else "ignores" if largest == 0 else "turns away from"
        notices.warn(
            f"guidance_scale={largest:g} {does} the prompt; 1 is without guidance, as 0 is in diffusers",
            stacklevel=4,
        )
    return made


def hint_at_recipes(loras: Sequence[Lora]) -> None:
    """Logs, once each, which LoRAs seem to be made for few steps."""
    for file in dict.fromkeys(lora.file for lora in loras):
        told = recipes.published(file) or recipes.told_by(file.replace("\\", "/").rpartition("/")[2])
        if told is not None:
            recipes.hint(file, told)


def checked(name: str, value: Any) -> Any:
    """An argument, checked if neither others nor the model have a say in it."""
    argument = ARGUMENTS[name]
    if value is None and argument.default is None:
        return None
    if argument.kind == "number":
        return validation.real(name, value, *argument.bounds)
    if argument.kind == "boolean":
        return validation.boolean(name, value)
    if argument.kind == "choice":
        return validation.choice(name, value, argument.choices)
    if argument.kind == "path":
        return validation.path(name, value)
    if argument.kind == "integer" and argument.bounds[1] is not None:
        return integer(name, value)
    return value


def integer(name: str, value: Any, high: int | None = None) -> int:
    """An integer within the bounds of an argument, or up to a bound of the model."""
    low, fixed = ARGUMENTS[name].bounds
    return validation.integer(name, value, low, fixed if high is None else high)


def own(value: Any, default: Any) -> Any:
    """What a call says, or else the model's default."""
    return default if value is None else value
