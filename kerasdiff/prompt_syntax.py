"""What AUTOMATIC1111's and ComfyUI's prompts can hold besides words; here it is plain text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

_DECIMAL, _DIGIT = r"[+-]?\d?\.\d+", r"[+-]?\d"
# One that is not written "\(".
_OPEN = r"(?<!\\)\("


@dataclasses.dataclass(frozen=True)
class _Sign:
    """Something that has a meaning elsewhere: how it looks, what it does not do here, and what to do instead."""

    patterns: tuple[str, ...]
    fails: str
    instead: str

    def first(self, text: str) -> str | None:
        """What it looks like in a text."""
        found = (re.search(pattern, text) for pattern in self.patterns)
        return next((match[0].strip(" ,\n") for match in found if match), None)


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
            rf"{_OPEN}[^()]+\)(?:\d?\.\d+|\+\++)",  # (word)1.2, (word)++
            r"\\[()\[\]]",  # \(word\), a bracket that is not to be a weight
        ),
        "sets no weight",
        "leave such signs out, and put what matters first",
    ),
    _Sign(
        (r"(?i)<(?:lora|lyco|loha|locon|hypernet|embedding):[^<>]+>", r"(?i)\bembedding:[\w./-]+"),
        "loads no file",
        "leave it out, or merge it into the model in the program it is made for",
    ),
    _Sign(
        (
            rf"\[[^\[\]:|]*:[^\[\]:|]*:\s*(?:{_DECIMAL}|\d+)\s*\]",  # [from:to:0.5]
            rf"\[[^\[\]:|]*[^\[\]:|\d\s]\s*:\s*(?:{_DECIMAL}|\d+)\s*\]",  # [to:0.5]
        ),
        "changes no step",
        "give one prompt for all steps",
    ),
    _Sign(
        (r"\[[^\[\]|]+\|[^\[\]]+\]", r"\{[^{}|]*\|[^{}]*\}", r"(?<!\w)__[\w/-]*\w__(?!\w)"),
        "chooses nothing",
        "give a list of prompts",
    ),
    _Sign((_between_words("BREAK"),), "begins no new part", "long_prompts='chunk' reads a long prompt part by part"),
    _Sign((_between_words("AND"),), "joins no prompts", "write one sentence, or give the mean of two as prompt_embeds"),
)
_ANY = re.compile(r"[()\[\]{}<\\]|__|BREAK|AND|(?i:embedding:)")


def literal_signs(texts: Iterable[str]) -> str | None:
    """One line that names what of these signs some texts hold, and what to do instead; None if there are none."""
    found: dict[_Sign, str] = {}
    for text in texts:
        if _ANY.search(text):
            for sign in _SIGNS:
                if sign not in found and (example := sign.first(text)) is not None:
                    found[sign] = example if len(example) <= 40 else f"{example[:40]}..."
    if not found:
        return None
    told = (f"{example!r} {sign.fails} ({sign.instead})" for sign, example in found.items())
    return f"prompts are plain text here, and their syntax is taken literally: {'; '.join(told)}"
