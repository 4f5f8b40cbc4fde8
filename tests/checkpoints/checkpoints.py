"""Checkpoints in other people's formats, made by the libraries that they come from, with random weights."""

from __future__ import annotations

import json
import pathlib
import warnings

import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers
    import torch
    import transformers

from kerasdiff.checkpoints.resolve import TINY_FOLDER

diffusers.logging.set_verbosity_error()
diffusers.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()

KINDS = ("v1", "v2", "inpainting")


def write_vocabulary(folder: pathlib.Path) -> None:
    """The embedded model's vocabulary as CLIP's two files."""
    folder.mkdir(parents=True, exist_ok=True)
    model = json.loads((TINY_FOLDER / "tokenizer.json").read_text())["model"]
    vocabulary = dict(model["vocab"])
    for word in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary.setdefault(word, len(vocabulary))
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")


def pipeline(kind: str, folder: pathlib.Path, seed: int = 0, **unet_settings):
    """A small `StableDiffusionPipeline` of one kind, its U-Net with these settings instead of its own.

    Heads and groups are those of Stable Diffusion, as a single file does not state them.
    """
    torch.manual_seed(seed)
    write_vocabulary(folder)
    v2, lcm = kind == "v2", kind == "lcm"
    text = transformers.CLIPTextConfig(
        vocab_size=628,
        hidden_size=64,
        intermediate_size=37,
        num_hidden_layers=3,
        num_attention_heads=1,
        hidden_act="gelu" if v2 else "quick_gelu",
        bos_token_id=626,
        eos_token_id=627,
    )
    settings = {
        "sample_size": 8,
        "in_channels": {"inpainting": 9, "edit": 8}.get(kind, 4),
        "block_out_channels": (64, 128) if v2 else (32, 64),
        "layers_per_block": 2 if v2 else 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D") if v2 else ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D") if v2 else ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 64,
        "attention_head_dim": [1, 2] if v2 else 8,
        "use_linear_projection": v2,
        "time_cond_proj_dim": 256 if lcm else None,
    }
    unet = diffusers.UNet2DConditionModel(**{**settings, **unet_settings})
    vae = diffusers.AutoencoderKL(
        block_out_channels=(32, 64, 64, 64),
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        layers_per_block=1,
    )
    with torch.no_grad():
        # Biases and gains that a wrong transform cannot hide behind.
        for module in (unet, vae):
            for parameter in module.parameters():
                if parameter.ndim == 1:
                    parameter += 0.3 * torch.randn_like(parameter)
        if lcm:  # by which the weight of guidance shows
            unet.time_embedding.cond_proj.weight.mul_(30)
    scheduler = diffusers.PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        steps_offset=1,
        prediction_type="v_prediction" if v2 else "epsilon",
    )
    made = diffusers.StableDiffusionInstructPix2PixPipeline if kind == "edit" else diffusers.StableDiffusionPipeline
    if lcm:
        scheduler, made = diffusers.LCMScheduler(), diffusers.LatentConsistencyModelPipeline
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        padding = {"pad_token": "!"} if v2 else {}
        tokenizer = transformers.CLIPTokenizer(
            str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77, **padding
        )
        return made(
            vae=vae,
            text_encoder=transformers.CLIPTextModel(text).eval(),
            tokenizer=tokenizer,
            unet=unet.eval(),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def far(ours, theirs):
    """The largest difference, as a share of the largest value."""
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def decoded(pipe, latents):
    """What diffusers' autoencoder makes of latents (N, h, w, 4), as grey levels."""
    with torch.no_grad():
        scaled = torch.from_numpy(np.ascontiguousarray(latents.transpose(0, 3, 1, 2))) / pipe.vae.config.scaling_factor
        images = pipe.image_processor.postprocess(pipe.vae.decode(scaled).sample, output_type="np")
    return np.round(images * 255).astype(int)


def save(pipe, folder: pathlib.Path, **arguments) -> pathlib.Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.save_pretrained(folder, **arguments)
    return folder


def safety_checker(seed: int = 0):
    """A small `StableDiffusionSafetyChecker`, and the `CLIPImageProcessor` before it.

    Its pictures are no multiple of its patches; about half of all images of noise are flagged.
    """
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(seed)
    vision = {
        "hidden_size": 16,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 18,
        "patch_size": 4,
    }
    checker = StableDiffusionSafetyChecker(transformers.CLIPConfig(vision_config=vision, projection_dim=12)).eval()
    with torch.no_grad():
        for name, parameter in checker.named_parameters():
            if "embeds" in name:
                parameter.copy_(torch.randn_like(parameter))
            else:
                parameter += 0.3 * torch.randn_like(parameter)
        # Where similarities of noise lie on both sides.
        checker.concept_embeds_weights.fill_(0.55)
        checker.special_care_embeds_weights.fill_(0.38)
    return checker, CLIPImageProcessorPil(size=18, crop_size=18)


def with_safety_checker(pipe):
    """The pipeline with a safety checker."""
    checker, processor = safety_checker()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.register_modules(safety_checker=checker, feature_extractor=processor)
        pipe.register_to_config(requires_safety_checker=True)
    return pipe


def save_old(pipe, folder: pathlib.Path, **arguments) -> pathlib.Path:
    """A folder as it was before safetensors: all weights in PyTorch's own files."""
    import safetensors.torch

    save(pipe, folder, safe_serialization=False, **arguments)
    for path in folder.glob("*/model*.safetensors"):  # transformers writes nothing else any more
        tensors = safetensors.torch.load_file(path)
        if path.parent.name == "text_encoder":
            tensors["text_model.embeddings.position_ids"] = torch.arange(77).expand((1, -1))
        name = path.name.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")
        torch.save(tensors, path.with_name(name))
        path.unlink()
    return folder
