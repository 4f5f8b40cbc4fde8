"""Text to token ids, with the `tokenizers` library and CLIP's conventions."""

from __future__ import annotations

import functools
import gzip
import json
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from kerasdiff.errors import ModelError

START, END = "<|startoftext|>", "<|endoftext|>"
CLIP_MERGES = pathlib.Path(__file__).parents[1] / "presets" / "clip" / "merges.txt.gz"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Encodes(Protocol):
    """Anything with KerasCV's tokenizer interface: text to ids with start and end, and ids to text."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Any) -> str: ...


class Tokenizer:
    """Prompts to ids; rows are filled up with `pad_id`, by default the end token, as in Stable Diffusion 1.x."""

    def __init__(self, vocabulary: tokenizers.Tokenizer, pad_id: int | None = None) -> None:
        start_id, end_id = vocabulary.token_to_id(START), vocabulary.token_to_id(END)
        if start_id is None or end_id is None:
            raise ModelError(f"the tokenizer's vocabulary lacks {START} or {END}")
        self._vocabulary, self.start_id, self.end_id = vocabulary, start_id, end_id
        self.pad_id = end_id if pad_id is None else pad_id

    @classmethod
    def load(cls, path: str | pathlib.Path) -> Tokenizer:
        """Reads a `tokenizer.json` of the `tokenizers` library; the padding that it states is kept."""
        try:
            vocabulary = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise ModelError(f"{path} is not a tokenizer file: {error}") from None
        pad_id = (vocabulary.padding or {}).get("pad_id")
        vocabulary.no_padding()
        vocabulary.no_truncation()
        return cls(vocabulary, pad_id)

    @classmethod
    def clip(cls, pad_token: str | None = None) -> Tokenizer:
        """CLIP's own tokenizer, of every published Stable Diffusion; 2.x pads with "!"."""
        vocabulary = _clip_vocabulary()
        return cls(vocabulary, pad_id=None if pad_token is None else vocabulary.token_to_id(pad_token))

    @classmethod
    def load_clip(cls, folder: pathlib.Path) -> Tokenizer:
        """Reads the folder of a CLIP tokenizer: `vocab.json` and `merges.txt`, or `tokenizer.json`."""
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            try:
                vocabulary = models.BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
                tokenizer = _with_clip_rules(models.BPE(*vocabulary, unk_token=END, end_of_word_suffix="</w>"))
            except Exception as error:
                raise ModelError(f"{folder} has no readable tokenizer: {' '.join(str(error).split())}") from None
            tokenizer.add_special_tokens([START, END])
        elif (folder / "tokenizer.json").is_file():
            tokenizer = cls.load(folder / "tokenizer.json")._vocabulary
        else:
            raise ModelError(f"{folder} has neither vocab.json and merges.txt nor tokenizer.json")
        settings = folder / "tokenizer_config.json"
        pad = _pad_token(settings) if settings.is_file() else None
        return cls(tokenizer, pad_id=None if pad is None else tokenizer.token_to_id(pad))

    def save(self, path: pathlib.Path) -> None:
        """Writes a `tokenizer.json`, with the padding that belongs to it."""
        vocabulary = tokenizers.Tokenizer.from_str(self._vocabulary.to_str())
        vocabulary.enable_padding(pad_id=self.pad_id, pad_token=vocabulary.id_to_token(self.pad_id))
        vocabulary.save(str(path))

    def save_clip(self, folder: pathlib.Path) -> None:
        """Writes the folder that `load_clip` and transformers read."""
        folder.mkdir(parents=True, exist_ok=True)
        model = json.loads(self._vocabulary.to_str())["model"]
        special = {word: self._vocabulary.token_to_id(word) for word in (START, END)}
        (folder / "vocab.json").write_text(json.dumps({**model["vocab"], **special}, ensure_ascii=False), "utf-8")
        merges = "\n".join(" ".join(pair) for pair in _merges(self._vocabulary))
        (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", "utf-8")
        settings = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": 77,
            "bos_token": START,
            "eos_token": END,
            "unk_token": END,
            "pad_token": self._vocabulary.id_to_token(self.pad_id),
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")

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


@functools.cache
def _clip_vocabulary() -> tokenizers.Tokenizer:
    text = gzip.decompress(CLIP_MERGES.read_bytes()).decode()
    pairs = (line.partition(" ") for line in text.splitlines()[1:])
    merges = [(left, right) for left, _, right in pairs]
    # The bytes that print come first, in their order, then the others; each stands for a character.
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    characters = [*map(chr, printed), *(chr(256 + index) for index in range(256 - len(printed)))]
    words = [*characters, *(f"{one}</w>" for one in characters), *map("".join, merges), START, END]
    ids = {word: index for index, word in enumerate(words)}
    tokenizer = _with_clip_rules(models.BPE(ids, merges, unk_token=END, end_of_word_suffix="</w>"))
    tokenizer.add_special_tokens([START, END])
    return tokenizer


def _pad_token(path: pathlib.Path) -> str | None:
    try:
        pad = json.loads(path.read_text("utf-8")).get("pad_token")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    return pad.get("content") if isinstance(pad, dict) else pad


def pad_ids(ids: Sequence[int], length: int, pad_id: int | None = None) -> np.ndarray:
    """int32 (length,): ids filled up with `pad_id` (None: their last one), or cut so that the last one stays."""
    kept = list(ids) if len(ids) <= length else [*ids[: length - 1], ids[-1]]
    return np.array(kept + [ids[-1] if pad_id is None else pad_id] * (length - len(kept)), "int32")


def _with_clip_rules(model: models.BPE) -> tokenizers.Tokenizer:
    """A vocabulary with CLIP's normalisation and splitting into words."""
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


def train_vocabulary(texts: Sequence[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE like CLIP's: lower case, words end in `</w>`, any text can be encoded.

    Every byte is in the vocabulary twice, inside and at the end of a word, so that no word is
    unknown; the rest of `vocab_size` are merges learned from `texts` and the two special tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    base = alphabet + [character + "</w>" for character in alphabet]
    draft = _with_clip_rules(models.BPE(end_of_word_suffix="</w>"))
    draft.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, end_of_word_suffix="</w>", show_progress=False)
    )
    merges = _merges(draft)[: vocab_size - len(base) - 2]
    words = [*base, *("".join(pair) for pair in merges), START, END]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    tokenizer = _with_clip_rules(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>"))
    tokenizer.add_special_tokens([START, END])
    return tokenizer


def _merges(tokenizer: tokenizers.Tokenizer) -> list[tuple[str, str]]:
    pairs = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in pairs]
