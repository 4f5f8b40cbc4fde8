"""Fixtures and order: the embedded model is opened once for all tests of a process."""

from __future__ import annotations

import os
import pathlib
import signal

import pytest

import kerasdiff

HERE = pathlib.Path(__file__).parent
# Files of some minutes: begun first, so that no process waits for another at the end.
LONG = ("training", "batch", "test_long_runs.py", "test_properties.py", "test_limited_memory.py", "docs")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not any(item.path.is_relative_to(HERE / place) for place in LONG))


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory):
    """No test reads or leaves anything in the user's cache."""
    os.environ["KERASDIFF_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def interrupts_as_from_a_terminal():
    """What a shell starts in the background ignores Ctrl-C, and so do the programs that tests start there."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny() -> kerasdiff.Generator:
    return kerasdiff.Generator("tiny", precision="float32")
