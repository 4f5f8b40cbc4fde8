"""python -m kerasdiff.info."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
from safetensors.numpy import save_file

import kerasdiff
from kerasdiff import info
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


def test_it_says_what_a_lora_is_and_what_of_it_fits_a_model(tmp_path, capsys):
    path, tensors = tmp_path / "cats.safetensors", {}
    for layer, inputs, outputs in (
        ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", 128, 128),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", 128, 512),
        ("lora_te_text_model_encoder_layers_9_mlp_fc1", 128, 512),
    ):
        tensors[f"{layer}.lora_down.weight"] = np.ones((2, inputs), "float32")
        tensors[f"{layer}.lora_up.weight"] = np.ones((outputs, 2), "float32")
        tensors[f"{layer}.alpha"] = np.array(0.5)
    told = {"ss_output_name": "c\nats", "ss_sd_model_name": "v1-5", "ss_tag_frequency": '{"a": {"cat": 3, "dog": 1}}'}
    save_file(tensors, path, told)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    quick = run(f"--lora={path}", IMPORTED=str(tmp_path / "imported"))
    report = f"""\
file     {path}
SHA-256  {sha256}
kind     LoRA, 3 layers, rank 2, alpha 0.5
for      a model that its shapes do not tell
trained  name c ats; base model v1-5
tags     cat (3), dog (1)
"""
    assert (quick.returncode, quick.stderr, quick.stdout) == (0, "", report)
    assert {"tensorflow", "keras", "openvino", "huggingface_hub"}.isdisjoint(
        (tmp_path / "imported").read_text().split()
    )
    assert PROGRAM.call(main, ["kerasdiff.info", f"--lora={path}", "--model=tiny"]) == 0
    left_over = f"""{path} has tensors that are not used: 3 name layers that the model does not have (lora_te_text_"""
    out = capsys.readouterr().out
    assert out.startswith(f"{report}fits     tiny uses 6 of its 9 tensors\n         {left_over}")
    assert PROGRAM.call(main, ["kerasdiff.info", f"--lora={path}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tags"] == {"cat": 3, "dog": 1}
    assert found["sha256"] == sha256
    assert PROGRAM.call(main, ["kerasdiff.info", f"--lora={tmp_path / 'dogs'}"]) == 2
    assert capsys.readouterr().err.startswith("kerasdiff.info: there is no LoRA")
