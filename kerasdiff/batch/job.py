"""A job: rows, what holds for all of them, and how they are drawn together."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import os
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from kerasdiff import validation
from kerasdiff.batch.file_names import file_name, picture_path, take_id
from kerasdiff.batch.rows import Row
from kerasdiff.errors import RequestError
from kerasdiff.images import reader
from kerasdiff.images.writer import FORMATS
from kerasdiff.models.config import ModelConfig
from kerasdiff.request import make_request
from kerasdiff.samplers.noise import MAX_SEED

# What a row may say of its own: one value a request, or one for every image of it or for none.
_A_REQUEST = ("height", "width", "num_steps", "sampler")
_AN_IMAGE = ("guidance_scale", "image", "strength")
_ABOUT_PICTURES = ("mask", "resize", "feather", "strength")
_DEFAULTS = {
    name: parameter.default
    for name, parameter in inspect.signature(make_request).parameters.items()
    if name not in ("config", "prompt", "batch_size", "seed")
}


@dataclasses.dataclass(frozen=True)
class Target:
    """One image of a job.

    Attributes:
        row: what to draw.
        number: which of the row's images it is, from 1.
        file: the name of its file.
    """

    row: Row
    number: int
    file: str

    @property
    def seed(self) -> int:
        """Its seed."""
        return self.row.first_seed + self.number - 1

    @property
    def key(self) -> tuple[str, int]:
        """What it is called in a manifest."""
        return self.row.id, self.number


@dataclasses.dataclass(frozen=True)
class Job:
    """What a folder of pictures is to hold; `make_job` builds and checks one.

    Attributes:
        rows: what to draw.
        model: what the model was asked for by: "model", "revision", "variant" and "weights".
        arguments: of `make_request`, for all rows; those that are not its defaults, as plain JSON values.
        batch_size: images for each row.
        format: of the files, "png", "jpg" or "webp".
    """

    rows: tuple[Row, ...]
    model: Mapping[str, Any]
    arguments: Mapping[str, Any]
    batch_size: int
    format: str

    @functools.cached_property
    def targets(self) -> tuple[Target, ...]:
        """All images, in the order of the rows."""
        return tuple(
            Target(row, number, file_name(row.id, number, self.batch_size, self.format))
            for row in self.rows
            for number in range(1, self.batch_size + 1)
        )

    @functools.cached_property
    def _checked(self) -> set[Hashable]:
        """What rows said of their own that was found to be right."""
        return set()

    @property
    def exact(self) -> bool:
        """Whether every image is drawn by itself."""
        return bool(self.arguments.get("exact", False))

    @functools.cached_property
    def description(self) -> dict[str, Any]:
        """What makes it this job and no other, as plain JSON values."""
        rows = json.dumps([dataclasses.asdict(row) for row in self.rows], default=_json_value).encode()
        return {
            "rows": hashlib.sha256(rows).hexdigest(),
            "batch_size": self.batch_size,
            "format": self.format,
            "model": dict(self.model),
            "arguments": dict(self.arguments),
        }

    def sizes(self, config: ModelConfig) -> dict[str, tuple[int, int, int]]:
        """Height, width and number of the images of each size, by what `blocks` calls it."""
        sizes: dict[str, tuple[int, int, int]] = {}
        for row in self.rows:
            height, width = self.size(row, config)
            _, _, count = sizes.get(size_name(height, width), (height, width, 0))
            sizes[size_name(height, width)] = height, width, count + self.batch_size
        return sizes

    def blocks(
        self, config: ModelConfig, together: Mapping[str, int], targets: Iterable[Target] | None = None
    ) -> list[list[Target]]:
        """Images, grouped by what a request has one value of, in blocks that are drawn together.

        Args:
            config: of the model.
            together: how many are drawn together, by size.
            targets: the images; None is all of them.
        """
        groups: dict[Hashable, list[Target]] = {}
        for target in self.targets if targets is None else targets:
            groups.setdefault(self._group(target.row), []).append(target)
        blocks = []
        for group in groups.values():
            size = together[size_name(*self.size(group[0].row, config))]
            blocks += [group[start : start + size] for start in range(0, len(group), size)]
        return blocks

    def request(self, targets: Sequence[Target]) -> dict[str, Any]:
        """Images of one group as arguments of `Generator.stream`."""
        rows = [target.row for target in targets]
        arguments = self._general(rows[0])
        for name in _AN_IMAGE:
            values = [self.own(row, name) for row in rows]
            if values[0] is not None and (name != "strength" or "image" in arguments):
                arguments[name] = values
        if "guidance_scale" in arguments:
            arguments["guidance_scale"] = self._weights(arguments["guidance_scale"])
        return arguments | {
            "prompt": [row.prompt for row in rows],
            "negative_prompt": [self.own(row, "negative_prompt") or "" for row in rows],
            "seed": [target.seed for target in targets],
        }

    def check(self, config: ModelConfig) -> None:
        """Finds out what a model cannot do, but for what is wrong with rows' pictures, before it is loaded.

        Raises:
            RequestError: an argument is wrong, for all rows or for the one that is named.
        """
        for name, read in (("image", reader.read), ("mask", reader.read_mask)):
            if name in self.arguments:
                read(self.arguments[name], name)
        strange = [name for name in _ABOUT_PICTURES if name in self.arguments]
        if strange and all(self.own(row, "image") is None for row in self.rows):
            raise RequestError(f"{', '.join(strange)}: these are about a picture; give image as well")
        self._check(config, {})
        for row in self.rows:
            try:
                self.check_row(row, config)
            except RequestError as error:
                raise RequestError(f"row {validation.shown(row.id)}: {error}") from None

    def check_row(self, row: Row, config: ModelConfig) -> None:
        """Finds out what a model cannot do of what a row says of its own, but for its picture.

        Raises:
            RequestError: a value is wrong for this model.
        """
        if row.strength is not None and self.own(row, "image") is None:
            raise RequestError("strength is about a picture; give image as well")
        own = tuple((name, getattr(row, name)) for name in _A_REQUEST if getattr(row, name) is not None)
        if own not in self._checked:
            self._check(config, dict(own))
            self._checked.add(own)

    def _check(self, config: ModelConfig, own: dict[str, Any]) -> None:
        without = (*_ABOUT_PICTURES, "image")
        arguments = {name: value for name, value in self.arguments.items() if name not in without} | own
        with warnings.catch_warnings(action="ignore"):  # whoever draws it warns
            make_request(config, "", **arguments)

    def own(self, row: Row, name: str) -> Any:
        """A row's value, else that of all rows, or None."""
        value = getattr(row, name)
        return self.arguments.get(name) if value is None else value

    def _general(self, row: Row) -> dict[str, Any]:
        """What a request for this row and others of its group has one value of."""
        about_pictures = _ABOUT_PICTURES if self.own(row, "image") is None else ()
        without = (*_AN_IMAGE, *about_pictures, "negative_prompt")
        arguments = {name: value for name, value in self.arguments.items() if name not in without}
        own = {name: self.own(row, name) for name in _A_REQUEST}
        return arguments | {name: value for name, value in own.items() if value is not None}

    def _group(self, row: Row) -> Hashable:
        """Rows of which this is equal go into one request."""
        one = tuple(self.own(row, name) for name in _A_REQUEST)
        return one + tuple(self.own(row, name) is None for name in _AN_IMAGE)

    def _weights(self, values: Sequence[Any]) -> list[list[float]]:
        """Guidance one an image; where all rows have one a step, a row's own number is its every step's."""
        general = self.arguments.get("guidance_scale")
        steps = len(general) if isinstance(general, list) else 1
        return [value if isinstance(value, list) else [value] * steps for value in values]

    def size(self, row: Row, config: ModelConfig) -> tuple[int, int]:
        """What is taken for the height and the width; those of a picture are not known before it is read."""
        height, width = (self.own(row, name) for name in ("height", "width"))
        defaults = config.defaults
        return defaults.height if height is None else height, defaults.width if width is None else width


