"""Texts with weights to embeddings: chunks of tokens, and what the weights do to what the encoder makes of them."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from kerasdiff.diffusion.text_embedding import TextEmbedding
from kerasdiff.diffusion.text_stage import TextStage
from kerasdiff.prompts.a1111_syntax import BREAK, Fragment
from kerasdiff.prompts.compel_syntax import Mixture
from kerasdiff.prompts.schedule import Blend, Mixed, Plain, Value, Weighted
from kerasdiff.prompts.tokens import Token, Words, in_chunks, in_groups

# How far back AUTOMATIC1111 looks for a comma, to begin a chunk behind it.
_COMMA_WITHIN = 20
# compel splits a long text behind the last of these in a chunk, else behind the last of the next.
_ENDS = (".", ".,;:")


class _Place(NamedTuple):
    """A token with its weight, and the number of the fragment that it is of."""

    token: Token
    weight: float
    fragment: int


_Chunk = list[_Place]


@dataclasses.dataclass(frozen=True)
class TextEncoding:
    """How the texts of a request are encoded by one text encoder.

    `clip_skip` and `emphasis` are those of the request, `words` its embeddings (textual inversion).
    """

    stage: TextStage
    clip_skip: int = 0
    emphasis: str = "original"
    words: Words | None = None

    def chunks_of(self, value: Value) -> int:
        """How many chunks a value takes if nothing is cut off, at least one."""
        if isinstance(value, Plain):
            return self.stage.chunks(value.text, self.words)
        if isinstance(value, Weighted):
            return len(self._by_commas(value.fragments))
        if isinstance(value, Blend):
            return max(map(self.chunks_of, (value.first, value.second)))
        return sum(map(self._length, value.mixtures))

    def encode(self, value: Value, chunks: int) -> TextEmbedding:
        """Embeddings, float32 (chunks * length, width), and a pooled one if the encoder has any, without weights.

        What is shorter is filled up with empty chunks, and what is longer is cut off, with a warning.
        """
        if isinstance(value, Plain):
            return self.stage(value.text, chunks, self.clip_skip, self.words)
        if isinstance(value, Blend):
            first, second = (self.encode(end, chunks) for end in (value.first, value.second))
            return first.towards(second, value.share)
        rows, pooled = self._weighted(value) if isinstance(value, Weighted) else self._mixed(value)
        if len(rows) > chunks and self.stage.reports:
            warnings.warn(
                f"the prompt has {len(rows)} chunks of {self.stage.length} tokens, of which {chunks} are used",
                stacklevel=2,
            )
        return TextEmbedding(self._filled(rows, chunks)[:chunks].reshape(-1, rows.shape[-1]), pooled)

    def _filled(self, rows: np.ndarray, chunks: int) -> np.ndarray:
        missing = chunks - len(rows)
        return rows if missing <= 0 else np.concatenate([rows, np.repeat(self._encode([[]])[0], missing, axis=0)])

    def _encode(self, chunks: Sequence[_Chunk], seen: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray | None]:
        """Embeddings without weights, (chunks, length, width), and the pooled one of the first chunk."""
        return self.stage.encode([[place.token for place in chunk] for chunk in chunks], self.clip_skip, seen)

    def _places(self, fragments: Sequence[Fragment]) -> Iterator[_Chunk]:
        """What is not cut apart, one after the other; an empty list is a BREAK."""
        for index, (text, weight) in enumerate(fragments):
            if (text, weight) == BREAK:
                yield []
                continue
            for group in in_groups(self.stage.tokens(text, self.words)):
                yield [_Place(token, weight, index) for token in group]

    def _weights(self, chunks: Sequence[_Chunk]) -> np.ndarray:
        """Of each token of each row, (chunks, length, 1)."""
        weights = np.ones((len(chunks), self.stage.length, 1), "float32")
        for row, chunk in zip(weights, chunks, strict=True):
            first = self.stage.first(len(chunk))
            row[first : first + len(chunk), 0] = [place.weight for place in chunk]
        return weights

    def _marks(self, signs: str) -> set[int]:
        """The ids of signs that are one token each."""
        found = (self.stage.tokens(sign) for sign in signs)
        return {tokens[0].id for tokens in found if len(tokens) == 1}

    # As AUTOMATIC1111 does it.

    def _by_commas(self, fragments: Sequence[Fragment]) -> list[_Chunk]:
        """A chunk that is full ends behind a comma, if one is near."""
        commas, room = self._marks(","), self.stage.room
        chunks: list[_Chunk] = []
        chunk: _Chunk = []
        after = 0  # the place behind the last comma of the chunk; 0 if there is none
        for group in self._places(fragments):
            if not group:
                chunks.append(chunk)
                chunk, after = [], 0
                continue
            if group[0].token.vector is None and group[0].token.id in commas:
                after = len(chunk) + 1
            elif len(chunk) == room and after and room - after < _COMMA_WITHIN:
                chunks.append(chunk[:after])
                chunk, after = chunk[after:], 0
            if chunk and len(chunk) + len(group) > room and len(group) <= room:
                chunks.append(chunk)
                chunk, after = [], 0
            for place in group:
                if len(chunk) == room:
                    chunks.append(chunk)
                    chunk, after = [], 0
                chunk.append(place)
        return [*chunks, chunk] if chunk or not chunks else chunks

    def _weighted(self, value: Weighted) -> tuple[np.ndarray, np.ndarray | None]:
        chunks = self._by_commas(value.fragments)
        (rows, pooled), weights = self._encode(chunks), self._weights(chunks)
        changed = rows * weights
        if self.emphasis == "original":
            means, new = (array.mean((1, 2), keepdims=True, dtype="float64") for array in (rows, changed))
            changed = changed * np.divide(means, new, out=np.ones_like(means), where=new != 0).astype("float32")
        return np.where((weights == 1).all((1, 2), keepdims=True), rows, changed), pooled

    # As compel does it.

    def _by_sentences(self, fragments: Sequence[Fragment]) -> list[_Chunk]:
        """A chunk ends with a sentence, or else a phrase or a word."""
        groups = list(self._places(fragments))
        left = [place for group in groups for place in group]
        marks = [self._marks(signs) for signs in _ENDS]
        ends: list[Callable[[int], bool]] = [*(ids.__contains__ for ids in marks), self.stage.ends_word]
        chunks: list[_Chunk] = []
        while len(left) > (room := self.stage.room):
            tokens = [place.token for place in left[: room + 1]]
            whole = [place for place in range(room, 0, -1) if not tokens[place].joined]
            split = next((place for end in ends for place in whole if end(tokens[place - 1].id)), (*whole, room)[0])
            chunks.append(left[:split])
            left = left[split:]
        return [*chunks, left] if left or not chunks else chunks

    def _length(self, mixture: Mixture) -> int:
        return max(len(self._by_sentences(text)) for text in mixture.texts)

    def _mixed(self, value: Mixed) -> tuple[np.ndarray, np.ndarray | None]:
        rows = np.concatenate([self._mixture(mixture) for mixture in value.mixtures])
        if not self.stage.pools:
            return rows, None
        # Of the text as it is written, signs and all.
        first = in_chunks(self.stage.tokens(value.text, self.words), self.stage.room)[:1]
        return rows, self.stage.encode(first)[1]

    def _mixture(self, mixture: Mixture) -> np.ndarray:
        length, empty = self._length(mixture), self._encode([[]])[0]
        texts = (self._filled(self._text(text, empty), length) for text in mixture.texts)
        parts = (text * np.float32(weight) for text, weight in zip(texts, mixture.weights, strict=True))
        rows = functools.reduce(np.add, parts)
        return rows if mixture.weight == 1 else empty + (rows - empty) * np.float32(mixture.weight)

    def _text(self, fragments: Sequence[Fragment], empty: np.ndarray) -> np.ndarray:
        chunks = self._by_sentences(fragments)
        weights = self._weights(chunks)

        def moved(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
            """Away from the embeddings of no text, or towards them."""
            return np.where(weights == 1, rows, empty + (rows - empty) * weights)

        base = moved(self._encode(chunks)[0], weights)
        rows, total = base, 1.0
        for index, (first, end) in self._extents(chunks).items():
            if fragments[index].weight >= 1:
                continue
            # Not seen: its tokens, and what fills up a chunk where it goes on in another one.
            seen = np.ones(weights.shape[:2], bool)
            seen.reshape(-1)[first:end] = False
            seen[:, [0, -1]] = True
            share = math.tan((1 - max(1e-5, fragments[index].weight)) * math.pi / 2)
            without = base.copy()
            for number in range(first // self.stage.length, (end - 1) // self.stage.length + 1):
                one = slice(number, number + 1)
                without[one] = moved(self._encode(chunks[one], seen[one])[0], weights[one])
            rows, total = rows + without * np.float32(share), total + share
        return rows / np.float32(total)

    def _extents(self, chunks: Sequence[_Chunk]) -> dict[int, tuple[int, int]]:
        """Where in all rows the tokens of a fragment begin and end."""
        extents: dict[int, tuple[int, int]] = {}
        for number, chunk in enumerate(chunks):
            start = number * self.stage.length + self.stage.first(len(chunk))
            for index, place in enumerate(chunk, start):
                extents[place.fragment] = extents.get(place.fragment, (index,))[0], index + 1
        return extents


@dataclasses.dataclass(frozen=True)
class JointEncoding:
    """How the texts of a request are encoded by all text encoders, in the order in which contexts are joined."""

    parts: tuple[TextEncoding, ...]

    @property
    def length(self) -> int:
        """Tokens of a chunk, which all have."""
        return self.parts[0].stage.length

    def skipping(self, clip_skip: int) -> JointEncoding:
        """The same without so many of each encoder's last layers."""
        return JointEncoding(tuple(dataclasses.replace(part, clip_skip=clip_skip) for part in self.parts))

    def chunks_of(self, value: Value) -> int:
        """How many chunks a value takes: the most of any encoder, as each tokenizes it by itself."""
        return max(part.chunks_of(value) for part in self.parts)
