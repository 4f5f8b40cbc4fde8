"""Files and folders that are a part of a model, or another model: one line says what they are."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from fake_hub import line_of, serve, start_opening
from safetensors.numpy import load_file, save_file

from kerasdiff.checkpoints.recognition import KINDS
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.errors import ModelError

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
# What a file is -> names of tensors, each line of a file.
FILES = {
    "a LoRA": [
        (
            "lora_unet_down_blocks_0_attentions_0_to_q.lora_down.weight",
            "lora_unet_down_blocks_0_attentions_0_to_q.alpha",
        ),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", "lora_unet_label_emb_0_0.lora_down.weight"),
        ("add_embedding.linear_1.lora_A.weight",),
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a",),
        ("lora_unet_x.oft_blocks",),
        ("lycoris_mid_block_attentions_0_proj_in.lokr_w1",),
        (f"unet.{BLOCK}.to_q.lora_A.weight", f"unet.{BLOCK}.to_q.lora_B.weight"),
        (f"base_model.model.{BLOCK}.to_q.lora_A.default.weight",),
        (f"unet.{BLOCK}.processor.to_q_lora.down.weight",),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.up.weight",),
    ],
    "a textual inversion": [
        ("emb_params",),
        ("<toy-cat>",),
        ("clip_l", "clip_g"),
        ("string_to_param.*",),
        ("my style",),
    ],
    "a ControlNet": [
        ("control_model.input_blocks.0.0.weight", "control_model.zero_convs.0.0.weight"),
        ("controlnet_cond_embedding.conv_in.weight", "down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"),
        ("controlnet_cond_embedding.conv_in.weight", "add_embedding.linear_1.weight", "conv_in.weight"),
        ("control_model.label_emb.0.0.weight", "control_model.input_blocks.0.0.weight"),
        ("input_hint_block.0.weight", "input_blocks.0.0.weight"),
    ],
    "a ControlNet Union (ProMax or the like)": [
        ("control_add_embedding.linear_1.weight", "controlnet_cond_embedding.conv_in.weight", "task_embedding"),
    ],
    "a ControlNet-XS": [
        ("down_blocks.0.base_to_ctrl.0.weight", "controlnet_cond_embedding.conv_in.weight"),
        ("control_model.enc_zero_convs_out.0.0.weight", "control_model.input_blocks.0.0.weight"),
    ],
    "a Control-LoRA": [("lora_controlnet", "input_hint_block.0.weight")],
    "a ControlLLLite": [("lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.down.0.weight",)],
    "the difference of a ControlNet and a model": [("difference", "control_model.input_blocks.0.0.weight")],
    "a SparseCtrl for AnimateDiff": [
        ("controlnet_cond_embedding.conv_in.weight", "down_blocks.0.motion_modules.0.temporal_transformer.norm.bias"),
    ],
    "a BrushNet": [("brushnet_down_blocks.0.weight", "conv_in_condition.weight")],
    "a ControlNet for Stable Diffusion 3 or Flux": [
        ("controlnet_blocks.0.weight", "transformer_blocks.0.attn.to_q.weight"),
        ("controlnet_x_embedder.weight", "single_transformer_blocks.0.attn.to_q.weight"),
    ],
    "an IP-Adapter": [("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight")],
    "a T2I-Adapter": [
        ("body.0.block1.weight", "conv_in.weight"),
        ("adapter.body.0.resnets.0.block1.weight",),
        ("style_embedding", "ln_post.weight"),
    ],
    "an upscaler (ESRGAN or the like)": [
        ("conv_first.weight", "body.0.rdb1.conv1.weight"),
        ("model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight"),
    ],
    "an autoencoder (VAE)": [
        ("encoder.down.0.block.0.conv1.weight", "decoder.up.0.block.0.conv1.weight", "quant_conv.weight"),
        ("first_stage_model.decoder.conv_in.weight",),
        ("encoder.down_blocks.0.resnets.0.conv1.weight", "decoder.up_blocks.0.resnets.0.conv1.weight"),
    ],
    "a small autoencoder (TAESD)": [
        ("decoder.layers.1.weight", "encoder.layers.0.weight"),
        ("1.weight", "3.conv.0.bias"),
    ],
    "a text encoder": [
        ("text_model.encoder.layers.0.mlp.fc1.weight",),
        ("cond_stage_model.model.ln_final.weight",),
        ("conditioner.embedders.1.model.ln_final.weight",),
        ("encoder.layers.0.self_attn.q_proj.weight", "embeddings.token_embedding.weight"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "text_projection.weight"),
        ("conditioner.embedders.0.transformer.text_model.final_layer_norm.weight",),
    ],
    "the picture half of a CLIP": [("vision_model.encoder.layers.0.mlp.fc1.weight", "visual_projection.weight")],
    "a whole CLIP": [("vision_model.post_layernorm.weight", "text_model.final_layer_norm.weight", "logit_scale")],
    "a U-Net": [
        ("model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.out.2.weight"),
        ("input_blocks.0.0.weight", "out.2.weight"),
        ("conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"),
    ],
    "a safety checker": [("concept_embeds", "vision_model.vision_model.encoder.layers.0.mlp.fc1.weight")],
    "a U-Net of Stable Diffusion XL, not a whole model: text encoders and autoencoder are missing": [
        ("model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.label_emb.0.0.weight"),
        ("add_embedding.linear_1.weight", "conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"),
    ],
    "Stable Cascade": [("clip_txt_mapper.weight",)],
    "Playground v2.5, or another model of EDM's schedule": [
        ("edm_mean", "model.diffusion_model.out.2.weight"),
        ("edm_vpred.sigma_max", "model.diffusion_model.label_emb.0.0.weight"),
    ],
    "Stable Diffusion 3": [("model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight",)],
    "Flux": [
        ("double_blocks.0.img_attn.norm.key_norm.scale",),
        ("model.diffusion_model.double_blocks.0.img_mod.lin.bias",),
    ],
    "a video model": [("model.diffusion_model.input_blocks.1.0.time_stack.in_layers.0.weight",)],
    "a motion module of AnimateDiff": [("down_blocks.0.motion_modules.0.temporal_transformer.norm.bias",)],
}


@pytest.mark.parametrize(
    ("kind", "names"),
    [(kind, names) for kind, files in FILES.items() for names in files],
    ids=lambda value: str(value)[:40],
)
def test_what_a_file_holds(tmp_path, kind, names):
    path = tmp_path / "model.safetensors"
    save_file({name: np.zeros((2, 768), "float32") for name in names}, path)
    with pytest.raises(ModelError) as caught:
        open_model(path)
    assert str(caught.value).startswith(f"{path} is {kind}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF\x03" + bytes(600), r"is a GGUF file, whose numbers are quantised; use the model's \.safetensors file"),
        (
            b"\x89HDF\r\n\x1a\n" + bytes(600),
            r"is an HDF5 file, not a \.safetensors file; KerasCV's are opened by the folder",
        ),
    ],
)
def test_other_formats(tmp_path, content, message):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        open_model(path)


def test_every_kind_says_what_to_do():
    for kind in KINDS:
        assert len(kind.advice) > 20, kind.name
    assert len({kind.name for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (
            ("model.", "cond_"),
            "has no autoencoder: give an autoencoder as vae= (--vae), or a file with the whole model",
        ),
        (
            ("model.", "first_"),
            "has no text encoder (nothing begins with cond_stage_model.transformer.text_model. or cond",
        ),
        (
            ("first_", "cond_"),
            "has no U-Net (nothing begins with model.diffusion_model.): give a file with the whole mod",
        ),
        (("model.",), "is a U-Net, not a whole model: text encoder and autoencoder are missing; give the whole model"),
    ],
)
def test_a_file_that_lacks_a_part(models, tmp_path, kept, message):
    path = tmp_path / "model.safetensors"
    tensors = {name: value for name, value in load_file(models.single_file("v1")).items() if name.startswith(kept)}
    save_file(tensors, path, models.metadata("v1"))
    with pytest.raises(ModelError) as caught:
        open_model(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(("channels", "kind"), [(5, "a depth model"), (7, "an upscaler")])
def test_single_files_with_other_channels(models, tmp_path, channels, kind):
    path = tmp_path / "model.safetensors"
    first = {"model.diffusion_model.input_blocks.0.0.weight": np.zeros((32, channels, 3, 3), "float32")}
    save_file(load_file(models.single_file("v1")) | first, path)
    with pytest.raises(
        ModelError, match=f"a U-Net with {channels} input channels is not supported: it is {kind}; 4, and"
    ):
        open_model(path)


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("unet", "a U-Net, a part of a model"),
        ("vae", "an autoencoder (VAE), a part of a model"),
        ("text_encoder", "a text encoder, a part of a model"),
        ("tokenizer", "a part of a model"),
        ("scheduler", "a part of a model"),
        ("unet/diffusion_pytorch_model.safetensors", "a U-Net, a part of a model"),
    ],
)
def test_parts_of_a_model_s_folder(models, part, kind):
    folder = models.folder("v1")
    with pytest.raises(ModelError) as caught:
        open_model(folder / part)
    assert str(caught.value) == f"{folder / part} is {kind}: give the model's folder, {folder}"


def test_folders_around_a_model(models, tmp_path):
    folder = models.folder("v1")
    message = f"{folder.parent} is not a model folder, but has one: give {folder}"
    with pytest.raises(ModelError, match=re.escape(message)):
        open_model(folder.parent)
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "0a1b").symlink_to(folder)
    with pytest.raises(ModelError, match=re.escape(f"but has one: give {tmp_path}/snapshots/0a1b")):
        open_model(tmp_path)
    for file in ("model_index.json", "unet/config.json"):
        message = f"{folder / file} has settings of a model: give the model's folder, {folder}"
        with pytest.raises(ModelError, match=re.escape(message)):
            open_model(folder / file)


def test_a_folder_that_lacks_components(copy_of):
    copy = copy_of()
    shutil.rmtree(copy.folder / "vae")
    shutil.rmtree(copy.folder / "scheduler")
    with pytest.raises(ModelError, match="is not a whole model: it has unet, but not vae, scheduler"):
        copy.open()


def test_folders_of_parts(models, tmp_path):
    def refused(name):
        with pytest.raises(ModelError) as caught:
            open_model(tmp_path / name)
        return str(caught.value).removeprefix(str(tmp_path / name))

    shutil.copytree(models.folder("v1") / "unet", tmp_path / "alone")
    assert refused("alone").startswith(" is a U-Net, not a whole model")
    for name, settings, kind in (
        ("controlnet", {"_class_name": "ControlNetModel"}, "a ControlNet"),
        ("clip", {"architectures": ["CLIPModel"]}, "a whole CLIP"),
        ("vision", {"architectures": ["CLIPVisionModelWithProjection"]}, "the picture half of a CLIP"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(settings))
        assert refused(name).startswith(f" is {kind}, not a whole model")
    for name, file, kind in (
        ("lora", "pytorch_lora_weights.safetensors", "a LoRA"),
        ("peft", "adapter_config.json", "a LoRA"),
        ("embedding", "learned_embeds.bin", "a textual inversion"),
        ("ip", "ip-adapter_sd15.safetensors", "an IP-Adapter"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
        assert refused(name).startswith(f" is {kind}, not a whole model")
    (tmp_path / "flux").mkdir()
    (tmp_path / "flux" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    assert refused("flux") == " is Flux: only Stable Diffusion 1.x, 2.x and XL are supported"
    (tmp_path / "files").mkdir()
    shutil.copy(models.single_file("v1"), tmp_path / "files" / "one.safetensors")
    assert refused("files").endswith(
        f"has files that may be models: give one of them, {tmp_path / 'files'}/one.safetensors"
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": '{"_class_name": "ControlNetModel"}'}, r"org/name is a ControlNet, not a whole model"),
        ({"pytorch_lora_weights.safetensors": ""}, r"org/name is a LoRA, not a whole model"),
        (
            {"model_index.json": '{"_class_name": "FluxPipeline"}'},
            r"org/name is Flux: only Stable Diffusion 1\.x, 2\.x and XL",
        ),
        (
            {"one.safetensors": "", "two.safetensors": ""},
            r"give one of them, org/name/one\.safetensors, org/name/two\.",
        ),
    ],
)
def test_repositories_that_are_no_models(tmp_path, files, message):
    folder = tmp_path / "repository"
    folder.mkdir()
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    with serve(folder) as (endpoint, _):
        line = line_of(start_opening(tmp_path, endpoint, "org/name"))
    assert re.search(message, line)
