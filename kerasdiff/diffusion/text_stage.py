"""The text stage: prompts to context, one chunk of one prompt at a time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from kerasdiff.diffusion.overrides import floats
from kerasdiff.errors import RequestError
from kerasdiff.models.config import TextEncoderConfig
from kerasdiff.models.tokenizer import Encodes, pad_ids
from kerasdiff.runtime import backend
from kerasdiff.runtime.compiled import Compiled, Traceable
from kerasdiff.runtime.program_cache import ProgramCache


class EncodeText:
    """A tokenizer and a text encoder, compiled once for all prompts; `length` is how many tokens it reads at once.

    Args:
        tokenizer: text to ids with start and end.
        config: the encoder's.
        encoder: ids (1, length) to context (1, length, width).
        jit_compile: whether XLA compiles the encoder.
        programs: where traced programs are kept; None keeps none.
    """

    def __init__(
        self,
        tokenizer: Encodes,
        config: TextEncoderConfig,
        encoder: Traceable,
        jit_compile: bool,
        programs: ProgramCache | None = None,
    ) -> None:
        self._tokenizer, self.length, self._width = tokenizer, config.max_length, config.width
        self._encode = Compiled("encode", _encode, encoder, jit_compile, programs)

    @property
    def compiled(self) -> tuple[Compiled, ...]:
        """The encoder's."""
        return (self._encode,)

    def __call__(self, texts: Sequence[str], chunks: int = 1) -> np.ndarray:
        """Context float32 (len(texts), chunks * length, width); what does not fit is cut off, with a warning."""
        rows = []
        for text in texts:
            parts = [backend.to_numpy(self._encode(ids[None])) for ids in self._ids(text, chunks)]
            rows.append(np.concatenate(parts, axis=1))
        return np.concatenate(rows)

    def state(self) -> str:
        """Of the program: "ready", "kept" or "new", as in `Compiled.state`."""
        return self._encode.state(((1, self.length, "int32"),))

    def check(self, name: str, context: Any) -> np.ndarray:
        """Context that a user gave, float32; RequestError if it has the wrong shape."""
        array = floats(name, context)
        shape = array.shape
        if len(shape) != 3 or shape[2] != self._width or not shape[0]:
            raise RequestError(
                f"{name} has shape {shape}; it must be (N, tokens, {self._width}), as encode_text gives it"
            )
        return array

    def chunks(self, text: str) -> int:
        """How many chunks a text takes, at least one."""
        return max(1, -(-(len(self._tokenizer.encode(text)) - 2) // (self.length - 2)))

    def _ids(self, text: str, chunks: int) -> list[np.ndarray]:
        """The ids of each chunk, filled up: int32 (length,)."""
        start, *words, end = self._tokenizer.encode(text)
        room = (self.length - 2) * chunks
        if len(words) > room:
            warnings.warn(
                f"the prompt has {len(words) + 2} tokens and the model reads {room + 2}; this part is not used: "
                f"{self._tokenizer.decode(words[room:])!r}",
                stacklevel=2,
            )
        parts = [words[place : place + self.length - 2] for place in range(0, room, self.length - 2)]
        pad_id = getattr(self._tokenizer, "pad_id", None)
        return [pad_ids([start, *part, end], self.length, pad_id) for part in parts]


def _encode(encoder: Any, ids: Any) -> Any:
    from keras import ops

    return ops.cast(encoder(ids), "float32")
