"""compel's syntax: the same pieces and the same embeddings as the package."""

from __future__ import annotations

import time
import warnings

import numpy as np
import pytest

from kerasdiff.errors import RequestError
from kerasdiff.prompts.compel_syntax import mixtures

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import compel
    from compel.prompt_parser import PromptParser

LONG = "a red circle above a blue square. a green star, small " * 6
TEXTS = [
    "a red circle",
    "a red++ circle on blue-",
    "a (small red)1.3 circle- (on white)0.4 and (on black)-- x",
    "((red)+ circle)+ on (a (blue)0.5 square)1.2 and (red)0 (green)-1 square",
    '("a red+ circle", "a (blue)0.3 square").blend(0.5, -0.2, no_normalize)',
    f'("a red circle", "{LONG}").and(1, 0.5)',
    f'("{LONG}", "a red- circle").blend(1, 0.8)',
    f"a circle ({LONG})0.6 and red--",
    "red " * 100 + "(blue)-",
    "x" * 80 + "-",
]
# What it makes of a text: pieces with weights.
PIECES = {
    "": [("", 1.0)],
    "a cat++ dog-": [("a", 1.0), ("cat", 1.1**2), ("dog", 0.9)],
    "a (b)": [("a b", 1.0)],
    "(a, b.c)+": [("a , b . c", 1.1)],
    "a.b++ well-known C++ a+b": [("a.b++ well-known", 1.0), ("C", 1.1**2), ("a+b", 1.0)],
    r"a \(b\) \"c\"": [('a (b) "c"', 1.0)],
    '"a (b)+"-': [("a", 0.9), ("b", 1.1 * 0.9)],
    "(a + b)1.2 (a=b)+": [("(a + b)1.2 (a=b)+", 1.0)],
    "(a)-0.5": [("a", 0.9), ("0.5", 1.0)],
    "(a)1.": [("a", 1.0)],
    "(a) +": [("a +", 1.0)],
    "a.attend(++) (b).attend(1.5)": [("a", 1.1**2), ("b", 1.5)],
    "5+ -5+ ++a --": [("5 -5", 1.1), ("++a --", 1.0)],
    'a "b (c': [('a "b (c', 1.0)],
    "a,b+": [("a,", 1.0), ("b", 1.1)],
}
REFUSED = {
    "cat.swap(dog)": "write the new words instead",
    "withLora(film, 0.5) cat": "name it in loras",
    '("a", "b").blend(1, 0.8) c': "nothing may follow .blend(), and 'c' does",
    '("a", "b").and() c': "nothing may follow .and()",
    'x ("a", "b").blend(1, 1)': ".blend() must be all of it",
    '("a", b c).blend(1, 1)': ".blend() must be all of it",
    '("a", "b").blend(1)': ".blend() has 1 weights for 2 texts",
    '("a", "b").blend(x, 1)': "a weight must be a number, and 'x' is none",
    '("a", "b").blend(1, -1)': "have the sum 0",
    "(" * 60 + "a": "nested more than 50 deep",
}
HOSTILE = [
    *('"' * 10000, '"(a)+"' * 2000, "a+ " * 2000, "a" + "+" * 10000, "(a)9" + "9" * 1000),
    *("\\" * 10000, "(a " * 49, '"(' * 3000),
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_embeddings_are_those_of_compel(encoder, text):
    package = compel.Compel(encoder.tokenizer, encoder.network, truncate_long_prompts=False)
    theirs = package(text)[0].numpy()
    ours = encoder.ours(text, "compel")
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-5 * max(1, np.abs(theirs).max())


@pytest.mark.parametrize("text", PIECES)
def test_pieces(text):
    (mixture,) = mixtures(text)
    assert [tuple(piece) for piece in mixture.texts[0]] == [(words, pytest.approx(one)) for words, one in PIECES[text]]


def test_pieces_are_those_of_compel():
    parser = PromptParser()
    for text, pieces in PIECES.items():
        (prompt,) = parser.parse_conjunction(text).prompts
        assert [one.text for one in prompt.children] == [words for words, _ in pieces]
        assert [one.weight for one in prompt.children] == pytest.approx([weight for _, weight in pieces])


@pytest.mark.parametrize("text", REFUSED)
def test_what_cannot_be_read_is_one_line(text):
    with pytest.raises(RequestError, match="cannot be read with prompt_syntax='compel'") as caught:
        mixtures(text)
    assert REFUSED[text] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_take_no_time(text):
    started = time.process_time()
    (mixture,) = mixtures(text)
    assert all(abs(piece.weight) <= 1000 for piece in mixture.texts[0])
    assert time.process_time() - started < 2
