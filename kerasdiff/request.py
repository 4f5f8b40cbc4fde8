"""A request: everything that determines some images, as one frozen and validated value."""

from __future__ import annotations

import dataclasses
import secrets
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kerasdiff import validation
from kerasdiff.errors import RequestError
from kerasdiff.images.init_images import Pictures, Size, as_list, make_pictures, per_image
from kerasdiff.images.reader import MAX_SIDE
from kerasdiff.models.config import ModelConfig
from kerasdiff.samplers import Levels, sampler_name, sampling_levels, sampling_table
from kerasdiff.samplers.noise import MAX_SEED, RNGS

LONG_PROMPTS = ("cut", "chunk")
SAFETY = ("off", "flag", "on")
MAX_IMAGES = 100_000
# Far beyond any use; float32 still has room for what is computed with it.
MAX_GUIDANCE = 1e6
# Numbers of guidance_scale in all, where each image has its own for each step.
_MOST_WEIGHTS = 1_000_000


@dataclasses.dataclass(frozen=True)
class Request:
    """What to draw. The tuples have one entry an image unless it says otherwise; `make_request` builds and checks one.

    `len` is the number of images.

    Attributes:
        prompts: what to draw.
        negative_prompts: what to stay away from; "" where there is nothing.
        seeds: 0 to 2**64 - 1, each determining its image's noise on its own.
        height: pixels.
        width: pixels.
        num_steps: steps of the sampler.
        guidance_scale: weight of classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598): one number,
            one a step, or for each image one or one a step; 1 switches it off, and with it half of the work.
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
        pictures: what images start from; None is noise alone.
        strengths: 0 to 1, how much of each picture is drawn anew; None without pictures.
        resize: how pictures of another size were brought to this one: "cover", "fit", "stretch", or None.
        feather: pixels over which what is drawn fades in behind a mask's edge.
        safety: what the model's safety filter does: "on" makes what it flags black, "flag" only tells, "off".
        exact: whether every image is drawn by itself, so that it is the same, bit for bit, in any batch.

    Example:
        ```python
        request = kerasdiff.generate("a red circle", batch_size=2, num_steps=10, seed=7).request
        request.seeds, request.sampler, request.spacing  # (7, 8), "dpmpp_2m", "trailing"
        request.guided, request.guidance.shape  # True, (10, 2): steps, images
        request.first_steps  # (0, 0): nothing is left out, as there are no pictures
        ```
    """

    prompts: tuple[str, ...]
    negative_prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    height: int
    width: int
    num_steps: int
    guidance_scale: float | tuple[float, ...] | tuple[tuple[float, ...], ...]
    sampler: str
    spacing: str | None = None
    timesteps: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    sampler_options: tuple[tuple[str, Any], ...] = ()
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    guidance_rescale: float = 0.0
    rng: str = "philox"
    long_prompts: str = "cut"
    pictures: Pictures | None = None
    strengths: tuple[float, ...] | None = None
    resize: str | None = None
    feather: int = 0
    safety: str = "off"
    exact: bool = False

    def __len__(self) -> int:
        return len(self.prompts)

    def only(self, places: Sequence[int]) -> Request:
        """The request of some of the images.

        Args:
            places: which, from 0, in the order that is wanted; one may be there several times.

        Example:
            ```python
            request = kerasdiff.generate("a red circle", batch_size=3, seed=7).request
            request.only([2, 0]).seeds  # (9, 7)
            ```
        """
        names = ["prompts", "negative_prompts", "seeds"]
        if isinstance(self.guidance_scale, tuple) and isinstance(self.guidance_scale[0], tuple):
            names.append("guidance_scale")
        if self.strengths is not None:
            names.append("strengths")
        chosen: dict[str, Any] = {name: tuple(getattr(self, name)[place] for place in places) for name in names}
        pictures = None if self.pictures is None else self.pictures.only(places)
        return dataclasses.replace(self, **chosen, pictures=pictures)

    @property
    def first_steps(self) -> tuple[int, ...]:
        """The step each image starts at; `num_steps` where nothing is left to do."""
        if self.strengths is None:
            return (0,) * len(self)
        return tuple(first_step(self.num_steps, strength) for strength in self.strengths)

    @property
    def guidance(self) -> np.ndarray:
        """The weight of guidance at each step of each image, float32 (num_steps, N): 1 where it is off."""
        scales = np.array(self.guidance_scale, "float32")
        per_image = scales if scales.ndim == 2 else scales[None]  # (N or 1, steps or 1), or (1,)
        weights = np.broadcast_to(per_image.reshape(len(per_image), -1).T, (self.num_steps, len(self)))
        start, end = self.guidance_interval
        place = np.arange(self.num_steps)[:, None] / self.num_steps
        return np.where((start <= place) & (place < end), weights, np.float32(1))

    @property
    def guided(self) -> bool:
        """Whether the U-Net also runs without the prompt, at any step that is done."""
        done = np.arange(self.num_steps)[:, None] >= np.array(self.first_steps)
        return bool(np.any((self.guidance != 1) & done))


