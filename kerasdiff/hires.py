"""A second pass at a larger size (hires fix): what it is asked to be, and the size and steps that this comes to."""

from __future__ import annotations

import contextlib
import dataclasses
import numbers
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kerasdiff import validation
from kerasdiff.adapter_files import UpscalerFile
from kerasdiff.errors import RequestError
from kerasdiff.guidance import GuidanceScale
from kerasdiff.images.reader import MAX_SIDE, check_area, check_side
from kerasdiff.request_arguments import ARGUMENTS
from kerasdiff.samplers.names import sampler_and_spacing, spacing_name
from kerasdiff.synonyms import our_word

# Latents are resized as they are: name -> interpolation, and whether it is antialiased.
LATENT_UPSCALERS = {
    "latent": ("bilinear", False),
    "latent (antialiased)": ("bilinear", True),
    "latent (bicubic)": ("bicubic", False),
    "latent (bicubic antialiased)": ("bicubic", True),
    "latent (nearest)": ("nearest", False),
    "latent (nearest-exact)": ("nearest-exact", False),
}
# The image is decoded, resized and encoded.
PIXEL_UPSCALERS = ("lanczos", "nearest")
UPSCALERS = (*LATENT_UPSCALERS, *PIXEL_UPSCALERS)
# Of AUTOMATIC1111's interface: how far it goes up, and the least strength that it takes for all of it.
MOST_SCALE, _WHOLE = 8, 0.999
_MOST_STEPS = 10_000
# name=value, or name="value" with what would end it.
_PAIR = re.compile(r'\s*(\w+)\s*=\s*("(?:[^"\\]|\\.)*"|[^,"]*?)\s*(?:,|$)', re.DOTALL)
# What is no upscaler's name.
_FILE = re.compile(r".*[/\\].*|.*\.(safetensors|pth|pt|bin|ckpt)", re.IGNORECASE | re.DOTALL)
_THEIRS = {"num_steps": "steps", "second_pass_steps": "steps", "resize_x": "width", "resize_y": "height"}


