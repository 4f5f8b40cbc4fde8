"""A small model of each kind as a folder and as a single file, for tests that change copies of them."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import shutil
import warnings

import checkpoints
import pytest
import safetensors

from kerasdiff.checkpoints.export import write_single_file
from kerasdiff.checkpoints.resolve import open_model


class Models:
    """Makes each model once."""

    def __init__(self, place: pathlib.Path) -> None:
        self._place = place

    def folder(self, kind: str) -> pathlib.Path:
        folder = self._place / kind / "model"
        if not folder.exists():
            checkpoints.save(checkpoints.pipeline(kind, self._place / kind / "vocabulary"), folder)
        return folder

    def single_file(self, kind: str) -> pathlib.Path:
        path = self._place / f"{kind}.safetensors"
        if not path.exists():
            write_single_file(open_model(str(self.folder(kind))), path)
        return path

    def metadata(self, kind: str) -> dict[str, str]:
        """What the single file says beside its tensors."""
        with safetensors.safe_open(self.single_file(kind), "np") as file:
            return file.metadata() or {}


class Copy:
    """A copy of a model folder."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder

    def change(self, file: str, **values) -> Copy:
        path = self.folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
        return self

    def open(self, **arguments):
        return open_model(str(self.folder), **arguments)


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def copy_of(models, tmp_path):
    return lambda kind="v1": Copy(shutil.copytree(models.folder(kind), tmp_path / "model"))


@pytest.fixture
def warned(caplog):
    """The package's warnings and log lines so far, but for those of conversions; they are then forgotten."""
    caplog.set_level(logging.WARNING, "kerasdiff")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)

        def lines() -> list[str]:
            records = [one for one in caplog.records if one.name == "kerasdiff" and one.module != "export"]
            found = [one.getMessage() for one in records]
            found += [str(one.message) for one in caught if f"kerasdiff{os.sep}" in one.filename]
            caplog.clear()
            caught.clear()
            return found

        yield lines