def first_step(num_steps: int, strength: float) -> int:
    """The step that a picture's run starts at: the last int(num_steps * strength) are done, as in diffusers."""
    return num_steps - min(int(num_steps * strength), num_steps)


def make_request(
    config: ModelConfig,
    prompt: str | Sequence[str],
    *,
    batch_size: int = 1,
    negative_prompt: str | Sequence[str] | None = None,
    height: int | None = None,
    width: int | None = None,
    num_steps: int | None = None,
    guidance_scale: float | Sequence[float] | Sequence[Sequence[float]] | None = None,
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
    image: Any = None,
    mask: Any = None,
    strength: float | Sequence[float] | None = None,
    resize: str | None = None,
    feather: int = 0,
    safety: str | None = None,
    exact: bool = False,
) -> Request:
    """Checks arguments, fills in the model's defaults and draws a seed if none is given.

    Images are ordered by prompt: `batch_size` images of the first one, then of the second. One seed
    for several images means seed, seed + 1, ... in that order. A list may be a tuple or an array as well.

    Args:
        config: of the model, `Generator.config`.
        prompt: a text or a list of texts.
        batch_size: images for each prompt.
        negative_prompt: a text, or one a prompt.
        height: pixels; None is the model's own.
        width: pixels; None is the model's own.
        num_steps: None is the model's own number, or what `timesteps` or `sigmas` make.
        guidance_scale: a number from -1e6 to 1e6; a list with one a step, one a prompt or one an image; or for
            each image a list with one or one a step. A step holds for every evaluation of the U-Net from its noise
            level down to the next one's.
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
        image: a picture to start from: a path, a PIL image, an array uint8 or 0 to 1 (height, width, 3); or
            several, one a prompt or one an image: a list, an array (N, height, width, 3) or a `Result`. One
            prompt is drawn once for each. Its size is that of the result, unless `resize` is given.
        mask: what to draw anew in it, white where that is; the same kinds, and the same lists.
        strength: 0 to 1, how far the picture is taken back to noise, or a list, one a prompt or one an image:
            the last int(num_steps * strength) steps are done. 0 gives what the autoencoder makes of the picture.
            None is 0.8, and 1 with a mask: what is covered does not matter then.
        resize: how a picture of another size is brought to height x width: "cover" cuts off what sticks out,
            "fit" makes the result smaller instead, "stretch" changes the aspect ratio.
        feather: pixels over which what is drawn fades in behind the mask's edge.
        safety: what the model's safety filter does: "on" makes what it flags black, "flag" only tells, "off" does
            not run it. None is "on" for a model that comes with one.
        exact: whether every image is drawn by itself, so that it is the same, bit for bit, whatever else is drawn
            with it; otherwise the last digits depend on how many are drawn at once.

    Raises:
        RequestError: an argument is wrong; one line says which, why, and what would be right.

    Example:
        ```python
        from kerasdiff.request import make_request

        config = kerasdiff.Generator("tiny").config
        make_request(config, ["a red circle", "a blue star"], batch_size=2, seed=7).seeds  # (7, 8, 9, 10)
        ```
    """
    defaults = config.defaults
    prompts = validation.texts("prompt", prompt)
    batch_size = validation.integer("batch_size", batch_size, 1)
    if len(prompts) == batch_size == 1:
        prompts *= max(1, len(as_list("image", image) or ()))
    count = len(prompts) * batch_size
    if count > MAX_IMAGES:
        raise RequestError(
            f"prompt and batch_size make {validation.shown(count)} images; one request may have at most {MAX_IMAGES}"
        )
    negatives = ("",) if negative_prompt is None else validation.texts("negative_prompt", negative_prompt)
    if len(negatives) not in (1, len(prompts)):
        raise RequestError(
            f"negative_prompt has {len(negatives)} texts for {len(prompts)} prompts; give one text, or one a prompt"
        )
    if len(negatives) == 1:
        negatives *= len(prompts)
    sampler = sampler_name(defaults.sampler if sampler is None else sampler)
    if timesteps is None and sigmas is None:
        num_steps = validation.integer(
            "num_steps",
            defaults.num_steps if num_steps is None else num_steps,
            1,
            config.schedule.num_train_timesteps,
        )
        spacing = defaults.spacing if spacing is None else spacing
    levels = sampling_levels(config.schedule, sampler, num_steps, spacing=spacing, timesteps=timesteps, sigmas=sigmas)
    _check_levels(levels, spacing, from_noise=image is None)
    options = _options(sampler_options)
    num_steps = len(levels.timesteps)
    strengths = _strengths(strength, image is not None, mask is not None, len(prompts), batch_size)
    starts = {first_step(num_steps, one) for one in strengths or (1.0,)} - {num_steps} or {0}
    for start in {min(starts), max(starts)}:
        sampling_table(levels.from_step(start), sampler, options)
    size = Size(height, width, defaults.height, defaults.width, config.size_multiple)
    feather = validation.integer("feather", feather, 0, MAX_SIDE)
    pictures = None
    if image is not None:
        if mask is None and feather:
            raise RequestError("feather is about a mask's edge; give mask as well")
        pictures = make_pictures(image, mask, size, resize, len(prompts), batch_size)
        height, width = pictures.images.shape[1:3]
    elif mask is not None or resize is not None or feather:
        raise RequestError("mask, resize and feather are about a picture; give image as well")
    height, width = size.both(height, width)
    return Request(
        prompts=_repeat(prompts, batch_size),
        negative_prompts=_repeat(negatives, batch_size),
        seeds=_seeds(seed, count),
        height=height,
        width=width,
        num_steps=num_steps,
        guidance_scale=_guidance(
            defaults.guidance_scale if guidance_scale is None else guidance_scale, num_steps, len(prompts), batch_size
        ),
        sampler=sampler,
        spacing=spacing,
        timesteps=None if timesteps is None else validation.reals("timesteps", timesteps),
        sigmas=None if sigmas is None else validation.reals("sigmas", sigmas),
        sampler_options=tuple(sorted(options.items())),
        guidance_interval=_interval(guidance_interval),
        guidance_rescale=validation.real("guidance_rescale", guidance_rescale, 0, 1),
        rng=validation.choice("rng", rng, RNGS),
        long_prompts=validation.choice("long_prompts", long_prompts, LONG_PROMPTS),
        pictures=pictures,
        strengths=strengths,
        resize=resize,
        feather=feather,
        safety=_safety(safety, config.safety_checker is not None),
        exact=validation.boolean("exact", exact),
    )


