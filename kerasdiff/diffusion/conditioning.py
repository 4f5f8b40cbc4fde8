"""What conditions a step besides x and its noise level: texts, sizes, and what a U-Net with more channels sees."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from kerasdiff import editing
from kerasdiff.diffusion import overrides as arrays
from kerasdiff.diffusion.overrides import OF_GENERATE, Names, Overrides
from kerasdiff.diffusion.text_embedding import TextEmbedding
from kerasdiff.diffusion.text_encoding import JointEncoding
from kerasdiff.errors import RequestError
from kerasdiff.models.config import ModelConfig
from kerasdiff.prompts.schedule import Blend, Prompt, PromptPart, Span, Value, blended, parse
from kerasdiff.request import Request
from kerasdiff.request_values import Waypoint
from kerasdiff.samplers.batched import BatchTable
from kerasdiff.size_conditioning import time_ids

# The same prompt is usually that of several images.
_parsed = functools.lru_cache(maxsize=32)(parse)


class Conditioning(NamedTuple):
    """What conditions every step of a run; a field that is None is no input of the compiled step."""

    text: ContextTable
    # Channels behind x, float32 (rows, h, w, C): a mask and the latents of a masked picture, one row per image; or the
    # latents of a picture that is edited, one per text.
    concat: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class ContextTable:
    """Which texts B images read, from step to step.

    Attributes:
        contexts: the distinct embeddings, with contexts (T, width).
        parts: of each text that an image reads in a step one part per image, (1 + k, B), the unconditional text
            first; or (1, B) where no row needs that.
        weights: float32 (k, B), or (num_steps, k, B) if each step has its own, those of texts that are joined; None
            where each image has one text of weight 1.
        sizes: float32 (2, B, n), the numbers beside the unconditional text and beside the others; None where a U-Net
            takes none.
    """

    contexts: Mapping[Hashable, TextEmbedding]
    parts: Sequence[Sequence[PromptPart]]
    weights: np.ndarray | None = None
    sizes: np.ndarray | None = None

    @classmethod
    def same(
        cls,
        embeddings: np.ndarray,
        batch: int,
        pooled: np.ndarray | None = None,
        sizes: np.ndarray | None = None,
    ) -> ContextTable:
        """The same in every step: embeddings (B, T, width), or (2 B, T, width) with the unconditional half first.

        `pooled` (B or 2 B, P) has the rows of `embeddings`; `sizes` as above.
        """
        rows = [_lasting(row) for row in range(len(embeddings))]
        each = zip(embeddings, [None] * len(rows) if pooled is None else pooled, strict=True)
        contexts: dict[Hashable, TextEmbedding] = {row: TextEmbedding(*one) for row, one in enumerate(each)}
        return cls(contexts, [rows[first : first + batch] for first in range(0, len(rows), batch)], sizes=sizes)

    @property
    def guided(self) -> bool:
        """Whether there is an unconditional text."""
        return len(self.parts) > 1

    def read(self, steps: Sequence[int], guided: bool) -> tuple[Hashable, ...]:
        """Which contexts the U-Net's rows read where images are in these of their own steps; equal: the same ones."""
        parts = self.parts if guided else self.parts[-1:]
        return tuple(part.at(step) for row in parts for part, step in zip(row, steps, strict=True))

    def arrays(self, keys: Sequence[Hashable], guided: bool) -> TextInputs:
        """What is beside each other in the U-Net's rows that read these contexts."""
        read, pooled, sizes = [self.contexts[key] for key in keys], None, None
        if read[0].pooled is not None:
            pooled = np.stack([one.pooled for one in read])  # type: ignore[misc]
        if self.sizes is not None:
            texts = [*self.sizes[:1], *self.sizes[1:].repeat(len(self.parts) - 1, axis=0)]
            sizes = np.concatenate(texts) if guided else self.sizes[-1]
        return TextInputs(np.stack([one.context for one in read]), pooled, sizes)


class TextInputs(NamedTuple):
    """What of a step's inputs has a row per text, as fields of `StepInputs`; None where there is none."""

    text: Any  # (rows, T, width)
    pooled: Any  # (rows, P)
    time_ids: Any  # (rows, n)


