"""What the U-Net reads of each image's texts, encoded when its turn comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kerasdiff.diffusion.text_stage import EncodeText
from kerasdiff.errors import RequestError
from kerasdiff.request import Request


class Context:
    """The texts of a request.

    Args:
        stage: checks what was given instead of texts, and counts their chunks.
        request: the prompts.
        given: context instead of prompts and instead of negative prompts, each (N, T, width), (1, T, width) or None.
        encode: `encode(text, chunks)`, float32 (1, T, width).
        names: of the arguments that `given` are, for messages.

    Raises:
        RequestError: an array has the wrong shape.
    """

    def __init__(
        self,
        stage: EncodeText,
        request: Request,
        given: tuple[Any, Any],
        encode: Callable[[str, int], np.ndarray],
        names: tuple[str, str] = ("prompt_embeds", "negative_prompt_embeds"),
    ) -> None:
        self._request, self._encode = request, encode
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

    def rows(self, places: Sequence[int], guided: bool) -> np.ndarray:
        """Context of some images, float32 (B, T, width); with guidance (2B, T, width), what to stay away from first."""
        request = self._request
        halves = [(self._given[0], request.prompts)]
        if guided:
            halves.insert(0, (self._given[1], request.negative_prompts))
        wanted = {texts[place] for given, texts in halves if given is None for place in places}
        # Only these: a long list of prompts would otherwise fill memory.
        self._known = {text: self._of(text) for text in sorted(wanted)}
        found = [
            self._known[texts[place]][0] if given is None else given[place if len(given) > 1 else 0]
            for given, texts in halves
            for place in places
        ]
        return np.stack(found)

    def _of(self, text: str) -> np.ndarray:
        return self._known[text] if text in self._known else self._encode(text, self._chunks)


def _rows(stage: EncodeText, name: str, given: Any, count: int) -> np.ndarray | None:
    """What a user gave, (count, T, width), or (1, T, width) for all."""
    if given is None:
        return None
    rows = stage.check(name, given)
    if count % len(rows):
        raise RequestError(f"{name} has {len(rows)} rows for {count} images; give one, or one an image")
    return rows if len(rows) == 1 else np.repeat(rows, count // len(rows), axis=0)
