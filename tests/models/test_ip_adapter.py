"""Image encoders and IP-Adapters beside transformers and diffusers."""

import copy

import numpy as np
import pytest
import torch
from image_prompt_checkpoints import image_encoder, ip_adapter, save_ip_adapter
from torch_networks import XL_UNET, xl_model
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from xl_checkpoints import xl_pipeline

from kerasdiff.checkpoints.formats.ip_adapter_file import open_ip_adapter
from kerasdiff.diffusion.safety_stage import prepare
from kerasdiff.models.blocks import cross_attentions
from kerasdiff.models.layers import values_from
from kerasdiff.models.networks import make_network


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    return xl_pipeline("base", tmp_path_factory.mktemp("xl")).unet


@pytest.fixture(scope="module")
def encoder():
    return image_encoder()


def built(checkpoint, name):
    network = make_network(name, checkpoint.config, "float32")
    with values_from(checkpoint.source(name, lambda: checkpoint.shapes(name))):
        network.build()
    return network


@pytest.mark.parametrize(("kind", "ending"), [("plain", "safetensors"), ("plus", "bin"), ("full", "safetensors")])
def test_keys_and_values_of_pictures_are_those_of_diffusers(unet, encoder, tmp_path, kind, ending):
    tensors = ip_adapter(unet, kind, encoder)
    path = save_ip_adapter(tmp_path / f"adapter.{ending}", tensors, encoder)
    ours = open_ip_adapter(path, xl_model(XL_UNET), str(path))
    theirs, parts = copy.deepcopy(unet), {"image_proj": {}, "ip_adapter": {}}
    for name, value in tensors.items():
        parts[name.partition(".")[0]][name.partition(".")[2]] = value
    theirs._load_ip_adapter_weights([parts])

    picture = np.random.default_rng(1).integers(0, 256, (23, 31, 3), "uint8")
    processor = CLIPImageProcessorPil(size=18, crop_size=18)
    pixels = processor(picture, return_tensors="pt").pixel_values
    with torch.no_grad():
        seen = encoder(pixels, output_hidden_states=True)
        expected = seen.image_embeds if kind == "plain" else seen.hidden_states[-2]
        (tokens,) = theirs.encoder_hid_proj([expected[None]])
    prepared = prepare(picture, ours.config.image_encoder)[None]
    np.testing.assert_allclose(prepared[0], pixels[0].permute(1, 2, 0), atol=1e-5)
    network = built(ours, "image_encoder")
    embedding = network(prepared) if kind == "plain" else network.hidden(prepared)
    np.testing.assert_allclose(embedding, expected, atol=1e-4)
    keys, values = built(ours, "ip_adapter")(embedding)
    assert keys[0].shape[1] == ours.config.ip_adapter.tokens_of(ours.config.image_encoder)
    for place, key, value in zip(cross_attentions(XL_UNET), keys, values, strict=True):
        processor = theirs.attn_processors[f"{place}.attn2.processor"]
        with torch.no_grad():
            np.testing.assert_allclose(key, processor.to_k_ip[0](tokens)[0], atol=1e-4)
            np.testing.assert_allclose(value, processor.to_v_ip[0](tokens)[0], atol=1e-4)
