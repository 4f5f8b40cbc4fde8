"""Rows: what to draw, from a file with one line or record for each."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kerasdiff import validation
from kerasdiff.batch.file_names import check_id, picture_path, take_id
from kerasdiff.errors import RequestError
from kerasdiff.samplers import sampler_name
from kerasdiff.samplers.noise import MAX_SEED

_WHOLE = ("seed", "num_steps", "height", "width")
_REAL = ("guidance_scale", "strength")


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "negative_prompt": validation.text,
    "seed": lambda name, value: validation.integer(name, value, 0, MAX_SEED),
    "guidance_scale": validation.real,
    "num_steps": lambda name, value: validation.integer(name, value, 1),
    "sampler": lambda name, value: sampler_name(value),
    "height": lambda name, value: validation.integer(name, value, 1),
    "width": lambda name, value: validation.integer(name, value, 1),
    "image": validation.path,
    "strength": lambda name, value: validation.real(name, value, 0, 1),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """What to draw once, or as often as its job says. None is what the job says for all rows.

    Attributes:
        id: what its files are called.
        prompt: what to draw.
        negative_prompt: what to stay away from.
        seed: of its first image, 0 to 2**64 - 1; further ones have the next. None is `seed_of(id)`.
        guidance_scale: weight of the prompt.
        num_steps: steps of the sampler.
        sampler: a name from `kerasdiff.SAMPLERS`.
        height: pixels.
        width: pixels.
        image: the path of a picture to start from.
        strength: 0 to 1, how much of that is drawn anew.

    Raises:
        RequestError: a value is wrong.

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

    def __post_init__(self) -> None:
        check_id(self.id)
        validation.text("prompt", self.prompt)
        for name, check in _CHECKS.items():
            if getattr(self, name) is not None:
                check(name, getattr(self, name))

    @property
    def first_seed(self) -> int:
        """The seed of its first image."""
        return seed_of(self.id) if self.seed is None else self.seed


_FIELDS = tuple(field.name for field in dataclasses.fields(Row))
# What a file or a data set may have a column of.
COLUMNS = (*_FIELDS, "size")
_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")


def seed_of(row_id: str) -> int:
    """The seed of a row that has none: the first 32 bits of its id's SHA-256, whatever rows are around it."""
    return int.from_bytes(hashlib.sha256(row_id.encode()).digest()[:4], "big")


def number_prompts(prompts: Sequence[str], batch_size: int = 1, seed: int | None = None) -> tuple[Row, ...]:
    """Rows of prompts, called 1, 2, ..., with zeros before it so that files sort.

    Args:
        prompts: at least one.
        batch_size: images for each.
        seed: of the first image of all; the others have the next. None gives each row its own, `seed_of(id)`.

    Example:
        ```python
        rows = kerasdiff.batch.number_prompts(["a red circle", "a blue star"], batch_size=2, seed=7)
        [(row.id, row.first_seed) for row in rows]  # [("1", 7), ("2", 9)]
        ```
    """
    digits = len(str(len(prompts)))
    seeds = [None if seed is None else seed + place * batch_size for place in range(len(prompts))]
    return tuple(
        Row(f"{number:0{digits}}", prompt, seed=one)
        for number, (prompt, one) in enumerate(zip(prompts, seeds, strict=True), 1)
    )


def read_rows(path: str | os.PathLike[str]) -> tuple[Row, ...]:
    """The rows of a file.

    - .txt: a prompt a line; empty lines are left out.
    - .csv: a header with names of `Row`'s attributes, of which only `prompt` must be there; an empty cell is None.
    - .jsonl: an object a line, with the same names.
    - .parquet: columns with the same names; pyarrow reads it, which comes with `kerasdiff[ray]`.

    Instead of height and width there may be a size, such as "512x768", which is width x height. A row without an id has
    the number of its line, with zeros before it, so that files sort. Paths of pictures are relative to the file's
    folder.

    Args:
        path: of the file; text is UTF-8.

    Raises:
        RequestError: anything about the file is wrong; one line names the file and the line.

    Example:
        ```python
        kerasdiff.batch.read_rows("prompts.txt")[0].prompt
        ```
    """
    path = pathlib.Path(validation.path("rows", path))
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise RequestError(f"cannot read rows from {path}: the name must end in one of {', '.join(_READERS)}")
    given = list(read(path))
    if not given:
        raise RequestError(f"{path} has no rows")
    digits = len(str(given[-1][0]))
    rows: list[Row] = []
    taken: dict[str, str] = {}
    for line, values in given:
        with _at(path, line):
            row = make_row({"id": f"{line:0{digits}}", **values}, path.parent)
            take_id(row.id, taken)
        rows.append(row)
    return tuple(rows)


