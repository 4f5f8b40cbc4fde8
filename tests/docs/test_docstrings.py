"""What is public is documented, each name on one page, and no docstring says what is not true."""

from __future__ import annotations

import importlib.util
import re

import calls
import examples
import griffe
import numpy as np
import public
import pytest

import kerasdiff

NAMES = public.public()
# Where a docstring sends its reader: "Other arguments: see `Generator.generate`.", "(see `fit_size`)".
_ELSEWHERE = re.compile(r"\b(?:see|as in|as for|as from) ((?:`[\w.]+`(?:, | and | or )?)+)")
# Arguments are described by one function for several others.
_OTHERS = re.compile(r"\bother arguments: see `([\w.]+)`", re.IGNORECASE)


def _parsed(name: str) -> list[griffe.DocstringSection]:
    docstring = public.found(name).docstring
    return docstring.parsed if docstring else []


def _described(name: str, kind: str) -> list[str]:
    """What a docstring's section describes, such as the names of its parameters."""
    sections = [section for section in _parsed(name) if section.kind.value == kind]
    return [
        str(entry.annotation if kind == "raises" else entry.name.lstrip("*"))
        for section in sections
        for entry in section.value
    ]


def _parameters(name: str) -> list[str]:
    found = public.found(name)
    if not isinstance(found, griffe.Function | griffe.Class):
        return []
    return [parameter.name for parameter in found.parameters if parameter.name not in ("self", "cls")]


def _code(name: str) -> str:
    """The examples of a name's docstring."""
    docstring = public.found(name).docstring
    if docstring is None:
        return ""
    return "\n".join(example.parsed for example in examples.of_docstring(name, docstring.value, {}))


def _resolved(name: str, other: str) -> str | None:
    """The full name of what a docstring calls `other`: near it, or in the package; None if that is not public."""
    around = [name.rsplit(".", depth)[0] for depth in (1, 2)]
    candidates = [*(f"{owner}.{other}" for owner in around), f"kerasdiff.{other}", other]
    endings = [known for known in NAMES if known.endswith(f".{other}")]
    return next((candidate for candidate in [*candidates, *endings] if candidate in NAMES), None)


def test_all_that_is_exported_is_listed_once_and_all_that_is_listed_exists():
    listed = public.listed()
    assert len(listed) == len(set(listed))
    for module in ("kerasdiff", "kerasdiff.images", "kerasdiff.batch", "kerasdiff.samplers"):
        again = {f"kerasdiff.{name}" for name in kerasdiff.__all__} if module != "kerasdiff" else set()
        exported = {f"{module}.{name}" for name in importlib.import_module(module).__all__}
        exported -= {name for name in exported if f"kerasdiff.{name.rpartition('.')[2]}" in again}
        assert exported <= set(listed)
    for name in listed:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_every_sampler_and_spacing_is_listed():
    listed = set(public.listed())
    functions = [sampler.rows for sampler in kerasdiff.SAMPLERS.values()] + list(kerasdiff.SPACINGS.values())
    assert {f"{function.__module__}.{function.__name__}" for function in functions} <= listed


@pytest.mark.parametrize("name", NAMES)
def test_a_docstring_begins_with_one_sentence_and_describes_only_what_exists(name):
    docstring = public.found(name).docstring
    assert docstring is not None
    first = docstring.value.splitlines()[0]
    assert first.endswith((".", ":")), first
    assert set(_described(name, "parameters")) <= set(_parameters(name))
    if isinstance(public.found(name), griffe.Class):
        assert set(_described(name, "attributes")) <= set(public.found(name).all_members)


@pytest.mark.parametrize("name", [name for name in NAMES if _described(name, "raises")])
def test_errors_that_a_docstring_names_exist(name):
    builtin = importlib.import_module("builtins")
    for error in _described(name, "raises"):
        kind = getattr(kerasdiff, error, None) or getattr(builtin, error, None) or getattr(kerasdiff.batch, error, None)
        assert isinstance(kind, type), error
        assert issubclass(kind, BaseException), error


@pytest.mark.parametrize("name", NAMES)
def test_where_a_docstring_sends_its_reader_there_is_something(name):
    text = public.found(name).docstring.value
    for others in _ELSEWHERE.findall(text):
        for other in re.findall(r"`([\w.]+)`", others):
            foreign = "." in other and importlib.util.find_spec(other.partition(".")[0])
            assert _resolved(name, other) or other in _parameters(name) or hasattr(kerasdiff, other) or foreign, other
    for other in _OTHERS.findall(text):
        there = _resolved(name, other)
        assert there is not None, other
        left = set(_parameters(name)) - set(_described(name, "parameters"))
        assert "arguments" in left or left & set(_parameters(there)), other


@pytest.mark.parametrize("name", [name for name in NAMES if _code(name)])
def test_its_example_runs(name, folder):
    document = examples.of_docstring(name, public.found(name).docstring.value, {"kerasdiff": kerasdiff, "np": np})
    for example in document:
        example.evaluate()


def test_the_tree_of_errors_is_that_of_the_source():
    tree = re.search(r"```text\n(.*?)```", (public.API / "errors.md").read_text("utf-8"), re.DOTALL)[1]
    assert tree in importlib.import_module("kerasdiff.errors").__doc__ + "\n"


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ('kerasdiff.generate("a circle", num_step=3)', TypeError),
        ('kerasdiff.Generator("sd-v1-4", precison="float16")', TypeError),
        ('g = kerasdiff.Generator("sd-v1-4")\ng.generate("a circle").safe("out.png")', AttributeError),
        ("kerasdiff.generator.Generator.draw()", AttributeError),
        ("from kerasdiff import generat", AttributeError),
        ('for one in kerasdiff.Generator("tiny").stream("a circle", step=3):\n    pass', TypeError),
        ("print(kerasdiff.StableDiffusion(512, 512, warm=True))", TypeError),
    ],
)
def test_an_example_that_cannot_run_is_looked_through(source, error):
    with pytest.raises(error):
        calls.check(source)


def test_an_example_that_cannot_run_and_is_right_passes():
    calls.check(
        'g = kerasdiff.Generator("sd-v1-4", precision="float16")\n'
        'print(g.generate("a circle", sampler="euler", num_steps=3).grid(columns=2).size, g.config.unet)'
    )
