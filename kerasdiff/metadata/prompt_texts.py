"""Prompts in the syntax of other programs: what has a meaning there, and how a text is written without one."""

import re

from kerasdiff.adapter_files import EmbeddingFile

# What AUTOMATIC1111's interface reads: weights, edits and escapes; words in capitals; tags.
# At its end a number behind a colon is the weight of the whole text.
_WEIGHT = re.compile(r":(\s*)(?=[-+]?(?:\d+\.?|\d*\.\d+)\s*$)")
_A1111 = re.compile(rf"[()\[\]\\]|\b(?:AND|BREAK)\b|{_WEIGHT.pattern}")
_WORDS = re.compile(r"\b(?:AND|BREAK)\b")
_TAG = re.compile(r"<(?=\w+:[^>]+>)")
# Its first text that can be longer than a chunk, whose end then goes by commas.
_CHUNK = 75
_COMPEL = re.compile(r"[()\\\"]|(?<=[\w\"'])[+-]+(?=[\s,.;:]|$)")
_OF_COMFYUI = re.compile(r"embedding:([^\s,():\[\]]+)")
_OF_INVOKEAI = re.compile(r"<([^<>\s]+)>")
_ENDING = re.compile(r"\.(safetensors|pth?|bin|ckpt)$")


def literal(text: str, negative: bool = False) -> str:
    """A text in which nothing has a meaning, written so that AUTOMATIC1111's interface gets the same tokens of it."""
    text = _TAG.sub("< ", _in_small_letters(re.sub(r"([\\()\[\]])", r"\\\1", text)))
    return text if negative else _without_weight(text)


def is_a1111(text: str) -> bool:
    """Whether anything in a text has a meaning in AUTOMATIC1111's interface."""
    return _A1111.search(text) is not None or (len(text) > _CHUNK and "," in text)


def is_compel(text: str) -> bool:
    """Whether anything in a text has a meaning to compel."""
    return _COMPEL.search(text) is not None


def is_weighted(text: str) -> bool:
    """Whether a text has weights or escapes of ComfyUI."""
    return "(" in text or ")" in text


def comfyui_as_a1111(text: str) -> str:
    """A text of ComfyUI, where only round brackets have a meaning, in AUTOMATIC1111's syntax."""
    text = re.sub(r"[\[\]]", r"\\\g<0>", re.sub(r"\\(?![()])", r"\\\\", text))
    return _without_weight(_in_small_letters(text))


def _in_small_letters(text: str) -> str:
    """A text whose AND and BREAK are words as others."""
    return _WORDS.sub(lambda word: word[0].lower(), text)


def _without_weight(text: str) -> str:
    """A text without a weight of all of it; a single backslash is no token."""
    return _WEIGHT.sub(r":\1\\", text)


def embeddings_of_comfyui(text: str) -> tuple[str, list[EmbeddingFile]]:
    """A text with the bare names of embeddings, and these."""
    names = [stem(name) for name in _OF_COMFYUI.findall(text)]
    return _OF_COMFYUI.sub(lambda found: stem(found[1]), text), [EmbeddingFile(name, name) for name in names if name]


def embeddings_of_invokeai(text: str) -> list[EmbeddingFile]:
    """The embeddings that a text names, with what it calls them."""
    return [EmbeddingFile(name, f"<{name}>") for name in _OF_INVOKEAI.findall(text)]


def stem(path: str) -> str:
    """The name of a file without folders and ending."""
    return _ENDING.sub("", re.split(r"[/\\]", path)[-1])
