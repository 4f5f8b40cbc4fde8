"""Recipes: the settings that a model, or a LoRA, was distilled for, under one name."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Mapping
from typing import Any, Literal

from kerasdiff import validation
from kerasdiff.models.config import Defaults, ModelConfig, ScheduleConfig
from kerasdiff.samplers.registry import Catalogue

_LOG = logging.getLogger("kerasdiff")
# What a request says that wants no recipe, not even the model's own.
NONE = "none"


@dataclasses.dataclass(frozen=True)
class SamplingRecipe:
    """Settings as they were published; what a request says itself comes first.

    Attributes:
        about: what was distilled with them, and where that is published.
        sampler: a name from `SAMPLERS`.
        num_steps: how many steps.
        spacing: a name from `SPACINGS`.
        guidance_scale: 1 is without guidance; a model that takes guidance as an input keeps its own default.
        sampler_options: options of the sampler.
        timesteps: instead of spacing and steps, where neither is given.
        prediction_type: what the U-Net predicts; None is what the model's files say.
        size: height and width where a request gives none; None is the model's own.
    """

    about: str
    sampler: str
    num_steps: int
    spacing: str = "trailing"
    guidance_scale: float = 1.0
    sampler_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    timesteps: tuple[float, ...] | None = None
    prediction_type: Literal["epsilon", "sample"] | None = None
    size: int | None = None

    @property
    def summary(self) -> str:
        """One line that describes it."""
        options = "".join(f", {name}={value}" for name, value in self.sampler_options.items())
        levels = f"spacing {self.spacing}"
        if self.timesteps is not None:
            levels = f"timesteps {', '.join(f'{time:g}' for time in self.timesteps)}"
        predicts = f", predicts {self.prediction_type}" if self.prediction_type else ""
        predicts += f", {self.size} x {self.size}" if self.size else ""
        steps = f"{self.num_steps} step{'s' if self.num_steps > 1 else ''}"
        return f"{self.about}: {self.sampler}{options}, {levels}, {steps}, no guidance{predicts}."

    def __str__(self) -> str:
        return self.summary


def _steps(name: str, counts: tuple[int, ...], about: str, paper: str, sampler: str) -> dict[str, SamplingRecipe]:
    """Of a method that has a file for each number of steps."""
    return {
        f"{name}-{count}": SamplingRecipe(f"{about} of {count} steps ({paper})", sampler, count) for count in counts
    }


RECIPES: Mapping[str, SamplingRecipe] = Catalogue(
    {
        "lcm": SamplingRecipe("Latent consistency models and LCM-LoRA (arXiv:2310.04378, 2311.05556)", "lcm", 4, "lcm"),
        "tcd": SamplingRecipe("TCD-LoRA (arXiv:2402.19159)", "tcd", 4, "lcm", sampler_options={"eta": 0.3}),
        # Single files of Stable Diffusion 2.x do not say what they predict.
        "turbo": SamplingRecipe("SD Turbo (arXiv:2311.17042)", "euler", 1, prediction_type="epsilon"),
        "turbo-xl": SamplingRecipe("SDXL Turbo (arXiv:2311.17042)", "euler_a", 1, prediction_type="epsilon", size=512),
        "lightning-1": SamplingRecipe("Lightning of one step (arXiv:2402.13929)", "euler", 1, prediction_type="sample"),
        **_steps("lightning", (2, 4, 8), "Lightning", "arXiv:2402.13929", "euler"),
        "hyper-1": SamplingRecipe(
            "Hyper-SD's LoRA of one step, good for 1 to 8 (arXiv:2404.13686)",
            *("tcd", 1, "lcm"),
            sampler_options={"eta": 1.0},
        ),
        **_steps("hyper", (2, 4, 8), "Hyper-SD's LoRA", "arXiv:2404.13686", "ddim"),
        "hyper-unet": SamplingRecipe("Hyper-SD's U-Net of one step (arXiv:2404.13686)", "lcm", 1, timesteps=(800.0,)),
        "dmd2": SamplingRecipe("DMD2 of 4 steps (arXiv:2405.14867)", "lcm", 4, timesteps=(999.0, 749.0, 499.0, 249.0)),
        "dmd2-1": SamplingRecipe("DMD2 of one step (arXiv:2405.14867)", "lcm", 1, timesteps=(399.0,)),
        "flash": SamplingRecipe("Flash Diffusion's LoRA (arXiv:2406.02347)", "lcm", 4, "lcm"),
        "sdxs": SamplingRecipe("SDXS (arXiv:2403.16627)", "euler", 1),
    }
)
"""All recipes by name; it prints as one line per recipe."""
# Published models and LoRAs that are known by their names on the hub.
PUBLISHED = {
    "simianluo/lcm_dreamshaper_v7": "lcm",
    "lykon/dreamshaper-7-lcm": "lcm",
    "lykon/dreamshaper-8-lcm": "lcm",
    "stabilityai/sd-turbo": "turbo",
    "stabilityai/sdxl-turbo": "turbo-xl",
    "idkiro/sdxs-512-0.9": "sdxs",
    "idkiro/sdxs-512-dreamshaper": "sdxs",
    "latent-consistency/lcm-sdxl": "lcm",
    "latent-consistency/lcm-ssd-1b": "lcm",
    "latent-consistency/lcm-lora-sdv1-5": "lcm",
    "latent-consistency/lcm-lora-sdxl": "lcm",
    "latent-consistency/lcm-lora-ssd-1b": "lcm",
    "segmind/segmind-vegart": "lcm",
    "h1t/tcd-sd15-lora": "tcd",
    "h1t/tcd-sd21-base-lora": "tcd",
    "h1t/tcd-sdxl-lora": "tcd",
    "jasperai/flash-sd": "flash",
    "jasperai/flash-sdxl": "flash",
}
# Words in a title or a file's name -> the recipe; no word alone that has another meaning as well.
_HYPER = r"hyper[ _-]?sd(?:15|1\.5|xl)?[ _-]*"
_WORDS = {
    _HYPER + r"1[ _-]?step[ _-]unet": "hyper-unet",
    _HYPER + r"([1248])[ _-]?steps?(?![ _-]?cfg)": "hyper-{}",
    r"lightning[ _-]*([1248])[ _-]?steps?": "lightning-{}",
    r"lcm": "lcm",
    r"tcd": "tcd",
    r"sdxs": "sdxs",
    r"sd[ _-]?turbo": "turbo",
    r"(?:sd[ _-]?xl|stable diffusion xl)(?:[ _-]?1\.0)?[ _-]?turbo": "turbo-xl",
    r"dmd2[ _-]sdxl[ _-]1[ _-]?step": "dmd2-1",
    r"dmd2": "dmd2",
    r"flash[ _-]sd(?:xl)?": "flash",
}


def recipe_name(value: Any) -> str | None:
    """The name of a recipe, or None for "none".

    Raises:
        RequestError: there is no such recipe; the message has the nearest one.
    """
    name = None if value is None else validation.choice("recipe", value, (*RECIPES, NONE))
    return None if name == NONE else name


def schedule(schedule: ScheduleConfig, recipe: str | None) -> ScheduleConfig:
    """A model's schedule, with what its U-Net predicts by a recipe."""
    predicts = None if recipe is None else RECIPES[recipe].prediction_type
    return schedule if predicts is None else dataclasses.replace(schedule, prediction_type=predicts)


