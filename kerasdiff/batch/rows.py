"""Rows: what to generate, one prompt each."""

import contextlib
import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kerasdiff import validation
from kerasdiff.adapter_files import (
    UpscalerFile,
    embeddings_of_column,
    loras_of_column,
    make_embedding_files,
    make_loras,
    make_upscaler,
    upscaler_of_column,
)
from kerasdiff.batch import row_controls
from kerasdiff.batch.file_names import absolute_path, adapter_path, check_id
from kerasdiff.controls import STEERING
from kerasdiff.errors import RequestError
from kerasdiff.hires import make_hires
from kerasdiff.request_arguments import ARGUMENTS
from kerasdiff.samplers.names import sampler_and_spacing
from kerasdiff.samplers.recipes import recipe_name
from kerasdiff.size_conditioning import pair_text
from kerasdiff.synonyms import advice, explained

INTEGERS = ("seed", "num_steps", "height", "width")
REALS = ("guidance_scale", "strength")
PAIRS = ("original_size", "crop", "target_size")
_NO_SEED = "leave it out for one that follows from the id"


@explained
@dataclasses.dataclass(frozen=True)
class Row:
    """One prompt of a job and what differs from the job's arguments; None stands for the job's own value.

    Attributes:
        id: what its files are called.
        seed: of its first image, 0 to 2**64 - 1; further images have the next ones. None derives it from the id.
        guidance_scale: weight of the prompt.
        sampler: a name from `kerasdiff.SAMPLERS`, or one with its spacing, such as "DPM++ 2M Karras".
        height: pixels.
        width: pixels.
        image: path of an image to start from.
        strength: 0 to 1, how much of that image is redrawn.
        loras: as in `Generator.generate`; an empty list is none, not even the job's.
        embeddings: the same of embeddings.
        upscale: as in `Generator.generate`.
        recipe: a name from `kerasdiff.RECIPES`, or "none".
        tile: along which axes it is seamless, as in `kerasdiff.generate`.
        original_size: what SDXL is told of sizes, as in `kerasdiff.generate`, as are the next two; kept as a text,
            "768,1024".
        hires: a second pass, as in `Generator.generate`; kept as its text, "scale=2,strength=0.6".
        controls: as in `Generator.generate`, with a path as the image and one number as the scale of each; an empty
            list is none, not even the job's.
        image_prompts: the same, with one path or several as the image of each.

    Example:
        ```python
        row = kerasdiff.batch.Row("cat", "a photograph of a cat", num_steps=20)
        row.first_seed  # 2007988107, from "cat" alone
        ```
    """

    id: str
    prompt: str
    negative_prompt: str | None = None
    seed: int | None = None
    guidance_scale: float | None = None
    num_steps: int | None = None
    sampler: str | None = None
    height: int | None = None
    width: int | None = None
    image: str | None = None
    strength: float | None = None
    loras: Any = None
    embeddings: Any = None
    upscale: Any = None
    recipe: str | None = None
    tile: str | None = None
    hires: Any = None
    original_size: Any = None
    crop: Any = None
    target_size: Any = None
    controls: Any = None
    image_prompts: Any = None

    def __post_init__(self) -> None:
        check_id(self.id)
        validation.text("prompt", self.prompt)
        if self.negative_prompt is not None:
            validation.text("negative_prompt", self.negative_prompt)
        for names, check in ((INTEGERS, validation.integer), (REALS, validation.real)):
            for name in names:
                if getattr(self, name) is not None:
                    with validation.advising(_NO_SEED) if name == "seed" else contextlib.nullcontext():
                        check(name, getattr(self, name), *ARGUMENTS[name].bounds)
        if self.sampler is not None:
            sampler_and_spacing(self.sampler)
        if self.tile is not None:
            validation.choice("tile", self.tile, ARGUMENTS["tile"].choices)
        recipe_name(self.recipe)
        if self.image is not None:
            validation.path("image", self.image)
        for name, make in (("loras", make_loras), ("embeddings", make_embedding_files)):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, make(name, getattr(self, name)))
        for name in STEERING:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, row_controls.of_files(name, getattr(self, name)))
        for name in PAIRS:
            object.__setattr__(self, name, pair_text(name, getattr(self, name)))
        hires = make_hires("hires", self.hires)
        object.__setattr__(self, "hires", None if hires is None else hires.text)
        object.__setattr__(self, "upscale", make_upscaler("upscale", self.upscale))

    @property
    def first_seed(self) -> int:
        """The seed of its first image; if it has none, the first 32 bits of its id's SHA-256, whatever is around it."""
        if self.seed is not None:
            return self.seed
        return int.from_bytes(hashlib.sha256(self.id.encode()).digest()[:4], "big")


FIELDS = tuple(field.name for field in dataclasses.fields(Row))
# Columns that a file or a data set may have.
COLUMNS = (*FIELDS, "size", *row_controls.WORDS)
_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")