def _check_levels(levels: Levels, spacing: str | None, from_noise: bool) -> None:
    if spacing is None and levels.sigmas[-1] > levels.trained[0]:
        raise RequestError(
            f"sigmas end at {levels.sigmas[-1]:g}, which leaves noise in the picture; let the last entry be 0"
        )
    last = len(levels.trained) - 1
    if from_noise and levels.timesteps[0] < last / 2:
        warnings.warn(
            f"the run starts from pure noise at timestep {levels.timesteps[0]:g} of {last}, where the model expects a "
            "picture with little noise; spacing='trailing' starts at the last timestep",
            stacklevel=4,
        )


def _options(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RequestError(f"sampler_options must be a dict such as {{'eta': 0.5}}, not {validation.kind(value)}")
    with validation.reading("sampler_options"):
        return {name: validation.unwrapped("sampler_options", one) for name, one in value.items()}


def _safety(value: Any, has_one: bool) -> str:
    if value is None:
        return "on" if has_one else "off"
    safety = validation.choice("safety", value, SAFETY)
    if safety != "off" and not has_one:
        raise RequestError(f"safety={safety!r}: this model comes without a safety filter; leave safety out")
    return safety


def _strengths(value: Any, pictured: bool, masked: bool, prompts: int, batch_size: int) -> tuple[float, ...] | None:
    if not pictured:
        if value is not None:
            raise RequestError("strength says how much of a picture is drawn anew; give image as well")
        return None
    if value is None:
        value = 1.0 if masked else 0.8
    found = validation.unwrapped("strength", value)
    if not isinstance(found, list):
        found = [validation.real("strength", found, 0, 1)]
    return tuple(per_image("strength", validation.reals("strength", found, 0, 1), prompts, batch_size))


def _guidance(
    value: Any, num_steps: int, prompts: int, batch_size: int
) -> float | tuple[float, ...] | tuple[tuple[float, ...], ...]:
    bounds = -MAX_GUIDANCE, MAX_GUIDANCE
    found = validation.unwrapped("guidance_scale", value, _MOST_WEIGHTS)
    if not isinstance(found, list):
        return validation.real("guidance_scale", found, *bounds)
    count = prompts * batch_size
    if len(found) > max(count, num_steps):
        raise RequestError(_wrong_weights(len(found), num_steps, count))
    rows = [validation.unwrapped(f"guidance_scale[{index}]", one, num_steps) for index, one in enumerate(found)]
    if rows and all(isinstance(row, list) for row in rows):
        if sum(map(len, rows)) > _MOST_WEIGHTS:
            raise RequestError(f"guidance_scale has more than {_MOST_WEIGHTS} numbers; draw fewer images at once")
        each = [validation.reals(f"guidance_scale[{index}]", row, *bounds) for index, row in enumerate(rows)]
        if len({len(row) for row in each}) > 1 or len(each[0]) not in (1, num_steps):
            raise RequestError(f"guidance_scale must have one number for each image, or {num_steps}, one a step")
        return tuple(per_image("guidance_scale", each, prompts, batch_size))
    weights = validation.reals("guidance_scale", rows, *bounds)
    images = {prompts, count} - {1}
    if len(weights) == num_steps and num_steps in images and num_steps > 1:
        raise RequestError(
            f"guidance_scale has {num_steps} entries, and there are as many steps as images; "
            f"write [[a], [b], ...] for one an image, or [[a, b, ...]] for one a step"
        )
    if len(weights) in images:
        return tuple(per_image("guidance_scale", [(weight,) for weight in weights], prompts, batch_size))
    if len(weights) != num_steps:
        raise RequestError(_wrong_weights(len(weights), num_steps, count))
    return weights


def _wrong_weights(entries: int, num_steps: int, count: int) -> str:
    return (
        f"guidance_scale has {entries} entries for {num_steps} steps and {count} images; "
        "give one number, one a step or one an image"
    )


def _interval(value: Any) -> tuple[float, float]:
    interval = validation.reals("guidance_interval", value)
    if len(interval) != 2 or not 0 <= interval[0] <= interval[1] <= 1:
        raise RequestError(
            f"guidance_interval must be (start, end) with 0 <= start <= end <= 1, not {validation.shown(interval)}; "
            "(0.1, 0.8) leaves guidance out of the first tenth and the last fifth of the steps"
        )
    return interval[0], interval[1]


def _repeat(texts: Iterable[str], times: int) -> tuple[str, ...]:
    return tuple(text for text in texts for _ in range(times))


def _seeds(seed: Any, count: int) -> tuple[int, ...]:
    if seed is None:
        seed = secrets.randbits(32)
    found = validation.unwrapped("seed", seed)
    if isinstance(found, list):
        if len(found) != count:
            raise RequestError(f"seed has {len(found)} entries for {count} images; give one number, or one an image")
        return tuple(validation.integer(f"seed[{index}]", one, 0, MAX_SEED) for index, one in enumerate(found))
    first = validation.integer("seed", found, 0, MAX_SEED - count + 1)
    return tuple(range(first, first + count))
