"""Upscalers' networks and files against what torch computes, in all published layouts; files that are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import upscaler_files
from upscaler_files import bsrgan, compact, old_esrgan, reference, rrdb, save

import kerasdiff
from kerasdiff.checkpoints.formats.esrgan_file import open_upscaler
from kerasdiff.models.upscaler_config import CompactConfig, RRDBConfig
from kerasdiff.runtime.precision import Execution

FLOAT32 = Execution("CPU", "float32", False)


def wrapped(wrapper):
    return lambda tensors: {f"{wrapper}{name}": tensor for name, tensor in tensors.items()}


def two(tensors):
    """As trainers save it: the running average, and the last values."""
    noise = {f"params.{name}": torch.zeros_like(tensor) for name, tensor in tensors.items()}
    return noise | wrapped("params_ema.")(tensors)


@pytest.mark.parametrize(
    ("tensors", "layout", "config"),
    [
        (rrdb(), dict, RRDBConfig(8, 2, 4, 4)),
        (rrdb(doublings=1), bsrgan, RRDBConfig(8, 2, 4, 2)),
        (rrdb(features=12, blocks=1, doublings=3), old_esrgan, RRDBConfig(12, 1, 4, 8)),
        (rrdb(doublings=0), wrapped("module."), RRDBConfig(8, 2, 4, 1)),
        (rrdb(unshuffle=2), two, RRDBConfig(8, 2, 4, 2, 2)),
        (rrdb(unshuffle=4), old_esrgan, RRDBConfig(8, 2, 4, 1, 4)),
        (rrdb(plus=True), old_esrgan, RRDBConfig(8, 2, 4, 4, plus=True)),
        (compact(), wrapped("params."), CompactConfig(8, 2, 4)),
        (compact(features=6, blocks=3, scale=2), dict, CompactConfig(6, 3, 2)),
        (compact(blocks=1, scale=1), dict, CompactConfig(8, 1, 1)),
    ],
)
def test_a_file_is_the_network_that_its_tensors_show(tmp_path, tensors, layout, config):
    model = open_upscaler(save(layout(tensors), tmp_path / "a.safetensors"))
    assert model.config.upscaler == config
    network = model.build("upscaler", FLOAT32)
    pictures = np.random.default_rng(0).random((2, 12, 16, 3), "float32")
    made = np.asarray(network(pictures))
    assert made.shape == (2, 12 * config.scale, 16 * config.scale, 3)
    assert np.abs(made - reference(tensors, pictures)).max() < 1e-4 / 4
    assert not any(name.startswith("params.") for name in model.shapes("upscaler"))


def test_a_file_of_torch_is_read_like_its_twin(tmp_path):
    tensors = rrdb(blocks=1, doublings=1)
    torch.save({"params_ema": tensors, "params": {}, "iter": 3}, tmp_path / "a.pth")
    model = open_upscaler(tmp_path / "a.pth")
    assert model.config.upscaler == RRDBConfig(8, 1, 4, 2)
    values = dict(open_upscaler(save(tensors, tmp_path / "a.safetensors")).parameters("upscaler"))
    assert all(np.array_equal(value, values[name]) for name, value in model.parameters("upscaler"))


def test_a_picture_is_not_rounded_before_the_network_sees_it(tmp_path):
    """In bfloat16, where 255 levels are 128: what is added to the picture is small, and the picture stays exact."""
    tensors = compact()
    for name in tensors:
        if name.startswith("body.6"):
            tensors[name] *= 0
    model = open_upscaler(save(tensors, tmp_path / "a.safetensors"))
    network = model.build("upscaler", Execution("CPU", "bfloat16", False))
    levels = np.arange(256, dtype="float32").reshape(1, 16, 16, 1).repeat(3, -1) / 255
    assert np.array_equal(np.asarray(network(levels))[:, ::4, ::4], levels)


def without(tensors, *names):
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(names)}


@pytest.mark.parametrize(
    ("tensors", "line"),
    [
        ({"layers.0.residual_group.blocks.0.attn.qkv.weight": torch.zeros(3, 3)}, "is no upscaler that is known here"),
        ({"conv_first.weight": torch.zeros(8, 3, 3, 3)}, "is no upscaler that is known here"),
        ({"a.weight": torch.zeros(3)}, "reads upscalers of ESRGAN's kind: RRDBNet .* and SRVGGNetCompact"),
        ({"lora_unet_a.lora_down.weight": torch.zeros(4, 4)}, "is a LoRA: kerasdiff reads upscalers"),
        (rrdb() | {"conv_first.weight": torch.zeros(8, 5, 3, 3)}, "takes 5 channels and gives 3"),
        (
            rrdb() | {"conv_first.weight": torch.zeros(8, 1, 3, 3), "conv_last.weight": torch.zeros(1, 8, 3, 3)},
            "an upscaler of grey pictures; kerasdiff reads those of colours",
        ),
        (compact() | {"body.0.weight": torch.zeros(8, 4, 3, 3)}, "an upscaler of pictures with transparency"),
        (compact() | {"body.6.weight": torch.zeros(47, 8, 3, 3)}, "is no upscaler that is known here"),
        (without(rrdb(), "conv_up2"), "conv_up2"),
        (without(rrdb(), "conv_hr"), r"conv_hr.weight is missing"),
        (without(rrdb(), "body.0.rdb2"), r"body.0.rdb2.conv1.weight is missing"),
        (rrdb(unshuffle=4, doublings=1), "makes pictures smaller"),
        (rrdb() | {"body.300.rdb1.conv1.weight": torch.zeros(4, 8, 3, 3)}, "blocks=301 cannot be built; 1 to 256 can"),
    ],
)
def test_what_is_no_such_upscaler_is_one_line(tmp_path, tensors, line):
    path = save(tensors, tmp_path / "a.safetensors")
    if line == "conv_up2":  # a smaller scale, and what would need the other one is missing in nothing
        assert open_upscaler(path).config.upscaler.scale == 2
        return
    with pytest.raises(kerasdiff.ModelError, match=line):
        open_upscaler(path).build("upscaler", FLOAT32)


def test_tensors_that_no_network_uses_are_one_warning(tmp_path):
    path = save(compact() | {"extra.weight": torch.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.warns(UserWarning, match=r"has tensors that are not used \(1\): extra.weight"):
        open_upscaler(path).build("upscaler", FLOAT32)


def test_a_model_that_is_an_upscaler_says_where_it_belongs(tmp_path):
    for tensors in (rrdb(), old_esrgan(rrdb()), bsrgan(rrdb()), upscaler_files.compact()):
        with pytest.raises(kerasdiff.ModelError, match=r"is an upscaler .*, as upscale= \(--upscale\)"):
            kerasdiff.Generator(save(tensors, tmp_path / "a.safetensors"))
