"""python -m kerasdiff.convert: every format to every other, bit by bit."""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest

import kerasdiff
from kerasdiff.checkpoints import export
from kerasdiff.checkpoints.formats.ldm_sampling import read_sampling
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.convert import FORMATS, PROGRAM, convert, main
from kerasdiff.models.layers import parameters_of
from kerasdiff.models.networks import make_network, names_of
from kerasdiff.runtime.safetensors_map import TensorFiles


def all_parameters(path):
    model, found = open_model(str(path)), {}
    for network in names_of(model.config):
        expected = parameters_of(make_network(network, model.config, "float32"))
        source = model.source(network, lambda expected=expected: expected)
        found.update({name: np.array(source(name, shape)) for name, shape in expected.items()})
    return found


def test_the_embedded_model_goes_through_diffusers_layout_and_back(tmp_path, tiny):
    there = convert("tiny", tmp_path / "there", format="diffusers", dtype="float16")
    back = convert(there, tmp_path / "back", dtype="float16")
    expected = all_parameters("tiny")
    for path in (there, back):
        found = all_parameters(path)
        assert set(found) == set(expected)
        for name, value in found.items():
            assert value.dtype == np.float16
            assert np.array_equal(value, expected[name]), name
    # The same picture, as far as the layout can say what the model is (its GELU there is the exact one).
    request = {"num_steps": 4, "seed": 3, "progress": False, "sampler": "dpmpp_2m", "spacing": "trailing"}
    usual = tiny.generate("a red circle", guidance_scale=3.0, **request)
    generator = kerasdiff.Generator(str(back), precision="float32")
    again = generator.generate("a red circle", guidance_scale=3.0, **request)
    difference = np.abs(usual.images.astype(int) - again.images.astype(int))
    assert difference.mean() < 2


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing", "karras", "exponential", "beta", None])
def test_diffusers_layout_keeps_the_spacing(tmp_path, spacing):
    model = open_model("tiny")
    defaults = dataclasses.replace(model.config.defaults, spacing=spacing)
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, defaults=defaults))
    (tmp_path / "there").mkdir()
    export.write_diffusers(model, tmp_path / "there", "float16")
    assert open_model(str(tmp_path / "there")).config.defaults.spacing == spacing


def test_our_folders_keep_the_whole_configuration(tmp_path, tiny):
    made = convert("tiny", tmp_path / "copy", format="kerasdiff", dtype="bfloat16")
    generator = kerasdiff.Generator(str(made), precision="float32")
    assert generator.config == tiny.config
    prompt = "a blue square"
    assert generator.tokenizer.encode(prompt) == tiny.tokenizer.encode(prompt)
    expected = all_parameters("tiny")
    for name, value in all_parameters(made).items():
        assert np.array_equal(value, expected[name].astype(value.dtype)), name


@pytest.fixture
def call(capsys):
    """Runs the command in this process: (exit status, stdout, stderr)."""

    def run(*arguments):
        code = PROGRAM.call(main, ["kerasdiff.convert", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_the_command_line_converts(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "kerasdiff.convert", "tiny", str(tmp_path / "made")]
    done = subprocess.run(
        [*command, "--format=diffusers", "--dtype=float32"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'made'}\n", "")
    assert (tmp_path / "made" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_json_says_what_was_written(tmp_path, call):
    for name, format_ in (("made", "kerasdiff"), ("made.safetensors", "single_file")):
        path = tmp_path / name
        code, out, err = call("tiny", path, "--json")
        assert (code, err) == (0, "")
        told = json.loads(out)
        size = sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
        assert told == {"path": str(path), "format": format_, "dtype": "float16", "bytes": size}


def test_what_is_wrong_is_one_line_and_leaves_nothing(tmp_path, call):
    (tmp_path / "taken").mkdir()
    for arguments, message in [
        ((), "a source and a destination are needed; usage: python -m kerasdiff.convert SOURCE DESTINATION"),
        (("tiny", tmp_path / "taken"), "taken is there already; choose another name or remove it first"),
        (("tiny", tmp_path / "no" / "where"), "no; make it first"),
        (("tiny", tmp_path / "x", "--format=ckpt"), "format='ckpt' is unknown; known: " + ", ".join(FORMATS)),
        (("tiny", tmp_path / "x", "--dtype=int8"), "dtype='int8' is unknown; known: bfloat16, float16, float32"),
        (("tiny", tmp_path / "x", "--nonsense=1"), "Unknown command line flag 'nonsense'"),
        (("tiny", tmp_path / ("x" * 256)), "File name too long; choose another name or folder"),
        (("tinny", tmp_path / "x"), "model='tinny' is unknown; did you mean 'tiny'?"),
    ]:
        code, out, err = call(*arguments)
        assert (code, out) == (2, "")
        assert message in err
        assert err.startswith("kerasdiff.convert: ")
        assert err.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_long_names_are_written(tmp_path):
    assert convert("tiny", tmp_path / ("x" * 243 + ".safetensors")).is_file()
    assert convert("tiny", tmp_path / ("\u00e9" * 127)).is_dir()


def test_a_source_that_breaks_off_leaves_nothing(tmp_path, monkeypatch):
    from kerasdiff.checkpoints.checkpoint import Checkpoint

    def break_off(model, network):
        yield from itertools.islice(parameters(model, network), 3)
        raise kerasdiff.ModelError("gone")

    parameters = Checkpoint.parameters
    monkeypatch.setattr(Checkpoint, "parameters", break_off)
    with pytest.raises(kerasdiff.ModelError, match="gone"):
        convert("tiny", tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_settings_that_a_format_cannot_keep_are_said(tmp_path, caplog):
    def said(format_name, path, **schedule):
        caplog.clear()
        changed = dataclasses.replace(tiny.config, schedule=dataclasses.replace(tiny.config.schedule, **schedule))
        convert(dataclasses.replace(tiny, config=changed), tmp_path / path, format=format_name)
        return caplog.text

    tiny = open_model("tiny")
    line = said("single_file", "a.safetensors", trained_betas=(0.01,) * 1000)
    assert "such files have no place for " in line
    assert "trained_betas=(0.01" in line
    assert "spacing" not in line  # in the file's metadata, as all of it
    assert "prediction_type" not in line
    assert read_sampling(TensorFiles([tmp_path / "a.safetensors"]), False)[0].prediction_type == "v_prediction"
    assert "rescale_betas" not in said("single_file", "b.safetensors", rescale_betas_zero_snr=True)
    assert "prediction_type" not in said("single_file", "c.safetensors", prediction_type="epsilon")
    assert "prediction_type='sample'" in said("single_file", "d.safetensors", prediction_type="sample")
    assert "format='keras_cv' does not keep " in said("keras_cv", "e")
    assert "prediction_type='v_prediction'" in caplog.text
    assert said("diffusers", "f") == said("kerasdiff", "g") == ""
