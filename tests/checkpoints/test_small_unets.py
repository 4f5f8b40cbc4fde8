"""U-Nets with fewer blocks than Stable Diffusion's, and with less or nothing in the middle, against diffusers."""

from __future__ import annotations

import json
import math
import re
import shutil

import checkpoints
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import torch
from diffusers import UNet2DConditionModel

import kerasdiff
from kerasdiff.adapters.lora_names import layers
from kerasdiff.checkpoints.formats.diffusers_folder import COMPONENTS
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.convert import convert
from kerasdiff.errors import ModelError
from kerasdiff.models.layers import parameters_of
from kerasdiff.models.networks import make_network

MIDDLE = "UNetMidBlock2DCrossAttn"


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


# Attention of the levels (x: to the text alone), middle and kind, with one block a level, as published: BK-SDM's,
# Segmind's, SDXS', SSD-1B's.
SHAPES = {
    "bk-sdm-base": ("yyyn", MIDDLE, "v1"),
    "bk-sdm-small": ("yyyn", None, "v1"),
    "bk-sdm-tiny": ("yyy", None, "v1"),
    "bk-sdm-v2-small": ("yyyn", None, "v2"),
    "bk-sdm-v2-tiny": ("yyy", None, "v2"),
    "sdxs": ("nyy", None, "v1"),
    "sdxs-0.9": ("xyy", None, "v2"),
    "one middle block": ("nyy", "UNetMidBlock2D", "v2"),
}


