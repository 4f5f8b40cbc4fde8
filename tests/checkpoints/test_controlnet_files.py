"""ControlNets in every form that they are published in, beside diffusers."""

from __future__ import annotations

import json

import checkpoints
import numpy as np
import pytest
from checkpoints import diffusers, torch
from control_checkpoints import controlnet, original, t2i_adapter
from fake_hub import line_of, serve, start
from safetensors.torch import save_file
from xl_checkpoints import xl_pipeline

from kerasdiff.checkpoints.control_files import control_hash, open_control
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.control_info import control_info, control_lines
from kerasdiff.errors import ModelError
from kerasdiff.runtime.precision import choose

# A model -> how its small pipeline is made.
MODELS = {
    "v1": (checkpoints.pipeline, "v1"),
    "v2": (checkpoints.pipeline, "v2"),
    "inpainting": (checkpoints.pipeline, "inpainting"),
    "xl": (xl_pipeline, "base"),
    "refiner": (xl_pipeline, "refiner"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Name -> U-Net of diffusers, and configuration."""
    found = {}

    def model(name):
        if name not in found:
            place = tmp_path_factory.mktemp(name)
            make, kind = MODELS[name]
            pipe = make(kind, place / "vocabulary")
            found[name] = pipe.unet, open_model(checkpoints.save(pipe, place / "model")).config
        return found[name]

    return model


def values(reference, config, network="controlnet"):
    """Our parameters by diffusers' names, as torch has them."""
    found = {}
    for name, value in open_control(str(reference), config).parameters(network):
        path, _, leaf = name.partition(".")[2].rpartition(".")
        key = f"{path}.{'weight' if leaf in ('kernel', 'gamma') else 'bias'}"
        kernel = leaf == "kernel"
        found[key] = value.transpose(3, 2, 0, 1) if kernel and value.ndim == 4 else value.T if kernel else value
    return found


def assert_same(found, state):
    assert found.keys() == state.keys()
    for key, value in state.items():
        mine = np.asarray(found[key], "float32")
        np.testing.assert_array_equal(mine.reshape(value.shape), value.float().numpy(), err_msg=key)


@pytest.mark.parametrize("name", MODELS)
def test_folders_and_single_files_are_those_of_diffusers(models, tmp_path, name):
    unet, config = models("v1" if name == "inpainting" else name)[0], models(name)[1]
    net = controlnet(unet)
    net.save_pretrained(tmp_path / "folder")
    assert_same(values(tmp_path / "folder", config), net.state_dict())
    for prefix in ("control_model.", ""):
        path = tmp_path / f"file{len(prefix)}.safetensors"
        save_file(original(net, prefix), path)
        expected = net
        if "label_emb.0.0.weight" not in original(net, ""):  # which diffusers does not read
            expected = diffusers.ControlNetModel.from_single_file(str(path), config=str(tmp_path / "folder"))
        assert_same(values(path, config), expected.state_dict())
    alone = tmp_path / "alone.safetensors"
    (tmp_path / "folder" / "diffusion_pytorch_model.safetensors").rename(alone)
    assert_same(values(alone, config), net.state_dict())
    (tmp_path / "folder" / "diffusion_pytorch_model.safetensors").symlink_to(alone)
    made = {open_control(str(tmp_path / each), config).config for each in ("folder", "alone", "file0", "file14")}
    assert len(made) == 1


# As in the small and the middle ControlNet for Stable Diffusion XL, and in one for SSD-1B.
SHALLOW = {
    "small": {"down_block_types": ("DownBlock2D", "DownBlock2D"), "transformer_layers_per_block": [0, 0]},
    "mid": {
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "transformer_layers_per_block": [0, 1],
    },
    "plain": {"mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": [1, [2]]},
}


@pytest.mark.parametrize("kind", SHALLOW)
def test_controlnets_with_fewer_transformers_than_their_model(models, tmp_path, kind):
    unet, config = models("xl")
    plain = controlnet(unet).config
    net = diffusers.ControlNetModel(**{**plain, **SHALLOW[kind]}).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.05)
    net.save_pretrained(tmp_path / "folder")
    save_file(original(net), tmp_path / "file.safetensors")
    torch.manual_seed(1)
    hint, latents, text = torch.rand(2, 3, 32, 48), torch.randn(1, 4, 4, 6), torch.randn(2, 5, 192)
    added = {"text_embeds": torch.randn(2, 96), "time_ids": torch.tensor([[32.0, 48.0, 0.0, 0.0, 32.0, 48.0]] * 2)}
    with torch.no_grad():
        down, middle = net(
            latents.repeat(2, 1, 1, 1), 3, text, hint[:1].repeat(2, 1, 1, 1), added_cond_kwargs=added, return_dict=False
        )
    opened = open_control(str(tmp_path / "folder"), config)
    assert open_control(str(tmp_path / "file"), config).config == opened.config
    assert_same(values(tmp_path / "file", config), net.state_dict())
    layer = opened.build("controlnet", choose("float32", False, False, "tensorflow"))
    ours = layer(
        latents.permute(0, 2, 3, 1).numpy(),
        np.array([3.0], "float32"),
        text.numpy(),
        layer.encode(hint[:1].permute(0, 2, 3, 1).numpy()),
        pooled=added["text_embeds"].numpy(),
        time_ids=added["time_ids"].numpy(),
    )
    for mine, theirs in zip(ours, (*down, middle), strict=True):
        np.testing.assert_allclose(np.asarray(mine), theirs.permute(0, 2, 3, 1).numpy(), atol=1e-4)


@pytest.fixture(scope="module")
def net(models):
    return controlnet(models("v1")[0])


@pytest.fixture(scope="module")
def config(models):
    return models("v1")[1]


def test_other_files_have_the_same_numbers(net, config, tmp_path):
    state, layout = net.state_dict(), original(net)
    for name, content in (
        ("plain.pth", layout),
        ("wrapped.ckpt", {"state_dict": layout | {"global_step": torch.tensor(3)}, "epoch": 1}),
        ("diffusers.bin", state),
        # As published beside the first ControlNets: with the model that they were trained with.
        ("whole.pt", layout | {"model.diffusion_model.out.2.weight": torch.ones(2), "betas": torch.ones(9)}),
    ):
        torch.save(content, tmp_path / name)
        assert_same(values(tmp_path / name, config), state)
    for kind in (torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        less = {key: value.to(kind) for key, value in layout.items()}
        save_file(less, tmp_path / "less.safetensors")
        net_less = {key: value.to(kind) for key, value in state.items()}
        assert_same(values(tmp_path / "less", config), net_less)


def test_variants_and_shards(net, config, tmp_path):
    half = {key: value.half() for key, value in net.state_dict().items()}
    net.save_pretrained(tmp_path / "shards", max_shard_size="300kB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert_same(values(tmp_path / "shards", config), net.state_dict())
    net.save_pretrained(tmp_path / "both", safe_serialization=False)
    save_file(half, tmp_path / "both" / "diffusion_pytorch_model.fp16.safetensors")
    assert_same(values(tmp_path / "both", config), net.state_dict())
    assert_same(values(tmp_path / "both" / "diffusion_pytorch_model.fp16", config), half)
    (tmp_path / "both" / "diffusion_pytorch_model.bin").unlink()
    assert_same(values(tmp_path / "both", config), half)
    assert control_hash(tmp_path / "both") == control_hash(
        tmp_path / "both" / "diffusion_pytorch_model.fp16.safetensors"
    )
    assert control_hash(tmp_path / "shards") not in (control_hash(tmp_path / "both"), None)


def test_settings_of_a_folder(net, config, tmp_path):
    def opened(**changes):
        net.save_pretrained(tmp_path / "net")
        path = tmp_path / "net" / "config.json"
        settings = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in settings.items() if value != "left out"}))
        return open_control(str(tmp_path / "net"), config).config.controlnet

    usual = opened()
    assert (usual.channel_order, usual.global_pool, usual.factor) == ("rgb", False, 8)
    other = opened(controlnet_conditioning_channel_order="bgr", global_pool_conditions=True)
    assert (other.channel_order, other.global_pool) == ("bgr", True)
    # What older versions do not write.
    lacking = ("global_pool_conditions", "conditioning_channels", "mid_block_type", "num_attention_heads")
    assert opened(**dict.fromkeys(lacking, "left out")) == usual
    for changes, message in (
        ({"class_embed_type": "projection"}, "class_embed_type='projection' is not supported"),
        ({"controlnet_conditioning_channel_order": "grb"}, "channel_order"),
        ({"encoder_hid_dim": 4096}, "encoder_hid_dim=4096 is not supported"),
        (
            {"cross_attention_dim": 1024},
            "is a ControlNet for Stable Diffusion 2.x, and this model is Stable Diffusion 1.x",
        ),
        (
            {"cross_attention_dim": 768},
            "for a model of another size than this one: 768 numbers a token of text, not 64",
        ),
        ({"block_out_channels": [32, 96]}, "1 blocks a level, with channels 32, 96, not 1 of 32, 64"),
        ({"conditioning_channels": 4}, "reads hints of 4 channels; those of 3 are supported"),
        ({"conditioning_embedding_out_channels": [16, 32]}, "reads hints 2 times as large as latents, and"),
        ({"in_channels": 9}, "reads latents of 9 channels, and this model has 4"),
    ):
        with pytest.raises(ModelError, match=message):
            opened(**changes)


