"""A prompt as the engine needs it: which texts are joined, and which of each text's versions a step uses."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from kerasdiff.errors import RequestError
from kerasdiff.prompts import a1111_syntax, compel_syntax

# Each is one more row of the U-Net.
_MOST_PARTS = 100


@dataclasses.dataclass(frozen=True)
class Plain:
    """A text whose signs mean nothing."""

    text: str

    @property
    def pieces(self) -> tuple[str, ...]:
        """The texts whose tokens are read."""
        return (self.text,)


@dataclasses.dataclass(frozen=True)
class Weighted:
    """A text with weights, as AUTOMATIC1111 encodes it."""

    fragments: tuple[a1111_syntax.Fragment, ...]

    @property
    def pieces(self) -> tuple[str, ...]:
        """The texts whose tokens are read."""
        return tuple(fragment.text for fragment in self.fragments)


@dataclasses.dataclass(frozen=True)
class Mixed:
    """Texts with weights, as compel encodes them; it pools the whole `text` as it is written."""

    mixtures: tuple[compel_syntax.Mixture, ...]
    text: str

    @property
    def pieces(self) -> tuple[str, ...]:
        """The texts whose tokens are read."""
        return tuple(fragment.text for mixture in self.mixtures for text in mixture.texts for fragment in text)


@dataclasses.dataclass(frozen=True)
class Blend:
    """What lies between two values: (1 - share) times the embeddings of the first, and share times the second's."""

    first: Value
    second: Value
    share: float

    @property
    def pieces(self) -> tuple[str, ...]:
        """The texts whose tokens are read."""
        return (*self.first.pieces, *self.second.pieces)


# What to encode. Equal values have equal embeddings, so that each needs to be encoded once.
Value = Plain | Weighted | Mixed | Blend


class Span(NamedTuple):
    """What some steps in a row use.

    Attributes:
        last: the last of these steps, counted from 0. Spans are in order; a step uses the first with `step <= last`,
            and the last span lasts to the end whatever its number.
        value: what to encode, a `Value` in what `parse` gives.
    """

    last: int
    value: Any


class PromptPart(NamedTuple):
    """One of the texts that AND joins: its weight, a factor of the guidance scale, and its spans, at least one."""

    weight: float
    spans: tuple[Span, ...]

    def at(self, step: int) -> Any:
        """What a step uses, counted from 0."""
        return next((span.value for span in self.spans if step <= span.last), self.spans[-1].value)


class Prompt(NamedTuple):
    """What a text means; more than one part only with AND."""

    parts: tuple[PromptPart, ...]

    @property
    def values(self) -> tuple[Value, ...]:
        """All that there is to encode, each once."""
        return tuple(dict.fromkeys(span.value for part in self.parts for span in part.spans))

    def filled(self, count: int) -> tuple[PromptPart, ...]:
        """So many parts: where there are fewer, the first one is there again, with no weight."""
        return (*self.parts, *[self.parts[0]._replace(weight=0.0)] * count)[:count]

    @property
    def pieces(self) -> tuple[str, ...]:
        """The texts whose tokens are read, each once."""
        return tuple(dict.fromkeys(piece for value in self.values for piece in value.pieces))


def parse(text: str, syntax: str, num_steps: int, negative: bool = False, earlier: int | None = None) -> Prompt:
    """What a text means in a syntax: "plain", "a1111" or "compel".

    With less strength `num_steps` are still those of the whole schedule, and step 0 is the first that runs.
    AUTOMATIC1111 counts the steps of a text from 1 and those that run from 0, so that [a:b:3] takes a for four steps;
    here too, as a picture would otherwise be another one. In a second pass steps count on from the `earlier` ones, and
    fractions from 1. A negative prompt has one part: AND means nothing in it.
    RequestError if the text joins too many, or is none of the syntax, which only "compel" has.
    """
    if syntax == "a1111":
        joined = {text: 1.0} if negative else a1111_syntax.joined(text)
        if len(joined) > _MOST_PARTS:
            raise RequestError(f"the prompt {text[:60]!r} joins {len(joined)} texts with AND, more than {_MOST_PARTS}")
        return Prompt(
            tuple(_part(weight, a1111_syntax.schedule(one, num_steps, earlier)) for one, weight in joined.items())
        )
    value = Plain(text) if syntax == "plain" else Mixed(compel_syntax.mixtures(text), text)
    return Prompt((PromptPart(1.0, (Span(num_steps, value),)),))


def blended(first: Prompt, second: Prompt, share: float) -> Prompt:
    """A prompt on the way from one to another: what each step would read of both, and the weights, mixed linearly."""
    count = max(len(first.parts), len(second.parts))
    parts = []
    for one, other in zip(first.filled(count), second.filled(count), strict=True):
        lasts = sorted({span.last for span in (*one.spans, *other.spans)})
        spans = tuple(Span(last, Blend(one.at(last), other.at(last), share)) for last in lasts)
        parts.append(PromptPart(one.weight + (other.weight - one.weight) * share, spans))
    return Prompt(tuple(parts))


def _part(weight: float, versions: list[tuple[int, str]]) -> PromptPart:
    return PromptPart(weight, tuple(Span(last, Weighted(a1111_syntax.fragments(text))) for last, text in versions))
