"""Folders of tokenizers against transformers: every layout that it has written gives the same ids and the same rows."""

from __future__ import annotations

import itertools
import json
import logging
import random
import warnings

import pytest
from tokenizers import pre_tokenizers

from kerasdiff.checkpoints.formats import tokenizer_folder
from kerasdiff.diffusion.text_stage import TextStage
from kerasdiff.errors import ModelError, RequestError
from kerasdiff.models.network_configs import TextEncoderConfig
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


# Less usual files, each of which transformers reads in its own way: what `write` writes, and a text.
CURIOUS = {
    "no settings": ({}, "a red circle"),
    "an empty added_tokens_decoder hides the other files": (
        {"config": {"added_tokens_decoder": {}}, "special": {"pad_token": "!"}, "added": {"<toy>": 514}},
        "a <toy>!",
    ),
    "words with spaces and in other cases": (
        {"added": {"Red House": 520, " toy": 521}},
        "a red house, a RED HOUSE toy",
    ),
    "the longest word": ({"added": {"<a>": 520, "<a><b>": 521}}, "<a><b><a> <b>"),
    "the last of two tokens with one word": (
        {"config": {"eos_token": "<x>", "unk_token": typed("<x>", single_word=True), "pad_token": "<x>"}},
        "a <x> red<x> circle",
    ),
    "lists of special tokens": (
        {
            "config": {"additional_special_tokens": ["<x>", typed("<y>", lstrip=True)]},
            "special": {"extra_special_tokens": [token("<z>")]},
        },
        "a <x> <y> <z> <Z> <X>",
    ),
    "named special tokens": (
        {"config": {"toy_token": "<x>", "extra_special_tokens": {"car_token": "<y>"}}, "special": {"dog_token": "<z>"}},
        "a <x> <y> <z>",
    ),
    "an added word that is a special token": ({"added": {"<Y>": 520}, "special": {"sep_token": "<Y>"}}, "a <Y> <y>"),
    "special tokens are split": (
        {"config": {"split_special_tokens": True, "additional_special_tokens": ["<x>", typed("<y>")]}},
        "a <x> <y> <|endoftext|> b",
    ),
    "special tokens are split, and an added word is one": (
        {
            "config": {
                "split_special_tokens": True,
                "sep_token": "<y>",
                "added_tokens_decoder": {"520": token("<x>"), "521": token("<y>")},
            }
        },
        "a <x> <y> b",
    ),
    "a padding token in upper case": ({"special": {"pad_token": token("[PAD]")}}, "a [PAD] [pad] circle"),
    "a vocabulary with gaps": ({"words": {**vocabulary(), "ci": 900}, "added": {"<toy>": 520}}, "ci <toy> circle"),
    "characters without a token": (
        {"words": {word: index for word, index in vocabulary().items() if word[0] != "x"}},
        "xyz",
    ),
    "merges without a first line, and Windows' line ends": ({"merges": "r e\r\nre d</w>\r\n"}, "red toy"),
    "older names": ({"config": {"max_len": 7}}, "a red circle on a toy"),
}


@pytest.mark.filterwarnings("ignore:the prompt has")
@pytest.mark.parametrize("what", CURIOUS)
def test_curious_files(tmp_path, what):
    files, text = CURIOUS[what]
    folder = write(tmp_path, **{**PLAIN, **files})
    ours, expected = tokenizer_folder.read(folder), theirs(folder)
    assert ours.vocabulary.get_vocab() == expected.get_vocab()
    assert ours.encode(text) == expected(text).input_ids
    assert_same(ours, expected, 0)
    tokenizer_folder.write(ours, tmp_path / "again", LENGTH)
    for again in (tokenizer_folder.read(tmp_path / "again").encode(text), theirs(tmp_path / "again")(text).input_ids):
        assert again == ours.encode(text)


def test_words_with_other_ids_than_stated_are_told(tmp_path, caplog):
    folder = write(tmp_path, **PLAIN, added={"<toy>": 700, "<car>": 600})
    assert tokenizer_folder.read(folder).encode("<toy>")[1] == theirs(folder)("<toy>").input_ids[1]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "2 added words have other ids than stated" in record.getMessage()
    assert "'<toy>' is 521, not 700" in record.getMessage()


