"""Pages as blocks, links and anchors, the way GitHub reads them."""

from __future__ import annotations

import json
import pathlib
import re
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser

import public
from markdown_it import MarkdownIt
from markdown_it.token import Token

PARSER = MarkdownIt("gfm-like", {"linkify": False})
_LISTED = re.compile(r"^::: (\S+)$", re.MULTILINE)


def pages() -> list[pathlib.Path]:
    """Everything with prose in it."""
    named = [public.ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
    return [*named, *sorted(public.ROOT.glob("docs/**/*.md")), *sorted(public.ROOT.glob("notebooks/*.ipynb"))]


def text(page: pathlib.Path) -> str:
    """A page, or the prose of a notebook."""
    if page.suffix != ".ipynb":
        return page.read_text("utf-8")
    cells = json.loads(page.read_text("utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def links(source: str) -> Iterator[str]:
    """Targets of all links and pictures."""
    for token in flat(PARSER.parse(source)):
        for name in ("href", "src"):
            target = token.attrGet(name)
            if target is not None:
                yield str(target)
        if token.type in ("html_block", "html_inline"):
            yield from _in_html(token.content)


def anchors(source: str) -> set[str]:
    """What can stand behind # in a link to a page: its headings as GitHub names them, and names of the API."""
    found = set(_LISTED.findall(source))
    times: Counter[str] = Counter()
    tokens = PARSER.parse(source)
    for place, token in enumerate(tokens):
        if token.type == "heading_open":
            words = "".join(one.content for one in tokens[place + 1].children or () if one.type != "html_inline")
            slug = re.sub(r"[^\w\- ]", "", words.strip().lower()).replace(" ", "-")
            found.add(f"{slug}-{times[slug]}" if times[slug] else slug)
            times[slug] += 1
    return found


def flat(tokens: list[Token]) -> Iterator[Token]:
    """All tokens, those within others after them."""
    for token in tokens:
        yield token
        yield from flat(token.children or [])


def _in_html(source: str) -> list[str]:
    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            found.extend(value for name, value in attributes if name in ("href", "src") and value)

    found: list[str] = []
    Reader().feed(source)
    return found
