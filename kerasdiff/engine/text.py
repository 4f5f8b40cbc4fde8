"""The text stage: prompts to context, one chunk of one prompt at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from keras import ops

from kerasdiff.engine.backend import Compiled
from kerasdiff.models.tokenizer import Encodes, pad_ids


class EncodeText:
    """A tokenizer and a text encoder, compiled once for all prompts.

    Args:
        tokenizer: text to ids with start and end.
        encoder: ids (1, length) to context (1, length, width).
        length: ids that the encoder reads at once, start and end among them.
        jit_compile: whether XLA compiles the encoder.
    """

    def __init__(self, tokenizer: Encodes, encoder: Callable[..., Any], length: int, jit_compile: bool) -> None:
        self._tokenizer, self._length = tokenizer, length
        self._encode = Compiled(encoder, jit_compile)

    @property
    def traces(self) -> int:
        """How many times the encoder was traced so far."""
        return self._encode.traces

    def __call__(self, texts: Sequence[str], chunks: int = 1) -> Any:
        """Context (len(texts), chunks * length, width) on the device; what does not fit is cut off, with a warning."""
        rows = []
        for text in texts:
            parts = [self._encode(ops.convert_to_tensor(ids[None])) for ids in self._ids(text, chunks)]
            rows.append(ops.concatenate(parts, axis=1))
        return ops.concatenate(rows, axis=0)

    def chunks(self, text: str) -> int:
        """How many chunks a text takes, at least one."""
        return max(1, -(-(len(self._tokenizer.encode(text)) - 2) // (self._length - 2)))

    def _ids(self, text: str, chunks: int) -> list[np.ndarray]:
        """The ids of each chunk, filled up: int32 (length,)."""
        start, *words, end = self._tokenizer.encode(text)
        room = (self._length - 2) * chunks
        if len(words) > room:
            warnings.warn(
                f"the prompt has {len(words) + 2} tokens and the model reads {room + 2}; this part is not used: "
                f"{self._tokenizer.decode(words[room:])!r}",
                stacklevel=2,
            )
        parts = [words[place : place + self._length - 2] for place in range(0, room, self._length - 2)]
        pad_id = getattr(self._tokenizer, "pad_id", None)
        return [pad_ids([start, *part, end], self._length, pad_id) for part in parts]