# Files that are refused: what `write` writes, and what the message says.
DAMAGED = {
    "nothing": ({"words": None, "merges": None}, "it needs tokenizer.json, or vocab.json and merges.txt"),
    "no merges": ({"merges": None}, "it needs tokenizer.json, or vocab.json and merges.txt"),
    "no JSON": ({"whole": "x"}, "holds str, not a JSON object"),
    "a merge of three": ({"merges": "r e\na b c\n"}, r"merges\.txt: merge 2 is 'a b c'"),
    "a merge of nothing": ({"merges": "r e\n\nr e\n"}, r"merges\.txt: merge 2 is ''"),
    "a merge to no word": ({"merges": "q q\n"}, "`qq` out of vocabulary"),
    "two words with one id": ({"words": {**vocabulary(), "re": 5}}, "have the same id 5"),
    "an id below 0": ({"words": {**vocabulary(), "re": -1}}, "'re' has the id -1"),
    "an id that is text": ({"words": {**vocabulary(), "re": "7"}}, "'re' has the id '7'"),
    "an id of 2 to 40": ({"words": {**vocabulary(), "re": 2**40}}, "'re' has the id 1099511627776"),
    "two added words with one id": ({"added": {"<a>": 514, "<b>": 514}}, "'<a>' and '<b>' have the same id 514"),
    "an added word without an id": ({"added": {"<a>": None}}, "'<a>' has the id None"),
    "an added word with a name for an id": (
        {"config": {"added_tokens_decoder": {"x": token("<a>")}}},
        "'<a>' has the id 'x'",
    ),
    "an added word that is none": ({"config": {"added_tokens_decoder": {"514": 3}}}, "3 is no token"),
    "a token that is a number": ({"config": {"pad_token": 3}}, "pad_token: 3 is no token"),
    "a token with a text for a flag": ({"special": {"pad_token": token("!", lstrip="yes")}}, "true and false"),
    "special tokens that are no list": ({"config": {"extra_special_tokens": "<a>"}}, "is not a list of tokens"),
    "a length that is text": (
        {"config": {"model_max_length": "77"}},
        "model_max_length='77' is not of the",
    ),
    "a length of two": ({"config": {"model_max_length": 2}}, "leaves no place for a word"),
    "a side that is none": ({"config": {"padding_side": "top"}}, "padding_side='top' is neither 'left' nor 'right'"),
    "another kind of vocabulary": ({"whole": {"model": {"type": "Unigram", "vocab": []}}}, "of the kind 'Unigram'"),
    "no vocabulary": ({"whole": {"model": {"vocab": {}}}}, "has no vocabulary"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_files_are_refused(tmp_path, what):
    files, message = DAMAGED[what]
    folder = write(tmp_path, **{**PLAIN, **files})
    with pytest.raises(ModelError, match=message) as error:
        tokenizer_folder.read(folder)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match=r"there is no folder .*tokenizer; it needs tokenizer"):
        tokenizer_folder.read(tmp_path / "tokenizer")


@pytest.mark.parametrize("entry", [["transformers", "T5Tokenizer"], [None, None], "x", []])
def test_another_class_of_tokenizer_is_refused(tmp_path, entry):
    folder = write(tmp_path / "tokenizer", **PLAIN)
    (tmp_path / "model_index.json").write_text(json.dumps({"tokenizer": entry}))
    with pytest.raises(ModelError, match="only CLIPTokenizer is supported"):
        tokenizer_folder.read(folder)


def test_a_character_without_an_id_is_named(tmp_path):
    words = {word: index for word, index in vocabulary().items() if word not in ("x", "x</w>")}
    tokenizer = tokenizer_folder.read(write(tmp_path, words=words, merges=MERGES, config={"unk_token": "<none>"}))
    with pytest.raises(RequestError, match="cannot read 'a x': Unk token `<none>` not found"):
        tokenizer.encode("a x")
    assert tokenizer.beyond(len(vocabulary())) == []  # no text gives it


def test_words_that_the_text_encoder_does_not_know(tmp_path):
    tokenizer = tokenizer_folder.read(write(tmp_path, **PLAIN, added={"<toy>": 520, "<car>": 521}))
    assert tokenizer.beyond(521) == ["<car>"]
    assert tokenizer.beyond(522) == []
    rows = stage(tokenizer, vocab_size=520)
    assert rows.rows("a red circle", 1)[0][0] == 518
    with pytest.raises(RequestError, match="the text encoder has 520 words, and '<car>' is number 521"):
        rows.rows("a red <car>", 1)
