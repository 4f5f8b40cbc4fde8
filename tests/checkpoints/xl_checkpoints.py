"""Small checkpoints of Stable Diffusion XL's kind, made by diffusers and transformers, with random weights."""

from __future__ import annotations

import pathlib
import re
import warnings

import torch
from checkpoints import diffusers, transformers, write_vocabulary

# What a kind's U-Net has besides, or instead of, the base model's.
UNETS = {
    "base": {},
    "inpainting": {"in_channels": 9},
    "refiner": {
        "cross_attention_dim": 128,
        "projection_class_embeddings_input_dim": 96 + 5 * 32,
        "transformer_layers_per_block": 2,
    },
    "lcm": {"time_cond_proj_dim": 256},
    # As in SSD-1B: depths of its own for each transformer, and a plain middle.
    "ssd": {
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, [3, 2]],
        "reverse_transformer_layers_per_block": [[1, 2, 3], 1],
        "layers_per_block": 2,
    },
}


def text_encoder(width: int, layers: int, projection: int | None = None):
    """A small CLIP-L, or an OpenCLIP-G if it has a projection."""
    config = transformers.CLIPTextConfig(
        vocab_size=628,
        hidden_size=width,
        intermediate_size=2 * width + 3,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        hidden_act="quick_gelu" if projection is None else "gelu",
        projection_dim=projection or width,
        bos_token_id=626,
        eos_token_id=627,
    )
    made = transformers.CLIPTextModel if projection is None else transformers.CLIPTextModelWithProjection
    return made(config).eval()


def xl_pipeline(kind: str, folder: pathlib.Path, seed: int = 0, prediction_type: str = "epsilon", **unet_settings):
    """A small pipeline of one of the `UNETS`; the second encoder's projection is narrower than its context.

    Heads are 64 wide, as in all models of this family, since a single file does not state them.
    """
    torch.manual_seed(seed)
    write_vocabulary(folder)
    settings = {
        "sample_size": 16,
        "block_out_channels": (64, 128),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": [1, 2],
        "cross_attention_dim": 64 + 128,
        "attention_head_dim": [1, 2],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": 96 + 6 * 32,
    }
    unet = diffusers.UNet2DConditionModel(**{**settings, **UNETS[kind], **unet_settings})
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64, 64, 64),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=1,
        scaling_factor=0.13025,
        sample_size=128,
        force_upcast=True,
    )
    encoders = {
        "text_encoder": None if kind == "refiner" else text_encoder(64, 3),
        "text_encoder_2": text_encoder(128, 4, projection=96),
    }
    with torch.no_grad():
        # Biases and gains that a wrong transform cannot hide behind.
        for module in (unet, vae):
            for parameter in module.parameters():
                if parameter.ndim == 1:
                    parameter += 0.3 * torch.randn_like(parameter)
        # By which sizes show: a random network hardly looks at them.
        unet.add_embedding.linear_1.weight.mul_(4)
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="leading",
        steps_offset=1,
        prediction_type=prediction_type,
        rescale_betas_zero_snr=prediction_type == "v_prediction",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = str(folder / "vocab.json"), str(folder / "merges.txt")
        tokenizers = {
            "tokenizer": None if kind == "refiner" else transformers.CLIPTokenizer(*files, model_max_length=77),
            "tokenizer_2": transformers.CLIPTokenizer(*files, model_max_length=77, pad_token="!"),
        }
        made = {
            "refiner": diffusers.StableDiffusionXLImg2ImgPipeline,
            "inpainting": diffusers.StableDiffusionXLInpaintPipeline,
        }.get(kind, diffusers.StableDiffusionXLPipeline)
        refines = (
            {"force_zeros_for_empty_prompt": False, "requires_aesthetics_score": True} if kind == "refiner" else {}
        )
        return made(
            vae=vae, unet=unet.eval(), scheduler=scheduler, **encoders, **tokenizers, **refines, add_watermarker=False
        )


