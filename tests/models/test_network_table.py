"""The table of networks, and the blocks that the U-Net and the autoencoder are made of."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys

import pytest

from kerasdiff.checkpoints.formats import diffusers_folder, keras_cv_h5, keras_cv_live, ldm
from kerasdiff.errors import ModelError
from kerasdiff.models.blocks import decoder_blocks, encoder_blocks, unet_blocks
from kerasdiff.models.config import SD_V1, SDXL, SDXL_REFINER, TINY
from kerasdiff.models.control_configs import ControlModel, ControlNetConfig, IPAdapterConfig, T2IAdapterConfig
from kerasdiff.models.network_configs import CLIPVisionConfig, SafetyCheckerConfig
from kerasdiff.models.networks import NETWORKS, config_of, make_network, names_of, text_to_image
from kerasdiff.models.upscaler_config import CompactConfig, UpscalerModel

GUARDED = dataclasses.replace(TINY, safety_checker=SafetyCheckerConfig(num_layers=1))
ENLARGING = UpscalerModel(CompactConfig())
STEERING = ControlModel(
    controlnet=ControlNetConfig(TINY.unet),
    t2i_adapter=T2IAdapterConfig(channels=(8, 16)),
    ip_adapter=IPAdapterConfig(TINY.unet),
    image_encoder=CLIPVisionConfig(num_layers=1),
)


def test_a_model_has_the_networks_that_its_configuration_describes():
    others = ("upscaler", "text_encoder_2", *names_of(STEERING))
    assert names_of(GUARDED) == tuple(name for name in NETWORKS if name not in others)
    assert names_of(TINY) == tuple(name for name in names_of(GUARDED) if name != "safety_checker")
    assert names_of(ENLARGING) == ("upscaler",)
    assert config_of(TINY, "encoder") is config_of(TINY, "decoder") is TINY.vae
    assert text_to_image(TINY) == ("text_encoder", "unet", "decoder")
    assert text_to_image(SDXL) == ("text_encoder", "text_encoder_2", "unet", "decoder")
    assert text_to_image(SDXL_REFINER) == ("text_encoder_2", "unet", "decoder")
    with pytest.raises(ModelError, match="this model has no safety checker"):
        make_network("safety_checker", TINY, "float32")


def test_every_network_is_a_layer_of_its_name():
    for name in NETWORKS:
        others = {"upscaler": ENLARGING, "text_encoder_2": SDXL_REFINER, **dict.fromkeys(names_of(STEERING), STEERING)}
        config = others.get(name, GUARDED)
        layer = make_network(name, config, "float32")
        assert layer.name == name
        assert layer.config is config_of(config, name)


@pytest.mark.parametrize(
    "known", [diffusers_folder.COMPONENTS, ldm.PREFIXES, keras_cv_live.COMPONENTS, *keras_cv_h5.PUBLISHED.values()]
)
def test_every_format_has_names_for_what_every_image_needs(known):
    assert set(text_to_image(TINY)) <= set(known) <= set(NETWORKS)


def test_the_table_needs_no_keras():
    script = "import sys, kerasdiff.models.networks\nassert not {'keras', 'tensorflow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_blocks_of_the_unet():
    blocks = list(unet_blocks(SD_V1.unet))
    assert [block.name for block in blocks[:3]] == [
        "down_blocks.0.resnets.0",
        "down_blocks.0.resnets.1",
        "down_blocks.0.downsamplers.0",
    ]
    assert sum(block.num_heads > 0 for block in blocks) == 16
    assert blocks[-1].attention == "up_blocks.3.attentions.2"
    # What a block gives is what the next one takes, with a skip connection in the second half.
    assert blocks[0].in_channels == SD_V1.unet.widths[0]
    skips = [blocks[0].in_channels]
    for block, after in itertools.pairwise(blocks):
        if block.part.startswith("down"):
            skips.append(block.out_channels)
        joined = skips.pop() if after.part.startswith("up") and after.kind == "resnets" else 0
        assert after.in_channels == block.out_channels + joined
    assert skips == []


def test_the_halves_of_the_autoencoder_mirror_each_other():
    inward, outward = list(encoder_blocks(SD_V1.vae)), list(decoder_blocks(SD_V1.vae))
    assert [block.level for block in inward if block.kind == "downsamplers"] == [1, 2, 3]
    assert [block.level for block in outward if block.kind == "upsamplers"] == [2, 1, 0]
    for blocks in (inward, outward):
        assert all(one.out_channels == other.in_channels for one, other in itertools.pairwise(blocks))
        assert [block.name for block in blocks if block.num_heads] == ["mid_block.resnets.0"]
