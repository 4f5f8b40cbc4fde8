"""A prompt as the engine needs it: which texts are joined, and which of each text's versions a step uses."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple


class Plain(NamedTuple):
    """A text whose signs mean nothing."""

    text: str


class Span(NamedTuple):
    """What some steps in a row use.

    Attributes:
        last: the last of these steps, counted from 0. Spans are in order; a step uses the first with `step <= last`,
            and the last span lasts to the end whatever its number.
        value: what to encode. Equal values have equal embeddings, so that each needs to be encoded once.
    """

    last: int
    value: Hashable


class Part(NamedTuple):
    """One of the texts that AND joins: its weight, a factor of the guidance scale, and its spans, at least one."""

    weight: float
    spans: tuple[Span, ...]

    def at(self, step: int) -> Hashable:
        """What a step uses, counted from 0."""
        return next((span.value for span in self.spans if step <= span.last), self.spans[-1].value)


class Prompt(NamedTuple):
    """What a text means; more than one part only with AND."""

    parts: tuple[Part, ...]

    @property
    def values(self) -> tuple[Hashable, ...]:
        """All that there is to encode, each once."""
        return tuple(dict.fromkeys(span.value for part in self.parts for span in part.spans))


def parse(text: str, syntax: str, num_steps: int, negative: bool = False) -> Prompt:
    """What a text means in a syntax: "plain", "a1111" or "compel".

    `num_steps` are evaluations of the U-Net, two per step with samplers such as heun, as AUTOMATIC1111 counts them;
    with less strength they are those of the whole schedule, and step 0 is the first that runs. A negative prompt has
    one part: AND means nothing in it. RequestError if the text is none of the syntax, which only "compel" has.
    """
    return Prompt((Part(1.0, (Span(num_steps, Plain(text)),)),))
