"""Files of rows: text, CSV, JSON lines and Parquet, with one line or record per row."""

import csv
import difflib
import io
import itertools
import json
import os
import pathlib
import re
import shlex
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from kerasdiff import validation
from kerasdiff.batch.file_names import reserve_id
from kerasdiff.batch.rows import COLUMNS, INTEGERS, REALS, Row, check_columns, errors_in, make_row
from kerasdiff.errors import RequestError
from kerasdiff.synonyms import advice, our_word

_UTF_16 = 'not UTF-8 but UTF-16, as Excel\'s "Unicode Text" is; save the file as UTF-8, in Excel as "CSV UTF-8"'
# Cells of a first line that are looked at, and characters of each that may be a name.
_CELLS, _NAME = 50, 50
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
# Formats that are read after they were saved as another one.
_SAVE_AS = {
    ".json": ".jsonl, one object per line",
    **dict.fromkeys((".ndjson", ".jsonlines"), ".jsonl"),
    **dict.fromkeys((".tsv", ".tab", ".xlsx", ".xls", ".ods"), ".csv"),
    **dict.fromkeys(("", ".text", ".md"), ".txt"),
}
# What may be meant by a line of a text, and is taken as a part of the prompt.
_LITERAL = {
    re.compile("#|//"): "a line that begins with # or // is a prompt, not a comment; remove it if that is not meant",
    re.compile(r"""(["']).*\1$|[“”„].*[“”]$|«.*»$"""): "quotes around a line are part of the prompt; "
    "leave them out if that is not meant",
    re.compile(r'\{\s*"'): "a line is a prompt, not JSON; name the file .jsonl if that is not meant",
    re.compile(r"(?i)prompt *[,;\t|]"): "a line is a prompt, not a header; name the file .csv if that is not meant",
    re.compile(r"Negative prompt: |Steps: \d+, "): "a line is a prompt, also what AUTOMATIC1111 writes below it; write "
    "--prompt ... --negative_prompt ... --num_steps ... on one line if that is not meant",
    re.compile(r".*\s(--[a-zA-Z]|-[a-zA-Z] ?\d)"): "options behind a prompt are part of it; a line of options "
    "begins with --prompt",
}


def read_rows(path: str | os.PathLike[str]) -> tuple[Row, ...]:
    """Reads the rows of a file.

    - .txt: one prompt per line; blank lines are skipped. A line that begins with `--` has options, as in
      AUTOMATIC1111's "Prompts from file": `--prompt "a red circle" --steps 20 --seed=5`. Everything else is the prompt,
      also a # in front and quotes around it, about which there is a warning.
    - .csv: a header with names of `Row`'s attributes, of which only `prompt` is required; an empty cell is None.
    - .jsonl: one object per line, with the same names.
    - .parquet: columns with the same names; needs pyarrow, which comes with `kerasdiff[ray]`.

    Instead of height and width there may be a size, such as "512x768", which is width x height. LoRAs and embeddings
    are named as "style.safetensors:0.8, other.safetensors", or as a list of such texts or of [file, scale, text_scale];
    controls as "net:edges.png:0.8, other:depth.png" and an image prompt as "net:a.png,b.png:0.8", or as lists of such
    texts or of objects with attributes of `Control` and `ImagePrompt`. Of controls there may also be a `hint` and a
    `control_mode`, one for all or one for each, "canny,none".
    A row without an id has its line number, padded with zeros so that files sort. Paths are relative to the file's
    folder.

    Raises:
        RequestError: anything in the file is wrong; one line names the file and the line.
    """
    path = pathlib.Path(validation.path("rows", path))
    ending = path.suffix.lower()
    read = _READERS.get(ending)
    if read is None:
        hint = f"; save it as {_SAVE_AS[ending]}" if ending in _SAVE_AS else ""
        raise RequestError(f"cannot read rows from {path}: the name must end in one of {', '.join(_READERS)}{hint}")
    records = list(read(path))
    if not records:
        raise RequestError(f"{path} has no rows")
    unit = "row" if ending == ".parquet" else "line"
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


def _text(path: pathlib.Path) -> str:
    try:
        content = path.read_bytes()
        # Without its mark, every second byte of a Latin text is zero.
        if content.startswith((b"\xff\xfe", b"\xfe\xff")) or content[:100].count(0) > len(content[:100]) // 3:
            raise RequestError(f"{path} line 1: {_UTF_16}")
        return content.decode("utf-8-sig")
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
    notes: dict[str, int] = {}
    for number, line in _lines(path):
        prompt = line.strip()
        if prompt.startswith("--"):
            with errors_in(f"{path} line {number}"):
                yield number, _options(prompt)
            continue
        for pattern, note in _LITERAL.items():
            if pattern.match(prompt):
                notes.setdefault(note, number)
        yield number, {"prompt": prompt}
    for note, number in notes.items():
        warnings.warn(f"{path} line {number}: {note}", stacklevel=3)


