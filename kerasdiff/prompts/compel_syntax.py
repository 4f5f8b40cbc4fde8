r"""compel's syntax: words++, words--, (some words)1.3, ("a", "b").blend(1, 0.8) and ("a", "b").and().

As in compel 2.5, brackets and quotes that have no sign behind them are left out, a backslash before a bracket or a
quote keeps it, and what fits nothing is taken as it stands.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from kerasdiff.errors import RequestError
from kerasdiff.prompts.a1111_syntax import MOST_WEIGHT, Fragment

_PLUS, _MINUS = 1.1, 0.9
_DEEPEST = 50
_SPACE = " \t\n\r"

_SIGNS = r'()",.+\-='
_WORD = re.compile(
    rf"(?:\\[{_SIGNS}]|[-+](?![{_SPACE}{_SIGNS}]|\Z)|-?[0-9]+|[^{_SPACE}\x0b\x0c{_SIGNS}])+",
)
_FREE = re.compile(r"[^ \t\n\r\x0b\x0c]+")
_QUOTED = re.compile(r'"((?:\\"|[^"\n\r])*)"')
_REPEATED = re.compile(r"\++|-+")
_NUMBER = re.compile(r"[+-]?(?:\d+\.\d*|\.\d+)|-?[0-9]+")
_KEYWORD = re.compile(r"[A-Za-z0-9_-]+")
_UNREAD = re.compile(r"\)\s*\.(blend|and|add)\s*\(")
_REFUSED = {
    r"\.swap\s*\(": ".swap() needs control of cross-attention, which is not here; write the new words instead",
    r"\b(?:with|use)Lora\s*\(": "withLora() loads no file; name it in loras",
}


class Mixture(NamedTuple):
    """Texts whose embeddings are added with weights, and the weight of the sum against that of no text."""

    texts: tuple[tuple[Fragment, ...], ...]
    weights: tuple[float, ...] = (1.0,)
    weight: float = 1.0


def mixtures(text: str) -> tuple[Mixture, ...]:
    """What a text is made of; the embeddings of several are joined. RequestError if it cannot be read."""
    for sign, reason in _REFUSED.items():
        if re.search(sign, text):
            raise _error(text, reason)
    text = re.sub(r",(\S)", r", \1", text)
    try:
        return _read(text)
    except ValueError as error:
        raise _error(text, str(error)) from None


def _error(text: str, reason: str) -> RequestError:
    return RequestError(f"the prompt {text[:60]!r} cannot be read with prompt_syntax='compel': {reason}")


def _read(text: str) -> tuple[Mixture, ...]:
    reader = _Reader(text)
    call = reader.call()
    if call is None:
        if unread := _UNREAD.search(text):
            example = f'("some words", "others").{unread[1]}({"1, 0.8" if unread[1] == "blend" else ""})'
            raise ValueError(f".{unread[1]}() must be all of it, as {example}")
        return (Mixture((_flat(reader.prompt(0)[0]),)),)
    name, targets, options, end = call
    if text[end:].strip():
        raise ValueError(f"nothing may follow .{name}(), and {text[end:].strip()[:20]!r} does")
    texts = tuple(map(_flat, targets))
    normalized = not (name == "blend" and options[-1:] == ["no_normalize"])
    weights = [_number(option) for option in (options if normalized else options[:-1])] or [1.0] * len(texts)
    if len(weights) != len(texts):
        raise ValueError(f".{name}() has {len(weights)} weights for {len(texts)} texts")
    if name != "blend":
        return tuple(Mixture((one,), weight=weight) for one, weight in zip(texts, weights, strict=True))
    total = sum(weights) if normalized else 1.0
    if not total:
        raise ValueError("the weights of .blend() have the sum 0; give others, or no_normalize behind them")
    return (Mixture(texts, tuple(weight / total for weight in weights)),)


def _number(text: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"a weight must be a number, and {text!r} is none")
    return _limited(float(text))


def _limited(weight: float) -> float:
    return max(-MOST_WEIGHT, min(MOST_WEIGHT, weight))


class _Weighted(NamedTuple):
    nodes: list
    weight: float


def _flat(nodes: list) -> tuple[Fragment, ...]:
    """Fragments, those of the same weight joined."""
    flat: list[Fragment] = []

    def add(nodes: list, weight: float) -> None:
        for node in nodes:
            if isinstance(node, _Weighted):
                add(node.nodes, weight * node.weight)
            elif flat and flat[-1].weight == _limited(weight):
                flat[-1] = Fragment(f"{flat[-1].text} {node}", flat[-1].weight)
            else:
                flat.append(Fragment(node, _limited(weight)))

    add(nodes, 1.0)
    return tuple(flat) or (Fragment("", 1.0),)


class _Reader:
    """Reads a text. A method gives what it read at a place, a list of texts and `_Weighted`, and where that ends.

    None if there is nothing of its kind.
    """

    def __init__(self, text: str, depth: int = 0) -> None:
        self._text, self._depth = text, depth
        self._known: dict[tuple[str, int], tuple[list, int] | None] = {}

    def _after_space(self, place: int) -> int:
        while place < len(self._text) and self._text[place] in _SPACE:
            place += 1
        return place

    def _sign(self, sign: str, place: int) -> int | None:
        """Where a sign ends that stands here, after spaces."""
        place = self._after_space(place)
        return place + len(sign) if self._text.startswith(sign, place) else None

    def call(self) -> tuple[str, list[list], list[str], int] | None:
        """("a", "b").blend(1, 0.8) or its like: name, texts, options, end."""
        targets: list[list] = []
        place: int | None = self._sign("(", 0)
        while place is not None:
            read = self._target(place) or self._quoted(place, whole=True)
            if read is None:
                return None
            targets.append(read[0])
            if (comma := self._sign(",", read[1])) is None:
                place = self._sign(")", read[1])
                break
            place = comma
        if place is None:
            return None
        for name in ("and", "add", "blend"):
            if (called := self._sign(f".{name}", place)) is not None:
                opened = self._sign("(", called)
                return None if opened is None else self._options(name, targets, opened)
        return None

    def _options(self, name: str, targets: list[list], place: int) -> tuple[str, list[list], list[str], int] | None:
        options: list[str] = []
        if (end := self._sign(")", place)) is not None:
            return name, targets, options, end
        while True:
            place = self._after_space(place)
            match = _NUMBER.match(self._text, place) or _KEYWORD.match(self._text, place)
            if match is None:
                return None
            options.append(match.group())
            if (end := self._sign(")", match.end())) is not None:
                return name, targets, options, end
            comma = self._sign(",", match.end())
            if comma is None:
                return None
            place = comma

    def prompt(self, place: int) -> tuple[list, int]:
        """Anything, to the end."""
        nodes: list = []
        while (place := self._after_space(place)) < len(self._text):
            read = self._weighted(place) or self._quoted(place) or self._bracketed(place)
            if read is None:
                match = _FREE.match(self._text, place)
                if match is None:  # a space of another kind
                    place += 1
                    continue
                read = [_unescaped(match.group())], match.end()
            nodes += read[0]
            place = read[1]
        return nodes, place

    def _pieces(self, place: int) -> tuple[list, int]:
        """What may stand in brackets."""
        nodes: list = []
        while True:
            read = self._weighted(place) or self._bracketed(place) or self._quoted(place) or self._word(place)
            if read is None:
                place = self._after_space(place)
                if self._text[place : place + 1] not in (",", "."):
                    return nodes, place
                read = [self._text[place]], place + 1
            nodes += read[0]
            place = read[1]

    def _target(self, place: int) -> tuple[list, int] | None:
        return self._quoted(place) or self._bracketed(place) or self._word(place)

    def _weighted(self, place: int) -> tuple[list, int] | None:
        enclosed = self._quoted(place) or self._bracketed(place)
        target = enclosed or self._word(place)
        if target is None:
            return None
        nodes, end = target
        if (called := self._sign(".attend", end)) is not None and (called := self._sign("(", called)) is not None:
            called = self._after_space(called)
            match = _REPEATED.match(self._text, called) or _NUMBER.match(self._text, called)
            closed = None if match is None else self._sign(")", match.end())
            if match is not None and closed is not None:
                return [_Weighted(nodes, _weight(match.group()))], closed
        match = _REPEATED.match(self._text, end)
        if match is None and enclosed is not None:
            match = _NUMBER.match(self._text, end)
        return None if match is None else ([_Weighted(nodes, _weight(match.group()))], match.end())

    def _word(self, place: int) -> tuple[list, int] | None:
        match = _WORD.match(self._text, self._after_space(place))
        return None if match is None else ([_unescaped(match.group())], match.end())

    def _bracketed(self, place: int) -> tuple[list, int] | None:
        opened = self._sign("(", place)
        if opened is None:
            return None
        key = "(", opened
        if key not in self._known:
            if self._depth == _DEEPEST:
                raise ValueError(f"its brackets are nested more than {_DEEPEST} deep")
            self._depth += 1
            nodes, end = self._pieces(opened)
            self._depth -= 1
            closed = self._sign(")", end)
            self._known[key] = None if closed is None else (nodes, closed)
        return self._known[key]

    def _quoted(self, place: int, whole: bool = False) -> tuple[list, int] | None:
        """A text in quotes of which brackets may be made, or, with `whole`, any."""
        match = _QUOTED.match(self._text, self._after_space(place))
        if match is None:
            return None
        key = f'"{whole}', match.start()
        if key not in self._known:
            inner = match[1]
            reader = _Reader(inner, self._depth)
            nodes, end = reader.prompt(0) if whole else reader._pieces(0)
            read = end == len(inner)
            self._known[key] = ((nodes if inner.strip() else [""]), match.end()) if read else None
        return self._known[key]


def _weight(sign: str) -> float:
    if sign[0] in "+-" and not sign.strip(sign[0]):
        # Beyond some hundred signs the number would overflow.
        return (_PLUS if sign[0] == "+" else _MINUS) ** min(len(sign), 1000)
    return _limited(float(sign))


def _unescaped(text: str) -> str:
    return re.sub(r'\\([()"])', r"\1", text)
