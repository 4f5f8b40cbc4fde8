"""Tensors that have other names, shapes or types than usual, and tensors that a model does not use."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from checkpoints import torch, transformers
from safetensors.torch import load_file, save_file

from kerasdiff.checkpoints.export import write_single_file
from kerasdiff.checkpoints.formats import ldm_text
from kerasdiff.checkpoints.formats.diffusers_folder import COMPONENTS
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.errors import ModelError
from kerasdiff.models.networks import names_of

UNET, VAE, CLIP = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."
ONE = torch.ones(1)


def parameters(model, networks=None):
    found = networks or names_of(model.config)
    return {name: np.array(value) for network in found for name, value in model.parameters(network)}


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert np.array_equal(value, other[name]), name


@pytest.fixture(scope="module")
def expected(models):
    return parameters(open_model(models.folder("v1")))


@pytest.fixture
def single(models, tmp_path):
    """Saves a changed copy of a single file, and opens it."""

    def changed(change, kind="v1"):
        tensors = change(load_file(models.single_file(kind)))
        path = tmp_path / "model.safetensors"
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, models.metadata(kind))
        return open_model(path)

    return changed


@pytest.fixture
def folder(copy_of):
    """Saves a changed copy of one network of a folder, and opens the folder."""

    def changed(network, change):
        copy = copy_of()
        path = copy.folder / COMPONENTS[network].folder / f"{COMPONENTS[network].stem}.safetensors"
        save_file({name: value.contiguous() for name, value in change(load_file(path)).items()}, path)
        return copy.open()

    return changed


def renamed(*pairs):
    def change(tensors):
        for pattern, new in pairs:
            tensors = {re.sub(pattern, new, name): value for name, value in tensors.items()}
        return tensors

    return change


def with_ones(*names):
    return lambda tensors: {**tensors, **{name: ONE.clone() for name in names}}


def flat(tensors):
    """Every 1 x 1 convolution as a matrix."""
    return {name: value[:, :, 0, 0] if value.shape[2:] == (1, 1) else value for name, value in tensors.items()}


def longer(tensors):
    """The autoencoder's biases with a height and a width, and its attention with a width alone."""
    biases = {name: value[:, None, None] for name, value in tensors.items() if name.startswith(VAE) and value.ndim == 1}
    return (
        tensors | biases | {name: value[..., 0] for name, value in tensors.items() if name.endswith("attn_1.q.weight")}
    )


@pytest.mark.parametrize(
    "change",
    [
        renamed((re.escape(CLIP), "cond_stage_model.transformer.")),
        renamed((r"attn_1\.q\.", "attn_1.to_q."), (r"attn_1\.k\.", "attn_1.to_k."), (r"attn_1\.v\.", "attn_1.to_v.")),
        renamed((r"attn_1\.proj_out\.", "attn_1.to_out.0.")),
        renamed((r"attn_1\.q\.", "attn_1.query."), (r"attn_1\.proj_out\.", "attn_1.proj_attn.")),
        renamed((re.escape(VAE), "vae.")),
        flat,
        longer,
    ],
    ids=["nai", "to_q", "to_out", "before-2023", "vae", "flat", "longer"],
)
def test_other_names_and_shapes_in_single_files(single, expected, warned, change):
    same(parameters(single(change)), expected)
    assert warned() == []


def test_the_first_layout_of_novelai_gives_transformers_embeddings(models, single):
    """diffusers' own conversion reads such a text encoder too."""
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint

    change = renamed((re.escape(CLIP), "cond_stage_model.transformer."))
    converted = convert_ldm_clip_checkpoint(change(load_file(models.single_file("v1"))))
    network = transformers.CLIPTextModel.from_pretrained(models.folder("v1") / "text_encoder")
    network.load_state_dict(converted)
    found = parameters(single(change), ["text_encoder"])
    assert np.array_equal(found["text_encoder.final_layer_norm.gamma"], network.final_layer_norm.weight.detach())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.bfloat16, torch.float64])
def test_other_types_are_widened_exactly(folder, expected, dtype):
    model = folder("unet", lambda tensors: {name: value.to(dtype) for name, value in tensors.items()})
    for name, value in parameters(model, ["unet"]).items():
        rounded = torch.from_numpy(expected[name]).to(dtype).float().numpy()
        assert np.array_equal(value.astype("float32"), rounded), name


def test_what_others_leave_in_single_files_means_nothing(single, expected, warned):
    change = with_ones(
        *("embedding_manager.string_to_param_dict.*", "epoch", "global_step", "optimizer_states.0", "scale_factor"),
        *("model_ema.decay", "model_ema.diffusion_modelout2bias", "first_stage_model.loss.logvar", "loss.x"),
        *("first_stage_model.model_ema.decay", "cond_stage_model.transformer.text_projection.weight", "betas"),
        *("cond_stage_model.transformer.vision_model.x", "cond_stage_model.transformer.visual_projection.weight"),
        *("cond_stage_model.transformer.logit_scale", "alphas_cumprod", "lvlb_weights", "denoiser.sigmas"),
        *(CLIP + "embeddings.position_ids", "lr_schedulers.0", "callbacks.x"),
    )
    same(parameters(single(change)), expected)
    assert warned() == []


