"""Rows: what to generate, from a file with one line or record per row."""

import contextlib
import csv
import dataclasses
import hashlib
import io
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kerasdiff import validation
from kerasdiff.batch.file_names import absolute_path, check_id, reserve_id
from kerasdiff.errors import RequestError
from kerasdiff.request_arguments import ARGUMENTS
from kerasdiff.samplers import sampler_name

INTEGERS = ("seed", "num_steps", "height", "width")
REALS = ("guidance_scale", "strength")


@dataclasses.dataclass(frozen=True)
class Row:
    """One prompt of a job and what differs from the job's arguments; None stands for the job's own value.

    Attributes:
        id: what its files are called.
        seed: of its first image, 0 to 2**64 - 1; further images have the next ones. None derives it from the id.
        guidance_scale: weight of the prompt.
        sampler: a name from `kerasdiff.SAMPLERS`.
        height: pixels.
        width: pixels.
        image: path of an image to start from.
        strength: 0 to 1, how much of that image is redrawn.

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
        if self.negative_prompt is not None:
            validation.text("negative_prompt", self.negative_prompt)
        for names, check in ((INTEGERS, validation.integer), (REALS, validation.real)):
            for name in names:
                if getattr(self, name) is not None:
                    check(name, getattr(self, name), *ARGUMENTS[name].bounds)
        if self.sampler is not None:
            sampler_name(self.sampler)
        if self.image is not None:
            validation.path("image", self.image)

    @property
    def first_seed(self) -> int:
        """The seed of its first image; if it has none, the first 32 bits of its id's SHA-256, whatever is around it."""
        if self.seed is not None:
            return self.seed
        return int.from_bytes(hashlib.sha256(self.id.encode()).digest()[:4], "big")


FIELDS = tuple(field.name for field in dataclasses.fields(Row))
# Columns that a file or a data set may have.
COLUMNS = (*FIELDS, "size")
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
    return tuple(
        Row(f"{index + 1:0{digits}}", prompt, seed=None if seed is None else seed + index * batch_size)
        for index, prompt in enumerate(prompts)
    )


def read_rows(path: str | os.PathLike[str]) -> tuple[Row, ...]:
    """Reads the rows of a file.

    - .txt: one prompt per line; blank lines are skipped.
    - .csv: a header with names of `Row`'s attributes, of which only `prompt` is required; an empty cell is None.
    - .jsonl: one object per line, with the same names.
    - .parquet: columns with the same names; needs pyarrow, which comes with `kerasdiff[ray]`.

    Instead of height and width there may be a size, such as "512x768", which is width x height. A row without an id has
    its line number, padded with zeros so that files sort. Paths of images are relative to the file's folder.

    Raises:
        RequestError: anything in the file is wrong; one line names the file and the line.
    """
    path = pathlib.Path(validation.path("rows", path))
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise RequestError(f"cannot read rows from {path}: the name must end in one of {', '.join(_READERS)}")
    records = list(read(path))
    if not records:
        raise RequestError(f"{path} has no rows")
    unit = "row" if path.suffix.lower() == ".parquet" else "line"
    digits = len(str(records[-1][0]))
    rows: list[Row] = []
    reserved: dict[str, str] = {}
    for number, values in records:
        if values.get("id") is None:
            values["id"] = f"{number:0{digits}}"
        with errors_in(f"{path} {unit} {number}"):
            row = make_row(values, path.parent)
            reserve_id(row.id, reserved)
        rows.append(row)
    return tuple(rows)


