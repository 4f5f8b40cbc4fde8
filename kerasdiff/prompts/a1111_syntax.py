r"""AUTOMATIC1111's syntax: (weights:1.2), [changes:from step:0.5], [alter|nations], BREAK and AND.

    text AND text:0.7                                texts, each with a factor of the guidance scale
    [from:to:when] [to:when] [from::when] [a|b|...]  other words from step to step
    (a) (a:1.3) [a] \( BREAK                         weights and chunks, in what the text is at a step

The three are read one after the other. No text is an error: what fits none of this is taken as it stands.

AUTOMATIC1111 reads the changes with lark's Earley parser, which takes a second for a long prompt with many brackets and
for ever for a few thousand. Brackets need no more than a stack. The results differ in one case: where two or more
brackets or colons that match nothing follow a change at once, as in "[a:b:3]))", AUTOMATIC1111 takes it as it stands.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, NamedTuple

import numpy as np

_DECIMAL = r"[-+]?(?:\d+\.?\d*|\.\d+)"
# Far beyond what a text encoder or a U-Net makes sense of.
MOST_WEIGHT = 1000.0
_MORE, _LESS = 1.1, 1 / 1.1


class Fragment(NamedTuple):
    """A piece of a text, and the weight of its tokens."""

    text: str
    weight: float


BREAK = Fragment("BREAK", -1.0)  # what comes next begins a chunk


def joined(text: str) -> dict[str, float]:
    """The texts that AND joins, with their weights; what occurs twice is one text with the sum of them."""
    weights: dict[str, float] = {}
    for part in re.split(r"\bAND\b", text):
        stripped = part.strip()
        weight = re.search(rf":\s*({_DECIMAL})$", stripped)
        words = stripped if weight is None else stripped[: weight.start()].rstrip()
        weights[words] = weights.get(words, 0.0) + (1.0 if weight is None else float(_limited(float(weight[1]))))
    return weights


# A text that changes is a tree of texts, lists, changes and alternations.


@dataclasses.dataclass(frozen=True)
class _Change:
    before: list
    after: list
    when: str

    def last(self, num_steps: int, earlier: int | None) -> int:
        """The last step, counted from 1, of what is before; `earlier` are those of a first pass."""
        when = float(self.when)
        if "." in self.when:
            when = (when - (earlier is not None)) * num_steps
        else:
            when -= earlier or 0
        return int(max(-1, min(num_steps, when)))


@dataclasses.dataclass(frozen=True)
class _Alternation:
    choices: list[list]


@dataclasses.dataclass
class _Open:
    """A bracket that is not closed yet: what stands between its colons and bars."""

    bracket: str
    sections: list[list] = dataclasses.field(default_factory=lambda: [[]])
    separators: list[str] = dataclasses.field(default_factory=list)

    def literal(self) -> list:
        """As it stands, without what closes it."""
        nodes: list = [self.bracket, self.sections[0]]
        for separator, section in zip(self.separators, self.sections[1:], strict=True):
            nodes += [separator, section]
        return nodes

    def closed(self, by: str) -> list | _Change | _Alternation | None:
        """What it means; None if nothing."""
        colons, bars = self.separators.count(":"), self.separators.count("|")
        if not bars and colons <= (by == ")"):
            return [*self.literal(), by]
        if by == ")" or (bars and colons):
            return None
        if bars:
            return _Alternation(self.sections)
        *texts, last = self.sections
        if len(texts) > 2 or not all(isinstance(node, str) for node in last):
            return None
        when = _NUMBER.fullmatch("".join(last))
        return None if when is None else _Change([] if len(texts) == 1 else texts[0], texts[-1], when[1])


_OPENING = {")": "(", "]": "["}
_PIECES = re.compile(r"\\.|[()\[\]:|]|[^\\()\[\]:|]+|\\")
_NUMBER = re.compile(rf"\s*((?a:{_DECIMAL}(?:[eE][-+]?\d+)?))\s*")


class _Tree:
    """A text's changes; ValueError where a bar stands in no alternation, or a backslash before nothing."""

    def __init__(self, text: str) -> None:
        self.top: list = []
        self.changes: list[_Change] = []
        self.alternates = False
        self._open: list[_Open] = []
        for piece in _PIECES.findall(text):
            if piece == "\\" or (piece == "|" and not self._open):
                raise ValueError(piece)
            if piece in ("(", "["):
                self._open.append(_Open(piece))
            elif piece in (":", "|") and self._open:
                self._open[-1].separators.append(piece)
                self._open[-1].sections.append([])
            elif piece in _OPENING:
                self._close(piece)
            else:
                self._add(piece)
        self._take_as_they_stand()

    def _add(self, node: str | list | _Change | _Alternation) -> None:
        (self._open[-1].sections[-1] if self._open else self.top).append(node)

    def _close(self, piece: str) -> None:
        matches = self._open and self._open[-1].bracket == _OPENING[piece]
        meaning = self._open[-1].closed(piece) if matches else None
        if meaning is None:
            self._take_as_they_stand()
            self.top.append(piece)
            return
        self._open.pop()
        self._add(meaning)
        if isinstance(meaning, _Change):
            self.changes.append(meaning)
        self.alternates |= isinstance(meaning, _Alternation)

    def _take_as_they_stand(self) -> None:
        """Nothing around what fits nothing has a meaning: brackets that are open are text."""
        for bracket in self._open:
            if "|" in bracket.separators:
                raise ValueError("|")
            self.top += bracket.literal()
        self._open.clear()

    def at(self, step: int, num_steps: int, earlier: int | None) -> str:
        """The text at a step, counted from 1."""
        texts: list[str] = []
        left: list = [self.top]
        while left:
            node = left.pop()
            if isinstance(node, str):
                texts.append(node)
            elif isinstance(node, list):
                left.extend(reversed(node))
            elif isinstance(node, _Change):
                left.append(node.before if step <= node.last(num_steps, earlier) else node.after)
            else:
                left.append(node.choices[(step - 1) % len(node.choices)])
        return "".join(texts)