def test_a_shuffle_is_known_by_its_name(net, config, tmp_path):
    for name, pools in (("control_v11e_sd15_shuffle", True), ("control_v11p_sd15_canny", False)):
        torch.save(original(net), tmp_path / f"{name}.pth")
        assert open_control(str(tmp_path / name), config).config.controlnet.global_pool == pools
        assert control_info(str(tmp_path / name))["global pooling"] == pools


def test_controlnets_of_another_family_are_refused(models, tmp_path):
    names = {"v1": "Stable Diffusion 1.x", "v2": "Stable Diffusion 2.x", "xl": "Stable Diffusion XL"}
    for name in names:
        controlnet(models(name)[0]).save_pretrained(tmp_path / name)
        (tmp_path / f"{name}.safetensors").symlink_to(tmp_path / name / "diffusion_pytorch_model.safetensors")
    for one, other in (("v1", "xl"), ("xl", "v1"), ("xl", "refiner")):
        for path in (tmp_path / one, tmp_path / f"{one}.safetensors"):
            with pytest.raises(ModelError) as caught:
                open_control(str(path), models(other)[1])
            theirs = names.get(other, "the refiner of Stable Diffusion XL")
            assert str(caught.value) == (
                f"{path} is a ControlNet for {names[one]}, and this model is {theirs}; give one for that"
            )


