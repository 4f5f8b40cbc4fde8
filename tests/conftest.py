"""Fixtures: the embedded model is opened once for all tests."""

from __future__ import annotations

import pytest

import kerasdiff


@pytest.fixture(scope="session")
def tiny() -> kerasdiff.Generator:
    return kerasdiff.Generator("tiny", precision="float32")