def make_job(
    rows: Sequence[Row],
    model: Mapping[str, Any],
    arguments: Mapping[str, Any],
    batch_size: int = 1,
    format: str = "png",  # noqa: A002
) -> Job:
    """Checks what does not depend on the model's configuration; `Job.check` does the rest.

    Args:
        rows: what to draw.
        model: as in `Job`.
        arguments: of `make_request`, for rows that do not say otherwise; `image` and `mask` are paths.
        batch_size: images for each row.
        format: "png", "jpg" or "webp".

    Raises:
        RequestError: an argument is wrong.
    """
    rows = tuple(rows)
    batch_size = validation.integer("batch_size", batch_size, 1)
    if not rows:
        raise RequestError("there are no rows; give at least one")
    taken: dict[str, str] = {}
    for row in rows:
        if not isinstance(row, Row):
            raise RequestError(f"rows must be a list of Row, or the path of a file; one is {validation.kind(row)}")
        take_id(row.id, taken)
        if row.first_seed + batch_size - 1 > MAX_SEED:
            raise RequestError(
                f"row {validation.shown(row.id)}: seeds from {row.first_seed} on for {batch_size} images go beyond the "
                f"last one, {MAX_SEED}"
            )
    return Job(rows, dict(model), _given(arguments), batch_size, validation.choice("format", format, FORMATS))


def _given(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that are not the defaults of `make_request`, as JSON has them."""
    if arguments.get("seed") is not None:
        raise RequestError("seed: in a job each row has its own, or one that follows from its id; leave seed out")
    given = {}
    for name, value in arguments.items():
        if name == "seed":
            continue
        validation.choice("argument", name, _DEFAULTS)
        if name in ("image", "mask") and value is not None:
            value = picture_path(os.curdir, validation.path(f"{name} of a job", value))
        plain = _plain(name, value)
        if plain != _plain(name, _DEFAULTS[name]):
            given[name] = plain
    for name in ("negative_prompt", "strength"):
        if isinstance(given.get(name), list):
            raise RequestError(f"{name} of a job must be one for all rows; rows have their own")
    scale = given.get("guidance_scale")
    if isinstance(scale, list) and any(isinstance(one, list) for one in scale):
        raise RequestError("guidance_scale of a job must be one number, or one a step; rows have their own")
    return given


def _plain(name: str, value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, default=_json_value))
    except (TypeError, ValueError):
        raise RequestError(f"{name} of a job must be plain numbers and texts, not {validation.kind(value)}") from None


def _json_value(value: Any) -> Any:
    """For JSON: a number of NumPy's, or a path."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a {type(value).__name__} is no JSON")


def size_name(height: int, width: int) -> str:
    """What a size of images is called, as in "512x768" for 768 wide."""
    return f"{height}x{width}"
