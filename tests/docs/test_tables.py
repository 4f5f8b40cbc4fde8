"""Pages that scripts write are as the scripts would write them."""

from __future__ import annotations

import importlib.util
import pathlib

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def test_the_tables_are_up_to_date():
    spec = importlib.util.spec_from_file_location("make_tables", DOCS / "make_tables.py")
    make_tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_tables)
    for page in make_tables.PAGES:
        text = page.read_text()
        assert make_tables.filled(text) == text
