"""Signs that other programs read in prompts: each is named once, and ordinary texts are left alone."""

from __future__ import annotations

import re
import time
import warnings

import pytest

from kerasdiff.errors import RequestError
from kerasdiff.models.config import TINY
from kerasdiff.prompt_syntax import literal_signs
from kerasdiff.request import make_request

# What a prompt holds -> what is said of it.
SIGNS = {
    "a (red:1.2) circle": "'(red:1.2)' sets no weight",
    "a (red :  1.25 ) circle": "sets no weight",
    "(masterpiece:2)": "'(masterpiece:2)' sets no weight",
    "(blurry:-1), (dark:.5)": "sets no weight",
    "(a (red) circle:1.1)": "sets no weight",
    "(8k, 2077:1.3)": "sets no weight",
    "((red)) circle": "'((red))' sets no weight",
    "(((red))) circle": "sets no weight",
    "[[dark]] sky": "'[[dark]]' sets no weight",
    "a (big cat)1.3 and a (dog)++": "'(big cat)1.3' sets no weight",
    r"saber \(character\)": r"sets no weight",
    "a cat <lora:film_grain-v1:0.8>": "'<lora:film_grain-v1:0.8>' loads no file",
    "<LyCO:x>": "loads no file",
    "<hypernet:anime:1>": "loads no file",
    "a cat, embedding:EasyNegative": "'embedding:EasyNegative' loads no file",
    "a [cat:dog:0.5] here": "'[cat:dog:0.5]' changes no step",
    "[::10]": "changes no step",
    "a cat [in the snow:12]": "changes no step",
    "a [cat|dog]": "'[cat|dog]' chooses nothing",
    "a {red|blue|green} circle": "'{red|blue|green}' chooses nothing",
    "a __colour__ circle": "'__colour__' chooses nothing",
    "a red circle BREAK a blue square": "'BREAK' begins no new part",
    "a red circle,\nBREAK\na blue square": "'BREAK' begins no new part",
    "a red circle AND a blue square": "'AND' joins no prompts",
    '("a red circle", "a blue square").blend(1, 0.8)': "'.blend(1, 0.8)' joins no prompts (prompt_syntax='compel'",
}
# What no syntax reads -> what to do instead.
NEVER_READ = {
    "<lora:x:0.8>": "lora_folder is where such files are looked for",
    "<hypernet:x:1>": "leave it out",
    "embedding:EasyNegative": "give the file in embeddings",
    "a {red|blue} circle": "give a list of prompts",
    "a __colour__ circle": "give a list of prompts",
}
PLAIN = [
    "",
    "a cat (sitting)",
    "a cat (sitting on a mat), by a window",
    "a [logo] on a {box}",
    "a poster (16:9)",
    "(aspect ratio 16:9), (Genesis 1:3), (12:30)",
    "a photo of 1980 (year:1980)",
    "note: a cat (3) and a dog (4)",
    "f(x) = (x + 1)(x - 1)",
    "C++ and a+b",
    "<b>bold</b> &lt;3 <toy> <my-style>",
    "a cat :) and a dog :( ((",
    "BLACK AND WHITE",
    "a shop called BARNES AND NOBLE",
    "a sign that says BREAK",
    "BREAK",
    "TAKE A BREAK NOW",
    "breakfast and BREAKFAST",
    "salt and pepper",
    "a|b, a || b",
    "snake_case and _this_",
    "time 10:30, ratio 4:3",
    "[4:3] and [1]",
    "¯\\_(ツ)_/¯",
]


@pytest.mark.parametrize("text", SIGNS)
def test_a_sign_is_named(text):
    assert SIGNS[text] in literal_signs([text])


@pytest.mark.parametrize("text", PLAIN)
def test_ordinary_texts_are_left_alone(text):
    assert literal_signs([text]) is None


def test_a_syntax_that_is_named_reads_it():
    for text in SIGNS:
        for syntax in re.findall(r"prompt_syntax='(\w+)' reads it", literal_signs([text])):
            assert literal_signs([text], syntax) is None
    assert "prompt_syntax='compel' reads it" in literal_signs(["a (big dog)++"], "a1111")
    assert "prompt_syntax='a1111' reads it" in literal_signs(["a [cat|dog]"], "compel")


@pytest.mark.parametrize("syntax", ["plain", "a1111", "compel"])
def test_what_no_syntax_reads_says_what_to_do(syntax):
    for text, instead in NEVER_READ.items():
        assert instead in literal_signs([text], syntax)


def test_a_request_is_checked_with_its_syntax():
    with pytest.warns(UserWarning, match="in the syntax of a1111, and any other is taken literally: '<lora:x:1>'"):
        make_request(TINY, "a (red:1.2) circle <lora:x:1>", seed=1, prompt_syntax="a1111")
    for texts in ({"prompt": '("a", "b").blend(1, 2) c'}, {"prompt": "a", "negative_prompt": "a.swap(b)"}):
        with pytest.raises(RequestError, match="cannot be read with prompt_syntax='compel'"):
            make_request(TINY, **texts, seed=1, prompt_syntax="compel")


def test_one_line_names_each_kind_once():
    line = literal_signs(["a (red:1.2) circle", "a (blue:1.3) square BREAK a star", "<lora:a:1>", "x" * 60 + " AND b"])
    assert line.count("sets no weight") == 1
    assert all(one in line for one in ("'(red:1.2)'", "'BREAK'", "'<lora:a:1>'", "'AND'", "prompt_syntax='a1111'"))
    assert "\n" not in line
    assert "...'" in literal_signs([f"({'red ' * 100}:1.2)"])


@pytest.mark.parametrize("many", ["(", "((", "[", "[:", "(:", "(a ", ")", "__a", "{|", "<lora:", " ,", "a BREAK "])
def test_long_texts_take_no_time(many):
    started = time.process_time()
    literal_signs([many * 20_000])
    assert time.process_time() - started < 2


def test_a_request_warns_once(recwarn):
    make_request(TINY, ["a (red:1.2) circle", "a ((blue)) square"], batch_size=3, negative_prompt="(dark:1.1)", seed=1)
    (one,) = recwarn.list
    assert "'(red:1.2)' sets no weight" in str(one.message)
    with pytest.warns(UserWarning, match=r"'\(dark:1\.1\)' sets no weight"):
        make_request(TINY, "a red circle", negative_prompt="(dark:1.1)", seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_request(TINY, "a red circle (above a blue square)", seed=1)
