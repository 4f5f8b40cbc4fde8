"""CLIP's tokenizer against transformers' and KerasCV's, on text of every kind."""

from __future__ import annotations

import random
import warnings

import pytest
from keras_cv.src.models.stable_diffusion.clip_tokenizer import SimpleTokenizer

from kerasdiff.checkpoints.formats import tokenizer_folder
from kerasdiff.models.tokenizer import CLIP_MERGES, Tokenizer, pad_ids

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers

CURIOUS = [
    "",
    " ",
    "a photograph of an astronaut riding a horse",
    "It's a   DOG's\tlife,\n isn't it?",
    "naïve café 🎈🎉 日本語 русский العربية",
    "1234 5,6 7.8%",
    "&amp; &lt;b&gt; html",
    "\x00\x01\x7f control",
    "é e\u0301 ﬁ ½ ǅ İstanbul ß",
    "<|endoftext|> and <|startoftext|> inside",
    "a" * 300,
    "word " * 10_000,
]


@pytest.fixture(scope="module")
def ours():
    return Tokenizer.clip()


@pytest.fixture(scope="module")
def transformers_tokenizer(ours, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tokenizer_folder.write(ours, folder, 77)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))


def random_texts(count=300):
    rng = random.Random(0)
    ranges = ((32, 127), (32, 127), (160, 0x3000), (0x1F300, 0x1F700))
    return ["".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(30)) for _ in range(count)]


def test_the_published_ids(ours):
    ids = ours.encode("a caterpillar smoking a hookah while sitting on a mushroom")
    assert ids[:5] == [49406, 320, 27111, 9038, 320]
    assert (ours.start_id, ours.end_id, ours.vocab_size) == (49406, 49407, 49408)


def test_every_text_has_transformers_ids(ours, transformers_tokenizer):
    for text in (*CURIOUS, *random_texts()):
        assert ours.encode(text) == transformers_tokenizer(text).input_ids, text[:60]


def test_plain_prompts_have_keras_cvs_ids(ours):
    theirs = SimpleTokenizer(str(CLIP_MERGES))
    rng = random.Random(1)
    prompt = "a red Circle above, the blue-green square's 2nd photo! (8k) trending on artstation: it's"
    words = prompt.split()
    for _ in range(200):
        text = " ".join(rng.choices(words, k=rng.randrange(1, 40)))
        assert ours.encode(text) == theirs.encode(text), text
    # Where they differ, ours goes with transformers: KerasCV resolves HTML entities first.
    assert theirs.encode("&amp;") == ours.encode("&")


def test_text_comes_back(ours):
    text = "a red circle above 2 blue squares"
    assert ours.decode(ours.encode(text)) == text


def test_padding_is_the_models(tmp_path, ours):
    assert pad_ids(ours.encode("a"), 6, ours.pad_id).tolist() == [49406, 320, 49407, 49407, 49407, 49407]
    v2 = Tokenizer.clip("!")
    assert pad_ids(v2.encode("a"), 6, v2.pad_id).tolist() == [49406, 320, 49407, 0, 0, 0]
    tokenizer_folder.write(v2, tmp_path / "folder", 77)
    for again in (tokenizer_folder.read(tmp_path / "folder"), Tokenizer.from_json(v2.to_json(), "here")):
        assert again.ends == (49406, 49407, 0)
        # What fills rows up is found in a text before anything else is, as transformers does it.
        assert again.encode("a cat!") == v2.encode("a cat!") == [49406, 320, 2368, 0, 49407]