def applied(config: ModelConfig, recipe: str | None) -> ModelConfig:
    """A model with a recipe's settings as its defaults; options of the same sampler stay."""
    if recipe is None:
        return config
    entry, own = RECIPES[recipe], config.defaults
    options = (dict(own.sampler_options) if own.sampler == entry.sampler else {}) | dict(entry.sampler_options)
    defaults = dataclasses.replace(
        own,
        height=own.height if entry.size is None else entry.size,
        width=own.width if entry.size is None else entry.size,
        sampler=entry.sampler,
        spacing=entry.spacing,
        num_steps=entry.num_steps,
        guidance_scale=own.guidance_scale if config.unet.embeds_guidance else entry.guidance_scale,
        sampler_options=tuple(sorted(options.items())),
    )
    return dataclasses.replace(config, defaults=defaults, schedule=schedule(config.schedule, recipe))


def published(name: object) -> str | None:
    """The recipe of a model or LoRA that is known by its name on the hub."""
    return PUBLISHED.get(name.removeprefix("hf://").lower()) if isinstance(name, str) else None


def told_by(text: str) -> str | None:
    """The recipe that a title, or a file's name, speaks of."""
    for words, recipe in _WORDS.items():
        found = re.search(rf"(?<![a-z0-9]){words}(?![a-z0-9])", text[:500].lower())
        if found:
            return recipe.format(*found.groups())
    return None


@functools.lru_cache(maxsize=1000)
def hint(what: str, recipe: str) -> None:
    """Logs, once, that something seems to be of a kind that has a recipe."""
    _LOG.warning(
        "%s seems to be made for few steps, for which recipe=%r has the settings; recipe='none' if it is not",
        what,
        recipe,
    )


def report(name: str, defaults: Defaults) -> None:
    """Logs which recipe a model's files chose, or which its name or its sampler speaks of."""
    own = recipe_name(defaults.recipe)
    if own is not None:
        _LOG.info("%s: recipe %r by its files: %s recipe='none' is without", name, own, RECIPES[own])
    elif (told := told_by(name) or told_by(defaults.sampler)) is not None:
        hint(name, told)
