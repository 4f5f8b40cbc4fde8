"""python -m kerasdiff.info."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import kerasdiff
from kerasdiff.info import PROGRAM, main


def run(*arguments, **environment):
    command = [sys.executable, "-m", "kerasdiff.info", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})


def test_it_says_what_there_is_and_clears_what_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("KERASDIFF_CACHE", str(tmp_path))
    kerasdiff.Generator("tiny", jit_compile=False).generate("a circle", num_steps=1, progress=False)
    told = run("--json")
    assert (told.returncode, told.stderr, told.stdout.count("\n")) == (0, "", 1)
    found = json.loads(told.stdout)
    assert found["versions"]["kerasdiff"] == kerasdiff.__version__
    assert (found["computes"], found["computes with XLA"]) == ("yes", "yes")
    assert found["auto"]["embedded model"] == str(kerasdiff.Generator("tiny").execution)
    assert found["cache"]["folder"] == str(tmp_path)
    assert found["cache"]["programs"]["files"] == 6
    cleared = run("--clear")
    assert cleared.returncode == 0
    assert "programs: 0 files, 0.0 MB" in cleared.stdout
    assert "auto       large model: CPU" in cleared.stdout
    assert not (tmp_path / "programs").exists()


def test_bad_arguments_are_one_line(capsys):
    for arguments, message in (
        (("more",), "'more' is not a flag; usage: python -m kerasdiff.info"),
        (("--nonsense",), "Unknown command line flag 'nonsense'"),
    ):
        assert PROGRAM.call(main, ["kerasdiff.info", *arguments]) == 2
        out, err = capsys.readouterr()
        assert (out, len(err.splitlines())) == ("", 1)
        assert message in err
    told = run(KERAS_BACKEND="torch")
    assert told.returncode == 2
    assert "kerasdiff runs on TensorFlow and JAX, but Keras is set to 'torch'" in told.stderr