_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3"} | {
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"} | {
    "time_embedding.cond_proj": "time_embed.cond_proj",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def unet_name(key: str, blocks: int, attends: set[str]) -> str:
    """The original name of a U-Net's tensor, with some blocks a level; `attends` are parts that have attention."""
    found = re.fullmatch(r"((?:down|up)_blocks|mid_block)(?:\.(\d))?\.(\w+)\.(\d)\.(.*)", key)
    if found is None:
        path, _, leaf = key.rpartition(".")
        return f"{_UNET[path]}.{leaf}"
    part, level, kind, index, rest = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    if kind == "resnets":
        layer, _, leaf = rest.rpartition(".")
        rest = f"{_RESNET[layer]}.{leaf}"
    if part == "mid_block":
        return f"middle_block.{2 * index if kind == 'resnets' else 1}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * (blocks + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{level * (blocks + 1) + blocks}.{2 if f'{part}.{level}' in attends else 1}.{rest}"
    number = level * (blocks + 1) + index
    place = f"input_blocks.{number + 1}" if part == "down_blocks" else f"output_blocks.{number}"
    return f"{place}.{0 if kind == 'resnets' else 1}.{rest}"


def _vae_name(key: str) -> str:
    """The original name of an autoencoder's tensor."""
    for pattern, original in (
        (r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"down_blocks\.(\d)\.resnets", r"down.\1.block"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d)\.resnets", lambda found: f"up.{3 - int(found[1])}.block"),
        (r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{3 - int(found[1])}.upsample"),
        ("conv_norm_out", "norm_out"),
        ("conv_shortcut", "nin_shortcut"),
    ):
        key = re.sub(pattern, original, key)
    return key


def _open_clip(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A text encoder's tensors as OpenCLIP has them: one matrix for queries, keys and values, a projection of rows."""
    found = {"text_projection": state["text_projection.weight"].T, "logit_scale": torch.tensor(4.6)}
    for key, value in state.items():
        key = key.removeprefix("text_model.")
        for ours, theirs in (
            ("embeddings.position_embedding.weight", "positional_embedding"),
            ("embeddings.token_embedding", "token_embedding"),
            ("final_layer_norm", "ln_final"),
            ("encoder.layers", "transformer.resblocks"),
            ("layer_norm", "ln_"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
            ("self_attn", "attn"),
        ):
            key = key.replace(ours, theirs)
        joined = re.fullmatch(r"(.*attn)\.([qkv])_proj\.(\w+)", key)
        if joined and joined[2] == "q":
            parts = [value, *(state[other] for other in _others(state, joined))]
            found[f"{joined[1]}.in_proj_{joined[3]}"] = torch.cat(parts)
        elif not joined and not key.startswith("text_projection"):
            found[key] = value
    return found


def _others(state: dict[str, torch.Tensor], query: re.Match[str]) -> list[str]:
    """The names of keys and values that belong to queries."""
    layer = query[1].replace("transformer.resblocks", "encoder.layers").replace("attn", "self_attn")
    return [next(key for key in state if key.endswith(f"{layer}.{one}_proj.{query[3]}")) for one in "kv"]


def original(pipe) -> dict[str, torch.Tensor]:
    """A pipeline's tensors with the names of the original layout, as single files have them."""
    unet = pipe.unet.state_dict()
    attends = {key.split(".attentions.")[0] for key in unet if ".attentions." in key}
    blocks = pipe.unet.config.layers_per_block
    found = {f"model.diffusion_model.{unet_name(key, blocks, attends)}": value for key, value in unet.items()}
    found |= {f"first_stage_model.{_vae_name(key)}": value for key, value in pipe.vae.state_dict().items()}
    for key, value in list(found.items()):  # the autoencoder's attention has convolutions there
        if ".mid.attn_1." in key and value.ndim == 2:
            found[key] = value[:, :, None, None]
    first = "conditioner.embedders.0."
    if pipe.components.get("text_encoder") is not None:
        for key, value in pipe.text_encoder.state_dict().items():
            found[f"{first}transformer.text_model.{key.removeprefix('text_model.')}"] = value
    place = first if pipe.components.get("text_encoder") is None else "conditioner.embedders.1."
    found |= {f"{place}model.{key}": value for key, value in _open_clip(pipe.text_encoder_2.state_dict()).items()}
    return {key: value.contiguous() for key, value in found.items()}
