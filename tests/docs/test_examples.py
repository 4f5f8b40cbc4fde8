"""Every example of a page runs, from its first to its last, in one namespace."""

from __future__ import annotations

import examples
import public
import pytest

PAGES = [public.ROOT / "README.md", *sorted(public.ROOT.glob("docs/**/*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(public.ROOT).as_posix())
def test_the_examples_of_a_page_run(page, folder):
    for example in examples.of_page(page):
        example.evaluate()
