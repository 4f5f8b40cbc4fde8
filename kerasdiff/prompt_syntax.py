"""What other programs' prompts can hold besides words, where it is plain text here."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

_DECIMAL, _DIGIT = r"[+-]?\d?\.\d+", r"[+-]?\d"
# One that is not written "\(".
_OPEN = r"(?<!\\)\("


@dataclasses.dataclass(frozen=True)
class _Sign:
    """Something that has a meaning elsewhere: how it looks, what it does not do here, and what to do instead.

    `reads` are the values of `prompt_syntax` that give it its meaning.
    """

    patterns: tuple[str, ...]
    fails: str
    instead: str = ""
    reads: tuple[str, ...] = ()

    def first(self, text: str) -> str | None:
        """What it looks like in a text."""
        found = (re.search(pattern, text) for pattern in self.patterns)
        return next((match[0].strip(" ,\n") for match in found if match), None)

    @property
    def advice(self) -> str:
        """What to do instead."""
        return f"prompt_syntax={self.reads[0]!r} reads it" if self.reads else self.instead


def _between_words(word: str) -> str:
    """A word in capitals with others around it, which are not in capitals too."""
    return rf"(?<=[^\s,])(?<![A-Z]{{2}})[\s,]+{word}(?=[\s,]+(?![A-Z]{{2}})[^\s,])"


# Each is seldom meant as it stands. A single pair of brackets often is: "a cat (sitting)", "a [logo]".
_SIGNS = (
    _Sign(
        (
            rf"{_OPEN}[^()]+:\s*{_DECIMAL}\s*\)",  # (word:1.2)
            rf"{_OPEN}[^()]*[^()\d\s]\s*:\s*{_DIGIT}\s*\)",  # (word:2), and not (16:9)
            rf"\)[^()]*:\s*{_DECIMAL}\s*\)",  # (a (nested) word:1.2)
            rf"{_OPEN}\([^()]+\)\)",  # ((word))
            r"\[\[[^\[\]]+\]\]",  # [[word]]
        ),
        "sets no weight",
        reads=("a1111",),
    ),
    _Sign((r"\\[()\[\]]",), "sets no weight", reads=("a1111", "compel")),  # \(word\), a bracket that is not to be one
    _Sign((rf"{_OPEN}[^()]+\)(?:\d?\.\d+|\+\++)",), "sets no weight", reads=("compel",)),  # (word)1.2, (word)++
    _Sign((r"(?<=[)\"])\.(?:blend|and)\([^()]*\)",), "joins no prompts", reads=("compel",)),
    _Sign(
        (r"(?i)<(?:lora|lyco|loha|locon):[^<>]+>",),
        "loads no file",
        "lora_folder is where such files are looked for; a negative prompt loads none",
    ),
    _Sign((r"(?i)<hypernet:[^<>]+>",), "loads no file", "leave it out"),
    _Sign(
        (r"(?i)<embedding:[^<>]+>", r"(?i)\bembedding:[\w./-]+"),
        "loads no file",
        "give the file in embeddings, and write its name alone",
    ),
    _Sign(
        (
            rf"\[[^\[\]:|]*:[^\[\]:|]*:\s*(?:{_DECIMAL}|\d+)\s*\]",  # [from:to:0.5]
            rf"\[[^\[\]:|]*[^\[\]:|\d\s]\s*:\s*(?:{_DECIMAL}|\d+)\s*\]",  # [to:0.5]
        ),
        "changes no step",
        reads=("a1111",),
    ),
    _Sign((r"\[[^\[\]|]+\|[^\[\]]+\]",), "chooses nothing", reads=("a1111",)),
    _Sign((r"\{[^{}|]*\|[^{}]*\}", r"(?<!\w)__[\w/-]*\w__(?!\w)"), "chooses nothing", "give a list of prompts"),
    _Sign((_between_words("BREAK"),), "begins no new part", reads=("a1111",)),
    _Sign((_between_words("AND"),), "joins no prompts", reads=("a1111",)),
)
_ANY = re.compile(r"[()\[\]{}<\\]|__|BREAK|AND|(?i:embedding:)")


def literal_signs(texts: Iterable[str], syntax: str = "plain") -> str | None:
    """One line that names what of these signs some texts hold, and what to do instead; None if there are none.

    `syntax` is the `prompt_syntax` that the texts are read with: what it reads is left out.
    """
    signs = [sign for sign in _SIGNS if syntax not in sign.reads]
    found: dict[_Sign, str] = {}
    for text in texts:
        if _ANY.search(text):
            for sign in signs:
                if sign not in found and (example := sign.first(text)) is not None:
                    found[sign] = example if len(example) <= 40 else f"{example[:40]}..."
    if not found:
        return None
    told = (f"{example!r} {sign.fails} ({sign.advice})" for sign, example in found.items())
    here = "plain text here, and their syntax" if syntax == "plain" else f"in the syntax of {syntax}, and any other"
    return f"prompts are {here} is taken literally: {'; '.join(told)}"
