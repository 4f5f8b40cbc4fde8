"""AUTOMATIC1111's syntax: the values of its own doctests, what it makes of other texts, and hostile ones.

A schedule's entries are (last step, text); those of neighbouring steps with the same text are one.
"""

from __future__ import annotations

import pytest

from kerasdiff.errors import RequestError
from kerasdiff.prompts import a1111_syntax as a1111
from kerasdiff.prompts.schedule import Plain, Weighted, parse

# Of 10 steps, as published. One more, "a [{b|d{:.5] c", is marked there as not handled, and is not.
PUBLISHED_SCHEDULES = {
    "test": [(10, "test")],
    "a [b:3]": [(3, "a "), (10, "a b")],
    "a [b: 3]": [(3, "a "), (10, "a b")],
    "a [[[b]]:2]": [(2, "a "), (10, "a [[b]]")],
    "[(a:2):3]": [(3, ""), (10, "(a:2)")],
    "a [b : c : 1] d": [(1, "a b  d"), (10, "a  c  d")],
    "a[b:[c:d:2]:1]e": [(1, "abe"), (2, "ace"), (10, "ade")],
    "a [unbalanced": [(10, "a [unbalanced")],
    "a [b:.5] c": [(5, "a  c"), (10, "a b c")],
    "((a][:b:c [d:3]": [(3, "((a][:b:c "), (10, "((a][:b:c d")],
    "[a|(b:1.1)]": [(step, "a" if step % 2 else "(b:1.1)") for step in range(1, 11)],
    "[fe|]male": [(step, "female" if step % 2 else "male") for step in range(1, 11)],
    "[fe|||]male": [(1, "female"), (4, "male"), (5, "female"), (8, "male"), (9, "female"), (10, "male")],
}
# Of 5 steps.
SCHEDULES = {
    "a [b:c:.3] [d|e]": [(1, "a b d"), (2, "a c e"), (3, "a c d"), (4, "a c e"), (5, "a c d")],
    "[a:b:1e0]": [(1, "a"), (5, "b")],
    "[a:b:-1]x": [(5, "bx")],
    "[a:b:0]x": [(5, "bx")],
    "[a:b:99]x": [(5, "ax")],
    "[a:b:1e999.]x": [(5, "[a:b:1e999.]x")],
    "[a:b:1.e999]x": [(5, "ax")],
    "[a:b:0.05]": [(5, "b")],
    "[[a|b]:c:.5]": [(1, "a"), (2, "b"), (5, "c")],
    "[a|[b:c:4]|]": [(1, "a"), (2, "b"), (3, ""), (4, "a"), (5, "c")],
    "(a:[b:c:2])": [(2, "(a:b)"), (5, "(a:c)")],
    "[a:b:c]": [(5, "[a:b:c]")],
    "[a:b:c:2]": [(5, "[a:b:c:2]")],
    "a | b [c:d:2]": [(5, "a | b [c:d:2]")],
    "[a|b:2]": [(5, "[a|b:2]")],
    "(a|b) [c:d:2]": [(5, "(a|b) [c:d:2]")],
    r"[a\:b:c:2]": [(2, r"a\:b"), (5, "c")],
    r"[a\]:b:2]": [(2, r"a\]"), (5, "b")],
    "[a:b:2": [(5, "[a:b:2")],
    "a] [b:c:2]": [(2, "a] b"), (5, "a] c")],
    "(a [b:c:2]": [(2, "(a b"), (5, "(a c")],
    "[a:(b:2]": [(5, "[a:(b:2]")],
    "[a::2]": [(2, "a"), (5, "")],
    "[(a):b: 2 ]": [(2, "(a)"), (5, "b")],
    "a [b:c:2]\\": [(5, "a [b:c:2]\\")],
    "[a:b:2] [a:b:2.0]": [(2, "a a"), (5, "b a")],
    "[a\nb:c:2]": [(2, "a\nb"), (5, "c")],
}
PUBLISHED_WEIGHTS = {
    "normal text": [("normal text", 1.0)],
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],
    "(unbalanced": [("unbalanced", 1.1)],
    r"\(literal\]": [("(literal]", 1.0)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        *(("a ", 1.0), ("house", 1.5730000000000004), (" ", 1.1), ("on", 1.0), (" a ", 1.1), ("hill", 0.55)),
        *((", sun, ", 1.1), ("sky", 1.4641000000000006), (".", 1.1)),
    ],
}
WEIGHTS = {
    "": [("", 1.0)],
    "()": [("", 1.0)],
    r"a\b": [("ab", 1.0)],
    "(a:1.2 ) b": [("a", 1.2), (" b", 1.0)],
    "((a:2)": [("a", 2.2)],
    "[a:1.3]": [("a:1.3", 1 / 1.1)],
    "(a:-1)b": [("a", -1.0), ("b", 1.0)],
    "a) b]": [("a) b]", 1.0)],
    "a:1.2)": [("a:1.2)", 1.0)],
    "(a:1.2.)": [("a:1.2.", 1.1)],  # there an error
    "(a:.)": [("a:.", 1.1)],  # there an error
    "[[a]]": [("a", 1 / 1.1 / 1.1)],
    r"\(a\)(b)": [("(a)", 1.0), ("b", 1.1)],
    "a BREAK BREAK\n b": [("a", 1.0), ("BREAK", -1.0), ("", 1.0), ("BREAK", -1.0), ("b", 1.0)],
    "BREAK": [("", 1.0), ("BREAK", -1.0), ("", 1.0)],
    "a,BREAK,b aBREAK": [("a,", 1.0), ("BREAK", -1.0), (",b aBREAK", 1.0)],
    "(a BREAK b:1.5)": [("a", 1.5), ("BREAK", -1.5), ("b", 1.5)],
    "(a:99999999) (b:-1e9)": [("a", 1000.0), (" ", 1.0), ("b:-1e9", 1.1)],
}
JOINED = {
    "a AND b": {"a": 1.0, "b": 1.0},
    "a :1.2 AND b:-.5": {"a": 1.2, "b": -0.5},
    "a:1.2": {"a": 1.2},
    "a AND\na:2 AND b AND a": {"a": 4.0, "b": 1.0},  # the same sum as there
    "ANDROID and b": {"ANDROID and b": 1.0},
    "(a AND b:1.5)": {"(a": 1.0, "b:1.5)": 1.0},
    "a AND ": {"a": 1.0, "": 1.0},
}
HOSTILE = [
    *("(" * 10000, "[" * 10000, "(" * 10000 + "a" + ")" * 10000, "[" * 5000 + "a" + ":3]" * 5000),
    *("[a|" * 3000 + "]" * 3000, "(a:1." * 3000, " " * 20000 + "BREAK", ":" * 10000 + " " * 10000, "\\" * 10001),
    *("(a:1.1) [b] " * 3000, "[a:b:3]" * 3000, "(((a:9)" * 3000, "x(y " * 5000 + ")" * 5000, "(a:" + "9" * 9999 + ")"),
    *("[a:b:" + "9" * 9999 + "]", "a:" + "9" * 9999, "\ud800 (\x00:1.2)", "[(" * 3000 + ")]" * 3000),
]


