"""Text to token ids, with the `tokenizers` library and CLIP's conventions."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from kerasdiff.errors import ModelError

START, END = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Encodes(Protocol):
    """Anything with KerasCV's tokenizer interface: text to ids with start and end."""

    def encode(self, text: str) -> list[int]: ...


class Tokenizer:
    """Prompts to padded rows of ids.

    `start_id` and `end_id` override the vocabulary's own, for a vocabulary that stands in for
    another one. Rows are filled up with the end token, as Stable Diffusion does.

    Example:
        ```python
        tokenizer = Tokenizer.load("kerasdiff/presets/tiny/tokenizer.json")
        tokenizer.encode("a red circle")  # [start, ..., end]
        ```
    """

    def __init__(
        self, vocabulary: tokenizers.Tokenizer, start_id: int | None = None, end_id: int | None = None
    ) -> None:
        start_id = vocabulary.token_to_id(START) if start_id is None else start_id
        end_id = vocabulary.token_to_id(END) if end_id is None else end_id
        if start_id is None or end_id is None:
            raise ModelError(f"the tokenizer's vocabulary lacks {START} or {END}")
        self._vocabulary, self.start_id, self.end_id = vocabulary, start_id, end_id

    @classmethod
    def load(cls, path: str | pathlib.Path, start_id: int | None = None, end_id: int | None = None) -> Tokenizer:
        """Reads a `tokenizer.json` of the `tokenizers` library."""
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)), start_id, end_id)
        except Exception as error:
            raise ModelError(f"{path} is not a tokenizer file: {error}") from None

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self._vocabulary.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """The ids of a text between the start and the end token, however long."""
        return [self.start_id, *self._vocabulary.encode(text, add_special_tokens=False).ids, self.end_id]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, without start and end tokens."""
        special = {self.start_id, self.end_id}
        return self._vocabulary.decode([int(i) for i in ids if i not in special]).replace("</w>", " ").strip()


def pad_ids(ids: Sequence[int], length: int) -> np.ndarray:
    """Ids filled up with their last one (the end token), or cut so that it stays last: int32 (length,)."""
    kept = list(ids) if len(ids) <= length else [*ids[: length - 1], ids[-1]]
    return np.array(kept + [ids[-1]] * (length - len(kept)), "int32")


def train_vocabulary(texts: Sequence[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE in CLIP's manner: lower case, words end in `</w>`, any text can be said.

    Every byte is in the vocabulary twice, inside and at the end of a word, so that no word is
    unknown; the rest of `vocab_size` are merges learned from `texts` and the two special tokens.
    """

    def dressed(model: models.BPE) -> tokenizers.Tokenizer:
        tokenizer = tokenizers.Tokenizer(model)
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = alphabet + [character + "</w>" for character in alphabet]
    draft = dressed(models.BPE(end_of_word_suffix="</w>"))
    draft.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, end_of_word_suffix="</w>", show_progress=False)
    )
    merges = _merges(draft)[: vocab_size - len(base) - 2]
    words = [*base, *("".join(pair) for pair in merges), START, END]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    tokenizer = dressed(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>"))
    tokenizer.add_special_tokens([START, END])
    return tokenizer


def _merges(tokenizer: tokenizers.Tokenizer) -> list[tuple[str, str]]:
    pairs = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in pairs]