class Contexts:
    """What a run's rows read, as tensors: the same ones until another text is read, so that what depends on them
    alone is computed once.
    """

    def __init__(self, table: ContextTable, run: BatchTable, backend: Any) -> None:
        self._table, self._steps, self._backend = table, run.own_steps.tolist(), backend
        self._made: dict[bool, tuple[tuple[Hashable, ...], TextInputs]] = {}

    def tensors(self, row: int, guided: bool) -> TextInputs:
        """Those of a row: of each image's text, or of all texts with the unconditional one first."""
        keys = self._table.read(self._steps[row], guided)
        if guided not in self._made or self._made[guided][0] != keys:
            arrays = self._table.arrays(keys, guided)
            tensors = TextInputs(*(None if each is None else self._backend.tensor(each) for each in arrays))
            self._made[guided] = keys, tensors
        return self._made[guided][1]


class TextConditioning:
    """The texts of a request, or embeddings instead; `encode(encoding, value, chunks)` encodes one when its turn comes.

    RequestError if an array has the wrong shape.
    """

    def __init__(
        self,
        config: ModelConfig,
        encoding: JointEncoding,
        encode: Callable[[JointEncoding, Value, int], TextEmbedding],
        request: Request,
        overrides: Overrides,
        guided: bool,
        names: Names = OF_GENERATE,
    ) -> None:
        self._config, self._encoding, self._encode, self._request = config, encoding, encode, request
        self._given = _given(config, overrides, names, len(request))
        negative = request.negative_prompts
        if not config.force_zeros_for_empty_prompt:  # of a refiner, beside a model that makes a difference
            negative = tuple(text or "" for text in negative)
        self._texts: tuple[tuple[str | None, ...], ...] = request.prompts, negative
        self._chunks = 1
        whole = request.long_prompts == "chunk" or request.prompt_syntax != "plain"
        ends = [waypoint.prompt for waypoint in request.towards or ()]
        for half, texts in enumerate(((*request.prompts, *ends), request.negative_prompts)):
            for text in dict.fromkeys(filter(None, texts)) if whole else ():
                self._chunks = max(self._chunks, *map(encoding.chunks_of, self._prompt(text, half).values))
        length = encoding.length
        lengths = [length * self._chunks if rows is None else len(rows[0].context) for rows in self._given]
        if self._given[0] is not None and self._given[1] is None:
            # What was left out is as long as what was given, if whole chunks make it so.
            self._chunks = max(1, lengths[0] // length)
            lengths[1] = length * self._chunks
        if (guided or self.joined(request)) and lengths[0] != lengths[1]:
            raise RequestError(
                f"{names.context} has {lengths[0]} tokens and {names.negative_context} {lengths[1]}; they must have "
                "the same number"
            )
        self._tokens = lengths[0]
        self._known: dict[Hashable, TextEmbedding] = {}

    def tokens(self, indices: Sequence[int] | None = None) -> int:
        """How many tokens each text of some of the images has; None is the most of any."""
        if indices is None or self._chunks_in(indices) == self._chunks:
            return self._tokens
        return self._encoding.length * self._chunks_in(indices)

    def _chunks_in(self, indices: Sequence[int]) -> int:
        """Those that texts of some of the images have: as many in a whole request, unless each is by itself."""
        request = self._request
        if not request.exact or self._chunks == 1 or any(rows is not None for rows in self._given):
            return self._chunks
        read = [(index, half) for index in indices for half in range(2) if self._texts[half][index] is not None]
        prompts = [self._prompt_of(*one) for one in read]
        return max(self._encoding.chunks_of(value) for prompt in prompts for value in prompt.values)

    def joined(self, part: Request) -> int:
        """How many weighted texts an image of (part of) the request has at most; 0 if each has one of weight 1."""
        if self._config.edits:
            return 2
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
        if self._config.edits:
            weights = editing.weights(self._request.guidance[:, list(indices)], self._request.image_guidance_scale)
        if guided or weights is not None:
            negative = [self._parts(1, index, chunks)[0] for index in indices]
            parts = [negative] * (1 + self._config.edits) + parts
        values = dict.fromkeys(span.value for row in parts for part in row for span in part.spans)
        # Only these: a long list of prompts would otherwise fill memory.
        ends: dict[Hashable, TextEmbedding] = {end: self._of(end) for value in values for end in _ends(value)}
        self._known = self._known | ends
        self._known = ends | {value: self._of(value) for value in values}
        sizes = None
        if self._config.unet.embeds_sizes:
            request = self._request
            numbers = time_ids(request, request.height, request.width, self._config.unet.num_time_ids)
            sizes = np.repeat(numbers[:, None], len(indices), axis=1)
        return ContextTable(self._known, parts, weights, sizes)

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
        assert text is not None
        return self._prompt(text, half) if half or towards is None else self._on_the_way(text, towards[index])

    def _parts(self, half: int, index: int, chunks: int) -> tuple[PromptPart, ...]:
        """The parts of an image's prompt or negative prompt, with what `_of` makes contexts of."""
        request, given = self._request, self._given[half]
        if given is not None:
            return (_lasting(_Given(half, index if len(given) > 1 else 0)),)
        if self._texts[half][index] is None:
            return (_lasting(_Zeros(self._encoding.length * chunks)),)
        # diffusers reads a negative prompt with all layers, AUTOMATIC1111 does not.
        skip = 0 if half and request.prompt_syntax == "plain" else request.clip_skip
        parts = self._prompt_of(index, half).parts
        spans = [tuple(Span(span.last, _Text(span.value, skip, chunks)) for span in part.spans) for part in parts]
        return tuple(part._replace(spans=read) for part, read in zip(parts, spans, strict=True))

    def _of(self, read: Any) -> TextEmbedding:
        if read in self._known:
            return self._known[read]
        if isinstance(read, _Given):
            return self._given[read.half][read.row]  # type: ignore[index]
        if isinstance(read, _Zeros):
            unet = self._config.unet
            pooled = None if unet.pooled_width is None else np.zeros(unet.pooled_width, "float32")
            return TextEmbedding(np.zeros((read.tokens, unet.context_width), "float32"), pooled)
        if isinstance(read.value, Blend):
            first, second = map(self._of, _ends(read))
            return first.towards(second, read.value.share)
        return self._encode(self._encoding.skipping(read.clip_skip), read.value, read.chunks)


class _Given(NamedTuple):
    """Embeddings that a user gave."""

    half: int
    row: int


class _Zeros(NamedTuple):
    """What stands for a negative prompt that is not given, with models that were trained so."""

    tokens: int


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


def _given(
    config: ModelConfig, overrides: Overrides, names: Names, count: int
) -> tuple[list[TextEmbedding] | None, list[TextEmbedding] | None]:
    """What a user gave instead of prompts and of negative ones: one embedding for each image, or one for all."""
    unet = config.unet
    halves: list[list[TextEmbedding] | None] = []
    for context, pooled, context_name, pooled_name in (
        (overrides.prompt_embeds, overrides.pooled_prompt_embeds, names.context, names.pooled),
        (
            overrides.negative_prompt_embeds,
            overrides.negative_pooled_prompt_embeds,
            names.negative_context,
            names.negative_pooled,
        ),
    ):
        if pooled is not None and unet.pooled_width is None:
            raise RequestError(f"{pooled_name}: this model reads no pooled embeddings; leave it out")
        if unet.pooled_width is not None and (context is None) != (pooled is None):
            missing, there = (pooled_name, context_name) if pooled is None else (context_name, pooled_name)
            raise RequestError(f"this model reads pooled embeddings as well: give {missing} with {there}")
        if context is None:
            halves.append(None)
            continue
        rows = arrays.contexts(context_name, context, unet.context_width)
        of_texts: Sequence[np.ndarray | None] = [None] * len(rows)
        if unet.pooled_width is not None:
            of_texts = [*arrays.pooled(pooled_name, pooled, unet.pooled_width)]
            if len(of_texts) != len(rows):
                raise RequestError(f"{pooled_name} has {len(of_texts)} rows and {context_name} {len(rows)}")
        if count % len(rows):
            raise RequestError(f"{context_name} has {len(rows)} rows for {count} images; give one, or one per image")
        times = 1 if len(rows) == 1 else count // len(rows)
        each = zip(rows, of_texts, strict=True)
        halves.append([TextEmbedding(*one) for one in each for _ in range(times)])
    return halves[0], halves[1]
