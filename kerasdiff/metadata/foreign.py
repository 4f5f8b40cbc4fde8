"""What other programs say of an image, as arguments of a request, and what of it cannot be taken over."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from kerasdiff.adapter_files import EmbeddingFile, Lora
from kerasdiff.controls import Control, ImagePrompt
from kerasdiff.errors import RequestError
from kerasdiff.hires import MOST_SCALE
from kerasdiff.metadata.receipt import LARGEST
from kerasdiff.models.config import SDXL
from kerasdiff.prompts.schedule import parse
from kerasdiff.request_arguments import ARGUMENTS
from kerasdiff.samplers import sampling_levels
from kerasdiff.samplers.names import sampler_and_spacing, spacing_name
from kerasdiff.samplers.noise import MAX_SEED

_Adapter = TypeVar("_Adapter", Lora, EmbeddingFile)
# Of what is listed: entries, and characters of one.
_MOST, _LONGEST = 12, 120
_MOST_ADAPTERS = 50
# A model's name and the first digits of its hash.
_HASH = re.compile(r"(.*?) ?\[([0-9a-fA-F]{8,64})\]")
_LARGEST_SIDE, _MOST_STEPS = 65_500, 10_000
# Arguments that only a Stable Diffusion XL reads, and those that only its refiner does.
SIZES = tuple(f"{prefix}{name}" for prefix in ("", "negative_") for name in ("original_size", "crop", "target_size"))
SCORES = ("aesthetic_score", "negative_aesthetic_score")
# Where noise comes from, for `ForeignSettings.summary`.
CPU_NOISE = "its noise is torch's on a CPU, as here (rng='torch')"
GPU_NOISE = "the image will differ, as its noise may be of a GPU, and here it is torch's on a CPU (rng='torch')"


@dataclasses.dataclass
class ForeignSettings:
    """What a file of another program says.

    Attributes:
        program: its name, with a version if the file has one.
        arguments: what can be taken over, as arguments of `kerasdiff.generate`.
        model: what that program calls its model; a name that means nothing here. None if the file does not say.
        from_picture: whether the image was made from another one, which is not in the file.
        left_out: what cannot be taken over, one entry each.
        noise: where its noise comes from.
        loras: LoRAs that it was made with: names and, if the file has them, the first digits of their hashes.
        embeddings: the same of embeddings.
        controls: ControlNets and T2I-Adapters by their names, with the first digits of their hashes as `sha256`.
        image_prompts: the same of IP-Adapters.
        resize: how hints of another size were brought to the image's.
        refiner: what that program calls a second model that finished the image.
        sdxl_clip_skip: what `clip_skip` is if the model is one of Stable Diffusion XL; -1 is what no other model has.
    """

    program: str
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)
    model: str | None = None
    from_picture: bool = False
    left_out: list[str] = dataclasses.field(default_factory=list)
    noise: str = GPU_NOISE
    loras: list[Lora] = dataclasses.field(default_factory=list)
    embeddings: list[EmbeddingFile] = dataclasses.field(default_factory=list)
    controls: list[Control] = dataclasses.field(default_factory=list)
    image_prompts: list[ImagePrompt] = dataclasses.field(default_factory=list)
    resize: str | None = None
    refiner: str | None = None
    sdxl_clip_skip: int = 0

    def __post_init__(self) -> None:
        self.program = _line(self.program)
        # All of these programs read long texts in chunks.
        self.arguments = {"rng": "torch", "long_prompts": "chunk", **self.arguments}

    def leave_out(self, name: str, value: Any = None) -> None:
        """Lists a setting, with its value."""
        self.left_out.append(_short(name if value is None else f"{name} {value}"))

    def take(self, name: str, value: Any, check: Callable[[Any], Any], called: str) -> None:
        """Takes a value over as an argument, or lists it under what it is `called` there if it cannot be one."""
        if value is None:
            return
        checked = check(value)
        if checked is None:
            self.leave_out(called, repr(value)[:_LONGEST])
        else:
            self.arguments[name] = checked

    def take_syntax(self, **arguments: str) -> None:
        """Takes over what signs in the prompts mean, if they can be read."""
        try:
            for negative, name in enumerate(("prompt", "negative_prompt")):
                parse(self.arguments.get(name, ""), arguments["prompt_syntax"], 1, bool(negative))
        except RequestError as error:
            self.leave_out(str(error))
        else:
            self.arguments.update(arguments)

    def take_refiner(self, given: bool) -> None:
        """Lists the refiner as left out, unless one is given that can do its part."""
        if self.refiner is not None and (not given or "hires" in self.arguments):
            self.leave_out("refiner", self.refiner)
            for name in ("denoising_end", "refiner_strength"):
                self.arguments.pop(name, None)

    def find_adapters(self, loras: Sequence[Lora], embeddings: Sequence[EmbeddingFile]) -> None:
        """Takes over LoRAs and embeddings that are among given files and in given folders, and lists the others."""
        from kerasdiff.adapters import by_hash  # when there is something to find

        texts = "\n".join(str(self.arguments.get(name, "")) for name in ("prompt", "negative_prompt"))
        named = {each.trigger for each in self.embeddings}
        words = [word for word in by_hash.in_texts(embeddings, texts) if word.trigger not in named]
        taken: dict[str, Sequence[Lora | EmbeddingFile]] = {
            "loras": self._found("LoRA", self.loras, loras),
            "embeddings": [*self._found("embedding", self.embeddings, embeddings), *words],
        }
        self.arguments.update({name: files for name, files in taken.items() if files})
        used = {each.file for files in taken.values() for each in files}
        for place in loras:
            if os.path.isfile(place.file) and place.file not in used:
                self.leave_out(f"{os.path.basename(place.file)}, which it does not name")

    def find_controls(self, path: str | os.PathLike[str], **given: Sequence[Any]) -> None:
        """Takes over controls and image prompts for which models and pictures are given, and lists the others."""
        from kerasdiff.adapters import control_search  # when there is something to find

        for name, entries in given.items():
            wanted = getattr(self, name)
            kind = name.removesuffix("s").replace("_", " ")
            if not entries:
                self.left_out += (_short(f"the {kind} {one.model}, which was not given") for one in wanted)
                continue
            pairs = control_search.named(path, name, wanted, entries)
            self.arguments[name] = [entry for entry, _ in pairs]
            for one, (entry, is_same) in zip(wanted, pairs, strict=True):
                if not is_same:
                    other = os.path.basename(entry.model)
                    self.leave_out(f"the hash of the {kind} {one.model}: {other} is another file")
            if name == "controls" and self.resize is not None:
                self.arguments["resize"] = self.resize

    def take_control(self, name: Any, picture: bool, scale: Any, ends: tuple[Any, Any], mode: Any, called: str) -> bool:
        """Takes over what an IP-Adapter (`picture`) or another network does, or lists it; says whether it is taken.

        `name` may have a short hash behind it, in brackets. What does nothing is not listed.
        """
        weight, start, end = number(scale), share(ends[0]), share(ends[1])
        if weight == 0 or (start is not None and start == end):
            return False
        if not isinstance(name, str) or weight is None or start is None or end is None or mode is None or start > end:
            self.leave_out(called, name if isinstance(name, str) else None)
            return False
        found = _HASH.fullmatch(name)
        file, digest = (name, None) if found is None else (found[1], found[2])
        if picture:
            self.image_prompts.append(ImagePrompt(file, None, weight, start, end, sha256=digest))
        else:
            self.controls.append(Control(file, None, weight, start, end, mode, sha256=digest))
        return True

    def _found(self, kind: str, wanted: Sequence[_Adapter], given: Sequence[_Adapter]) -> list[_Adapter]:
        from kerasdiff.adapters import by_hash  # when there is something to find

        taken = []
        if len(wanted) > _MOST_ADAPTERS:
            self.leave_out(f"{len(wanted) - _MOST_ADAPTERS} more {kind}s")
            wanted = wanted[:_MOST_ADAPTERS]
        for adapter, (found, is_same) in zip(wanted, by_hash.named(wanted, given), strict=True):
            if found is None:
                self.leave_out(f"the {kind} {adapter.file}, which was not given")
                continue
            if not is_same:
                self.leave_out(f"the hash of the {kind} {adapter.file}: {os.path.basename(found.file)} is another file")
            taken.append(found)
        return taken

    def take_size(self, width: Any, height: Any, called: str = "size") -> None:
        """Takes over width and height, both or none."""
        sides = side(width), side(height)
        if None not in sides:
            self.arguments["width"], self.arguments["height"] = sides
        elif (width, height) != (None, None):
            self.leave_out(called, f"{width!r:.20} x {height!r:.20}")

    def take_sizes(self, prompt: Mapping[str, Any], negative: Mapping[str, Any]) -> None:
        """Takes over what a Stable Diffusion XL reads beside each text, unless it is what it reads anyway.

        The keys are such as "original_size", the values pairs of height and width, or of top and left. What is missing
        is the picture's own size, and all of it.
        """
        own = self.arguments.get("height"), self.arguments.get("width")
        usual: dict[str, Any] = {"original_size": own, "crop": (0, 0), "target_size": own}
        without = dict(usual)
        for prefix, sizes in (("", prompt), ("negative_", negative)):
            for name, default in without.items():
                given = sizes.get(name, default)
                pair = tuple(_whole(number, 0, _LARGEST_SIDE) for number in given)
                whole = len(pair) == 2 and None not in pair
                if whole and pair != usual[name]:
                    self.arguments[f"{prefix}{name}"] = usual[name] = pair
                elif not whole and given != default:
                    self.leave_out(f"{prefix}{name}".replace("_", " "), f"{given!r:.40}")

    def take_family(self, family: str) -> None:
        """Settles what depends on the family of the model that the image is drawn with."""
        if family.startswith("sdxl"):
            self.arguments.pop("clip_skip", None)
            if self.sdxl_clip_skip > 0:
                self.arguments["clip_skip"] = self.sdxl_clip_skip
            elif self.sdxl_clip_skip < 0:
                self.leave_out("the last layers of the text encoders, which no picture is drawn with here")
        for name in (*SIZES, *SCORES):
            if name in self.arguments and not family.startswith("sdxl"):
                self.leave_out(name.replace("_", " "), self.arguments.pop(name))

    def take_sampler(self, sampler: Any, spacing: Any = None) -> None:
        """Takes over a sampler and a spacing by that program's names."""
        if sampler is None:
            return
        try:
            spacing = None if spacing is None else spacing_name(spacing)
        except RequestError as error:
            self.leave_out(str(error))
            spacing = None
        try:
            name, own = sampler_and_spacing(sampler, spacing)
        except RequestError as error:
            self.leave_out(str(error).partition("known: ")[0].strip("; "))
            return
        self.arguments["sampler"] = name
        if own is not None:
            self.arguments["spacing"] = own

    @property
    def summary(self) -> str:
        """One line: the program, its noise, and what is not taken over."""
        entries = self.left_out[:_MOST]
        if len(self.left_out) > _MOST:
            entries.append(f"{len(self.left_out) - _MOST} more")
        listed = f"; not taken over: {', '.join(entries)}" if entries else ""
        return _line(f"made by {self.program}: {self.noise}{listed}")


