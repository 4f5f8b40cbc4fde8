"""Settings of diffusers' and transformers' components: what means the same is read, what does not is named."""

from __future__ import annotations

import json
import warnings

import pytest
from checkpoints import diffusers, transformers

from kerasdiff.checkpoints.export import write_diffusers
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.errors import ModelError

INDEX, UNET, VAE, TEXT = "model_index.json", "unet/config.json", "vae/config.json", "text_encoder/config.json"


@pytest.mark.parametrize(
    ("file", "settings"),
    [
        (UNET, {"layers_per_block": [1, 1], "cross_attention_dim": [64, 64], "attention_head_dim": [8, 8]}),
        (UNET, {"transformer_layers_per_block": [1, 1], "only_cross_attention": [False, False]}),
        (UNET, {"transformer_layers_per_block": [[1], [1]], "reverse_transformer_layers_per_block": [1, 1]}),
        # The first level has no attention for which these would count.
        (UNET, {"transformer_layers_per_block": [0, 1], "cross_attention_dim": [None, 64]}),
        (UNET, {"num_class_embeds": 0, "encoder_hid_dim": 0, "time_cond_proj_dim": 0, "class_embed_type": False}),
        (UNET, {"freq_shift": 0.0, "mid_block_scale_factor": 1.0, "resnet_out_scale_factor": 1, "act_fn": "swish"}),
        (UNET, {"downsample_padding": None, "conv_in_kernel": None, "attention_type": None, "norm_eps": None}),
        (UNET, {"center_input_sample": None, "dual_cross_attention": 0, "cross_attention_norm": False}),
        (UNET, {"down_block_types": ["UNetResDownBlock2D", "UNetResCrossAttnDownBlock2D"]}),
        (UNET, {"time_embedding_dim": 128}),
        (UNET, {"time_embedding_dim": 0}),
        (UNET, {"sample_size": 8.0, "attention_head_dim": [8.0, 8.0], "norm_num_groups": 32.0, "new_setting": None}),
        # Without an effect alone.
        (UNET, {"addition_time_embed_dim": 256, "addition_embed_type_num_heads": 32, "upcast_attention": True}),
        (UNET, {"mid_block_only_cross_attention": True, "dropout": 0.1, "decay": 0.9999, "_name_or_path": "/home"}),
        (VAE, {"layers_per_block": [1, 1, 1, 1], "scaling_factor": None, "force_upcast": False, "act_fn": None}),
        (VAE, {"shift_factor": 0.0, "latents_mean": [0, 0, 0, 0], "latents_std": [1.0, 1.0, 1.0, 1.0]}),
        (VAE, {"sample_size": [256, 256]}),
        (TEXT, {"layer_norm_eps": None, "attention_dropout": 0.1, "architectures": None, "eos_token_id": [2]}),
        (TEXT, {"architectures": ["CLIPTextModelWithProjection"], "projection_dim": 64, "top_k": 50}),
    ],
)
def test_other_spellings_of_the_same(copy_of, models, warned, file, settings):
    assert copy_of().change(file, **settings).open().config == open_model(models.folder("v1")).config
    assert warned() == []


def test_a_level_without_attention_needs_no_heads(copy_of):
    assert copy_of().change(UNET, attention_head_dim=[None, 8]).open().config.unet.num_heads == (1, 8)


