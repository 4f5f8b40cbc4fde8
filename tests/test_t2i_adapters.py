"""T2I-Adapters beside diffusers: their networks, their files, and what small models draw with them."""

from __future__ import annotations

import numpy as np
import pytest
from checkpoints import torch
from control_checkpoints import t2i_adapter
from models.test_sdxl_networks import built

from kerasdiff.models.control_configs import ControlModel, T2IAdapterConfig
from kerasdiff.models.networks import make_network

CONFIGS = {
    "full": T2IAdapterConfig(channels=(32, 64, 64)),
    "light": T2IAdapterConfig("light_adapter", (32, 64), 3, in_channels=1),
    "xl": T2IAdapterConfig("full_adapter_xl", (32, 64, 96, 96), downscale_factor=16),
}


def theirs_of(config: T2IAdapterConfig, seed: int = 0):
    """diffusers' network of a configuration, with random weights."""
    settings = {name: getattr(config, name) for name in ("channels", "num_res_blocks", "downscale_factor")}
    return t2i_adapter(seed, config.kind, in_channels=config.in_channels, **settings)


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