@dataclasses.dataclass(frozen=True)
class Hires:
    """A second pass at a larger size; of what is None, the first pass's holds.

    Attributes:
        scale: what height and width are multiplied by; None where one of them is given.
        height: in pixels; one alone keeps the aspect ratio, and both crop what sticks out. So is `width`.
        steps: that are run.
        strength: 0 to 1, how much of the enlarged image is redrawn.
        upscaler: a name from `UPSCALERS`, or the file of an upscaler of ESRGAN's kind.
        prompt: of all images, as are the others.
        spacing: the sampler's own where the first pass has timesteps or sigmas of its own.
    """

    scale: float | None = None
    height: int | None = None
    width: int | None = None
    steps: int | None = None
    strength: float = 0.7
    upscaler: str | UpscalerFile = "latent"
    prompt: str | None = None
    negative_prompt: str | None = None
    sampler: str | None = None
    spacing: str | None = None
    guidance_scale: float | None = None

    @property
    def given(self) -> dict[str, Any]:
        """What is not None."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def file(self) -> UpscalerFile | None:
        """The upscaler, if it is a file."""
        return self.upscaler if isinstance(self.upscaler, UpscalerFile) else None

    def with_file(self, change: Callable[[UpscalerFile], UpscalerFile]) -> Hires:
        """The same with another file of its upscaler, if that is one."""
        return self if self.file is None else dataclasses.replace(self, upscaler=change(self.file))

    @property
    def text(self) -> str:
        """As `make_hires` takes it, the command line and columns of jobs have it."""
        return ",".join(f"{name}={_written(value)}" for name, value in self.given.items())

    def sizes(self, height: int, width: int, multiple: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """The size that an image of height x width is enlarged to, and the one that it is then cropped to.

        Both sides are rounded down to multiples of `multiple`. RequestError if a side that was given is none.
        """
        for name in ("height", "width"):
            if getattr(self, name) is not None:
                check_side(f"hires {name}", getattr(self, name), multiple)

        def whole(*sides: float) -> tuple[int, int]:
            tall, wide = (max(int(side) // multiple, 1) * multiple for side in sides)
            check_area("the image of hires", tall, wide)
            return tall, wide

        if self.scale is not None:
            enlarged = whole(height * self.scale, width * self.scale)
        elif self.height is None or (self.width is not None and width * self.height < self.width * height):
            assert self.width is not None
            enlarged = whole(self.width * height // width, self.width)
        else:
            enlarged = whole(self.height, self.height * width // height)
        if self.height is None or self.width is None:
            return enlarged, enlarged
        return enlarged, whole(self.height, self.width)

    def steps_of(self, num_steps: int) -> tuple[int, int]:
        """The steps of the whole schedule, and those at its end that are run; `num_steps` is the first pass's."""
        steps = num_steps if self.steps is None else self.steps
        return (int(steps / min(self.strength, _WHOLE)), steps) if self.strength else (steps, 0)

    def size_alone(self, guidance_scale: float) -> Hires:
        """One step with no more of it than what decides which programs are needed."""
        size = {"scale": self.scale, "height": self.height, "width": self.width}
        return Hires(**size, steps=1, strength=1.0, upscaler=self.upscaler, guidance_scale=guidance_scale)  # type: ignore[arg-type]

    def subject(
        self, count: int, height: int, width: int, multiple: int, towards: Sequence[Any] | None
    ) -> dict[str, Any]:
        """What `count` images of a first pass at a size are about in the second one, as fields of a request.

        `towards` are the first pass's, whose texts give way to a prompt as well.
        """
        _, (height, width) = self.sizes(height, width, multiple)
        texts = {"prompts": self.prompt, "negative_prompts": self.negative_prompt}
        changed: dict[str, Any] = {name: (text,) * count for name, text in texts.items() if text is not None}
        if towards is not None and self.prompt is not None:
            changed["towards"] = tuple(dataclasses.replace(waypoint, prompt=self.prompt) for waypoint in towards)
        if self.guidance_scale is not None:
            changed["guidance_scale"] = GuidanceScale(((self.guidance_scale,),))
        return changed | {"height": height, "width": width, "hires": None}

    def run(self, sampler: str, spacing: str | None, num_steps: int) -> dict[str, Any]:
        """How the second pass runs after a first one that ran so, and its `strength`."""
        own = {} if self.sampler in (None, sampler) else {"sampler_options": ()}
        steps, done = self.steps_of(num_steps)
        return own | {
            "sampler": sampler if self.sampler is None else self.sampler,
            "spacing": spacing if self.spacing is None else self.spacing,
            "timesteps": None,
            "sigmas": None,
            "num_steps": steps,
            # Between two numbers of steps, so that rounding cannot miss.
            "strength": min(1.0, (done + 0.5) / steps) if done else 0.0,
        }


def make_hires(name: str, value: Any) -> Hires | None:
    """A scale, a mapping, or such a text as "2" or "scale=2,strength=0.6", as a value; None is none."""
    value = validation.unwrapped(name, value)
    if value is None:
        return None
    if isinstance(value, Hires):
        given: Any = value.given
    elif isinstance(value, str):
        given = _of_text(name, validation.text(name, value))
    elif isinstance(value, Mapping):
        with validation.reading(name):
            given = {key: one for key, one in value.items() if one is not None}
    elif isinstance(value, numbers.Real) and not isinstance(value, bool):
        given = {"scale": value}
    else:
        raise RequestError(
            f"{name} must be a scale such as 2, or a dict such as {{'scale': 2, 'strength': 0.6}}, not "
            f"{validation.kind(value)}"
        )
    for key in given:
        _check_key(name, key)
    found = {field: _CHECKS[field](f"{name} {field}", one) for field, one in given.items()}
    sized = [field for field in ("height", "width") if field in found]
    if sized and "scale" in found:
        raise RequestError(f"{name} has scale and {sized[0]}; leave one of them out")
    if not sized:
        found.setdefault("scale", 2.0)
    if "sampler" in found:
        with errors_of(name):
            found["sampler"], spacing = sampler_and_spacing(found["sampler"], found.get("spacing"))
            found["spacing"] = spacing
    return Hires(**found)


