"""Fixtures of the tests of pages."""

from __future__ import annotations

import gc
import json
import shutil

import examples
import pytest

from kerasdiff import api
from kerasdiff.checkpoints import resolve

# Of examples that do not say how many; what is tested is that they run, not how good their pictures are.
STEPS = 3


@pytest.fixture(scope="module")
def quick_model(tmp_path_factory):
    """The embedded model with fewer steps of its own."""
    copy = tmp_path_factory.mktemp("models") / "tiny"
    shutil.copytree(resolve.TINY_FOLDER, copy)
    config = json.loads((copy / "config.json").read_text("utf-8"))
    config["defaults"]["num_steps"] = STEPS
    (copy / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolve, "TINY_FOLDER", copy)
        _forget()
        yield
    _forget()


def _forget() -> None:
    """No test of another file finds a model in this process because examples have run."""
    api._last.clear()
    examples.made.cache_clear()
    gc.collect()


@pytest.fixture
def folder(tmp_path, monkeypatch, quick_model):
    """A folder of its own to be in, with the files that examples read."""
    examples.make_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path