def schedule(text: str, num_steps: int, earlier: int | None = None) -> list[tuple[int, str]]:
    """A text's versions, in order, each with its last step, in a pass that follows `earlier` steps of another one."""
    try:
        tree = _Tree(text)
    except ValueError:
        return [(num_steps, text)]
    ends = {num_steps, *(change.last(num_steps, earlier) for change in tree.changes)}
    if tree.alternates:
        ends.update(range(1, num_steps + 1))
    versions: list[tuple[int, str]] = []
    for step in sorted(end for end in ends if end >= 1):
        version = tree.at(step, num_steps, earlier)
        if versions and versions[-1][1] == version:
            versions.pop()
        versions.append((step, version))
    return versions


_WEIGHTED = re.compile(rf"\\[()\[\]\\]?|[(\[]|:\s*({_DECIMAL})\s*\)|[)\]]|[^\\()\[\]:]+|:")


def fragments(text: str) -> tuple[Fragment, ...]:
    """A text without its brackets: pieces, each with its weight, and `BREAK` between chunks."""
    texts: list[str] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}
    spans: list[tuple[int, int, float]] = []
    for match in _WEIGHTED.finditer(text):
        piece, weight = match.group(), match[1]
        if piece[0] == "\\":
            texts.append(piece[1:])
        elif piece in opened:
            opened[piece].append(len(texts))
        elif piece[-1] == ")" and opened["("]:
            spans.append((opened["("].pop(), len(texts), _MORE if weight is None else float(weight)))
        elif piece == "]" and opened["["]:
            spans.append((opened["["].pop(), len(texts), _LESS))
        else:
            texts.extend(_parts(piece))
    for bracket, weight in (("(", _MORE), ("[", _LESS)):
        spans.extend((start, len(texts), weight) for start in opened[bracket])
    weights = np.array([BREAK.weight if text == BREAK.text else 1.0 for text in texts])
    with np.errstate(over="ignore", invalid="ignore"):
        for start, end, factor in spans:
            weights[start:end] *= factor
    merged: list[Fragment] = []
    for text, weight in zip(texts, _limited(weights).tolist(), strict=True):
        if merged and merged[-1].weight == weight:
            merged[-1] = Fragment(merged[-1].text + text, weight)
        else:
            merged.append(Fragment(text, weight))
    return tuple(merged) or (Fragment("", 1.0),)


def _parts(text: str) -> list[str]:
    """A text split at BREAK, which stays between its parts."""
    parts = re.split(rf"\b({BREAK.text})\b", text)
    if len(parts) == 1:
        return parts
    last = len(parts) - 1
    texts = [part.lstrip() if index == last else part.strip() for index, part in enumerate(parts)]
    return [parts[0].rstrip(), *texts[1:]]


def _limited(weight: Any) -> Any:
    return np.clip(np.nan_to_num(weight, posinf=MOST_WEIGHT, neginf=-MOST_WEIGHT), -MOST_WEIGHT, MOST_WEIGHT)
