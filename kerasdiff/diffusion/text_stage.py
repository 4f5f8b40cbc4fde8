"""The text stage: prompts to what one text encoder makes of them, one chunk of one prompt at a time."""

import itertools
import warnings
from collections.abc import Sequence

import numpy as np

from kerasdiff.diffusion.stage import EncodeText, Expected, Stage
from kerasdiff.diffusion.text_embedding import TextEmbedding
from kerasdiff.errors import RequestError
from kerasdiff.models.network_configs import TextEncoderConfig
from kerasdiff.models.tokenizer import Encodes, pad_ids
from kerasdiff.prompts.tokens import Token, Words, in_chunks, plain_tokens
from kerasdiff.runtime.compiled import Compiled, Traceable
from kerasdiff.runtime.program_cache import ProgramCache


class TextStage(Stage):
    """A tokenizer and an encoder of ids (1, length) to embeddings (1, length, width), compiled once for all prompts.

    An encoder with a projection gives a pooled embedding as well, that of a text's first chunk. Of several stages that
    read the same texts, one `reports` what is cut off.
    """

    name = "text encoder"

    def __init__(
        self,
        network: Traceable,
        jit_compile: bool,
        programs: ProgramCache | None,
        tokenizer: Encodes,
        config: TextEncoderConfig,
        name: str = "text encoder",
        reports: bool = True,
    ) -> None:
        super().__init__(network, jit_compile, programs)
        self.name, self.reports = name, reports
        self._tokenizer, self.width, self._vocab_size = tokenizer, config.width, config.vocab_size
        self.length, self.pools = min(config.max_length, tokenizer.max_length), config.projection is not None

    def __call__(self, text: str, chunks: int = 1, clip_skip: int = 0, words: Words | None = None) -> TextEmbedding:
        """Embeddings float32 (chunks * length, width); what does not fit is cut off, with a warning."""
        rows, pooled = self.encode(self.chunked(text, chunks, words), clip_skip)
        return TextEmbedding(rows.reshape(-1, rows.shape[-1]), pooled)

    def encode(
        self, chunks: Sequence[Sequence[Token]], clip_skip: int = 0, seen: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Embeddings of chunks of tokens, each encoded by itself: float32 (chunks, length, width).

        And the pooled embedding of the first of them, float32 (P,), or None. Tokens where `seen`, bool
        (chunks, length), is false are not attended to.
        """
        masks = [None] * len(chunks) if seen is None else seen
        for check in self.checks():
            found = [self._encode(*each, clip_skip) for each in zip(chunks, masks, strict=True)]
            embeddings = np.concatenate([row for row, _ in found], axis=0)
            pooled = found[0][1]
            check.finite = bool(np.isfinite(embeddings).all()) and (pooled is None or bool(np.isfinite(pooled).all()))
        return embeddings, pooled

    def _encode(
        self, chunk: Sequence[Token], seen: np.ndarray | None, clip_skip: int
    ) -> tuple[np.ndarray, np.ndarray | None]:
        first, inputs = self.first(len(chunk)), {}
        if self.pools:
            inputs["ends"] = np.array(first + len(chunk), "int32")
        if seen is not None:
            inputs["seen"] = seen
        vectors = {place: token.vector for place, token in enumerate(chunk) if token.vector is not None}
        if vectors:
            replacing, replaced = np.zeros((self.length, self.width), "float32"), np.zeros(self.length, bool)
            for place, vector in vectors.items():
                replacing[first + place], replaced[first + place] = vector, True
            inputs |= {"vectors": replacing, "replaced": replaced}
        arrays = (array[None] for array in (self._row(chunk), *inputs.values()))
        found = self._function(clip_skip, tuple(inputs))(*arrays)
        return (np.asarray(found[0]), np.asarray(found[1])[0]) if self.pools else (np.asarray(found), None)

    def first(self, count: int) -> int:
        """The place of the first of so many tokens in a row."""
        return self.length - count - 1 if self._tokenizer.padding_side == "left" else 1

    def _function(self, clip_skip: int, inputs: tuple[str, ...]) -> Compiled:
        name = "encode" + (f", skip {clip_skip}" if clip_skip else "")
        name += "".join(f", {word}" for word in ("seen", "vectors") if word in inputs)
        return self.function(name, EncodeText(clip_skip, inputs))

    def expected(self, clip_skip: int = 0) -> Expected:
        """The program."""
        shapes, inputs = ((1, self.length, "int32"), (1, "int32")), ("ends",)
        return Expected(self._function(clip_skip, inputs if self.pools else ()), shapes if self.pools else shapes[:1])

    def chunks(self, text: str, words: Words | None = None) -> int:
        """How many chunks a text takes, at least one."""
        return len(in_chunks(self.tokens(text, words), self.room))

    def ends_word(self, token: int) -> bool:
        """Whether a token is the end of a word, or all of it."""
        return " " in self._tokenizer.decode([token, token])

    @property
    def room(self) -> int:
        """Tokens of a chunk, between its start and its end."""
        return self.length - 2

    def tokens(self, text: str, words: Words | None = None) -> list[Token]:
        """The tokens of a text, without start and end; RequestError if the encoder does not know one."""
        return plain_tokens(self.ids(text)) if words is None else words.tokens(self.ids(words.spaced(text)))

    def ids(self, text: str) -> list[int]:
        """The ids of a text in the vocabulary, without start and end; RequestError as for `tokens`."""
        ids = self._tokenizer.encode(self._tokenizer.expand(text))
        unknown = [index for index in (*ids[1:-1], ids[0], ids[-1]) if index >= self._vocab_size]
        if unknown:
            word = repr(self._tokenizer.decode(unknown[:1])) if unknown[0] in ids[1:-1] else "the start of every text"
            raise RequestError(
                f"the text encoder has {self._vocab_size} words, and {word} is number {unknown[0]} of the tokenizer, "
                "which is another model's or has words that the encoder was not given; open a folder where both fit, "
                "or give prompt_embeds"
            )
        return ids[1:-1]

    def chunked(self, text: str, chunks: int, words: Words | None = None) -> list[list[Token]]:
        """So many chunks of a text; what does not fit is cut off, with a warning."""
        tokens, tokenizer, room = self.tokens(text, words), self._tokenizer, self.room * chunks
        first = max(0, len(tokens) - room) if tokenizer.truncation_side == "left" else 0
        while first < len(tokens) and tokens[first].joined:
            first += 1
        parts = in_chunks(tokens[first:], self.room)
        cut = [*tokens[:first], *itertools.chain(*parts[chunks:])]
        if cut and self.reports:
            warnings.warn(
                f"the prompt has {len(tokens) + 2} tokens and the model reads {room + 2}; this part is not used: "
                f"{self._text_of(cut)!r}",
                stacklevel=2,
            )
        return [*parts[:chunks], *([] for _ in range(chunks - len(parts)))]

    def _text_of(self, tokens: Sequence[Token]) -> str:
        """Tokens as text, words of one's own as they are written."""
        groups = itertools.groupby(tokens, lambda token: token.vector is None)
        return " ".join(
            self._tokenizer.decode([token.id for token in group])
            if plain
            else " ".join(token.word for token in group if not token.joined)
            for plain, group in groups
        )

    def rows(self, text: str, chunks: int) -> list[np.ndarray]:
        """The ids of each chunk of a text, filled up: int32 (length,)."""
        return [self._row(chunk) for chunk in self.chunked(text, chunks)]

    def _row(self, chunk: Sequence[Token]) -> np.ndarray:
        start, *_, end = self._tokenizer.encode("")
        ids = [start, *(token.id for token in chunk), end]
        return pad_ids(ids, self.length, self._tokenizer.pad_id, self._tokenizer.padding_side)
