"""What conditions a step besides x and its noise level: text, and what a U-Net for inpainting sees behind x."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kerasdiff.diffusion.overrides import Overrides
from kerasdiff.diffusion.text_encoding import TextEncoding, mixed
from kerasdiff.diffusion.text_stage import TextStage
from kerasdiff.errors import RequestError
from kerasdiff.prompts.schedule import Blend, Prompt, PromptPart, Span, Value, blended, parse
from kerasdiff.request import Request
from kerasdiff.request_values import Waypoint
from kerasdiff.samplers.batched import BatchTable

# The same prompt is usually that of several images.
_parsed = functools.lru_cache(maxsize=32)(parse)


class Conditioning(NamedTuple):
    """What conditions every step of a run; a field that is None is no input of the compiled step."""

    text: ContextTable
    concat: Any = None  # channels behind x, float32 (B, h, w, C): a mask and the latents of a masked picture


@dataclasses.dataclass(frozen=True, eq=False)
class ContextTable:
    """Which texts B images read, from step to step.

    Attributes:
        contexts: the distinct embeddings, each float32 (T, width).
        parts: of each text that an image reads in a step one part per image, (1 + k, B), the unconditional text
            first; or (1, B) where no row needs that.
        weights: float32 (k, B), those of texts that are joined; None where each image has one text of weight 1.
    """

    contexts: Mapping[Hashable, np.ndarray]
    parts: Sequence[Sequence[PromptPart]]
    weights: np.ndarray | None = None

    @classmethod
    def same(cls, embeddings: np.ndarray, batch: int) -> ContextTable:
        """The same in every step: embeddings (B, T, width), or (2 B, T, width) with the unconditional half first."""
        rows = [_lasting(row) for row in range(len(embeddings))]
        return cls(dict(enumerate(embeddings)), [rows[first : first + batch] for first in range(0, len(rows), batch)])

    @property
    def guided(self) -> bool:
        """Whether there is an unconditional text."""
        return len(self.parts) > 1

    def read(self, steps: Sequence[int], guided: bool) -> tuple[Hashable, ...]:
        """Which contexts the U-Net's rows read where images are in these of their own steps; equal: the same ones."""
        parts = self.parts if guided else self.parts[-1:]
        return tuple(part.at(step) for row in parts for part, step in zip(row, steps, strict=True))


class Contexts:
    """What a run's rows read, as tensors: the same one until another text is read, so that what depends on the text
    alone is computed once.
    """

    def __init__(self, table: ContextTable, run: BatchTable, backend: Any) -> None:
        self._table, self._steps, self._backend = table, run.own_steps.tolist(), backend
        self._made: dict[bool, tuple[tuple[Hashable, ...], Any]] = {}

    def tensor(self, row: int, guided: bool) -> Any:
        """Embeddings of a row, (B, T, width), or those of all texts with the unconditional one first."""
        keys = self._table.read(self._steps[row], guided)
        if guided not in self._made or self._made[guided][0] != keys:
            rows = np.stack([self._table.contexts[key] for key in keys])
            self._made[guided] = keys, self._backend.tensor(rows)
        return self._made[guided][1]


