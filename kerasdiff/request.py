"""A request: everything that determines some images, as one frozen and validated value."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import secrets
from collections.abc import Iterable, Sequence
from typing import Any

from kerasdiff.engine.noise import MAX_SEED
from kerasdiff.errors import RequestError
from kerasdiff.models.config import ModelConfig
from kerasdiff.samplers import SAMPLERS, SPACINGS


@dataclasses.dataclass(frozen=True)
class Request:
    """What to draw. The tuples have one entry an image; `make_request` builds and checks one.

    Attributes:
        prompts: what to draw.
        negative_prompts: what to stay away from; "" where there is nothing.
        seeds: 0 to 2**64 - 1, each determining its image's noise on its own.
        height, width: pixels.
        num_steps: steps of the sampler.
        guidance_scale: weight of classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598);
            1 switches it off, and with it half of the work.
        sampler: a name from `kerasdiff.SAMPLERS`.
        spacing: a name from `kerasdiff.SPACINGS`: which noise levels the steps visit.
    """

    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    height: int
    width: int
    num_steps: int
    guidance_scale: float
    sampler: str
    spacing: str

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def guided(self) -> bool:
        """Whether the U-Net also runs without the prompt."""
        return self.guidance_scale != 1.0


def make_request(
    config: ModelConfig,
    prompt: str | Sequence[str],
    *,
    batch_size: int = 1,
    negative_prompt: str | Sequence[str] | None = None,
    height: int | None = None,
    width: int | None = None,
    num_steps: int | None = None,
    guidance_scale: float | None = None,
    sampler: str | None = None,
    spacing: str | None = None,
    seed: int | Sequence[int] | None = None,
) -> Request:
    """Checks arguments, fills in the model's defaults and draws a seed if none is given.

    Images are ordered by prompt: `batch_size` images of the first one, then of the second. One seed
    for several images means seed, seed + 1, ... in that order.

    Raises:
        RequestError: an argument is wrong; one line says which, why, and what would be right.

    Example:
        ```python
        make_request(TINY, ["a red circle", "a blue star"], batch_size=2, seed=7).seeds  # (7, 8, 9, 10)
        ```
    """
    defaults = config.defaults
    prompts = _texts("prompt", prompt)
    batch_size = _integer("batch_size", batch_size, 1)
    negatives = ("",) if negative_prompt is None else _texts("negative_prompt", negative_prompt)
    if len(negatives) not in (1, len(prompts)):
        raise RequestError(
            f"negative_prompt has {len(negatives)} texts for {len(prompts)} prompts; give one text, or one a prompt"
        )
    if len(negatives) == 1:
        negatives *= len(prompts)
    request = Request(
        prompts=_repeat(prompts, batch_size),
        negative_prompts=_repeat(negatives, batch_size),
        seeds=_seeds(seed, len(prompts) * batch_size),
        height=_size("height", defaults.height if height is None else height, config.size_multiple),
        width=_size("width", defaults.width if width is None else width, config.size_multiple),
        num_steps=_integer(
            "num_steps",
            defaults.num_steps if num_steps is None else num_steps,
            1,
            config.schedule.num_train_timesteps,
        ),
        guidance_scale=_number("guidance_scale", defaults.guidance_scale if guidance_scale is None else guidance_scale),
        sampler=_choice("sampler", defaults.sampler if sampler is None else sampler, SAMPLERS),
        spacing=_choice("spacing", defaults.spacing if spacing is None else spacing, SPACINGS),
    )
    timesteps = SPACINGS[request.spacing](request.num_steps, config.schedule.num_train_timesteps)
    if timesteps[0] >= config.schedule.num_train_timesteps:
        raise RequestError(
            f"spacing={request.spacing!r} with num_steps={request.num_steps} visits a timestep that the model was not "
            f"trained on; use at most {config.schedule.num_train_timesteps - 1} steps or another spacing"
        )
    return request


def _repeat(texts: Iterable[str], times: int) -> tuple[str, ...]:
    return tuple(text for text in texts for _ in range(times))


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple):
        raise RequestError(f"{name} must be a text or a list of texts, not {_kind(value)}")
    if not texts:
        raise RequestError(f"{name} is an empty list; give at least one text")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise RequestError(f"{name}[{index}] must be a text, not {_kind(text)}")
    return tuple(texts)


def _integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise RequestError(f"{name} must be a whole number, not {_kind(value)}")
    number = int(value)
    if number < low or (high is not None and number > high):
        allowed = f"at least {low}" if high is None else f"between {low} and {high}"
        raise RequestError(f"{name}={number} is out of range; it must be {allowed}")
    return number


def _number(name: str, value: Any) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise RequestError(f"{name} must be a number, not {_kind(value)}")
    if not math.isfinite(value):
        raise RequestError(f"{name}={value} is not finite")
    return float(value)


def _size(name: str, value: Any, multiple: int) -> int:
    value = _integer(name, value, 1)
    if value % multiple:
        below = value - value % multiple
        nearest = f"{below} or {below + multiple}" if below else f"{multiple}"
        raise RequestError(f"{name}={value} is not a multiple of {multiple}; the nearest valid size is {nearest}")
    return value


def _seeds(seed: Any, count: int) -> tuple[int, ...]:
    if seed is None:
        seed = secrets.randbits(32)
    if isinstance(seed, list | tuple):
        if len(seed) != count:
            raise RequestError(f"seed has {len(seed)} entries for {count} images; give one number, or one an image")
        return tuple(_integer(f"seed[{index}]", one, 0, MAX_SEED) for index, one in enumerate(seed))
    first = _integer("seed", seed, 0, MAX_SEED - count + 1)
    return tuple(range(first, first + count))


def _choice(name: str, value: Any, known: Iterable[str]) -> str:
    names = sorted(known)
    if value in names:
        return value
    near = difflib.get_close_matches(str(value).lower(), names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise RequestError(f"{name}={value!r} is unknown; {hint}known: {', '.join(names)}")


def _kind(value: Any) -> str:
    return "None" if value is None else f"{type(value).__name__} ({value!r:.40})"
