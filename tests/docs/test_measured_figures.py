"""Figures of pages are those of the files that stand beside them."""

from __future__ import annotations

import figures
import prose
import public
import pytest

PAGES = [page for page in prose.pages() if any(figures.blocks(prose.text(page)))]
# Where every figure comes from a file, or is named as one that does not.
STRICT = ("README.md", "docs/performance.md")


def _name(page):
    return page.relative_to(public.ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_figures_are_in_the_files_beside_them(page):
    source = prose.text(page)
    wrong = {block.files[0]: figures.missing(block) - figures.excused(source) for block in figures.blocks(source)}
    assert {file: found for file, found in wrong.items() if found} == {}


@pytest.mark.parametrize("name", STRICT)
def test_every_figure_comes_from_a_file(name):
    source = (public.ROOT / name).read_text("utf-8")
    from_files = {figure for block in figures.blocks(source) for figure in block.figures}
    assert len(from_files) > 20
    assert figures.everything(source) - from_files - figures.excused(source) == set()
    assert figures.excused(source) <= figures.everything(source)


RESULTS = {
    "cold_s": 24.04,
    "spread_s": [1.0, 2.04],
    "machine": {"memory_gb": 25.3},
    "right": {"all": 0.8749},
    "peak_gb": 3.6,
}


@pytest.mark.parametrize(
    ("page", "wrong"),
    [
        ("It takes 24.0 s and 87.5 % are right ([results](benchmarks/results/a.json)).", []),
        ("It takes 24.1 s ([results](benchmarks/results/a.json)).", ["24.1"]),
        ("It takes 24 ms ([results](benchmarks/results/a.json)).", ["24"]),
        ("It takes 24040 ms, 3600 MB ([results](benchmarks/results/a.json)).", []),
        ("Between 1.0 and 2.1 s ([results](benchmarks/results/a.json)).", ["2.1"]),
        ("It has 25.3 GB ([results](benchmarks/results/a.json)).", ["25.3"]),
        ("It takes 3.0 s.", []),
        ("See [results](benchmarks/results/a.json):\n\n| | s |\n|---|---|\n| one | 24.0 |\n| other | 25.0 |", ["25.0"]),
        (
            "See [results](benchmarks/results/a.json):\n\n| | time |\n|---|---|\n| one | 24.0 s |\n| other | 25.0 s |",
            ["25.0"],
        ),
        ("<!-- figures: a.json -->\n| | s |\n|---|---|\n| one | 25.0 |", ["25.0"]),
        ("- one: 24.0 s ([results](benchmarks/results/a.json))\n- other: 30.0 s", []),
        ("- one: 30.0 s ([results](benchmarks/results/a.json))\n- other: 24.0 s", ["30.0"]),
    ],
)
def test_a_wrong_figure_is_found(page, wrong, tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text(str(RESULTS).replace("'", '"'))
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    found = {figure for block in figures.blocks(page) for figure in figures.missing(block)}
    assert sorted(figure.written for figure in found) == wrong