def _of_text(name: str, text: str) -> dict[str, Any]:
    """What a text says, numbers as such."""
    if re.fullmatch(r"[\s\d.+-]+(e[+-]?\d+)?\s*", text):
        return {"scale": _number(text)}
    found: dict[str, Any] = {}
    place = 0
    while place < len(text):
        pair = _PAIR.match(text, place)
        if pair is None:
            raise RequestError(
                f"{name}={validation.shown(text)} is not of the form scale=2,strength=0.6; a value with a comma needs "
                'double quotes: prompt="a, b"'
            )
        field, written = pair[1], pair[2]
        if field in found:
            raise RequestError(f"{name} has {field} twice; leave one of them out")
        if written.startswith('"'):
            written = re.sub(r"\\(.)", r"\1", written[1:-1], flags=re.DOTALL)
        found[field] = _number(written) if field in _NUMBERS else written
        place = pair.end()
    return found


def _number(text: str) -> Any:
    """A number; the text if it is none, which the check of its field then refuses."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _written(value: Any) -> str:
    if isinstance(value, UpscalerFile):
        value = value.file
    if not isinstance(value, str):
        return validation.plain(value)
    if value and not re.search(r'[,"\\]|^\s|\s$', value):
        return value
    return '"' + re.sub(r'(["\\])', r"\\\1", value) + '"'


def _check_key(name: str, key: Any) -> None:
    if isinstance(key, str) and key in _CHECKS:
        return
    hint = ""
    if isinstance(key, str) and len(key) < 60:
        bare = key.removeprefix("hr_")
        ours = bare if bare in _CHECKS else our_word(bare)
        ours = _THEIRS.get(bare, _THEIRS.get(ours, ours))
        if ours in _CHECKS:
            raise RequestError(f"{name}: {validation.line(key)} is called {ours} here")
        near = validation.nearest(key, _CHECKS)
        hint = f"did you mean {near!r}? " if near else ""
    raise RequestError(f"{name} has no setting {validation.shown(key)}; {hint}known: {', '.join(_CHECKS)}")


@contextlib.contextmanager
def errors_of(name: str) -> Iterator[None]:
    """Puts the argument's name before the message of a RequestError that does not have it."""
    try:
        yield
    except RequestError as error:
        raise RequestError(f"{name}: {error}") from None


def _integer(name: str, value: Any, high: int) -> int:
    whole = isinstance(value, float) and value.is_integer()  # as a table has it where values are missing
    return validation.integer(name, int(value) if whole else value, 1, high)


def _upscaler(name: str, value: Any) -> str | UpscalerFile:
    if isinstance(value, UpscalerFile):
        if value.scale is not None:
            raise RequestError(f"{name} has a scale of its own; give it as the scale of hires")
        return value
    if isinstance(value, os.PathLike):
        path = validation.path(name, value)
        return UpscalerFile(path if _FILE.fullmatch(path) else os.path.join(os.curdir, path))
    text = validation.text(name, value).strip()
    if text.lower() not in UPSCALERS and _FILE.fullmatch(text):
        return UpscalerFile(validation.path(name, text))
    with validation.advising("or give the path of an upscaler's file"):
        return validation.choice(name, text.lower(), UPSCALERS)


def _sampler(name: str, value: Any) -> str:
    with errors_of(name):
        sampler_and_spacing(value)
    return str(value)


def _spacing(name: str, value: Any) -> str:
    with errors_of(name):
        return spacing_name(value)


# Field -> what checks it under a name.
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "scale": lambda name, value: validation.real(name, value, 1, MOST_SCALE),
    "height": lambda name, value: _integer(name, value, MAX_SIDE),
    "width": lambda name, value: _integer(name, value, MAX_SIDE),
    "steps": lambda name, value: _integer(name, value, _MOST_STEPS),
    "strength": lambda name, value: validation.real(name, value, 0, 1),
    "upscaler": _upscaler,
    "prompt": validation.text,
    "negative_prompt": validation.text,
    "sampler": _sampler,
    "spacing": _spacing,
    "guidance_scale": lambda name, value: validation.real(name, value, *ARGUMENTS["guidance_scale"].bounds),
}
_NUMBERS = ("scale", "height", "width", "steps", "strength", "guidance_scale")
