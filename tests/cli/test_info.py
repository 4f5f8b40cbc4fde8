"""python -m kerasdiff.info."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import types

import pytest
from lora_files import write_lora

import kerasdiff
from kerasdiff import info
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.info import PROGRAM, main
from kerasdiff.runtime import backend, precision

# Writes down at the end what was imported.
SCRIPT = """
import atexit, os, pathlib, runpy, sys
there = lambda: " ".join(name for name, module in sys.modules.items() if module is not None)
atexit.register(lambda: pathlib.Path(os.environ["IMPORTED"]).write_text(there()))
runpy.run_module("kerasdiff.info", run_name="__main__", alter_sys=True)
"""


def run(*arguments, **environment):
    environment = {"IMPORTED": os.devnull, **os.environ, **environment}
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_it_says_what_there_is_and_clears_what_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("KERASDIFF_CACHE", str(tmp_path / "cache"))
    kerasdiff.Generator("tiny", jit_compile=False).generate("a circle", num_steps=1, progress=False)
    told = run("--json", IMPORTED=str(tmp_path / "imported"))
    assert (told.returncode, told.stderr, told.stdout.count("\n")) == (0, "", 1)
    found = json.loads(told.stdout)
    assert found["versions"]["kerasdiff"] == kerasdiff.__version__
    assert (found["backend"], found["reason"]) == ("tensorflow", "KERASDIFF_BACKEND=tensorflow says so")
    assert (found["computes"], found["computes with XLA"]) == ("yes", "yes")
    assert found["auto"]["embedded model"] == str(kerasdiff.Generator("tiny").execution)
    assert found["cache"]["folder"] == str(tmp_path / "cache")
    assert found["cache"]["programs"]["files"] == 6
    imported = (tmp_path / "imported").read_text().split()
    assert "tensorflow" in imported
    assert {"keras", "jax", "openvino"}.isdisjoint(imported)
    cleared = run("--clear", KERASDIFF_BACKEND="openvino", IMPORTED=str(tmp_path / "imported"))
    assert cleared.returncode == 0
    assert "programs: 0 files, 0.0 MB" in cleared.stdout
    assert "auto       large model: CPU" in cleared.stdout
    assert "computes   yes\n" in cleared.stdout
    assert not (tmp_path / "cache" / "programs").exists()
    imported = (tmp_path / "imported").read_text().split()
    assert "openvino" in imported
    assert {"keras", "jax", "tensorflow"}.isdisjoint(imported)


OLDEST = precision.OLDEST_OPENVINO


@pytest.mark.parametrize(
    ("told", "keras", "openvino", "machine", "driver", "expected", "reason"),
    [
        ("", "tensorflow", OLDEST, "x86_64", False, "openvino", "OpenVINO is installed, and there is no GPU's driver"),
        ("", "tensorflow", "2030.1.0", "AMD64", False, "openvino", "OpenVINO is installed"),
        ("", "tensorflow", None, "x86_64", False, "tensorflow", "OpenVINO is not installed: pip install 'openvino>"),
        ("", "tensorflow", "2024.6.0", "x86_64", False, "tensorflow", "OpenVINO 2024.6.0 is too old: pip install"),
        ("", "tensorflow", None, "aarch64", False, "tensorflow", "on x86 processors alone, and this one is aarch64"),
        ("", "tensorflow", OLDEST, "x86_64", True, "tensorflow", "there is a GPU's driver (/"),
        ("", "jax", OLDEST, "x86_64", False, "jax", "Keras is set to jax, by KERAS_BACKEND or keras.json"),
        ("jax", "tensorflow", OLDEST, "x86_64", False, "tensorflow", "Keras is set to tensorflow, by KERAS_BACKEND"),
        ("tensorflow", "tensorflow", OLDEST, "x86_64", False, "tensorflow", "KERASDIFF_BACKEND=tensorflow says so"),
        ("openvino", "tensorflow", OLDEST, "aarch64", False, "openvino", "KERASDIFF_BACKEND=openvino says so"),
    ],
)
def test_it_says_which_backend_auto_takes_and_why(
    monkeypatch, told, keras, openvino, machine, driver, expected, reason
):
    monkeypatch.setenv(backend.VARIABLE, told)
    monkeypatch.setenv("KERAS_BACKEND", keras)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(precision, "_DRIVERS", (os.path.abspath(os.sep) if driver else "/no/such/driver",))
    monkeypatch.setattr(precision, "version", {"openvino": openvino}.get)
    monkeypatch.setattr(precision.platform, "machine", lambda: machine)
    monkeypatch.setattr(backend, "of_keras", lambda: keras)
    monkeypatch.setattr(backend, "of", lambda name: types.SimpleNamespace(devices=list))
    monkeypatch.setattr(info, "_computes", lambda *_: "yes")
    found = info.info()
    assert found["backend"] == expected
    assert reason in found["reason"]
    assert f"\n           {found['reason']}\n" in "\n".join(info.lines(found))


def test_it_says_what_a_lora_is_and_what_it_changes(tmp_path, capsys):
    shapes = open_model("tiny").shapes("unet")
    file = write_lora(tmp_path / "style.safetensors", {"unet": shapes}, 1, networks=("unet",))
    assert PROGRAM.call(info.main, ["info", f"--lora={file}", "--model=tiny", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["lora"]
    assert (told["kind"], told["ranks"], told["changes"]["text encoder"], told["not used"]) == ("LoRA", [4], 0, None)
    assert told["changes"]["unet"] == told["layers"] > 10
    assert told["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert PROGRAM.call(info.main, ["info", f"--lora={file}"]) == 0
    assert {f"file: {file}", "kind: LoRA", "ranks: 4"} < set(capsys.readouterr().out.splitlines())
    for arguments, message in (
        (["--model=tiny"], "--model is what --lora is compared with"),
        (["--lora=none.safetensors"], "there is no LoRA 'none.safetensors'"),
    ):
        assert PROGRAM.call(info.main, ["info", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_an_openvino_that_is_too_old_is_one_line(monkeypatch):
    monkeypatch.setattr(precision, "version", {"openvino": "2025.3.0"}.get)
    with pytest.raises(kerasdiff.RequestError, match="OpenVINO 2025\\.3\\.0 is too old: pip install"):
        kerasdiff.Generator("tiny", backend="openvino")


def test_bad_arguments_are_one_line(capsys):
    for arguments, message in (
        (("more",), "'more' is not a flag; usage: python -m kerasdiff.info"),
        (("--nonsense",), "Unknown command line flag 'nonsense'"),
    ):
        assert PROGRAM.call(main, ["kerasdiff.info", *arguments]) == 2
        out, err = capsys.readouterr()
        assert (out, len(err.splitlines())) == ("", 1)
        assert message in err
    told = run(KERAS_BACKEND="torch", KERASDIFF_BACKEND="")
    assert told.returncode == 2
    assert "traced by TensorFlow or JAX, but Keras is set to 'torch'; set KERAS_BACKEND=tensorflow" in told.stderr