def settings_of(shape, *, full=False):
    """A U-Net's settings as diffusers has them; small widths unless it is the `full` size."""
    attention, middle, kind = SHAPES[shape]
    small = [128, 64, 128, 128] if kind == "v2" else [32, 64, 64, 64]
    widths = ([320, 640, 1280, 1280] if full else small)[: len(attention)]
    cross = [one != "n" for one in attention]
    return {
        "block_out_channels": widths,
        "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D" if one else "DownBlock2D" for one in cross],
        "up_block_types": ["CrossAttnUpBlock2D" if one else "UpBlock2D" for one in reversed(cross)],
        "mid_block_type": middle,
        "only_cross_attention": [one == "x" for one in attention],
        "attention_head_dim": [width // 64 for width in widths] if kind == "v2" else 8,
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function of a shape's name to diffusers' pipeline and its folder."""
    place, found = tmp_path_factory.mktemp("small"), {}

    def of(shape):
        if shape not in found:
            folder = place / shape.replace(" ", "_")
            pipe = checkpoints.pipeline(SHAPES[shape][2], folder / "vocabulary", **settings_of(shape))
            found[shape] = pipe, checkpoints.save(pipe, folder / "model")
        return found[shape]

    return of


def parameters(path):
    model = open_model(str(path))
    return {name: np.array(value) for name, value in model.parameters("unet")}


def unet_error(pipe, path, height, width):
    """The largest relative error of the U-Net for latents of a size."""
    rng, model = np.random.default_rng(height * width), open_model(str(path))
    generator = kerasdiff.Generator(model, precision="float32", jit_compile=False)
    x, context = rng.standard_normal((2, 4, height, width), "float32"), rng.standard_normal((2, 77, 64), "float32")
    with torch.no_grad():
        theirs = pipe.unet(torch.from_numpy(x), 500, torch.from_numpy(context)).sample.permute(0, 2, 3, 1).numpy()
    ours = generator.networks["unet"](x.transpose(0, 2, 3, 1), np.full(2, 500, "float32"), context)
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize(
    "shape",
    [shape if shape in ("bk-sdm-small", "sdxs-0.9", "one middle block") else slow(shape) for shape in SHAPES],
)
def test_the_numbers_are_diffusers(made, shape):
    pipe, folder = made(shape)
    assert unet_error(pipe, folder, 6, 11) < 1e-4


def test_a_seed_gives_diffusers_image(made):
    pipe, folder = made("sdxs-0.9")
    pipe.set_progress_bar_config(disable=True)
    asked = {"prompt": "a red circle", "guidance_scale": 5.0, "height": 72, "width": 56}
    seed = torch.Generator().manual_seed(3)
    theirs = pipe(**asked, num_inference_steps=4, generator=seed, output_type="np").images
    generator = kerasdiff.Generator(str(folder), precision="float32", jit_compile=False)
    ours = generator.generate(**asked, num_steps=4, rng="torch", seed=3, progress=False)
    assert np.abs(ours.images.astype(int) - np.round(theirs * 255).astype(int)).max() <= 1
    with pytest.raises(kerasdiff.RequestError, match="deep_cache_branch=6"):
        generator.generate(**asked, deep_cache_interval=2, deep_cache_branch=6)


@pytest.mark.parametrize("shape", ["sdxs-0.9", "one middle block"])
def test_every_format_keeps_it(made, tmp_path, shape):
    _, folder = made(shape)
    config, expected, path = open_model(str(folder)).config, parameters(folder), folder
    for format_, name in (("single_file", "a.safetensors"), ("kerasdiff", "b"), ("diffusers", "c")):
        path = convert(path, tmp_path / name, format=format_, dtype="float32")
        assert open_model(str(path)).config.unet == config.unet
        found = parameters(path)
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[key], expected[key]) for key in expected)


def as_the_script_names_it(key):
    """A tensor's name after diffusers' script, which takes two blocks a level and no attention at the coarsest."""
    parts = re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", key)
    renamed = [("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("norm2", "out_layers.0"), ("conv2", "out_layers.3")]
    renamed += [("time_emb_proj", "emb_layers.1"), ("conv_shortcut", "skip_connection")]
    if parts is None:
        outside = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
        outside |= {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
        path, _, leaf = key.rpartition(".")
        return f"{outside[path]}.{leaf}"
    side, level, kind, index, rest = parts[1], int(parts[2]), parts[3], int(parts[4]), parts[5]
    if kind == "resnets":
        for theirs, original in renamed:
            rest = rest.replace(theirs, original)
    if kind == "downsamplers":
        return f"input_blocks.{3 * level + 3}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{3 * level + 2}.{2 if level else 1}.{rest}"
    if kind == "attentions" and side == "up" and level == 0:
        return key
    place = f"input_blocks.{3 * level + index + 1}" if side == "down" else f"output_blocks.{3 * level + index}"
    return f"{place}.{'0' if kind == 'resnets' else '1'}.{rest}"


@pytest.mark.parametrize("shape", ["bk-sdm-small", slow("sdxs"), "sdxs-0.9"])
def test_a_single_file_may_have_the_numbers_of_two_blocks_a_level(made, tmp_path, shape):
    pipe, folder = made(shape)
    usual = convert(folder, tmp_path / "usual.safetensors", dtype="float32")
    tensors = {k: v for k, v in safetensors.numpy.load_file(usual).items() if not k.startswith("model.diffusion_model")}
    for key, value in pipe.unet.state_dict().items():
        tensors[f"model.diffusion_model.{as_the_script_names_it(key)}"] = value.contiguous().numpy()
    with safetensors.safe_open(usual, "np") as file:
        own = file.metadata()
    safetensors.numpy.save_file(tensors, tmp_path / "script.safetensors", own)
    config, expected = open_model(str(usual)).config, parameters(folder)
    assert open_model(str(tmp_path / "script.safetensors")).config == config
    found = parameters(tmp_path / "script.safetensors")
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
    tensors["model.diffusion_model.middle_block.1.proj_in.weight"] = np.zeros((4, 4), "float32")
    safetensors.numpy.save_file(tensors, tmp_path / "broken.safetensors", own)
    with pytest.raises(ModelError, match=r"has a U-Net of another make: its middle has parts \[1\]"):
        open_model(str(tmp_path / "broken.safetensors"))


def test_loras_name_the_layers_that_are_there(made):
    _, folder = made("bk-sdm-tiny")
    model = open_model(str(folder))
    found = layers("unet", tuple(model.shapes("unet")), model.config)
    inside = "transformer_blocks_0_attn2_to_k"
    assert found[f"down_blocks_2_attentions_0_{inside}"][0].path.startswith("unet.down_blocks.2.attentions.0.")
    assert found[f"output_blocks_5_1_{inside}"][0].path.startswith("unet.up_blocks.2.attentions.1.")
    assert not any(name.startswith(("mid_block", "middle_block")) for name in found)


@pytest.mark.parametrize(
    ("shape", "billions"),
    [slow("bk-sdm-base", 0.58), ("bk-sdm-small", 0.48), ("bk-sdm-tiny", 0.32), slow("bk-sdm-v2-tiny", 0.33)],
)
def test_published_settings_make_the_published_network(made, tmp_path, shape, billions):
    _, folder = made(shape)
    width = 1024 if SHAPES[shape][2] == "v2" else 768
    settings = {**settings_of(shape, full=True), "cross_attention_dim": width}
    with torch.device("meta"):
        theirs = {name: tuple(value.shape) for name, value in UNet2DConditionModel(**settings).named_parameters()}
    copy = shutil.copytree(folder, tmp_path / "model")
    for name, changed in {"unet": settings, "text_encoder": {"hidden_size": width, "num_attention_heads": 8}}.items():
        path = copy / name / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    model = open_model(str(copy))
    ours = parameters_of(make_network("unet", model.config, "float32"))
    assert {name for slices in map(COMPONENTS["unet"].slices, ours) for name in [next(slices).key]} == {*theirs}
    assert sum(map(math.prod, ours.values())) == sum(map(math.prod, theirs.values()))
    assert round(sum(map(math.prod, ours.values())) / 1e9, 2) == billions
    with pytest.raises(ModelError, match="and KerasCV builds no other; choose another format"):
        convert(copy, tmp_path / "keras_cv", format="keras_cv")
    assert not (tmp_path / "keras_cv").exists()