@pytest.mark.parametrize("text", PUBLISHED_SCHEDULES)
def test_published_schedules(text):
    assert a1111.schedule(text, 10) == PUBLISHED_SCHEDULES[text]


@pytest.mark.parametrize("text", SCHEDULES)
def test_schedules(text):
    assert a1111.schedule(text, 5) == SCHEDULES[text]


@pytest.mark.parametrize("text", [*PUBLISHED_WEIGHTS, *WEIGHTS])
def test_weights(text):
    assert list(a1111.fragments(text)) == (PUBLISHED_WEIGHTS | WEIGHTS)[text]


@pytest.mark.parametrize("text", JOINED)
def test_joined(text):
    assert a1111.joined(text) == JOINED[text]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_is_an_error_or_takes_long(text):
    (part,) = parse(text, "a1111", 20).parts
    for value in {part.at(step) for step in range(20)}:
        assert all(abs(fragment.weight) <= a1111.MOST_WEIGHT for fragment in value.fragments)


def test_a_prompt_is_its_parts_and_their_spans():
    prompt = parse("a [b:c:3] AND d:0.5", "a1111", 10)
    assert [part.weight for part in prompt.parts] == [1.0, 0.5]
    first, second = (part.spans for part in prompt.parts)
    assert [span.last for span in first] == [3, 10]
    assert [prompt.parts[0].at(step) for step in (0, 3, 4, 99)] == [first[0].value] * 2 + [first[1].value] * 2
    assert second[0].value == Weighted((a1111.Fragment("d", 1.0),))
    assert len(prompt.values) == 3
    # The same text twice, and what comes back from step to step, is encoded once.
    assert len(parse("[a|b] AND [b|a]", "a1111", 10).values) == 2
    assert parse("a (b) AND c", "plain", 10).parts[0].spans[0].value == Plain("a (b) AND c")


def test_negative_prompts_are_not_joined():
    (part,) = parse("a AND [b:c:3]:2", "a1111", 10, negative=True).parts
    assert part.weight == 1
    assert [span.value.fragments[0].text for span in part.spans] == ["a AND b:2", "a AND c:2"]


def test_too_many_texts_are_refused():
    with pytest.raises(RequestError, match="joins 101 texts with AND, more than 100"):
        parse(" AND ".join(map(str, range(101))), "a1111", 10)