def _options(line: str) -> dict[str, Any]:
    """The values of a line such as `--prompt a red circle --steps 20`."""
    try:
        words = shlex.split(line)
    except ValueError:
        raise RequestError("a quote is not closed; put quotes around a prompt that has one, or use a .csv") from None
    values: dict[str, Any] = {}
    for word in words:
        if word.startswith("--"):
            option, _, text = word[2:].partition("=")
            name = our_word(option)
            if name not in COLUMNS:
                told = advice(option, None, COLUMNS, "option")
                known = ", ".join(f"--{column}" for column in COLUMNS)
                raise RequestError(told or f"{validation.shown('--' + option)} is unknown; known: {known}")
            if name in values:
                raise RequestError(f"--{option} is given twice")
            values[name] = text
        else:
            values[name] = f"{values[name]} {word}".lstrip()
    empty = [name for name, text in values.items() if not text and name != "negative_prompt"]
    if empty:
        raise RequestError(f"--{empty[0]} has no value")
    return {name: _cell(name, text) for name, text in values.items()}


def _read_csv(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    text = _text(path)
    for number, line in _lines(path):
        with errors_in(f"{path} line {number}"):
            _check_header(line)
        break
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    names: list[str] = []
    following = 1
    try:
        for cells in reader:
            line_number, following = following, reader.line_num + 1
            if not any(cells):
                continue
            with errors_in(f"{path} line {line_number}"):
                if not names:
                    names = [cell.strip() for cell in cells]
                    check_columns(names)
                    continue
                _check_cells(cells, names)
                values = {name: _cell(name, cell) for name, cell in zip(names, cells, strict=True) if cell}
            yield line_number, values
    except csv.Error as error:
        raise RequestError(f"{path} line {following}: not CSV: {error}") from None


def _check_header(line: str) -> None:
    """Refuses a first line whose cells are separated by something else than commas, or that names no column."""
    if re.match(r'"?sep=', line):
        raise RequestError(f"{validation.shown(line.strip())} is a note for Excel; remove this line")
    if any(map(_is_name, _cells(line, ","))):
        return
    for separator, name in _SEPARATORS.items():
        if any(map(_is_name, _cells(line, separator))):
            raise RequestError(
                f"column={validation.shown(line.strip())} is unknown: its cells are separated by {name}; save the file "
                "with commas between them"
            )
    if not any(difflib.get_close_matches(cell[:_NAME], COLUMNS, n=1, cutoff=0.75) for cell in _cells(line, ",")):
        raise RequestError(
            f"there is no header; the first line must name the columns, such as prompt,seed, not be "
            f"{validation.shown(line.strip())}"
        )


def _cells(line: str, separator: str) -> list[str]:
    return [cell.strip().strip('"') for cell in line.split(separator, _CELLS)[:_CELLS]]


def _is_name(cell: str) -> bool:
    """Whether a cell is the name of a column, here or in another program."""
    return cell in COLUMNS or advice(cell, None, COLUMNS, "column") is not None


def _check_cells(cells: list[str], names: list[str]) -> None:
    if any(re.match(r'\s+"', cell) for cell in cells):
        raise RequestError("a quote must follow the comma at once; leave the space before it out")
    if len(cells) != len(names):
        straight = ", straight ones" if re.search("[“”„«»]", "".join(cells)) else ""
        raise RequestError(
            f"{len(cells)} cells, but the header has {len(names)}; text with commas needs quotes around it{straight}"
        )


def _cell(name: str, cell: str) -> Any:
    """A cell as the type of its column."""
    try:
        if name in INTEGERS:
            return int(cell)
        return float(cell) if name in REALS else cell
    except ValueError:
        expected = "an integer" if name in INTEGERS else "a number"
        meant = re.fullmatch(r"\s*(-?\d+)\.0*\s*" if name in INTEGERS else r"\s*(-?\d+),(\d+)\s*", cell)
        hint = f"; write {'.'.join(meant.groups())}" if meant else ""
        raise RequestError(f"{name}={validation.shown(cell)} is not {expected}{hint}") from None


def _read_jsonl(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in _lines(path):
        with errors_in(f"{path} line {number}"):
            try:
                values = _object(line)
            except RequestError as error:
                raise RequestError(f"{error}{_json_hint(line.strip())}") from None
        yield number, values


def _json_hint(line: str) -> str:
    """What may be wrong with a line that is no object."""
    if line.startswith("["):
        return "; a .jsonl has one object per line, without brackets and commas around them"
    if line == "{":
        return "; each object must be on one line"
    return "; leave the comma at the end out" if line.endswith("},") else ""


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
