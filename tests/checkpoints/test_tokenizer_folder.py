"""Folders of tokenizers against transformers: every layout that it has written gives the same ids and the same rows."""

from __future__ import annotations

import itertools
import json
import random
import warnings

import pytest
from tokenizers import pre_tokenizers

from kerasdiff.checkpoints.formats import tokenizer_folder
from kerasdiff.diffusion.text_stage import TextStage
from kerasdiff.models.config import TextEncoderConfig
from kerasdiff.models.tokenizer import Tokenizer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers.loaders import TextualInversionLoaderMixin
    from transformers import CLIPTokenizer

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
PAIRS = [("r", "e"), ("re", "d</w>"), ("c", "i"), ("t", "o"), ("to", "y</w>"), ("!", "!</w>")]
WORDS = [*ALPHABET, *(one + "</w>" for one in ALPHABET), *map("".join, PAIRS)]
# As many positions as the text encoder has: few, so that many texts are too long for them.
LENGTH = 24
COUNT = 45


def vocabulary(start="<|startoftext|>", end="<|endoftext|>"):
    return {word: index for index, word in enumerate([*WORDS, start, end])}


def token(content, **flags):
    return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False, **flags}


def typed(content, **flags):
    return {"__type": "AddedToken", **token(content, **flags)}


