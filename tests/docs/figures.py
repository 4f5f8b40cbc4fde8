"""Figures of pages, and whether the files that stand beside them have them.

A figure is a number with a unit of `FACTORS`. Where a paragraph, an item of a list or a table links to files in
benchmarks/results, each of its figures must be in one of them, rounded to the digits that are written. A table also has
the links of the paragraph right before it. A comment adds files that no reader needs to see:
<!-- figures: scaling.json -->. Another one, anywhere on a page, names figures that no file of results has:
<!-- not from results: 100 MB, 30 % -->.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import prose
import public
from markdown_it.token import Token

RESULTS = public.ROOT / "benchmarks" / "results"
# Unit of a figure -> unit of a measured number -> what that is multiplied by.
FACTORS: dict[str, dict[str, float]] = {
    "s": {"s": 1, "ms": 1e-3},
    "ms": {"s": 1e3, "ms": 1},
    "MB": {"bytes": 1e-6, "MB": 1, "GB": 1e3},
    "GB": {"bytes": 1e-9, "MB": 1e-3, "GB": 1},
    "%": {"": 1e2, "%": 1},
}
_WORDS = {"s": "s", "seconds": "s", "second": "s", "ms": "ms", "mb": "MB", "gb": "GB", "bytes": "bytes", "%": "%"}
# Words of keys in files of results: parts of a run are in seconds, a share has no unit whatever it is a share of.
_WORDS |= {"parts": "s", "share": ""}
_NUMBER = r"\d[\d,]*(?:\.\d+)?"
_UNIT = r"(?:seconds|second|s|ms|MB|GB|%)"
# "11.7 s", and both of "2.0 and 1.8 s".
_FIGURE = re.compile(rf"(?<![\w.,-])({_NUMBER}(?:(?:, | and | or | to ){_NUMBER})*)[ \u00a0]?({_UNIT})(?!\w)")
_LINK = re.compile(r"benchmarks/results/([\w./-]+\.(?:json|md))")
_COMMENT = re.compile(r"<!--\s*figures:(.*?)-->", re.DOTALL)
_EXCUSE = re.compile(r"<!--\s*not from results:(.*?)-->", re.DOTALL)


class Figure(NamedTuple):
    """A number as it is written, and its unit, a key of `FACTORS`."""

    written: str
    unit: str


class Measured(NamedTuple):
    """A number of a file and its unit, which is "" for shares and for numbers without one."""

    value: float
    unit: str


class Block(NamedTuple):
    """A part of a page: its figures, and the names of the files that they must be in."""

    figures: list[Figure]
    files: list[str]


def blocks(source: str) -> Iterator[Block]:
    """The parts of a page that have figures and files that these come from."""
    tokens = prose.PARSER.parse(source)
    before: list[str] = []  # links of the paragraph before
    place = 0
    while place < len(tokens):
        part = _part(tokens, place)
        place += len(part)
        contents = [token.content for token in part if token.type in ("inline", "html_block", "html_inline")]
        files = [*_LINK.findall("\n".join(_links(part))), *_of_comments(contents)]
        table = part[0].type == "table_open"
        figures = _of_table(part) if table else [one for text in contents for one in _of_text(text)]
        named = files + before if table else files
        if figures and named:
            yield Block(figures, named)
        if part[0].type != "html_block" or files:
            before = files


def excused(source: str) -> set[Figure]:
    """Figures that a page says are not from files of results."""
    return {one for text in _EXCUSE.findall(source) for one in _of_text(text)}


def everything(source: str) -> set[Figure]:
    """All figures of a page, whether or not there are files that they come from."""
    tokens = prose.PARSER.parse(source)
    in_text = {one for token in tokens if token.type == "inline" for one in _of_text(token.content)}
    return in_text | set(_of_table(tokens))


def _links(part: Iterable[Token]) -> Iterator[str]:
    """Targets of the links of a part."""
    for token in part:
        for child in token.children or ():
            if child.type == "link_open":
                yield str(child.attrGet("href"))


def numbers(path: pathlib.Path) -> set[Measured]:
    """What a file of results has, but for the machine's description."""
    text = path.read_text("utf-8")
    if path.suffix == ".json":
        return set(_of_json(json.loads(text), ""))
    tokens = prose.PARSER.parse(text)
    found = {Measured(float(one.written), one.unit) for one in _of_table(tokens)}
    return found | {Measured(float(one.written), one.unit) for token in tokens for one in _of_text(token.content)}


def missing(block: Block) -> set[Figure]:
    """Figures of a part that none of its files has."""
    known = {number for name in block.files for number in numbers(RESULTS / name)}
    return {one for one in block.figures if not any(_same(one, number) for number in known)}


def _same(figure: Figure, number: Measured) -> bool:
    factor = FACTORS[figure.unit].get(number.unit)
    if factor is None:
        return False
    digits = len(figure.written.partition(".")[2])
    return abs(number.value * factor - float(figure.written)) <= 0.5 * 10**-digits * (1 + 1e-9)


def _part(tokens: list[Token], start: int) -> list[Token]:
    """A paragraph, a table, a comment, or an item of a list with all that is in it, but for lists around it."""
    first = tokens[start]
    if first.type in ("bullet_list_open", "ordered_list_open") or first.nesting != 1:
        return tokens[start : start + 1]
    end = next(
        place for place in range(start, len(tokens)) if tokens[place].nesting == -1 and _closes(tokens[place], first)
    )
    return tokens[start : end + 1]


def _closes(token: Token, first: Token) -> bool:
    return token.type == first.type.replace("_open", "_close") and token.level == first.level


def _of_comments(contents: Iterable[str]) -> list[str]:
    return [name for text in contents for found in _COMMENT.findall(text) for name in found.replace(",", " ").split()]


def _of_text(text: str) -> Iterator[Figure]:
    """Figures of prose, but for those in code."""
    for written, unit in _FIGURE.findall(re.sub(r"`[^`]*`", "", text)):
        for number in re.findall(_NUMBER, written):
            yield Figure(number.replace(",", ""), _WORDS[unit.lower()])


def _of_table(tokens: list[Token]) -> list[Figure]:
    """Figures of tables; a cell that is a number alone has the unit of its column's header, or of the first one."""
    found: list[Figure] = []
    units: list[str] = []
    cell = 0
    for place, token in enumerate(tokens):
        if token.type == "thead_open":
            units = []
        if token.type == "tr_open":
            cell = 0
        if token.type == "th_open":
            units.append(_unit_of(tokens[place + 1].content))
        if token.type == "td_open":
            text = tokens[place + 1].content.strip("* ")
            unit = units[cell] or units[0]
            plain = re.fullmatch(_NUMBER, text)
            found += [Figure(text.replace(",", ""), unit)] if plain and unit else _of_text(text)
            cell += 1
    return found


def _unit_of(label: str) -> str:
    """The unit that a header or a key of JSON says, or ""."""
    words = re.findall(r"[a-z]+|%", label.lower())
    return next((_WORDS[word] for word in reversed(words) if word in _WORDS), "")


def _of_json(value: Any, label: str) -> Iterator[Measured]:
    if isinstance(value, dict):
        for key, one in value.items():
            if key != "machine":
                yield from _of_json(one, f"{label}.{key}")
    elif isinstance(value, list):
        for one in value:
            yield from _of_json(one, label)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield Measured(float(value), _unit_of(label))