def test_the_rest_of_a_whole_clip_means_nothing(folder, expected, warned):
    change = with_ones(
        *(
            "text_projection.weight",
            "logit_scale",
            "visual_projection.weight",
            "vision_model.embeddings.class_embedding",
        ),
        *("text_model.embeddings.position_ids", "vision_model.encoder.layers.0.mlp.fc1.weight"),
    )
    found = parameters(folder("text_encoder", change), ["text_encoder"])
    same(found, {name: value for name, value in expected.items() if name.startswith("text_encoder")})
    assert warned() == []


def test_unknown_tensors_are_one_warning(folder, expected, warned):
    model = folder("decoder", with_ones(*(f"extra.{index}" for index in range(7))))
    same(parameters(model), expected)
    (line,) = warned()
    assert "vae/diffusion_pytorch_model.safetensors has tensors that are not used (7): extra.0, extra.1" in line
    assert line.endswith("extra.4 and 2 more")


def test_unknown_tensors_of_a_single_file_are_told_when_it_is_opened(single, expected, warned):
    model = single(with_ones("other.weight", "control_model.x"))
    (line,) = warned()
    assert line.endswith("model.safetensors has tensors that are not used (2): control_model.x, other.weight")
    same(parameters(model), expected)
    assert warned() == []


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["add_embedding.linear_1.weight"], "is a U-Net of Stable Diffusion XL, but its settings are another"),
        (["class_embedding.weight"], "is a Stable Diffusion upscaler: only"),
        (["position_net.null_positive_feature"], "is GLIGEN: only"),
        (["mid_block.attentions.0.proj_in.scale_weight"], "is quantised: its numbers mean nothing without"),
        (["conv_in.weight.absmax"], "is quantised: its numbers mean nothing without"),
        (["down_blocks.0.motion_modules.0.x"], "is a motion module of AnimateDiff"),
    ],
)
def test_tensors_of_another_architecture(folder, names, message):
    model = folder("unet", with_ones(*names))
    with pytest.raises(ModelError, match=re.escape(message)):
        parameters(model, ["unet"])


def test_a_lora_that_is_not_fused(folder):
    change = renamed((r"(attn1\.to_q)\.weight", r"\1.base_layer.weight"))
    model = folder("unet", lambda tensors: {**change(tensors), "x.to_q.lora_A.default.weight": ONE})
    with pytest.raises(ModelError, match=r"with a LoRA that is not fused \(PEFT's base_layer\): fuse it"):
        parameters(model, ["unet"])


@pytest.mark.parametrize(
    ("names", "prediction", "zero_snr", "spacing"),
    [
        ([], "epsilon", False, None),
        (["v_pred"], "v_prediction", False, None),
        (["v_pred", "ztsnr"], "v_prediction", True, "trailing"),
        (["ztsnr"], "v_prediction", True, "trailing"),
    ],
)
def test_markers_that_mean_something(single, warned, names, prediction, zero_snr, spacing):
    config = single(lambda tensors: {**tensors, **{name: torch.zeros(0) for name in names}}).config
    assert (config.schedule.prediction_type, config.schedule.rescale_betas_zero_snr) == (prediction, zero_snr)
    assert (config.defaults.spacing, config.defaults.height) == (spacing, 64)
    assert warned() == []


def changed(config, **parts):
    """A configuration with other values in some of its parts."""
    made = {name: dataclasses.replace(getattr(config, name), **values) for name, values in parts.items()}
    return dataclasses.replace(config, **made)


@pytest.mark.parametrize(
    ("kind", "parts", "told"),
    [
        ("v1", {"schedule": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}}, None),
        ("v2", {"schedule": {"prediction_type": "epsilon"}}, None),
        ("v1", {"schedule": {"prediction_type": "sample"}}, "no place for prediction_type='sample'"),
        ("v1", {"unet": {"num_heads": (4, 4)}, "vae": {"scaling_factor": 0.5}}, "for num_heads=(4, 4), scal"),
    ],
)
def test_a_single_file_keeps_what_decides_the_picture(models, tmp_path, caplog, kind, parts, told):
    model = open_model(models.single_file(kind))
    model = dataclasses.replace(model, config=changed(model.config, **parts))
    write_single_file(model, tmp_path / "again.safetensors")
    lines = [line for line in caplog.messages if "no place" in line]
    again = open_model(tmp_path / "again.safetensors").config
    for name in ("text_encoder", "unet", "vae", "schedule"):
        assert getattr(again, name) == getattr(model.config, name)
    assert len(lines) == (told is not None)
    assert told is None or told in lines[0]


@pytest.mark.parametrize("change", ["without the last layer", "with the names of 1.x"])
def test_text_encoders_of_2_x(models, single, monkeypatch, warned, change):
    """Some tools leave out the layer that is not read, or name the layers as transformers does."""
    expected = open_model(models.single_file("v2"))
    monkeypatch.setattr(ldm_text, "WIDTH_V2", expected.config.text_encoder.width)
    monkeypatch.setattr(ldm_text, "LAYERS_V2", expected.config.text_encoder.num_layers)

    def changed(tensors):
        if change == "without the last layer":
            return {name: value for name, value in tensors.items() if "resblocks.3." not in name}
        rest = {name: value for name, value in tensors.items() if not name.startswith("cond_stage_model.")}
        text = load_file(models.folder("v2") / "text_encoder" / "model.safetensors")
        return rest | {CLIP + name.removeprefix("text_model."): value for name, value in text.items()}

    model = single(changed, "v2")
    assert model.config == expected.config
    same(parameters(model, ["text_encoder"]), parameters(expected, ["text_encoder"]))
    assert warned() == []