def write(folder, *, words=None, merges=None, config=None, special=None, added=None, whole=None):
    """The files of a folder; what is None is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"merges.txt": merges}
    values = {
        "vocab.json": words,
        "tokenizer_config.json": config,
        "special_tokens_map.json": special,
        "added_tokens.json": added,
        "tokenizer.json": whole,
    }
    texts |= {name: None if value is None else json.dumps(value) for name, value in values.items()}
    for name, text in texts.items():
        if text is not None:
            (folder / name).write_text(text, "utf-8")
    return folder


MERGES = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in PAIRS)
PLAIN = {"words": vocabulary(), "merges": MERGES}
# How special tokens are stated: (in tokenizer_config.json, in special_tokens_map.json), of names and words.
SPECIAL = {
    "strings": lambda named: (named, None),
    "objects": lambda named: ({key: typed(word) for key, word in named.items()}, None),
    "map": lambda named: ({"pad_token": "<|endoftext|>"}, named),
    "map of objects": lambda named: (
        {key: typed(word, lstrip=True) for key, word in named.items()},
        {key: token(word, normalized=key != "pad_token", rstrip=key == "pad_token") for key, word in named.items()},
    ),
}
# Where added words are stated.
ADDED = ("nowhere", "added_tokens.json", "added_tokens_decoder", "both")
FILES = ("two files", "tokenizer.json", "all")
LAYOUTS = list(itertools.product(FILES, SPECIAL, ADDED))


def layout(folder, files, special, added, number):
    """A folder of a layout; what the three axes leave open follows from its number."""
    start, end = (("<|startoftext|>", "<|endoftext|>"), ("<s>", "</s>"))[number % 5 == 4]
    named = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": ("!", end, "<pad>")[number % 3]}
    words = vocabulary(start, end)
    config, mapped = SPECIAL[special](named)
    config |= ({"model_max_length": 77}, {"model_max_length": 12}, {}, {"model_max_length": 1e30})[number % 4]
    config |= {"padding_side": "left"} if number % 7 == 3 else {}
    config |= {"truncation_side": "left"} if number % 6 == 4 else {}
    config |= {"additional_special_tokens": ["<big>"]} if number % 8 == 5 else {}
    new = ["<toy>", "<toy>_1", "<Toy-Car>", "red house"]
    stated = {word: len(words) + index for index, word in enumerate(new)}
    flags = ({}, {"single_word": True}, {"lstrip": True, "rstrip": True}, {"normalized": False})
    if added in ("added_tokens_decoder", "both"):
        decoder = {str(words[start]): token(start, special=True, normalized=False), "0": token("!", special=True)}
        decoder |= {
            str(index): token(word, special=False, **flags[(number + index) % 4]) for word, index in stated.items()
        }
        config["added_tokens_decoder"] = decoder
    made = {"words": words, "merges": MERGES, "config": {**config, "do_lower_case": True}, "special": mapped}
    if added in ("added_tokens.json", "both"):
        made["added"] = stated
    if files == "two files":
        return write(folder, **made)
    # As transformers 5 writes it; without its settings, or with what it was made from.
    source = write(folder / "source", **made)
    CLIPTokenizer.from_pretrained(source).save_pretrained(folder)
    if files == "all":
        write(folder, **made)
    return folder


PIECES = [
    *("a red circle", "toy", "RED", "Red,", "it's", "we'll", "don't", "12", "3.5", "x" * 9, "ci", "red house"),
    *("red houses", "<toy>", "<toy>_1", "a<toy>b", "<TOY>", " <toy-car> ", "<Toy-Car>", "<big>", "<pad>", "!", "!!"),
    *("<|startoftext|>", "<|endoftext|>", "<|ENDOFTEXT|>", "<s>", "</s>", "</w>", "red</w>", "toy!!"),
    *("é", "e\u0301", "naïve", "İ", "ß", "ﬁ", "½", "日本語", "русский", "العربية", "🎈", "👩\u200d🚀", "\ufe0f"),
    *(" ", "  ", "\t", "\n", "\u00a0", "\u3000", "\u2028", "\x00", "\x07", "\x7f", "&amp;", "&lt;b&gt;", "'"),
    *("\u2019s", "--"),
]


def texts(number, count=COUNT):
    """Random texts, from empty ones to many times too long ones."""
    rng = random.Random(number)
    for _ in range(count):
        pieces = rng.choices(PIECES, k=rng.choice((0, 1, 2, 3, 5, 8, 40)))
        pieces += [chr(rng.choice((rng.randrange(32, 0x300), rng.randrange(0xE000, 0x1FA00)))) for _ in range(2)]
        rng.shuffle(pieces)
        yield rng.choice(("", " ")).join(pieces)


def stage(tokenizer, vocab_size=2000):
    return TextStage(None, False, None, tokenizer, TextEncoderConfig(vocab_size=vocab_size, max_length=LENGTH))


def theirs(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return CLIPTokenizer.from_pretrained(folder)


def assert_same(ours, expected, number, count=COUNT):
    length, rows = min(LENGTH, expected.model_max_length), stage(ours)
    assert rows.length == length
    for text in texts(number, count):
        assert ours.encode(text) == expected(text).input_ids, text
        expanded = TextualInversionLoaderMixin()._maybe_convert_prompt(text, expected)
        assert ours.expand(text) == expanded
        row = expected([expanded], padding="max_length", max_length=length, truncation=True).input_ids[0]
        assert rows.rows(text, 1)[0].tolist() == row, text


def test_there_are_enough():
    assert len(LAYOUTS) >= 30
    assert len(LAYOUTS) * COUNT >= 2000


@pytest.mark.filterwarnings("ignore:the prompt has")
@pytest.mark.parametrize("number", range(len(LAYOUTS)), ids=lambda number: ", ".join(LAYOUTS[number]))
def test_a_layout_gives_transformers_ids_and_rows(tmp_path, number):
    folder = layout(tmp_path / "folder", *LAYOUTS[number], number)
    ours, expected = tokenizer_folder.read(folder), theirs(folder)
    assert ours.vocabulary.get_vocab() == expected.get_vocab()
    assert ours.ends == (expected.bos_token_id, expected.eos_token_id, expected.pad_token_id)
    assert_same(ours, expected, number)
    # What is written gives the same again, here and there.
    tokenizer_folder.write(ours, tmp_path / "again", LENGTH)
    for again in (tokenizer_folder.read(tmp_path / "again"), Tokenizer.from_json(ours.to_json(), folder)):
        assert again.vocabulary.get_vocab() == expected.get_vocab()
        assert again.ends == ours.ends
        assert_same(again, expected, number, 5)
    assert theirs(tmp_path / "again")(list(texts(number))).input_ids == expected(list(texts(number))).input_ids
