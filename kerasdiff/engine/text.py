"""The text stage: prompts to context, one chunk of one prompt at a time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from kerasdiff.engine.backend import Compiled
from kerasdiff.errors import RequestError
from kerasdiff.models.text_encoder import TextEncoder
from kerasdiff.models.tokenizer import Encodes, pad_ids


class EncodeText:
    """A tokenizer and a text encoder, compiled once for all prompts.

    Args:
        tokenizer: text to ids with start and end.
        encoder: ids (1, length) to context (1, length, width).
        jit_compile: whether XLA compiles the encoder.
    """

    def __init__(self, tokenizer: Encodes, encoder: TextEncoder, jit_compile: bool) -> None:
        self._tokenizer, self._encoder = tokenizer, encoder
        self._length = encoder.config.max_length
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

    def rows(self, texts: Sequence[str], name: str, given: Any, count: int, chunks: int = 1) -> Any:
        """Context of each image, (count, T, C).

        Args:
            texts: what each image is of; used if `given` is None.
            name: of the argument that `given` is, for messages.
            given: context (N, T, C), each for as many images, or None.
            count: images.
            chunks: as in a call.

        Raises:
            RequestError: `given` has the wrong shape.
        """
        if given is not None:
            rows = self.check(name, given)
            if count % len(rows):
                raise RequestError(f"{name} has {len(rows)} rows for {count} images; give one, or one an image")
            return ops.repeat(ops.convert_to_tensor(rows), count // len(rows), axis=0)
        distinct = list(dict.fromkeys(texts))
        encoded = self(distinct, chunks)
        return ops.take(encoded, np.array([distinct.index(text) for text in texts]), axis=0)

    def check(self, name: str, context: Any) -> Any:
        """Context that a user gave, in the encoder's compute type; RequestError if it has the wrong shape."""
        shape, width = tuple(np.shape(context)), self._encoder.config.width
        if len(shape) != 3 or shape[2] != width or not shape[0]:
            raise RequestError(f"{name} has shape {shape}; it must be (N, tokens, {width}), as encode_text gives it")
        return ops.cast(ops.convert_to_tensor(context), self._encoder.compute_dtype)

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


def both(name: str, texts: Any, negative_name: str, without: Any) -> Any:
    """Both halves of guidance, the unconditional one first; RequestError if they differ in length."""
    if without.shape[1] != texts.shape[1]:
        raise RequestError(
            f"{name} has {texts.shape[1]} tokens and {negative_name} {without.shape[1]}; they must have the same number"
        )
    return ops.concatenate([without, texts], axis=0)
