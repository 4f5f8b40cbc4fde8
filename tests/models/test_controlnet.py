"""Networks that steer a U-Net, and the U-Net with what they add, beside diffusers."""

import numpy as np
import pytest
import torch
from control_checkpoints import controlnet
from torch_networks import XL_UNET, built, xl_model
from xl_checkpoints import xl_pipeline

from kerasdiff.models.blocks import feature_places, residual_shapes
from kerasdiff.models.control_configs import ControlModel, ControlNetConfig
from kerasdiff.models.networks import make_network


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    return xl_pipeline("base", tmp_path_factory.mktemp("xl")).unet


def _inputs(rows=2):
    torch.manual_seed(1)
    sizes = torch.tensor([[1024.0, 768, 0, 3, 128, 96], [64, 64, 7, 0, 128, 128]])
    return torch.randn(rows, 4, 11, 16), torch.tensor([999.0, 3]), torch.randn(2, 9, 192), torch.randn(2, 96), sizes


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_residuals_are_those_of_diffusers(unet, order):
    theirs = controlnet(unet, controlnet_conditioning_channel_order=order)
    config = ControlModel(controlnet=ControlNetConfig(XL_UNET, hint_widths=(16, 24, 32, 32), channel_order=order))
    ours = built(make_network("controlnet", config, "float32"), theirs)
    x, times, text, pooled, sizes = _inputs()
    hint = torch.rand(2, 3, 88, 128)
    with torch.no_grad():
        added = {"text_embeds": pooled, "time_ids": sizes}
        skips, middle = theirs(x, times, text, hint, added_cond_kwargs=added, return_dict=False)
    encoded = ours.encode(hint.permute(0, 2, 3, 1).numpy())
    beside = {"pooled": pooled.numpy(), "time_ids": sizes.numpy()}
    found = ours(x.permute(0, 2, 3, 1).numpy(), times.numpy(), text.numpy(), encoded, **beside)
    assert [tuple(each.shape[1:]) for each in found] == residual_shapes(XL_UNET, 11, 16)
    for ours_, theirs_ in zip(found, (*skips, middle), strict=True):
        assert float(theirs_.abs().mean()) > 0.01
        np.testing.assert_allclose(ours_, theirs_.permute(0, 2, 3, 1), atol=1e-4)


def test_a_unet_adds_residuals_and_features_as_that_of_diffusers(unet):
    ours = built(make_network("unet", xl_model(XL_UNET), "float32"), unet)
    x, times, text, pooled, sizes = _inputs()
    residuals = [torch.randn(2, *shape) for shape in residual_shapes(XL_UNET, 11, 16)]
    shapes = [
        shape for place, shape in enumerate(residual_shapes(XL_UNET, 11, 16)[1:-1]) if place in feature_places(XL_UNET)
    ]
    features = [torch.randn(2, *shape) for shape in [*shapes, residual_shapes(XL_UNET, 11, 16)[-1]]]
    theirs = [[each.permute(0, 3, 1, 2).clone() for each in all_] for all_ in (residuals, features)]
    with torch.no_grad():
        expected = unet(
            x,
            times,
            text,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes},
            down_block_additional_residuals=theirs[0][:-1],
            mid_block_additional_residual=theirs[0][-1],
            down_intrablock_additional_residuals=theirs[1],
        ).sample
    found = ours(
        x.permute(0, 2, 3, 1).numpy(),
        times.numpy(),
        text.numpy(),
        pooled=pooled.numpy(),
        time_ids=sizes.numpy(),
        residuals=[each.numpy() for each in residuals],
        features=[each.numpy() for each in features],
    )
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1), atol=1e-4)
