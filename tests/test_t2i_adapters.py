"""T2I-Adapters beside diffusers: their networks, their files, and what small models draw with them."""

from __future__ import annotations

import json
import pathlib
import re

import numpy as np
import pytest
import safetensors.torch
from checkpoints import torch
from control_checkpoints import t2i_adapter
from models.test_sdxl_networks import built

from kerasdiff.checkpoints.formats.t2i_adapter_file import open_t2i_adapter
from kerasdiff.errors import ModelError
from kerasdiff.models.config import ModelConfig
from kerasdiff.models.control_configs import ControlModel, T2IAdapterConfig
from kerasdiff.models.network_configs import TextEncoderConfig, UNetConfig
from kerasdiff.models.networks import make_network

CONFIGS = {
    "full": T2IAdapterConfig(channels=(32, 64, 64)),
    "light": T2IAdapterConfig("light_adapter", (32, 64), 3, in_channels=1),
    "xl": T2IAdapterConfig("full_adapter_xl", (32, 64, 96, 96), downscale_factor=16),
}


def theirs_of(config: T2IAdapterConfig, seed: int = 0):
    """diffusers' network of a configuration, with random weights."""
    settings = {name: getattr(config, name) for name in ("channels", "num_res_blocks", "downscale_factor")}
    return t2i_adapter(seed, config.adapter_type, in_channels=config.in_channels, **settings)


@pytest.mark.parametrize("name", CONFIGS)
def test_features_are_those_of_diffusers(name):
    config, theirs = CONFIGS[name], theirs_of(CONFIGS[name])
    ours = built(make_network("t2i_adapter", ControlModel(t2i_adapter=config), "float32"), theirs)
    torch.manual_seed(1)
    hint = torch.rand(2, config.in_channels, 80, 112)  # 5 x 7 positions of an adapter for SDXL, whose halves are odd
    with torch.no_grad():
        expected = [each.permute(0, 2, 3, 1).numpy() for each in theirs(hint)]
    found = ours(hint.permute(0, 2, 3, 1).numpy())
    assert [(each.shape[3], -(-80 // each.shape[1])) for each in expected] == [
        (width, -(-80 // -(-80 // pixels))) for width, pixels in config.features
    ]
    for our, their in zip(found, expected, strict=True):
        assert np.abs(their).mean() > 0.01
        np.testing.assert_allclose(our, their, atol=1e-5)


# U-Nets that have places for these features.
UNETS = {
    "full": UNetConfig(widths=(32, 64, 64), attention=(True, True, False), num_heads=(8, 8, 8), context_width=64),
    "xl": UNetConfig(
        widths=(32, 64, 96),
        attention=(False, True, True),
        num_heads=(1, 1, 1),
        context_width=192,
        pooled_width=96,
    ),
}
UNETS["light"] = UNETS["full"]


def model(name: str) -> ModelConfig:
    encoder = TextEncoderConfig(width=UNETS[name].context_width, num_heads=1, projection=96)
    return ModelConfig(encoder, UNETS[name])


def original(theirs) -> dict[str, torch.Tensor]:
    """An adapter's tensors with the names of its authors."""
    light = theirs.config.adapter_type == "light_adapter"
    depth = theirs.config.num_res_blocks

    def name(key: str) -> str:
        key = key.removeprefix("adapter.")
        found = re.fullmatch(r"body\.(\d+)\.(?:resnets\.(\d+)\.)?(.*)", key)
        if found is None or (light and found[2] is None):
            return key
        number, index, rest = int(found[1]), int(found[2] or 0), found[3]
        return f"body.{number}.body.{index}.{rest}" if light else f"body.{depth * number + index}.{rest}"

    return {name(key): value for key, value in theirs.state_dict().items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_layout_of_a_file_is_the_same_network(name, tmp_path):
    theirs = theirs_of(CONFIGS[name])
    theirs.save_pretrained(tmp_path / "folder")
    state = theirs.state_dict()
    safetensors.torch.save_file(state, tmp_path / "diffusers.safetensors")
    bare = {key.removeprefix("adapter."): value for key, value in state.items()}
    safetensors.torch.save_file(bare, tmp_path / "bare.safetensors")
    torch.save(original(theirs), tmp_path / "original.pth")
    prefixed = {f"adapter.{key}": value for key, value in original(theirs).items()}
    safetensors.torch.save_file(prefixed, tmp_path / "prefixed.safetensors")
    expected = {key: value.numpy() for key, value in state.items()}
    for path in sorted(tmp_path.iterdir()):
        found = open_t2i_adapter(path, model(name))
        assert found.config == ControlModel(t2i_adapter=CONFIGS[name])
        values = dict(found.parameters("t2i_adapter"))
        assert len(values) == len(expected)
        for key, value in expected.items():
            ours = f"t2i_adapter.{key}".replace(".weight", ".kernel")
            np.testing.assert_array_equal(values[ours], value.transpose(2, 3, 1, 0) if value.ndim == 4 else value)


def saved(path, tensors) -> pathlib.Path:
    safetensors.torch.save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


def test_what_does_not_fit_is_refused_by_name(tmp_path):
    full, light, xl = (original(theirs_of(CONFIGS[name])) for name in ("full", "light", "xl"))
    path = saved(tmp_path / "xl.safetensors", xl)
    with pytest.raises(ModelError, match=r"is a T2I-Adapter for Stable Diffusion XL, and this model is "):
        open_t2i_adapter(path, model("full"))
    path = saved(tmp_path / "full.safetensors", full)
    with pytest.raises(ModelError, match=r"for Stable Diffusion 1.x, and this model is Stable Diffusion .*: its feat"):
        open_t2i_adapter(path, model("xl"))
    for tensors, why in (
        (full | {"body.0.skep.weight": torch.zeros(32, 32, 1, 1)}, r"not supported \(it has body.0.skep"),
        (full | {"conv_in.weight": torch.zeros(32, 7, 3, 3)}, r"not supported \(channels 7 and \[32"),
        (
            light | {"body.2.out_conv.weight": torch.zeros(32, 16, 1, 1)},
            r"not supported \(channels 64 and \[32, 64, 32",
        ),
        (full | {"body.3.block2.weight": torch.zeros(64, 64, 3, 3)}, "body.3.block2.weight has shape"),
    ):
        path = saved(tmp_path / "other.safetensors", tensors)
        with pytest.raises(ModelError, match=why):
            dict(open_t2i_adapter(path, model("full")).parameters("t2i_adapter"))
    assert open_t2i_adapter(saved(tmp_path / "none.safetensors", {"a": torch.zeros(1)}), model("full")) is None
    assert open_t2i_adapter(tmp_path, model("full")) is None
    for settings, why in (
        ({"adapter_type": "half_adapter"}, "unknown adapter_type 'half_adapter'"),
        ({"in_channels": 4}, "in_channels=4 is not supported"),
        ({"num_res_blocks": 10**6}, "num_res_blocks=1000000 is out of range"),
        ({"adapter_type": "full_adapter_xl", "channels": [32, 32, 64, 96]}, "must be equal from the third on"),
        ({"adapter_type": "light_adapter", "channels": [30]}, "width 30 is not a multiple of 4"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"_class_name": "T2IAdapter", **settings}))
        with pytest.raises(ModelError, match=f"config.json: .*{why}"):
            open_t2i_adapter(tmp_path, model("full"))
