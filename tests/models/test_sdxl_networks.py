"""The networks of Stable Diffusion XL beside diffusers and transformers."""

import re

import numpy as np
import pytest
import torch
from torch_networks import XL_UNET, built, xl_model
from xl_checkpoints import text_encoder, xl_pipeline

from kerasdiff.models.config import SDXL, SDXL_REFINER, ModelConfig
from kerasdiff.models.network_configs import TextEncoderConfig, UNetConfig
from kerasdiff.models.networks import make_network

CONFIGS = {
    "base": XL_UNET,
    "refiner": {"context_width": 128, "num_time_ids": 5, "transformer_depth": (2, 2)},
    "ssd": {
        "layers_per_level": 2,
        "middle": "plain",
        "transformer_depth": (1, (3, 2)),
        "up_transformer_depth": (1, (1, 2, 3)),
    },
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_unet_is_that_of_diffusers(kind, tmp_path):
    import dataclasses

    changed = CONFIGS[kind]
    config = changed if isinstance(changed, UNetConfig) else dataclasses.replace(XL_UNET, **changed)
    theirs = xl_pipeline(kind, tmp_path).unet
    ours = built(make_network("unet", xl_model(config), "float32"), theirs)
    torch.manual_seed(1)
    x, text, pooled = torch.randn(2, 4, 12, 16), torch.randn(2, 9, config.context_width), torch.randn(2, 96)
    sizes = torch.tensor([[1024.0, 768, 0, 3, 128, 96], [64, 64, 7, 0, 128, 128]])[:, : config.num_time_ids]
    with torch.no_grad():
        expected = theirs(
            x, torch.tensor([999.0, 3]), text, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}
        ).sample
    rows = x.permute(0, 2, 3, 1).numpy()
    found = ours(rows, np.array([999.0, 3], "float32"), text.numpy(), pooled=pooled.numpy(), time_ids=sizes.numpy())
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1), atol=1e-4)
    # Both halves of guidance from one half of latents.
    with torch.no_grad():
        expected = theirs(
            x[[0, 0]], torch.tensor([5.0, 5]), text, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}
        ).sample
    found = ours(rows[:1], np.array([5.0], "float32"), text.numpy(), pooled=pooled.numpy(), time_ids=sizes.numpy())
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1), atol=1e-4)


def _clip(path: str) -> str:
    if path == "text_projection":
        return path
    path = re.sub(r"^(token|position)_embedding", r"embeddings.\1_embedding", path)
    path = re.sub(r"^(layers\.\d+\.)([qkv]_proj|out_proj)", r"\1self_attn.\2", path)
    path = re.sub(r"^(layers\.\d+\.)(fc\d)", r"\1mlp.\2", path)
    return re.sub(r"^layers", "encoder.layers", path)


@pytest.mark.parametrize("projection", [None, 96])
def test_a_text_encoder_gives_its_last_layer_but_one_and_a_pooled_embedding(projection):
    torch.manual_seed(2)
    theirs = text_encoder(128, 4, projection)
    config = TextEncoderConfig(
        vocab_size=628,
        width=128,
        num_layers=4,
        num_heads=2,
        mlp_width=259,
        activation="gelu" if projection else "quick_gelu",
        skipped_layers=1,
        final_norm=False,
        projection=projection,
    )
    model = ModelConfig(None, UNetConfig(context_width=128, pooled_width=projection), text_encoder_2=config)
    ours = built(make_network("text_encoder_2", model, "float32"), theirs, _clip)
    ids = np.array([[626, 5, 9, 627, 0, 0, 0], [626, 5, 9, 4, 3, 1, 627]], "int32")
    with torch.no_grad():
        expected = theirs(torch.tensor(ids.astype("int64")), output_hidden_states=True)
    for skip in (0, 1):
        found = ours(ids, skip=skip)
        np.testing.assert_allclose(found, expected.hidden_states[-2 - skip], atol=1e-5)
    if projection:
        context, pooled = ours(ids, ends=np.array([3, 6], "int32"), skip=1)
        np.testing.assert_allclose(context, expected.hidden_states[-3], atol=1e-5)
        np.testing.assert_allclose(pooled, expected.text_embeds, atol=1e-5)


@pytest.mark.parametrize(("config", "millions"), [(SDXL, 2567.46), (SDXL_REFINER, 2259.53)])
def test_the_published_models_have_as_many_parameters(config, millions):
    import math

    from kerasdiff.models.layers import parameters_of

    shapes = parameters_of(make_network("unet", config, "float32"))
    assert sum(map(math.prod, shapes.values())) / 1e6 == pytest.approx(millions, abs=0.01)
    assert ModelConfig.from_json(config.to_json()) == config
