"""What conditions a step besides x and its noise level: text, and what a U-Net for inpainting sees behind x."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from kerasdiff.diffusion.overrides import Overrides
from kerasdiff.diffusion.text_stage import TextStage
from kerasdiff.errors import RequestError
from kerasdiff.request import Request


class Conditioning(NamedTuple):
    """What conditions every step of a run; a field that is None is no input of the compiled step."""

    text: Any  # embeddings float32 (B, T, width); with guidance (2B, T, width), the unconditional half first
    concat: Any = None  # channels behind x, float32 (B, h, w, C): a mask and the latents of a masked picture


class TextConditioning:
    """The texts of a request, encoded by `encoder.encode_text` when their turn comes, or embeddings instead.

    RequestError if an array has the wrong shape.
    """

    def __init__(
        self,
        stage: TextStage,
        encoder: Any,
        request: Request,
        overrides: Overrides,
        names: tuple[str, str] = ("prompt_embeds", "negative_prompt_embeds"),
    ) -> None:
        self._encoder, self._request, self.width = encoder, request, stage.width
        given = overrides.prompt_embeds, overrides.negative_prompt_embeds
        self._given = [_rows(stage, name, array, len(request)) for name, array in zip(names, given, strict=True)]
        self._chunks = 1
        if request.long_prompts == "chunk":
            self._chunks = max(map(stage.chunks, {*request.prompts, *request.negative_prompts}))
        lengths = [stage.length * self._chunks if rows is None else rows.shape[1] for rows in self._given]
        if self._given[0] is not None and self._given[1] is None:
            # What was left out is as long as what was given, if whole chunks make it so.
            self._chunks = max(1, lengths[0] // stage.length)
            lengths[1] = stage.length * self._chunks
        if request.guided and lengths[0] != lengths[1]:
            raise RequestError(
                f"{names[0]} has {lengths[0]} tokens and {names[1]} {lengths[1]}; they must have the same number"
            )
        self.tokens = lengths[0]
        self._known: dict[str, np.ndarray] = {}

    def rows(self, indices: Sequence[int], guided: bool) -> np.ndarray:
        """Embeddings of some images, as in `Conditioning.text`."""
        request = self._request
        halves = [(self._given[0], request.prompts)]
        if guided:
            halves.insert(0, (self._given[1], request.negative_prompts))
        wanted = {texts[index] for given, texts in halves if given is None for index in indices}
        # Only these: a long list of prompts would otherwise fill memory.
        self._known = {text: self._of(text) for text in sorted(wanted)}
        rows = [
            self._known[texts[index]][0] if given is None else given[index if len(given) > 1 else 0]
            for given, texts in halves
            for index in indices
        ]
        return np.stack(rows)

    def _of(self, text: str) -> np.ndarray:
        return self._known[text] if text in self._known else self._encoder.encode_text(text, self._chunks)


def _rows(stage: TextStage, name: str, given: Any, count: int) -> np.ndarray | None:
    """What a user gave, (count, T, width), or (1, T, width) for all."""
    if given is None:
        return None
    rows = stage.check(name, given)
    if count % len(rows):
        raise RequestError(f"{name} has {len(rows)} rows for {count} images; give one, or one per image")
    return rows if len(rows) == 1 else np.repeat(rows, count // len(rows), axis=0)