class TextConditioning:
    """The texts of a request, or embeddings instead; `encode(encoding, value, chunks)` encodes one when its turn comes.

    RequestError if an array has the wrong shape.
    """

    def __init__(
        self,
        encoding: TextEncoding,
        encode: Callable[[TextEncoding, Value, int], np.ndarray],
        request: Request,
        overrides: Overrides,
        guided: bool,
        names: tuple[str, str] = ("prompt_embeds", "negative_prompt_embeds"),
    ) -> None:
        self._encoding, self._encode, self._request, stage = encoding, encode, request, encoding.stage
        given = overrides.prompt_embeds, overrides.negative_prompt_embeds
        self._given = [_rows(stage, name, array, len(request)) for name, array in zip(names, given, strict=True)]
        self._chunks = 1
        whole = request.long_prompts == "chunk" or request.prompt_syntax != "plain"
        ends = [waypoint.prompt for waypoint in request.towards or ()]
        for half, texts in enumerate(((*request.prompts, *ends), request.negative_prompts)):
            for text in dict.fromkeys(texts) if whole else ():
                self._chunks = max(self._chunks, *map(encoding.chunks_of, self._prompt(text, half).values))
        lengths = [stage.length * self._chunks if rows is None else rows.shape[1] for rows in self._given]
        if self._given[0] is not None and self._given[1] is None:
            # What was left out is as long as what was given, if whole chunks make it so.
            self._chunks = max(1, lengths[0] // stage.length)
            lengths[1] = stage.length * self._chunks
        if (guided or self.joined(request)) and lengths[0] != lengths[1]:
            raise RequestError(
                f"{names[0]} has {lengths[0]} tokens and {names[1]} {lengths[1]}; they must have the same number"
            )
        self._tokens = lengths[0]
        self._known: dict[Hashable, np.ndarray] = {}

    def tokens(self, indices: Sequence[int] | None = None) -> int:
        """How many tokens each text of some of the images has; None is the most of any."""
        if indices is None or self._chunks_in(indices) == self._chunks:
            return self._tokens
        return self._encoding.stage.length * self._chunks_in(indices)

    def _chunks_in(self, indices: Sequence[int]) -> int:
        """Those that texts of some of the images have: as many in a whole request, unless each is by itself."""
        request = self._request
        if not request.exact or self._chunks == 1 or any(rows is not None for rows in self._given):
            return self._chunks
        prompts = [self._prompt_of(index, half) for index in indices for half in range(2)]
        return max(self._encoding.chunks_of(value) for prompt in prompts for value in prompt.values)

    @property
    def _texts(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return self._request.prompts, self._request.negative_prompts

    def joined(self, part: Request) -> int:
        """How many weighted texts an image of (part of) the request has at most; 0 if each has one of weight 1."""
        ways = zip(part.prompts, part.towards or (None,) * len(part), strict=True)
        prompts = (self._on_the_way(*way) for way in dict.fromkeys(ways))
        return max(len(prompt.parts) if _weighted(prompt) else 0 for prompt in prompts)

    def table(self, indices: Sequence[int], guided: bool) -> ContextTable:
        """What some of the images read; equal texts are encoded once."""
        chunks = self._chunks_in(indices)
        prompts = [Prompt(self._parts(0, index, chunks)) for index in indices]
        parts, weights = [[prompt.parts[0] for prompt in prompts]], None
        if any(map(_weighted, prompts)):
            count = max(len(prompt.parts) for prompt in prompts)
            filled = [prompt.filled(count) for prompt in prompts]
            parts = [[image[part] for image in filled] for part in range(count)]
            weights = np.array([[part.weight for part in row] for row in parts], "float32")
        if guided or weights is not None:
            parts.insert(0, [self._parts(1, index, chunks)[0] for index in indices])
        values = dict.fromkeys(span.value for row in parts for part in row for span in part.spans)
        # Only these: a long list of prompts would otherwise fill memory.
        ends: dict[Hashable, np.ndarray] = {end: self._of(end) for value in values for end in _ends(value)}
        self._known = self._known | ends
        self._known = ends | {value: self._of(value) for value in values}
        return ContextTable(self._known, parts, weights)

    def _prompt(self, text: str, half: int) -> Prompt:
        """What a text means: a prompt (half 0) or a negative one (half 1)."""
        steps, earlier = self._request.prompt_steps
        return _parsed(text, self._request.prompt_syntax, steps, half == 1, earlier)

    def _on_the_way(self, text: str, waypoint: Waypoint | None) -> Prompt:
        """What a text means, or what lies between it and the one that an image of a walk goes towards."""
        prompt = self._prompt(text, 0)
        if waypoint is None or waypoint.prompt == text:
            return prompt
        return blended(prompt, self._prompt(waypoint.prompt, 0), waypoint.share)

    def _prompt_of(self, index: int, half: int) -> Prompt:
        """What an image's prompt or negative prompt means."""
        text, towards = self._texts[half][index], self._request.towards
        return self._prompt(text, half) if half or towards is None else self._on_the_way(text, towards[index])

    def _parts(self, half: int, index: int, chunks: int) -> tuple[PromptPart, ...]:
        """The parts of an image's prompt or negative prompt, with what `_of` makes contexts of."""
        request, given = self._request, self._given[half]
        if given is not None:
            return (_lasting(_Given(half, index if len(given) > 1 else 0)),)
        # diffusers reads a negative prompt with all layers, AUTOMATIC1111 does not.
        skip = 0 if half and request.prompt_syntax == "plain" else request.clip_skip
        parts = self._prompt_of(index, half).parts
        spans = [tuple(Span(span.last, _Text(span.value, skip, chunks)) for span in part.spans) for part in parts]
        return tuple(part._replace(spans=read) for part, read in zip(parts, spans, strict=True))

    def _of(self, read: Any) -> np.ndarray:
        if read in self._known:
            return self._known[read]
        if isinstance(read, _Given):
            return self._given[read.half][read.row]  # type: ignore[index]
        if isinstance(read.value, Blend):
            first, second = map(self._of, _ends(read))
            return mixed(first, second, read.value.share)
        encoding = dataclasses.replace(self._encoding, clip_skip=read.clip_skip)
        return self._encode(encoding, read.value, read.chunks)


class _Given(NamedTuple):
    """Embeddings that a user gave."""

    half: int
    row: int


class _Text(NamedTuple):
    """What is encoded, how many layers are left out, and of how many chunks it is."""

    value: Value
    clip_skip: int
    chunks: int


def _ends(read: Any) -> tuple[_Text, ...]:
    """The two texts between which one lies."""
    if not isinstance(read, _Text) or not isinstance(read.value, Blend):
        return ()
    return read._replace(value=read.value.first), read._replace(value=read.value.second)


def _lasting(value: Any) -> PromptPart:
    """The same in every step."""
    return PromptPart(1.0, (Span(0, value),))


def _weighted(prompt: Prompt) -> bool:
    """Whether it is more than one text of weight 1."""
    return [part.weight for part in prompt.parts] != [1.0]


def _rows(stage: TextStage, name: str, given: Any, count: int) -> np.ndarray | None:
    """What a user gave, (count, T, width), or (1, T, width) for all."""
    if given is None:
        return None
    rows = stage.check(name, given)
    if count % len(rows):
        raise RequestError(f"{name} has {len(rows)} rows for {count} images; give one, or one per image")
    return rows if len(rows) == 1 else np.repeat(rows, count // len(rows), axis=0)