@pytest.mark.parametrize(
    ("name", "ours"), [("gelu_new", "gelu_tanh"), ("gelu_pytorch_tanh", "gelu_tanh"), ("gelu_python", "gelu")]
)
def test_other_names_of_activations(copy_of, name, ours):
    assert copy_of().change(TEXT, hidden_act=name).open().config.text_encoder.activation == ours


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        (
            UNET,
            {"layers_per_block": [1, 2]},
            "layers_per_block=[1, 2] is not supported; only the same at all levels is",
        ),
        (UNET, {"cross_attention_dim": [64, 64, 64]}, "cross_attention_dim has 3 entries, 2 are needed"),
        (UNET, {"attention_head_dim": [8, None]}, "attention_head_dim=[8, None] must hold positive whole numbers"),
        (UNET, {"transformer_layers_per_block": [1, 0]}, "transformer_layers_per_block=[1, 0] must hold positive"),
        (UNET, {"addition_embed_type": "text"}, "addition_embed_type='text' is not supported (as in Kandinsky); only"),
        (UNET, {"flip_sin_to_cos": None}, "flip_sin_to_cos=None is not supported; only True is"),
        (
            UNET,
            {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"},
            "'UNetMidBlock2DSimpleCrossAttn' is not supported; known: 'UNetMidBlock2DCrossAttn', 'UNetMidBlock2D', ",
        ),
        (
            UNET,
            {"only_cross_attention": [True]},
            "only_cross_attention=[True] must be true or false, or one of",
        ),
        (UNET, {"mid_block_type": [None]}, "mid_block_type=[None] is not supported; known: "),
        (UNET, {"act_fn": "gelu"}, "act_fn='gelu' is not supported; only 'silu' is"),
        (UNET, {"time_embedding_dim": 64}, "time_embedding_dim=64 is not supported"),
        (UNET, {"num_class_embeds": 1000}, "num_class_embeds=1000 is not supported (as in an upscaler)"),
        (UNET, {"freq_shift": [[[0]]]}, "freq_shift=[[[0]]] is not supported; only 0 is"),
        (UNET, {"sample_size": [8, 8, 8]}, "sample_size=[8, 8, 8] must be one number, or a height and a width"),
        (UNET, {"sample_size": 10**9}, "must be one number, or a height and a width"),
        (UNET, {"sample_size": 0}, "sample_size=0 must hold positive whole numbers"),
        (UNET, {"in_channels": 5}, "5 input channels is not supported: it is a depth model; 4, and 9 for inpainting"),
        (UNET, {"in_channels": 8}, "8 input channels is not supported in StableDiffusionPipeline; in StableD"),
        (
            UNET,
            {"in_channels": 6},
            "6 input channels is not supported; 4, and 9 for inpainting or 8 for editing, are",
        ),
        (UNET, {"out_channels": 8}, "the U-Net gives 8 channels, the autoencoder reads 4"),
        (UNET, {"_class_name": "UNetMotionModel"}, "UNetMotionModel (a motion module of AnimateDiff) is not supported"),
        (VAE, {"_class_name": "VQModel"}, "VQModel (an autoencoder (VAE)) is not supported"),
        (VAE, {"latents_mean": [0, 0, 0.1, 0]}, "latents_mean=[0, 0, 0.1, 0] is not supported (as in Playground v2.5)"),
        (VAE, {"latents_std": [1, 1, 2, 1]}, "latents_std=[1, 1, 2, 1] is not supported (as in Playground v2.5)"),
        (VAE, {"scaling_factor": 0}, "vae/config.json: scaling_factor 0 is not a positive number"),
        (TEXT, {"hidden_act": "silu"}, "text_encoder/config.json: unknown activation 'silu'"),
        (VAE, {"use_quant_conv": None}, "use_quant_conv=None is not supported; only True is"),
        (TEXT, {"layer_norm_eps": 1e-6}, "layer_norm_eps=1e-06 is not supported; only 1e-05 is"),
        (TEXT, {"architectures": ["T5EncoderModel"]}, "T5EncoderModel (a text encoder) is not supported; known: CLIPT"),
        (INDEX, {"_class_name": "StableDiffusionDepth2ImgPipeline"}, "is a depth model: only Stable Diffusion 1.x"),
        (INDEX, {"_class_name": "KolorsPipeline"}, "is Kolors: only Stable Diffusion 1.x, 2.x and XL are supported"),
        (INDEX, {"_class_name": "StableCascadeCombinedPipeline"}, "is Stable Cascade: only Stable Diffusion 1.x"),
    ],
)
def test_what_means_something_else_is_one_line(copy_of, file, settings, message):
    with pytest.raises(ModelError) as caught:
        copy_of().change(file, **settings).open()
    assert message in str(caught.value)
    assert file.partition("/")[0].removesuffix("model_index.json") in str(caught.value)


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        (
            UNET,
            {"use_magic": True, "other": [1]},
            "has settings that are not known and not used: other=[1], use_magic",
        ),
        (VAE, {"use_magic": 1}, "vae/config.json has settings that are not known and not used: use_magic=1"),
        (
            TEXT,
            {"use_magic": 1},
            "text_encoder/config.json has settings that are not known and not us",
        ),
        (INDEX, {"controlnet": ["diffusers", "ControlNetModel"]}, "controlnet is not used, which"),
        (INDEX, {"unet": ["own", "MyUNet"]}, "unet is MyUNet of own, and is read as UNet2DConditionModel"),
    ],
)
def test_what_is_not_known_is_one_warning(copy_of, warned, file, settings, message):
    copy_of().change(file, **settings).open()
    (line,) = warned()
    assert message in line


@pytest.mark.parametrize(
    ("version", "sample_size", "expected"),
    [("0.6.0", 32, 64), ("0.8.1", 63, 64), ("0.8.1", 72, 72), ("0.9.0", 32, 32), ("0.42.1", 32, 32), (None, 32, 32)],
)
def test_sizes_from_before_0_9_are_diffusers(copy_of, version, sample_size, expected):
    copy = copy_of().change(UNET, sample_size=sample_size)
    path = copy.folder / UNET
    settings = {name: value for name, value in json.loads(path.read_text()).items() if name != "_diffusers_version"}
    path.write_text(json.dumps(settings | ({} if version is None else {"_diffusers_version": version})))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        unet = diffusers.UNet2DConditionModel.from_config(diffusers.UNet2DConditionModel.load_config(path))
        parts = dict.fromkeys(("vae", "text_encoder", "tokenizer", "scheduler", "safety_checker", "feature_extractor"))
        pipe = diffusers.StableDiffusionPipeline(unet=unet, requires_safety_checker=False, **parts)
    assert pipe.unet.config.sample_size == expected
    defaults = copy.open().config.defaults
    assert (defaults.height, defaults.width) == (8 * expected, 8 * expected)


def test_a_height_and_a_width(copy_of, tmp_path):
    model = copy_of().change(UNET, sample_size=[16, 24]).open()
    assert (model.config.defaults.height, model.config.defaults.width) == (128, 192)
    write_diffusers(model, tmp_path / "again")
    assert open_model(tmp_path / "again").config == model.config


def test_a_whole_clip_as_the_text_encoder(copy_of, models, warned):
    copy = copy_of()
    settings = json.loads((copy.folder / TEXT).read_text())
    whole = transformers.CLIPConfig(text_config=settings, projection_dim=16).to_dict() | {
        "architectures": ["CLIPModel"]
    }
    (copy.folder / TEXT).write_text(json.dumps(whole))
    assert transformers.CLIPTextConfig.from_pretrained(copy.folder / "text_encoder").hidden_size == 64
    assert copy.open().config == open_model(models.folder("v1")).config
    assert warned() == []
