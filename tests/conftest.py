"""Fixtures and order, the folder that all processes of a run keep things in, and how hard properties are tried."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import tempfile

import hypothesis
import pytest

import kerasdiff

HERE = pathlib.Path(__file__).parent
# Files of some minutes: begun first, so that no process waits for another at the end.
LONG = ("training", "batch", "test_long_runs.py", "test_limited_memory.py", "test_notebooks.py", "docs")

# The same few values in every run; `--hypothesis-profile=thorough` takes ten times as many, and new ones each time.
hypothesis.settings.register_profile(
    "ordinary",
    max_examples=30,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "thorough",
    hypothesis.settings.get_profile("ordinary"),
    max_examples=300,
    derandomize=False,
    print_blob=True,
)
hypothesis.settings.load_profile("ordinary")


def pytest_configure(config: pytest.Config) -> None:
    """No test reads or leaves anything in the user's cache.

    All processes of a run, those that tests start among them, have one folder: a program is traced by the first that
    needs it. Tests of what is kept make folders of their own.
    """
    if not hasattr(config, "workerinput"):  # a process of xdist has its parent's environment
        # What most tests look at is TensorFlow's; tests of OpenVINO say so.
        os.environ["KERASDIFF_BACKEND"] = "tensorflow"
        os.environ["KERASDIFF_CACHE"] = folder = tempfile.mkdtemp(prefix="kerasdiff-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not any(item.path.is_relative_to(HERE / place) for place in LONG))


@pytest.fixture(scope="session", autouse=True)
def interrupts_as_from_a_terminal():
    """What runs in the background or under nohup ignores signals, and so do the programs that tests start there."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def tiny() -> kerasdiff.Generator:
    return kerasdiff.Generator("tiny", precision="float32")


@pytest.fixture(scope="session")
def openvino() -> kerasdiff.Generator:
    """The embedded model as OpenVINO runs it."""
    return kerasdiff.Generator("tiny", precision="float32", backend="openvino")
