"""Reading and writing model folders, and what a damaged one says."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import safetensors.numpy

import kerasdiff
from kerasdiff.checkpoints import resolve
from kerasdiff.checkpoints.export import write_native
from kerasdiff.checkpoints.formats.native import read_config
from kerasdiff.checkpoints.formats.random_weights import RandomSource
from kerasdiff.models.config import TINY
from kerasdiff.models.networks import names_of
from kerasdiff.runtime.precision import Execution

FLOAT32 = Execution("CPU", "float32", False)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the embedded model that tests may damage."""
    copy = tmp_path / "tiny"
    shutil.copytree(resolve.TINY_FOLDER, copy)
    monkeypatch.setitem(resolve.BUNDLED, "tiny", (copy,))
    return copy


def test_the_shipped_configuration_is_the_one_in_the_code():
    assert read_config(resolve.TINY_FOLDER) == TINY


def test_the_shipped_weights_stay_small():
    files = list(resolve.TINY_FOLDER.glob("*.safetensors"))
    assert {path.stem for path in files} == set(names_of(TINY))
    assert sum(path.stat().st_size for path in files) < 16e6
    for path in files:
        assert {array.dtype for array in safetensors.numpy.load_file(path).values()} == {np.dtype("float16")}


def test_what_is_written_is_read(tmp_path):
    model = resolve.open_model("tiny", "random")
    networks = {name: model.build(name, FLOAT32) for name in names_of(TINY)}
    write_native(model, tmp_path, "float32")
    assert read_config(tmp_path) == TINY
    for name, network in networks.items():
        tensors = safetensors.numpy.load_file(tmp_path / f"{name}.safetensors")
        assert len(tensors) == len(network.weights)
        for weight in network.weights:
            key = weight.path.partition("/")[2].replace("/", ".")
            assert np.array_equal(tensors[key], np.asarray(weight))


def damage(path, change):
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


def test_a_missing_tensor_is_named(folder):
    damage(folder / "unet.safetensors", lambda tensors: tensors.pop("conv_in.bias"))
    with pytest.raises(kerasdiff.ModelError, match=r"unet\.safetensors has no tensor conv_in\.bias"):
        kerasdiff.Generator("tiny")


def test_a_tensor_too_many_is_named(folder):
    damage(folder / "decoder.safetensors", lambda tensors: tensors.update(extra=np.zeros(3, "float16")))
    with pytest.raises(kerasdiff.ModelError, match=r"holds 1 tensors the model does not have, e\.g\. extra"):
        kerasdiff.Generator("tiny")


def test_a_wrong_shape_is_named(folder):
    damage(folder / "unet.safetensors", lambda tensors: tensors.update({"conv_in.bias": np.zeros(3, "float16")}))
    with pytest.raises(kerasdiff.ModelError, match=r"conv_in\.bias has shape \(3,\), the model needs \(64,\)"):
        kerasdiff.Generator("tiny")


@pytest.mark.parametrize("size", [7, 1000, -1])
def test_a_truncated_file_is_named(folder, size):
    path = folder / "text_encoder.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(kerasdiff.ModelError, match=r"text_encoder\.safetensors is corrupt or incomplete"):
        kerasdiff.Generator("tiny")


def test_an_empty_file_is_named(folder):
    (folder / "text_encoder.safetensors").write_bytes(b"")
    with pytest.raises(kerasdiff.ModelError, match=r"text_encoder\.safetensors is empty; get the file again"):
        kerasdiff.Generator("tiny")


def test_a_missing_file_is_named(folder):
    (folder / "unet.safetensors").unlink()
    with pytest.raises(kerasdiff.ModelError, match=r"unet\.safetensors cannot be read: No such file"):
        kerasdiff.Generator("tiny")


@pytest.mark.parametrize("text", ["{", "[]", '{"unet": {}}'])
def test_a_broken_configuration_is_named(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(kerasdiff.ModelError, match=r"config\.json cannot be read as a model configuration"):
        kerasdiff.Generator("tiny")


def test_random_weights_repeat_and_follow_the_seed():
    shape = (3, 3, 320, 640)
    first, again, other = (RandomSource(seed)("unet.a.kernel", shape) for seed in (0, 0, 1))
    source = RandomSource(0)
    source("unet.b.kernel", (7, 5))
    assert np.array_equal(source("unet.a.kernel", shape), first)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first, RandomSource(0)("unet.b.kernel", shape))
    assert first.std() == pytest.approx((9 * 320) ** -0.5, rel=0.01)
    assert RandomSource(0)("unet.a.gamma", (500,)).mean() == pytest.approx(1, abs=0.01)
