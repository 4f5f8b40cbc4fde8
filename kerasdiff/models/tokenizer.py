"""Text to token ids, with the `tokenizers` library and CLIP's conventions."""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from kerasdiff import validation
from kerasdiff.errors import ModelError, RequestError

START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_MERGES = pathlib.Path(__file__).parents[1] / "presets" / "clip" / "merges.txt.gz"
# Longer than any text encoder reads.
UNLIMITED = 2**31 - 1
_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Encodes(Protocol):
    """Anything with KerasCV's tokenizer interface, and the rules by which its ids become a row."""

    pad_id: int | None = None  # None: a row is filled up with its last id
    max_length: int = UNLIMITED  # of a row, if the text encoder reads as many
    padding_side: str = "right"
    truncation_side: str = "right"

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Any) -> str: ...

    def expand(self, text: str) -> str:
        """A prompt with each word of several vectors followed by its other parts."""
        return text


class Tokenizer(Encodes):
    """Prompts to ids; rows are filled up with `pad_id`, by default the end token, as in Stable Diffusion 1.x.

    Words that were added to the vocabulary are found in a text before anything else is.
    """

    pad_id: int

    def __init__(
        self,
        vocabulary: tokenizers.Tokenizer,
        *,
        start: str = START,
        end: str = END,
        pad_id: int | None = None,
        max_length: int = UNLIMITED,
        padding_side: str = "right",
        truncation_side: str = "right",
    ) -> None:
        start_id, end_id = vocabulary.token_to_id(start), vocabulary.token_to_id(end)
        if start_id is None or end_id is None:
            raise ModelError(f"the tokenizer's vocabulary lacks {start} or {end}")
        self.vocabulary, self.start_id, self.end_id = vocabulary, start_id, end_id
        self.pad_id, self.max_length = end_id if pad_id is None else pad_id, max_length
        self.padding_side, self.truncation_side = padding_side, truncation_side

    @classmethod
    def load(cls, path: str | pathlib.Path) -> Tokenizer:
        """Reads a `tokenizer.json` of `to_json`."""
        try:
            text = pathlib.Path(path).read_text("utf-8")
        except (OSError, ValueError) as error:
            raise ModelError(f"{path} is not a tokenizer file: {error}") from None
        return cls.from_json(text, path)

    @classmethod
    def from_json(cls, text: str, where: str | pathlib.Path) -> Tokenizer:
        """Reads what `to_json` gives; `where` it stands is for messages."""
        try:
            vocabulary = tokenizers.Tokenizer.from_str(text)
        except Exception as error:
            raise ModelError(f"{where} is not a tokenizer file: {' '.join(str(error).split())}") from None
        padding, truncation = vocabulary.padding or {}, vocabulary.truncation or {}
        vocabulary.no_padding()
        vocabulary.no_truncation()
        ends = {"cls": (START, None), "sep": (END, None)}  # without a post-processor
        if isinstance(vocabulary.post_processor, processors.RobertaProcessing):
            ends = json.loads(vocabulary.post_processor.__getstate__())
        return cls(
            vocabulary,
            start=ends["cls"][0],
            end=ends["sep"][0],
            pad_id=padding.get("pad_id"),
            max_length=truncation.get("max_length", UNLIMITED),
            padding_side=padding.get("direction", "right"),
            truncation_side=truncation.get("direction", "right"),
        )

    @classmethod
    def clip(cls, pad_token: str = END) -> Tokenizer:
        """CLIP's own tokenizer, of every published Stable Diffusion; 2.x pads with "!"."""
        vocabulary = _clip_vocabulary(pad_token)
        return cls(vocabulary, pad_id=vocabulary.token_to_id(pad_token))

    def to_json(self) -> str:
        """A `tokenizer.json` of the `tokenizers` library, with how rows are made."""
        vocabulary = tokenizers.Tokenizer.from_str(self.vocabulary.to_str())
        start, end, pad = map(self.word, (self.start_id, self.end_id, self.pad_id))
        vocabulary.enable_padding(direction=self.padding_side, pad_id=self.pad_id, pad_token=pad)
        vocabulary.enable_truncation(self.max_length, direction=self.truncation_side)
        vocabulary.post_processor = processors.RobertaProcessing(
            (end, self.end_id), (start, self.start_id), trim_offsets=False, add_prefix_space=False
        )
        return vocabulary.to_str(pretty=True)

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        return self.vocabulary.get_vocab_size()

    @property
    def ends(self) -> tuple[int, int, int]:
        """The ids at the start of a row, at the end of its text, and behind it."""
        return self.start_id, self.end_id, self.pad_id

    def word(self, index: int) -> str:
        """The word of an id, as it is written."""
        # The vocabulary itself gives an added word in lower case.
        added = self.vocabulary.get_added_tokens_decoder().get(index)
        return (self.vocabulary.id_to_token(index) or "") if added is None else added.content

    def beyond(self, count: int) -> list[str]:
        """The words that are not among the first `count`, in order; an unknown token that no text gives is left out."""
        unknown = self.vocabulary.model.unk_token
        found = [(index, word) for word, index in self.vocabulary.get_vocab().items() if index >= count]
        return [word for index, word in sorted(found) if word != unknown or index in self.ends]

    def encode(self, text: str) -> list[int]:
        """The ids of a text between the start and the end token, however long."""
        try:
            ids = self.vocabulary.encode(text, add_special_tokens=False).ids
        except Exception as error:  # a character without an id, in a vocabulary without an unknown token
            raise RequestError(f"the tokenizer cannot read {validation.shown(text)}: {error}") from None
        return [self.start_id, *ids, self.end_id]

    def expand(self, text: str) -> str:
        """A prompt with "word word_1 word_2" for each "word" if these were added, as in diffusers."""
        added = {token.content for token in self.vocabulary.get_added_tokens_decoder().values()}
        for word in dict.fromkeys(self.vocabulary.encode(text, add_special_tokens=False).tokens):
            if f"{word}_1" in added and word in added:
                parts = itertools.takewhile(added.__contains__, (f"{word}_{index}" for index in itertools.count(1)))
                text = text.replace(word, " ".join([word, *parts]))
        return text

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some ids, without start and end tokens."""
        special = {self.start_id, self.end_id}
        return self.vocabulary.decode([int(i) for i in ids if i not in special]).replace("</w>", " ").strip()


@functools.cache
def _clip_vocabulary(pad_token: str) -> tokenizers.Tokenizer:
    text = gzip.decompress(CLIP_MERGES.read_bytes()).decode()
    pairs = (line.partition(" ") for line in text.splitlines()[1:])
    merges = [(left, right) for left, _, right in pairs]
    # The bytes that print come first, in their order, then the others; each stands for a character.
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    characters = [*map(chr, printed), *(chr(256 + index) for index in range(256 - len(printed)))]
    words = [*characters, *(f"{one}</w>" for one in characters), *map("".join, merges), START, END]
    ids = {word: index for index, word in enumerate(words)}
    tokenizer = with_clip_rules(models.BPE(ids, merges, unk_token=END, end_of_word_suffix="</w>"))
    tokenizer.add_special_tokens([START, END, pad_token])
    return tokenizer


def pad_ids(ids: Sequence[int], length: int, pad_id: int | None = None, side: str = "right") -> np.ndarray:
    """int32 (length,): ids filled up with `pad_id` (None: their last one), or cut so that the last one stays."""
    kept = list(ids) if len(ids) <= length else [*ids[: length - 1], ids[-1]]
    filling = [ids[-1] if pad_id is None else pad_id] * (length - len(kept))
    return np.array(kept + filling if side == "right" else filling + kept, "int32")


def with_clip_rules(model: models.BPE) -> tokenizers.Tokenizer:
    """A vocabulary with CLIP's normalisation and splitting into words, as transformers has them."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def train_vocabulary(texts: Sequence[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE like CLIP's: lower case, words end in `</w>`, any text can be encoded.

    Every byte is in the vocabulary twice, inside and at the end of a word, so that no word is
    unknown; the rest of `vocab_size` are merges learned from `texts` and the two special tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = alphabet + [character + "</w>" for character in alphabet]
    draft = with_clip_rules(models.BPE(end_of_word_suffix="</w>"))
    draft.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, end_of_word_suffix="</w>", show_progress=False)
    )
    merges = _merges(draft)[: vocab_size - len(base) - 2]
    words = [*base, *("".join(pair) for pair in merges), START, END]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    tokenizer = with_clip_rules(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>"))
    tokenizer.add_special_tokens([START, END])
    return tokenizer


def _merges(tokenizer: tokenizers.Tokenizer) -> list[tuple[str, str]]:
    pairs = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in pairs]