def files(tensors):
    return {key: torch.ones(2, 2) for key in tensors}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (files(["lora_unet_x.lora_up.weight"]), "is a LoRA, which is not read as a ControlNet: .* loras= .--lora"),
        (files(["decoder.up.0.block.0.conv1.weight"]), "is an autoencoder .VAE., which .* vae= .--vae"),
        (files(["visual_projection.weight", "vision_model.x.weight"]), "is the picture half of a CLIP, which"),
        (files(["model.diffusion_model.out.2.weight", "first_stage_model.quant_conv.weight"]), "give it as model="),
        (
            files(["control_add_embedding.linear_1.weight", "controlnet_mid_block.weight"]),
            "a ControlNet Union.* one kind",
        ),
        (files(["lora_controlnet", "zero_convs.0.0.weight"]), "a Control-LoRA, which is not read as a ControlNet"),
        (files(["difference", "control_model.zero_convs.0.0.weight"]), "the difference of a ControlNet and a model"),
        (files(["something.weight"]), "is no ControlNet or adapter that is known here"),
    ],
)
def test_what_is_no_controlnet(config, tmp_path, tensors, message):
    save_file(tensors, tmp_path / "file.safetensors")
    with pytest.raises(ModelError, match=message) as caught:
        open_control(str(tmp_path / "file.safetensors"), config)
    assert "\n" not in str(caught.value)


def test_folders_that_are_no_controlnet(models, config, net, tmp_path):
    model = tmp_path / "model"
    (model / "unet").mkdir(parents=True)
    for path, content in (("model_index.json", "{}"), ("unet/config.json", "{}")):
        (model / path).write_text(content)
    with pytest.raises(ModelError, match="model is a model without a ControlNet: give it as model="):
        open_control(str(model), config)
    net.save_pretrained(model / "controlnet")
    assert_same(values(model, config), net.state_dict())
    net.save_pretrained(model / "controlnet_1")
    with pytest.raises(ModelError, match=r"give one of them, .*/model/controlnet, .*/model/controlnet_1"):
        open_control(str(model), config)
    settings = model / "controlnet" / "config.json"
    settings.write_text('{"_class_name": "ControlNetUnionModel"}')
    with pytest.raises(ModelError, match="is a ControlNet Union"):
        open_control(str(model / "controlnet"), config)
    with pytest.raises(ModelError, match=r"there is no ControlNet or adapter .*; did you mean 'model'?"):
        open_control(str(tmp_path / "modle"), config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"zero_convs.1.0.weight": None}, "controlnet_down_blocks.1.weight is missing"),
        ({"input_hint_block.0.weight": None}, "has only a part of a ControlNet"),
        ({"input_blocks.0.0.weight": None}, "it has no conv_in.weight"),
        ({"input_blocks.0.0.weight": torch.ones(3)}, r"conv_in.weight has shape \[3\]"),
        ({"time_embed.0.weight": torch.ones(3, 3)}, "does not fit the model"),
        ({"time_embed.0.bias": torch.ones(128).int()}, "holds I32"),
    ],
)
def test_damaged_files(net, config, tmp_path, change, message):
    layout = original(net, "") | change
    save_file({key: value for key, value in layout.items() if value is not None}, tmp_path / "file.safetensors")
    with pytest.raises(ModelError, match=message):
        values(tmp_path / "file", config)