def number_prompts(prompts: Sequence[str], batch_size: int = 1, seed: int | None = None) -> tuple[Row, ...]:
    """Rows of prompts with the ids 1, 2, ..., padded with zeros so that files sort.

    Args:
        prompts: at least one.
        batch_size: images per prompt.
        seed: of the very first image; the others have the next ones. None derives each row's seed from its id.

    Example:
        ```python
        rows = kerasdiff.batch.number_prompts(["a red circle", "a blue star"], batch_size=2, seed=7)
        [(row.id, row.first_seed) for row in rows]  # [("1", 7), ("2", 9)]
        ```
    """
    digits = len(str(len(prompts)))
    rows = [Row(f"{index + 1:0{digits}}", prompt) for index, prompt in enumerate(prompts)]
    return tuple(rows) if seed is None else count_up(rows, seed, batch_size)


def count_up(rows: Sequence[Row], seed: int, batch_size: int = 1) -> tuple[Row, ...]:
    """Rows with seeds that count up from that of the very first image; a row that has its own keeps it.

    What a row gets depends on its place alone: row i, from 0, has seed + i * batch_size.
    """
    with validation.advising(_NO_SEED):
        first = validation.integer("seed", seed, *ARGUMENTS["seed"].bounds)
    return tuple(
        row if row.seed is not None else dataclasses.replace(row, seed=first + index * batch_size)
        for index, row in enumerate(rows)
    )


def make_row(values: Mapping[str, Any], folder: str | os.PathLike[str] = os.curdir) -> Row:
    """A row from values by names of its attributes, or "size"; None is no value, and `folder` is that of its files."""
    for name in values:
        check_column("name", name)
    row = {name: value for name, value in values.items() if value is not None}
    prompt = row.get("prompt", "")
    if isinstance(prompt, str) and not prompt.strip():
        raise RequestError("prompt is missing")
    if "id" not in row:
        raise RequestError("id is missing")
    if "image" in row:
        row["image"] = absolute_path(folder, validation.path("image", row["image"]))
    for name, read in (("loras", loras_of_column), ("embeddings", embeddings_of_column)):
        if name in row:
            row[name] = in_folder(folder, read(name, row[name]))
    if "upscale" in row:
        (row["upscale"],) = in_folder(folder, [upscaler_of_column("upscale", row["upscale"])])
    if "hires" in row:
        row["hires"] = hires_in_folder(folder, row["hires"])
    row |= row_controls.of_columns(folder, row)
    size = row.pop("size", None)
    if size is not None:
        if "height" in row or "width" in row:
            raise RequestError("give either size or height and width, not both")
        match = _SIZE.fullmatch(validation.text("size", size))
        if match is None:
            raise RequestError(f"size={validation.shown(size)} is not of the form WIDTHxHEIGHT, such as 512x768")
        row["width"], row["height"] = int(match[1]), int(match[2])
    return Row(**row)


def in_folder(folder: str | os.PathLike[str], adapters: Sequence[Any]) -> tuple[Any, ...]:
    """Adapters whose paths are relative to a folder, with absolute paths."""
    return tuple(dataclasses.replace(each, file=adapter_path(folder, each.file)) for each in adapters)


def hires_in_folder(folder: str | os.PathLike[str], value: Any) -> str | None:
    """A second pass as its text, in which the path of an upscaler that is relative to a folder is absolute."""
    hires = make_hires("hires", value)
    return None if hires is None else hires.with_file(lambda file: in_folder(folder, [file])[0]).text


def upscalers_of(values: Mapping[str, Any]) -> tuple[UpscalerFile | None, UpscalerFile | None]:
    """The upscalers of `upscale` and of `hires` among some values."""
    hires = make_hires("hires", values.get("hires"))
    return make_upscaler("upscale", values.get("upscale")), None if hires is None else hires.file


def check_column(kind: str, name: str) -> None:
    """Refuses a name that is no column's; one of another program with what it is called here."""
    if name not in COLUMNS:
        told = advice(name, None, COLUMNS, "column") if isinstance(name, str) else None
        if told is not None:
            raise RequestError(f"{kind}={validation.shown(name)} is unknown; {told}")
        validation.choice(kind, name, COLUMNS)


def check_columns(names: Sequence[str], required: Sequence[str] = ("prompt",)) -> None:
    """Refuses columns of a table of rows that are unknown or duplicates, and a missing one."""
    for index, name in enumerate(names):
        if not name:
            raise RequestError(f"column {index + 1} has no name; give it one of {', '.join(COLUMNS)}, or remove it")
        check_column("column", name)
        if name in names[:index]:
            raise RequestError(f"duplicate column {name!r}")
    for name in required:
        if name not in names:
            raise RequestError(f"column {name!r} is missing")


@contextlib.contextmanager
def errors_in(source: str) -> Iterator[None]:
    """Puts a file and line, or whatever else is wrong, before the message of a RequestError."""
    try:
        yield
    except RequestError as error:
        raise RequestError(f"{source}: {error}") from None
