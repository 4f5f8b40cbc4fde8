"""Fixtures: the embedded model is opened once for all tests."""

from __future__ import annotations

import os

import pytest

import kerasdiff


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory):
    """No test reads or leaves anything in the user's cache."""
    os.environ["KERASDIFF_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny() -> kerasdiff.Generator:
    return kerasdiff.Generator("tiny", precision="float32")