def test_a_file_that_was_cut_off(net, config, tmp_path):
    torch.save(original(net), tmp_path / "a.pth")
    save_file(original(net), tmp_path / "b.safetensors")
    for name in ("a.pth", "b.safetensors"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ModelError, match="corrupt or incomplete"):
            open_control(str(tmp_path / name), config)


def test_tensors_that_are_not_used_are_warned_of(net, config, tmp_path):
    save_file(original(net) | {"control_model.more.weight": torch.ones(1)}, tmp_path / "file.safetensors")
    with pytest.warns(UserWarning, match=r"tensors that are not used .1.: control_model.more.weight"):
        assert_same(values(tmp_path / "file", config), net.state_dict())


def test_a_controlnet_in_place_of_a_model(net, tmp_path):
    save_file(original(net), tmp_path / "file.safetensors")
    net.save_pretrained(tmp_path / "folder")
    for name in ("file.safetensors", "folder"):
        with pytest.raises(ModelError, match=r"is a ControlNet, not a whole model: .* as controls= \(--control\)"):
            open_model(tmp_path / name)


def test_info_says_what_a_file_is(models, net, tmp_path):
    torch.save(original(net), tmp_path / "canny.pth")
    found = control_info(str(tmp_path / "canny.pth"))
    assert found["sha256"] == control_hash(tmp_path / "canny.pth")
    assert control_lines(found)[-1] == "for      Stable Diffusion 1.x"
    t2i_adapter().save_pretrained(tmp_path / "adapter")
    assert control_info(str(tmp_path / "adapter"))["kind"] == "T2I-Adapter"
    controlnet(models("xl")[0]).save_pretrained(tmp_path / "xl")
    assert control_info(str(tmp_path / "xl"))["family"] == "Stable Diffusion XL"


NAMES = """
import sys
from kerasdiff.errors import ModelError
from kerasdiff.checkpoints.control_files import find_control
found = []
for name in sys.argv[1:]:
    try:
        found.append(str(find_control(name)).partition("/snapshots/")[2].partition("/")[2])
    except ModelError as error:
        found.append(str(error))
print(" | ".join(found))
"""


def test_names_on_the_hub(tmp_path):
    repository = tmp_path / "repository"
    stem = "diffusion_pytorch_model"
    for name in (
        *("config.json", f"{stem}.safetensors", f"{stem}.fp16.safetensors", "canny/lone.pth", "canny/lone.yaml"),
        *("parts/config.json", f"{stem}.bin", f"parts/{stem}-00001-of-00002.safetensors"),
        *(f"parts/{stem}-00002-of-00002.safetensors", f"parts/{stem}.safetensors.index.json", "two/a.pth", "two/b.pth"),
        *("whole/model_index.json", "whole/controlnet/config.json", f"whole/controlnet/{stem}.fp16.safetensors"),
    ):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(name)
    wanted = {
        "org/name": "",
        f"org/name/{stem}.fp16.safetensors": f"{stem}.fp16.safetensors",
        "org/name/canny": "canny/lone.pth",
        "org/name/canny/lone": "canny/lone.pth",
        "org/name/parts": "parts",
        "org/name/whole": "whole/controlnet",
        "org/name/two": "org/name/two has several that may be meant: give one of them, org/name/two/a.pth, ",
        "org/name/none": "org/name has no file or folder none; it has ",
        "org/gone": "there is no org/gone at ",
    }
    with serve(repository) as (endpoint, asked):
        told = line_of(start(tmp_path, endpoint, "-c", NAMES, *wanted)).split(" | ")
    for found, expected in zip(told, wanted.values(), strict=True):
        assert found.startswith(expected)
        assert bool(found) == bool(expected)
    loaded = {line.split("/", 4)[4] for line in asked if line.startswith("GET org/name/resolve")}
    assert f"parts/{stem}-00002-of-00002.safetensors" in loaded
    assert not loaded & {f"{stem}.bin", "two/a.pth", "canny/lone.yaml"}
    offline = line_of(start(tmp_path, endpoint, "-c", NAMES, *wanted, HF_HUB_OFFLINE="1")).split(" | ")
    assert offline[:6] == told[:6]
    assert all("is not complete in the cache" in line for line in offline[6:])