def make_row(values: Mapping[str, Any], folder: str | os.PathLike[str] = os.curdir) -> Row:
    """A row from values by names of its attributes, or "size"; None is no value, and `folder` is that of its image."""
    for name in values:
        validation.choice("name", name, COLUMNS)
    row = {name: value for name, value in values.items() if value is not None}
    prompt = row.get("prompt", "")
    if isinstance(prompt, str) and not prompt.strip():
        raise RequestError("prompt is missing")
    if "id" not in row:
        raise RequestError("id is missing")
    if "image" in row:
        row["image"] = absolute_path(folder, validation.path("image", row["image"]))
    size = row.pop("size", None)
    if size is not None:
        if "height" in row or "width" in row:
            raise RequestError("give either size or height and width, not both")
        match = _SIZE.fullmatch(validation.text("size", size))
        if match is None:
            raise RequestError(f"size={validation.shown(size)} is not of the form WIDTHxHEIGHT, such as 512x768")
        row["width"], row["height"] = int(match[1]), int(match[2])
    return Row(**row)


def check_columns(names: Sequence[str], required: Sequence[str] = ("prompt",)) -> None:
    """Refuses columns of a table of rows that are unknown or duplicates, and a missing one."""
    for index, name in enumerate(names):
        validation.choice("column", name, COLUMNS)
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


def _text(path: pathlib.Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise RequestError(f"{path} line {line}: not UTF-8; save the file as UTF-8") from None
    except OSError as error:
        raise RequestError(f"cannot read rows from {path}: {error.strerror}; check the path") from None


def _lines(path: pathlib.Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers; not by `splitlines`, which splits at more than line ends."""
    for number, line in enumerate(_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        if line.strip():
            yield number, line


# Readers give the number of each row's line, and its values.
def _read_txt(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path):
        yield number, {"prompt": line.strip()}


def _read_csv(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    names: list[str] = []
    following = 1
    try:
        for cells in reader:
            line, following = following, reader.line_num + 1
            if not any(cells):
                continue
            with errors_in(f"{path} line {line}"):
                if not names:
                    names = [cell.strip() for cell in cells]
                    check_columns(names)
                    continue
                if len(cells) != len(names):
                    raise RequestError(
                        f"{len(cells)} cells, but the header has {len(names)}; text with commas needs quotes around it"
                    )
                yield line, {name: _cell(name, cell) for name, cell in zip(names, cells, strict=True) if cell}
    except csv.Error as error:
        raise RequestError(f"{path} line {following}: not CSV: {error}") from None


def _cell(name: str, cell: str) -> Any:
    """A cell as the type of its column."""
    try:
        if name in INTEGERS:
            return int(cell)
        return float(cell) if name in REALS else cell
    except ValueError:
        expected = "an integer" if name in INTEGERS else "a number"
        raise RequestError(f"{name}={validation.shown(cell)} is not {expected}") from None


def _read_jsonl(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path):
        with errors_in(f"{path} line {number}"):
            yield number, _object(line)


def _object(line: str) -> dict[str, Any]:
    try:
        values = json.loads(line, object_pairs_hook=_unique)
    except RecursionError:
        raise RequestError("not JSON: nested too deeply") from None
    except json.JSONDecodeError as error:
        raise RequestError(f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except RequestError:
        raise
    except ValueError:
        raise RequestError("not JSON: a number has too many digits") from None
    if not isinstance(values, dict):
        raise RequestError(f'must be an object such as {{"prompt": "a cat"}}, not {validation.kind(values)}')
    return values


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise RequestError(f"duplicate name {validation.shown(name)} in one object")
        values[name] = value
    return values


def _read_parquet(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ModuleNotFoundError:
        raise RequestError(
            f"reading {path} needs pyarrow, which is not installed: pip install 'kerasdiff[ray]'"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            with errors_in(str(path)):
                check_columns(file.schema_arrow.names)
            records = itertools.chain.from_iterable(batch.to_pylist() for batch in file.iter_batches())
            yield from enumerate(records, 1)
    except ArrowInvalid as error:
        raise RequestError(f"{path} is not Parquet, or corrupt: {validation.reason(error)}") from None
    except OSError as error:
        raise RequestError(f"cannot read rows from {path}: {error.strerror or validation.reason(error)}") from None


_READERS: dict[str, Callable[[pathlib.Path], Iterator[tuple[int, dict[str, Any]]]]] = {
    ".txt": _read_txt,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