def _short(value: str) -> str:
    text = " ".join(value.split())
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _line(value: str) -> str:
    """What a file says, safe to print on one line."""
    return value if value.isprintable() else repr(value)[1:-1]


def text(value: Any) -> str | None:
    """A string, or None."""
    return value if isinstance(value, str) else None


def number(value: Any) -> float | None:
    """A finite number, also from a string, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) and abs(found) <= 1e6 else None


def _whole(value: Any, low: int, high: int) -> int | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() and len(value) <= 25:
        value = int(value)
    return value if type(value) is int and low <= value <= high else None


def seed(value: Any) -> int | None:
    """A seed, or None."""
    return _whole(value, 0, MAX_SEED)


def steps(value: Any) -> int | None:
    """A number of steps, or None."""
    return _whole(value, 1, _MOST_STEPS)


def clip_skip(value: Any) -> int | None:
    """A number of layers, or None."""
    return _whole(value, 0, 100)


def side(value: Any) -> int | None:
    """A number of pixels, or None."""
    return _whole(value, 8, _LARGEST_SIDE)


def share(value: Any) -> float | None:
    """A number from 0 to 1, or None."""
    found = number(value)
    return found if found is not None and 0 <= found <= 1 else None


def score(value: Any) -> float | None:
    """An aesthetic score, from 0 to 10, or None."""
    found = number(value)
    return found if found is not None and 0 <= found <= 10 else None


def passed(arguments: Mapping[str, Any], done: int) -> float:
    """The share of the noise levels that a model has passed after so many steps, as `denoising_end` counts them."""
    count = arguments["num_steps"]
    try:
        levels = sampling_levels(
            SDXL.schedule, arguments.get("sampler", SDXL.defaults.sampler), count, spacing=arguments.get("spacing")
        )
    except RequestError:  # more steps than a model has
        return done / count
    return 1 - float(levels.timesteps[done - 1] + levels.timesteps[done]) / 2 / SDXL.schedule.num_train_timesteps


def enlargement(value: Any) -> float | None:
    """What height and width are multiplied by, or None."""
    found = number(value)
    return found if found is not None and 1 <= found <= MOST_SCALE else None


def merging_ratio(value: Any) -> float | None:
    """A ratio of token merging, at most what can be merged, or None."""
    found = share(value)
    return None if found is None else min(found, ARGUMENTS["token_merging_ratio"].bounds[1])


def document(value: str | None, program: str) -> dict[str, Any] | None:
    """A JSON object; None if there is no text."""
    if value is None:
        return None
    if len(value) > LARGEST:
        raise RequestError(f"the metadata of {program} is too long: {len(value)} characters, {LARGEST} at most")
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        raise RequestError(f"the metadata of {program} is damaged: it is not JSON") from None
    if not isinstance(found, dict):
        raise RequestError(f"the metadata of {program} is damaged: it is not a JSON object")
    return found


Reader = Callable[[Mapping[str, str]], ForeignSettings | None]
