"""A progress bar where somebody watches, and nothing in pipes and logs."""

from __future__ import annotations

import io
import re
import sys
import warnings

import pytest

import kerasdiff
from kerasdiff import batch
from kerasdiff.runtime import terminal

QUICK = {"num_steps": 2, "seed": 1, "height": 64, "width": 64}


class Terminal(io.StringIO):
    """A stderr of 80 columns."""

    def isatty(self):
        return True


def open_terminal(monkeypatch):
    """A terminal in the place of stderr."""
    for name in ("CI", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stderr", Terminal())


def test_no_bar_in_a_pipe(tiny, tmp_path, capfd):
    tiny.generate("a ring", **QUICK)
    list(tiny.stream("a ring", **QUICK))
    kerasdiff.replay(tiny.generate("a ring", **QUICK).save(tmp_path / "a.png")[0])
    tiny.denoise(tiny.initial_latents(), tiny.encode_text(["a ring"]), num_steps=1)
    batch.run([batch.Row("ring", "a ring", seed=1)], tmp_path / "job", generator=tiny, num_steps=1)
    assert capfd.readouterr().err == ""
    tiny.generate("a ring", progress=True, **QUICK)
    assert "2/2" in capfd.readouterr().err


def test_a_bar_on_a_terminal_fits_its_line(tiny, monkeypatch):
    open_terminal(monkeypatch)
    long = "a-model-of-somebody-who-gives-his-folders-names-that-say-everything-v1-5-pruned"
    monkeypatch.setattr(tiny._pipeline, "name", long)
    tiny.generate("a ring", **QUICK)
    lines = re.split("[\r\n]", sys.stderr.getvalue())
    assert any("2/2" in line and "a-model-of-somebody-w..." in line for line in lines)
    assert max(map(len, lines)) < 80
    sys.stderr.truncate(0)
    tiny.generate("a ring", progress=False, **QUICK)
    assert sys.stderr.getvalue() == ""


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, True),
        ({"CI": "true"}, False),
        ({"CI": "false"}, True),
        ({"TERM": "dumb"}, False),
        ({"TERM": "xterm"}, True),
    ],
)
def test_who_watches(monkeypatch, variables, expected):
    open_terminal(monkeypatch)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert terminal.shows_progress(None) is expected
    assert terminal.shows_progress(True)


def test_a_notebook_has_a_bar(monkeypatch):
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})
    monkeypatch.setattr(sys, "stderr", stream())
    assert terminal.is_watched()
    monkeypatch.setattr(sys, "stderr", None)  # as in a program without a console
    assert not terminal.is_watched()


def test_a_bar_must_be_true_or_false(tiny):
    with pytest.raises(kerasdiff.RequestError, match="progress must be True or False"):
        tiny.generate("a ring", progress="no", **QUICK)


def test_no_library_warns_whoever_draws():
    with warnings.catch_warnings(record=True, action="always") as told:
        for precision in ("mixed_float16", "bfloat16"):
            generator = kerasdiff.Generator("tiny", precision=precision)
            generator.networks["unet"].weights  # noqa: B018 - which builds the layer
            generator.generate("a ring", **QUICK)
    assert [str(warning.message) for warning in told] == []
