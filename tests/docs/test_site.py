"""The site builds without a warning, and its pages have what GitHub shows of them."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser

import prose
import public
import pytest

# Tokens of a page in Markdown -> elements of the page that is built.
_ELEMENTS = {"table_open": "table", "list_item_open": "li", "image": "img", "fence": "pre", "code_block": "pre"}


def _hooks():
    spec = importlib.util.spec_from_file_location("hooks", public.ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = _hooks()
# Written by hand as a whole: those of the API have what their docstrings have, too.
PAGES = [public.ROOT / name for name in HOOKS.PAGES] + sorted(public.ROOT.glob("docs/*.md"))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=public.ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    return folder


class _Article(HTMLParser):
    """Counts elements of what a page is about; its navigation lies outside of that."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self._inside = False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._inside = self._inside or tag == "article"
        if self._inside and tag in _ELEMENTS.values():
            self.count[tag] += 1

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag != "article"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_has_the_tables_lists_pictures_and_code_that_github_shows(page, site):
    article = _Article()
    built = HOOKS.PAGES.get(page.name, page.name)
    article.feed((site / built).with_suffix(".html").read_text("utf-8"))
    tokens = prose.flat(prose.PARSER.parse(page.read_text("utf-8")))
    assert article.count == Counter(_ELEMENTS[token.type] for token in tokens if token.type in _ELEMENTS)


def test_every_public_name_has_a_place(site):
    pages = "".join(page.read_text("utf-8") for page in sorted(site.glob("api/*.html")))
    assert [name for name in public.public() if f'id="{name}"' not in pages] == []


@pytest.mark.parametrize(
    ("path", "page", "address"),
    [
        ("docs/samplers.md", "index.md", "samplers.md"),
        ("docs/api/jobs.md", "samplers.md", "api/jobs.md"),
        ("docs/images/tiny.png", "index.md", "images/tiny.png"),
        ("README.md", "api/index.md", "../index.md"),
        ("CHANGELOG.md", "index.md", "changelog.md"),
        ("benchmarks/results/scaling.png", "performance.md", "benchmarks/results/scaling.png"),
        ("tests/test_plan.py", "reliability.md", "https://github.com/a/b/blob/main/tests/test_plan.py"),
        ("docs/make_tables.py", "samplers.md", "https://github.com/a/b/blob/main/docs/make_tables.py"),
        ("benchmarks", "index.md", "https://github.com/a/b/tree/main/benchmarks"),
    ],
)
def test_links_of_a_page_are_those_of_the_site(path, page, address):
    assert HOOKS.address_of(path, page, "https://github.com/a/b") == address
