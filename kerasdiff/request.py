"""A request: everything that determines some images, as one frozen and validated value."""

from __future__ import annotations

import dataclasses
import secrets
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kerasdiff import checks
from kerasdiff.engine.noise import MAX_SEED, RNGS
from kerasdiff.errors import RequestError
from kerasdiff.models.config import ModelConfig
from kerasdiff.samplers import Levels, sampler_name, sampling_levels, sampling_table

LONG_PROMPTS = ("cut", "chunk")


@dataclasses.dataclass(frozen=True)
class Request:
    """What to draw. The tuples have one entry an image unless it says otherwise; `make_request` builds and checks one.

    Attributes:
        prompts: what to draw.
        negative_prompts: what to stay away from; "" where there is nothing.
        seeds: 0 to 2**64 - 1, each determining its image's noise on its own.
        height, width: pixels.
        num_steps: steps of the sampler.
        guidance_scale: weight of classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598), one
            number or one a step; 1 switches it off, and with it half of the work.
        sampler: a name from `kerasdiff.SAMPLERS`.
        spacing: a name from `kerasdiff.SPACINGS`: which noise levels the steps visit. None is the sampler's
            own, or is replaced by one of the next two.
        timesteps: the timestep of each step, or None.
        sigmas: the noise level of each step, then 0, or None.
        sampler_options: (name, value) pairs of the sampler's own options.
        guidance_interval: (start, end) as shares of the run; outside of it guidance is off.
        guidance_rescale: 0 to 1, how far the guided prediction is scaled back to the deviation of the
            conditional one (Lin et al. 2023, arXiv:2305.08891, section 3.4).
        rng: where noise comes from: "philox", or "torch" for the noise of diffusers with a CPU generator.
        long_prompts: what happens to prompts longer than the text encoder reads, "cut" or "chunk".
    """

    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    height: int
    width: int
    num_steps: int
    guidance_scale: float | tuple[float, ...]
    sampler: str
    spacing: str | None = None
    timesteps: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    sampler_options: tuple[tuple[str, Any], ...] = ()
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0
    rng: str = "philox"
    long_prompts: str = "cut"

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def guidance(self) -> np.ndarray:
        """The weight of guidance at each step, float32 (num_steps,): 1 where it is off."""
        weights = np.broadcast_to(np.array(self.guidance_scale, "float32"), (self.num_steps,))
        start, end = self.guidance_interval
        place = np.arange(self.num_steps) / self.num_steps
        return np.where((start <= place) & (place < end), weights, np.float32(1))

    @property
    def guided(self) -> bool:
        """Whether the U-Net also runs without the prompt, at any step."""
        return bool(np.any(self.guidance != 1))


