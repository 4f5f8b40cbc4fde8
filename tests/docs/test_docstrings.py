"""What is public is documented: each name on one page, every parameter, and an example that runs."""

from __future__ import annotations

import importlib
import re

import calls
import examples
import griffe
import numpy as np
import public
import pytest

import kerasdiff

NAMES = public.public()
# Where an argument is described that is the same elsewhere: "as in `Generator`".
_SAME = re.compile(r"as (?:in|for) `([\w.]+)`")


def _section(name: str, kind: str) -> list[str]:
    """Names that a docstring's section describes."""
    docstring = public.found(name).docstring
    sections = docstring.parsed if docstring else []
    return [one.name.lstrip("*") for section in sections if section.kind.value == kind for one in section.value]


def _parameters(name: str) -> list[str]:
    one = public.found(name)
    if not isinstance(one, griffe.Function | griffe.Class):
        return []
    return [parameter.name for parameter in one.parameters if parameter.name not in ("self", "cls")]


def _code(name: str) -> str:
    """The examples of a name's docstring."""
    docstring = public.found(name).docstring
    if docstring is None:
        return ""
    return "\n".join(example.parsed for example in examples.of_docstring(name, docstring.value, {}))


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
def test_a_docstring_names_what_it_is_about_in_one_line_and_describes_every_parameter(name):
    docstring = public.found(name).docstring
    assert docstring is not None
    first = docstring.value.splitlines()[0]
    assert first.endswith((".", ":")), first
    described = _section(name, "parameters") or _section(name, "attributes")
    if isinstance(public.found(name), griffe.Class) and not _parameters(name):
        return  # errors: nobody makes one
    assert set(_parameters(name)) <= set(described)
    assert set(_section(name, "parameters")) <= set(_parameters(name))


@pytest.mark.parametrize("name", NAMES)
def test_an_example_shows_it(name):
    owner = name.rpartition(".")[0]
    code = _code(name) + (_code(owner) if owner in NAMES else "") + _page(name) + _page(owner)
    shown = [one.rpartition(".")[2] for one in (name, *public.members(name))]
    assert any(re.search(rf"\b{one}\b", code) for one in shown)


def _page(name: str) -> str:
    """The examples of the page that lists a name."""
    for page in public.API.glob("*.md"):
        if f"::: {name}\n" in page.read_text("utf-8"):
            return "\n".join(example.parsed for example in examples.of_page(page))
    return ""


@pytest.mark.parametrize("name", [name for name in NAMES if _code(name)])
def test_its_example_runs(name, folder):
    document = examples.of_docstring(name, public.found(name).docstring.value, {"kerasdiff": kerasdiff, "np": np})
    for example in document:
        example.evaluate()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_described_elsewhere_is_described_there(name):
    docstring = public.found(name).docstring
    for section in docstring.parsed:
        if section.kind.value == "parameters":
            for one in section.value:
                for other in _SAME.findall(one.description):
                    there = _resolved(name, other)
                    assert one.name.startswith("*") or one.name in _section(there, "parameters"), (one.name, other)


def _resolved(name: str, other: str) -> str:
    """The full name of what a docstring calls `other`: near it, or in the package."""
    places = [name.rsplit(".", depth)[0] for depth in (1, 2)]
    listed = [*(f"{place}.{other}" for place in places), f"kerasdiff.{other}", other]
    found = next((one for one in listed if one in NAMES), None)
    assert found is not None, f"{name} points to {other}, which is not public"
    return found


def test_generate_lists_what_it_hands_on():
    sections = public.found("kerasdiff.Generator.generate").docstring.parsed
    parameters = next(section.value for section in sections if section.kind.value == "parameters")
    handed_on = next(one for one in parameters if one.name == "**arguments")
    listed = re.findall(r"`(\w+)`", handed_on.description)
    assert listed == [name for name in _parameters("kerasdiff.request.make_request") if name in listed]
    assert {*listed, "config", "prompt", "batch_size"} == set(_parameters("kerasdiff.request.make_request"))


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
