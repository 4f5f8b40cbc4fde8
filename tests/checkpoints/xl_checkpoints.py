"""Small checkpoints of Stable Diffusion XL's kind, made by diffusers and transformers, with random weights."""

from __future__ import annotations

import pathlib
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