def make_row(values: Mapping[str, Any], folder: str | os.PathLike[str] = os.curdir) -> Row:
    """A row from named values, of which those that are None hold nothing.

    Args:
        values: names of `Row`'s attributes, or "size", and what they are.
        folder: that the path of a picture is relative to.

    Raises:
        RequestError: a name is unknown, or a value is wrong.

    Example:
        ```python
        make_row({"id": "cat", "prompt": "a photograph of a cat", "size": "512x768"}).height  # 768
        ```
    """
    for name in values:
        validation.choice("name", name, COLUMNS)
    found = {name: value for name, value in values.items() if value is not None}
    prompt = found.get("prompt", "")
    if isinstance(prompt, str) and not prompt.strip():
        raise RequestError("there is no prompt")
    if "id" not in found:
        raise RequestError("there is no id")
    if "image" in found:
        found["image"] = picture_path(folder, validation.path("image", found["image"]))
    size = found.pop("size", None)
    if size is not None:
        if "height" in found or "width" in found:
            raise RequestError("size says what height and width say; leave one of them out")
        match = _SIZE.fullmatch(validation.text("size", size))
        if match is None:
            raise RequestError(f"size={validation.shown(size)} is not of the form WIDTHxHEIGHT, such as 512x768")
        found["width"], found["height"] = int(match[1]), int(match[2])
    return Row(**found)


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise RequestError(f"{path} line {line}: not UTF-8; save the file in that encoding") from None
    except OSError as error:
        raise RequestError(f"cannot read rows from {path}: {error.strerror}; check the path") from None


@contextlib.contextmanager
def _at(path: pathlib.Path, line: int) -> Iterator[None]:
    try:
        yield
    except RequestError as error:
        place = "row" if path.suffix.lower() == ".parquet" else "line"
        raise RequestError(f"{path} {place} {line}: {error}") from None


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers; not `splitlines`, which splits at more than ends of lines."""
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        if line.strip():
            yield number, line


# Readers give the number of each row's line, and its values.
def _from_txt(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(_text(path)):
        yield number, {"prompt": line.strip()}


def _from_csv(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    names: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise RequestError(f"{path} line {line}: not CSV: {error}") from None
        if cells is None:
            return
        if not any(cells):
            continue
        with _at(path, line):
            if names is None:
                names = _header(cells)
                continue
            if len(cells) != len(names):
                raise RequestError(
                    f"{len(cells)} cells, and the header has {len(names)}; a text with commas needs quotes around it"
                )
            values = {name: _value(name, cell) for name, cell in zip(names, cells, strict=True) if cell}
        yield line, values


def _header(cells: Sequence[str]) -> list[str]:
    return check_columns([cell.strip() for cell in cells])


def check_columns(names: Sequence[str], needed: Sequence[str] = ("prompt",)) -> list[str]:
    """Columns of a table of rows.

    Raises:
        RequestError: one is unknown, there twice, or missing.
    """
    known = [validation.choice("column", name, COLUMNS) for name in names]
    if len(set(known)) < len(known):
        raise RequestError("a column is there twice")
    for name in needed:
        if name not in known:
            raise RequestError(f"there is no column {name}")
    return known


def _value(name: str, cell: str) -> Any:
    """A cell as what its column holds."""
    try:
        if name in _WHOLE:
            return int(cell)
        return float(cell) if name in _REAL else cell
    except ValueError:
        expected = "whole number" if name in _WHOLE else "number"
        raise RequestError(f"{name}={validation.shown(cell)} is not a {expected}") from None


def _from_jsonl(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(_text(path)):
        with _at(path, number):
            values = _object(line)
            for name in values:
                validation.choice("name", name, COLUMNS)
        yield number, {name: value for name, value in values.items() if value is not None}


def _from_parquet(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    from kerasdiff.batch.parquet import records

    def check(names: Sequence[str]) -> None:
        try:
            check_columns(names)
        except RequestError as error:
            raise RequestError(f"{path}: {error}") from None

    for number, values in enumerate(records(path, check), 1):
        yield number, {name: value for name, value in values.items() if value is not None}


_READERS: dict[str, Callable[[pathlib.Path], Iterator[tuple[int, dict[str, Any]]]]] = {
    ".txt": _from_txt,
    ".csv": _from_csv,
    ".jsonl": _from_jsonl,
    ".parquet": _from_parquet,
}


def _object(line: str) -> dict[str, Any]:
    try:
        values = json.loads(line, object_pairs_hook=_once)
    except RecursionError:
        raise RequestError("not JSON: it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise RequestError(f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except RequestError:
        raise
    except ValueError:
        raise RequestError("not JSON: a number has too many digits") from None
    if not isinstance(values, dict):
        raise RequestError(f'must be an object such as {{"prompt": "a cat"}}, not {validation.kind(values)}')
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise RequestError("a name is there twice in one object")
    return values