def make_request(
    config: ModelConfig,
    prompt: str | Sequence[str],
    *,
    batch_size: int = 1,
    negative_prompt: str | Sequence[str] | None = None,
    height: int | None = None,
    width: int | None = None,
    num_steps: int | None = None,
    guidance_scale: float | Sequence[float] | None = None,
    guidance_interval: Sequence[float] = (0.0, 1.0),
    guidance_rescale: float = 0.0,
    sampler: str | None = None,
    sampler_options: Mapping[str, Any] | None = None,
    spacing: str | None = None,
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    rng: str = "philox",
    long_prompts: str = "cut",
    seed: int | Sequence[int] | None = None,
) -> Request:
    """Checks arguments, fills in the model's defaults and draws a seed if none is given.

    Images are ordered by prompt: `batch_size` images of the first one, then of the second. One seed
    for several images means seed, seed + 1, ... in that order.

    Args:
        config: of the model.
        prompt: a text or a list of texts.
        batch_size: images for each prompt.
        negative_prompt: a text, or one a prompt.
        height: pixels; None is the model's own.
        width: pixels; None is the model's own.
        num_steps: None is the model's own number, or what `timesteps` or `sigmas` make.
        guidance_scale: a number, or a list with one a step. A step holds for every evaluation of the
            U-Net from its noise level down to the next one's.
        guidance_interval: (start, end), shares of the run from 0 to 1: guidance is on in a step whose
            place, step / num_steps, is within start <= place < end (Kynkäänniemi et al. 2024,
            arXiv:2404.07724). Outside of it the U-Net runs on half the batch.
        guidance_rescale: 0 to 1.
        sampler: a name from `kerasdiff.SAMPLERS`, or of a class in diffusers; None is the model's own.
        sampler_options: of the sampler, such as {"eta": 0.5}.
        spacing: a name from `kerasdiff.SPACINGS`; None is the model's own, or else the sampler's.
        timesteps: instead of a spacing: falling, one a step.
        sigmas: instead of a spacing: falling noise levels, the last one 0.
        rng: "philox" or "torch".
        long_prompts: "cut" leaves out, with a warning, what the text encoder cannot read (75 tokens fit);
            "chunk" encodes every 75 tokens by themselves and lets the U-Net see all of them, as
            AUTOMATIC1111's interface does. Each number of chunks compiles the U-Net once more.
        seed: a number, or one an image.

    Raises:
        RequestError: an argument is wrong; one line says which, why, and what would be right.

    Example:
        ```python
        make_request(TINY, ["a red circle", "a blue star"], batch_size=2, seed=7).seeds  # (7, 8, 9, 10)
        ```
    """
    defaults = config.defaults
    prompts = _texts("prompt", prompt)
    batch_size = checks.integer("batch_size", batch_size, 1)
    negatives = ("",) if negative_prompt is None else _texts("negative_prompt", negative_prompt)
    if len(negatives) not in (1, len(prompts)):
        raise RequestError(
            f"negative_prompt has {len(negatives)} texts for {len(prompts)} prompts; give one text, or one a prompt"
        )
    if len(negatives) == 1:
        negatives *= len(prompts)
    sampler = sampler_name(defaults.sampler if sampler is None else sampler)
    if timesteps is None and sigmas is None:
        num_steps = checks.integer(
            "num_steps",
            defaults.num_steps if num_steps is None else num_steps,
            1,
            config.schedule.num_train_timesteps,
        )
        spacing = defaults.spacing if spacing is None else spacing
    levels = sampling_levels(config.schedule, sampler, num_steps, spacing=spacing, timesteps=timesteps, sigmas=sigmas)
    _check_levels(levels, spacing)
    if sampler_options is not None and not isinstance(sampler_options, Mapping):
        raise RequestError(f"sampler_options must be a dict such as {{'eta': 0.5}}, not {checks.kind(sampler_options)}")
    options = dict(sampler_options or {})
    sampling_table(levels, sampler, options)
    num_steps = len(levels.timesteps)
    return Request(
        prompts=_repeat(prompts, batch_size),
        negative_prompts=_repeat(negatives, batch_size),
        seeds=_seeds(seed, len(prompts) * batch_size),
        height=_size("height", defaults.height if height is None else height, config.size_multiple),
        width=_size("width", defaults.width if width is None else width, config.size_multiple),
        num_steps=num_steps,
        guidance_scale=_guidance(defaults.guidance_scale if guidance_scale is None else guidance_scale, num_steps),
        sampler=sampler,
        spacing=spacing,
        timesteps=None if timesteps is None else checks.reals("timesteps", timesteps),
        sigmas=None if sigmas is None else checks.reals("sigmas", sigmas),
        sampler_options=tuple(sorted(options.items())),
        guidance_interval=_interval(guidance_interval),
        guidance_rescale=checks.real("guidance_rescale", guidance_rescale, 0, 1),
        rng=checks.choice("rng", rng, RNGS),
        long_prompts=checks.choice("long_prompts", long_prompts, LONG_PROMPTS),
    )


def _check_levels(levels: Levels, spacing: str | None) -> None:
    if spacing is None and levels.sigmas[-1] > levels.trained[0]:
        raise RequestError(
            f"sigmas end at {levels.sigmas[-1]:g}, which leaves noise in the picture; let the last entry be 0"
        )
    last = len(levels.trained) - 1
    if levels.timesteps[0] < last / 2:
        warnings.warn(
            f"the run starts from pure noise at timestep {levels.timesteps[0]:g} of {last}, where the model expects a "
            "picture with little noise; spacing='trailing' starts at the last timestep",
            stacklevel=4,
        )


def _guidance(value: Any, num_steps: int) -> float | tuple[float, ...]:
    if not isinstance(value, list | tuple) and not hasattr(value, "tolist"):
        return checks.real("guidance_scale", value)
    if np.ndim(value) == 0:
        return checks.real("guidance_scale", value)
    weights = checks.reals("guidance_scale", value)
    if len(weights) != num_steps:
        raise RequestError(
            f"guidance_scale has {len(weights)} entries for {num_steps} steps; give one number, or one a step"
        )
    return weights


def _interval(value: Any) -> tuple[float, float]:
    interval = checks.reals("guidance_interval", value)
    if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
        raise RequestError(
            f"guidance_interval must be (start, end) with 0 <= start <= end <= 1, not {interval}; "
            "(0.1, 0.8) leaves guidance out of the first tenth and the last fifth of the steps"
        )
    return interval[0], interval[1]


def _repeat(texts: Iterable[str], times: int) -> tuple[str, ...]:
    return tuple(text for text in texts for _ in range(times))


def _texts(name: str, value: Any) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple):
        raise RequestError(f"{name} must be a text or a list of texts, not {checks.kind(value)}")
    if not texts:
        raise RequestError(f"{name} is an empty list; give at least one text")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise RequestError(f"{name}[{index}] must be a text, not {checks.kind(text)}")
    return tuple(texts)


def _size(name: str, value: Any, multiple: int) -> int:
    value = checks.integer(name, value, 1)
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
        return tuple(checks.integer(f"seed[{index}]", one, 0, MAX_SEED) for index, one in enumerate(seed))
    first = checks.integer("seed", seed, 0, MAX_SEED - count + 1)
    return tuple(range(first, first + count))
