"""Public names: those that the pages in docs/api list, with what their classes have."""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Iterator

import griffe

ROOT = pathlib.Path(__file__).parents[2]
API = ROOT / "docs" / "api"


def listed() -> list[str]:
    """What the pages list, such as "kerasdiff.Generator", in their order."""
    pages = [page.read_text("utf-8") for page in sorted(API.glob("*.md"))]
    return [name for page in pages for name in re.findall(r"^::: (\S+)$", page, re.MULTILINE)]


@functools.cache
def package() -> griffe.Module:
    """The package as its source says it is; nothing is imported."""
    return griffe.load("kerasdiff", search_paths=[str(ROOT)], docstring_parser="google")


def found(name: str) -> griffe.Object:
    """What a listed name stands for, wherever it is defined."""
    one = package()[name.removeprefix("kerasdiff.")]
    return one.final_target if one.is_alias else one


def members(name: str) -> Iterator[str]:
    """Public methods and properties of a listed class, inherited ones too if they are the package's own."""
    one = found(name)
    if isinstance(one, griffe.Class):
        for member, value in one.all_members.items():
            described = value.is_function or "property" in value.labels
            if described and not member.startswith("_") and value.canonical_path.startswith("kerasdiff."):
                yield f"{name}.{member}"


def public() -> list[str]:
    """All public names; what two classes inherit is there once."""
    names = [name for one in listed() for name in (one, *members(one))]
    return list({found(name).canonical_path: name for name in reversed(names)}.values())[::-1]
