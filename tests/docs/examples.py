"""Examples of pages and docstrings: found, run, or looked through where they need what a test does not have."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import os
import pathlib
import subprocess
import sys
from typing import Any

import calls
import numpy as np
import pytest
from PIL import Image
from sybil import Document
from sybil.evaluators.python import PythonEvaluator
from sybil.example import Example
from sybil.parsers.markdown import CodeBlockParser

import kerasdiff
from kerasdiff import generator

# How an example says, in its first line, that it cannot run just anywhere: "# Needs a download."
NEEDS = "# Needs "
# It must be called before TensorFlow is imported.
ALONE = "inference_only()"


def of_page(path: pathlib.Path) -> Document:
    """The examples of a page, which share one namespace, empty at first."""
    return Document.parse(str(path), CodeBlockParser("python", evaluate))


def of_docstring(name: str, docstring: str, namespace: dict[str, Any]) -> Document:
    """The examples of a docstring."""
    document = Document(inspect.cleandoc(docstring), name)
    for region in CodeBlockParser("python", evaluate)(document):
        document.add(region)
    document.namespace.update(namespace)
    return document


def evaluate(example: Example) -> None:
    """Runs an example; checks the calls of one that needs what is not here."""
    if ALONE in example.parsed:
        _run_alone(ast.unparse(ast.parse(example.parsed)))
    elif example.parsed.startswith(NEEDS):
        calls.check(example.parsed)
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(vars(kerasdiff), "Generator", _cached)
            PythonEvaluator()(example)


@functools.cache
def _run_alone(source: str) -> None:
    """Runs what several pages show once, whatever they say about it in comments."""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def _cached(*arguments: Any, **options: Any) -> kerasdiff.Generator:
    """A generator for an example; the same one for the next example that asks for it in the same way."""
    with contextlib.suppress(TypeError):  # a live model cannot be hashed
        return made(*arguments, **options)
    return generator.Generator(*arguments, **options)


@functools.cache
def made(*arguments: Any, **options: Any) -> kerasdiff.Generator:
    return generator.Generator(*arguments, **options)


def make_files(folder: pathlib.Path) -> None:
    """What examples read: two pictures, rows, and the ControlNet of a checkout."""
    rows, columns = np.mgrid[:128, :192]
    photo = np.where((rows - 64) ** 2 + (columns - 96) ** 2 < 40**2, 220, 30).astype("uint8")
    Image.fromarray(np.stack([photo, photo // 3, 255 - photo], axis=-1)).save(folder / "photo.png")
    Image.fromarray(np.where(columns < 96, 255, 0).astype("uint8")).save(folder / "mask.png")
    prompts = ["a red circle", "a blue star on a white background"]
    (folder / "prompts.txt").write_text("\n".join(prompts))
    for name in ("prompts.csv", "rows.csv"):
        (folder / name).write_text("\n".join(["prompt", *prompts]))
    os.mkdir(folder / "out")
    place = pathlib.Path("tests", "data")
    os.makedirs(folder / place)
    (folder / place / "outlines").symlink_to(pathlib.Path(__file__).parents[2] / place / "outlines")
