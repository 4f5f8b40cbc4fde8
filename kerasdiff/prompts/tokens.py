"""The tokens of a prompt, as the text encoder gets them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np


class Token(NamedTuple):
    """One place in a row of the text encoder."""

    id: int
    vector: np.ndarray | None = None  # float32 (width,), instead of what the encoder has for the id
    joined: bool = False  # whether it stays with the token before it
    word: str = ""  # what a vector stands for in the prompt


class Words(Protocol):
    """Words of a user's own, each of one or more vectors."""

    def spaced(self, text: str) -> str:
        """A text in which words of one's own can be found once it is tokenised."""

    def tokens(self, ids: Sequence[int]) -> list[Token]:
        """The tokens of some ids, with those of words of one's own replaced."""


def plain_tokens(ids: Iterable[int]) -> list[Token]:
    """Tokens without words of one's own."""
    return [Token(index) for index in ids]


def in_chunks(tokens: Sequence[Token], room: int) -> list[list[Token]]:
    """Tokens in parts of at most `room`, at least one part; what is joined begins a new part rather than being cut.

    What is joined and longer than `room` is cut all the same.
    """
    chunks: list[list[Token]] = [[]]
    for group in in_groups(tokens):
        if len(chunks[-1]) + len(group) > room and len(group) <= room:
            chunks.append([])
        for token in group:
            if len(chunks[-1]) == room:
                chunks.append([])
            chunks[-1].append(token)
    return chunks


def in_groups(tokens: Sequence[Token]) -> list[list[Token]]:
    """What is joined, together."""
    groups: list[list[Token]] = []
    for token in tokens:
        if token.joined and groups:
            groups[-1].append(token)
        else:
            groups.append([token])
    return groups
