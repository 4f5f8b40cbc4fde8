"""Every link leads somewhere: files, headings and pictures are there, and addresses are of hosts that we know."""

from __future__ import annotations

import re
import urllib.parse

import prose
import public
import pytest

PAGES = [pytest.param(page, id=page.relative_to(public.ROOT).as_posix()) for page in prose.pages()]
REPOSITORY = "https://github.com/kerasdiff/kerasdiff"
# Addresses of our own files, as other hosts show them.
_OURS = re.compile(
    rf"(?:{REPOSITORY}|https://colab\.research\.google\.com/github/kerasdiff/kerasdiff)/(?:blob|tree)/main/"
)
_ADDRESS = re.compile(r"https?://[^\s<>\"'`)\]},]+")
HOSTS = {
    "arxiv.org",
    "colab.research.google.com",
    "docs.astral.sh",
    "github.com",
    "docs.ray.io",
    "huggingface.co",
    "keras.io",
    "www.tensorflow.org",
}


def problem(target: str, page: str, source: str) -> str | None:
    """What is wrong with a link of a page; None if nothing is.

    Args:
        target: of the link.
        page: that has it, from the repository's root.
        source: of the page.
    """
    if _OURS.match(target):
        target, page = _OURS.sub("", target), "README.md"
    if re.match(r"\w+:", target):
        return _problem_of_address(target)
    path, _, anchor = urllib.parse.unquote(target).partition("#")
    place = (public.ROOT / page).parent / path if path else public.ROOT / page
    if not place.resolve().is_relative_to(public.ROOT.resolve()) or not place.exists():
        return f"{target}: there is no such file"
    if anchor and place.suffix in (".md", ".ipynb"):
        there = prose.text(place) if path else source
        if anchor not in prose.anchors(there):
            return f"{target}: there is no such heading"
    return None


def _problem_of_address(address: str) -> str | None:
    parts = urllib.parse.urlsplit(address)
    if parts.scheme != "https" or not parts.path.isascii():
        return f"{address}: not a plain https address"
    return None if parts.hostname in HOSTS else f"{address}: not a host that we link to"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_somewhere(page):
    source = prose.text(page)
    name = page.relative_to(public.ROOT).as_posix()
    targets = {*prose.links(source), *(one.rstrip(".,;:") for one in _ADDRESS.findall(source))}
    assert [found for target in sorted(targets) if (found := problem(target, name, source))] == []


def test_every_address_of_the_site_s_navigation_leads_somewhere():
    settings = (public.ROOT / "mkdocs.yml").read_text("utf-8")
    targets = set(_ADDRESS.findall(settings))
    assert any(_OURS.match(target) for target in targets)
    assert [found for target in sorted(targets) if (found := problem(target, "mkdocs.yml", ""))] == []


@pytest.mark.parametrize(
    "target",
    [
        "docs/no_such_page.md",
        "docs/samplers.md#no-such-heading",
        "#no-such-heading",
        "../elsewhere.md",
        "http://arxiv.org/abs/1",
        "https://example.com/",
        f"{REPOSITORY}/blob/main/no_such_file.py",
        f"{REPOSITORY}/tree/main/no_such_folder",
    ],
)
def test_a_link_that_leads_nowhere_is_found(target):
    assert problem(target, "README.md", "# One heading\n") is not None


@pytest.mark.parametrize(
    "target", ["docs/samplers.md#all-of-them", "#one-heading-1", f"{REPOSITORY}/blob/main/LICENSE"]
)
def test_a_link_that_leads_somewhere_is_not_complained_about(target):
    assert problem(target, "README.md", "# One heading\n# One heading!\n") is None
