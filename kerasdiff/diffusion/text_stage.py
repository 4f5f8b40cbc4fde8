"""The text stage: prompts to text embeddings, one chunk of one prompt at a time."""

import warnings
from typing import Any

import numpy as np

from kerasdiff.diffusion.overrides import floats
from kerasdiff.diffusion.stage import Expected, Stage, apply
from kerasdiff.errors import RequestError
from kerasdiff.models.config import TextEncoderConfig
from kerasdiff.models.tokenizer import Encodes, pad_ids
from kerasdiff.runtime.compiled import Traceable
from kerasdiff.runtime.program_cache import ProgramCache


class TextStage(Stage):
    """A tokenizer and an encoder of ids (1, length) to embeddings (1, length, width), compiled once for all prompts."""

    name = "text encoder"

    def __init__(
        self,
        network: Traceable,
        jit_compile: bool,
        programs: ProgramCache | None,
        tokenizer: Encodes,
        config: TextEncoderConfig,
    ) -> None:
        super().__init__(network, jit_compile, programs)
        self._tokenizer, self.width, self._vocab_size = tokenizer, config.width, config.vocab_size
        self.length = min(config.max_length, tokenizer.max_length)

    def __call__(self, text: str, chunks: int = 1) -> np.ndarray:
        """Embeddings float32 (1, chunks * length, width); what does not fit is cut off, with a warning."""
        parts = self.rows(text, chunks)
        for check in self.checks():
            encode = self.function("encode", apply)
            embeddings = np.concatenate([np.asarray(encode(ids[None])) for ids in parts], axis=1)
            check.finite = bool(np.isfinite(embeddings).all())
        return embeddings

    def expected(self) -> Expected:
        """The program."""
        return Expected(self.function("encode", apply), ((1, self.length, "int32"),))

    def check(self, name: str, embeddings: Any) -> np.ndarray:
        """Embeddings that a user gave, float32; RequestError if they have the wrong shape."""
        array = floats(name, embeddings)
        if array.ndim != 3 or array.shape[2] != self.width or not len(array):
            raise RequestError(
                f"{name} has shape {array.shape}; it must be (N, tokens, {self.width}), as encode_text gives it"
            )
        return array

    def chunks(self, text: str) -> int:
        """How many chunks a text takes, at least one."""
        return max(1, -(-(len(self._encoded(text)) - 2) // (self.length - 2)))

    def _encoded(self, text: str) -> list[int]:
        """The ids of a text; RequestError if the encoder knows no such id."""
        ids = self._tokenizer.encode(self._tokenizer.expand(text))
        unknown = [index for index in (*ids[1:-1], ids[0], ids[-1]) if index >= self._vocab_size]
        if unknown:
            word = repr(self._tokenizer.decode(unknown[:1])) if unknown[0] in ids[1:-1] else "the start of every text"
            raise RequestError(
                f"the text encoder has {self._vocab_size} words, and {word} is number {unknown[0]} of the tokenizer, "
                "which is another model's or has words that the encoder was not given; open a folder where both fit, "
                "or give prompt_embeds"
            )
        return ids

    def rows(self, text: str, chunks: int) -> list[np.ndarray]:
        """The ids of each chunk, filled up: int32 (length,); what does not fit is cut off, with a warning."""
        start, *words, end = self._encoded(text)
        tokenizer, room = self._tokenizer, (self.length - 2) * chunks
        kept, cut = words[:room], words[room:]
        if tokenizer.truncation_side == "left":
            kept, cut = words[max(0, len(words) - room) :], words[: max(0, len(words) - room)]
        if cut:
            warnings.warn(
                f"the prompt has {len(words) + 2} tokens and the model reads {room + 2}; this part is not used: "
                f"{tokenizer.decode(cut)!r}",
                stacklevel=2,
            )
        parts = [kept[first : first + self.length - 2] for first in range(0, room, self.length - 2)]
        return [pad_ids([start, *part, end], self.length, tokenizer.pad_id, tokenizer.padding_side) for part in parts]
