"""Writing a model: a folder of ours or of diffusers, or a single file in the original layout.

Parameters go from their source to the file one after the other; no network is built.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import safetensors.numpy

from kerasdiff.checkpoints.checkpoint import Checkpoint
from kerasdiff.checkpoints.formats import diffusers_folder, keras_cv_h5, ldm, native
from kerasdiff.checkpoints.mapped_source import TensorSlice
from kerasdiff.models.config import ModelConfig, SafetyCheckerConfig
from kerasdiff.models.tokenizer import Tokenizer
from kerasdiff.samplers import SAMPLERS

# Whether a 1 x 1 convolution of theirs is a dense layer of ours, by a part of its name.
_CONVOLUTIONS = {"unet": (".proj_in.", ".proj_out."), "decoder": (".to_",), "encoder": (".to_",)}


def write_single_file(model: Checkpoint, path: pathlib.Path, dtype: str = "float32") -> None:
    """Writes one `.safetensors` file in the layout of latent diffusion, which has no safety checker."""
    config = model.config
    v2 = config.text_encoder.activation != "quick_gelu"
    tensors: dict[str, np.ndarray] = {}
    parts: dict[str, dict[int, np.ndarray]] = {}
    for network in diffusers_folder.FILES:
        find = ldm.places(network, config)
        for name, values in _parameters(model, network, dtype):
            candidates = list(find(name))
            place = candidates[-1] if network == "text_encoder" and v2 else candidates[0]
            convolution = network in ("decoder", "encoder") or not v2
            value = _turned_back(network, name, values, convolution)
            if place.parts == 1:
                tensors[place.key] = value
            else:
                parts.setdefault(place.key, {})[place.part] = value
    for key, pieces in parts.items():
        tensors[key] = np.concatenate([pieces[part] for part in sorted(pieces)])
    if v2:
        tensors.update(_unread_layer(tensors, config))
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})


def write_diffusers(model: Checkpoint, folder: pathlib.Path, dtype: str = "float32") -> None:
    """Writes a folder that `diffusers_folder.StableDiffusionPipeline.from_pretrained` reads."""
    config = model.config
    for name, settings in _settings(config).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(settings, indent=2) + "\n")
    files: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for network in config.networks:
        where = diffusers_folder.ALL_FILES[network]
        # 1.x has convolutions where 2.x has dense layers; its VAE has dense layers in both.
        convolution = network == "unet" and config.text_encoder.activation == "quick_gelu"
        for name, values in _parameters(model, network, dtype):
            place: TensorSlice = next(iter(diffusers_folder.PLACES[network](name)))
            files.setdefault(where, {})[place.key] = _turned_back(network, name, values, convolution)
    for (place_name, stem), tensors in files.items():
        safetensors.numpy.save_file(tensors, folder / place_name / f"{stem}.safetensors", {"format": "pt"})
    _tokenizer(model).save_clip(folder / "tokenizer")


def write_native(model: Checkpoint, folder: pathlib.Path, dtype: str = "float16") -> None:
    """Writes a folder of ours, which is mapped into memory and not copied if its type is the one asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config.to_json(), indent=2) + "\n")
    _tokenizer(model).save(folder / "tokenizer.json")
    for network in model.config.networks:
        native.write_network(folder / f"{network}.safetensors", model.shapes(network), model.parameters(network), dtype)


def write_keras_cv(model: Checkpoint, folder: pathlib.Path, dtype: str = "float32") -> None:
    """Writes the set of HDF5 files that KerasCV's Stable Diffusion reads, which has no safety checker."""
    preset = "sd-v1-4" if model.config.text_encoder.activation == "quick_gelu" else "sd-v2-1"
    folder.mkdir(parents=True, exist_ok=True)
    for network, (_, name, _) in keras_cv_h5.PUBLISHED[preset].items():
        pattern = keras_cv_h5.convolutions(preset, network)
        keras_cv_h5.write(folder / name, _parameters(model, network, dtype), pattern)


def _tokenizer(model: Checkpoint) -> Tokenizer:
    """The model's; one that KerasCV brings cannot be written, and is CLIP's."""
    return model.tokenizer if isinstance(model.tokenizer, Tokenizer) else Tokenizer.clip()


def _parameters(model: Checkpoint, network: str, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    for name, values in model.parameters(network):
        yield name, np.asarray(values).astype(getattr(ml_dtypes, dtype, dtype))


def _turned_back(network: str, name: str, values: np.ndarray, convolution: bool) -> np.ndarray:
    """A value as torch has it: kernels go from (..., in, out) to (out, in, ...)."""
    if not name.endswith(".kernel"):
        return np.ascontiguousarray(values)
    if values.ndim == 4:
        return np.ascontiguousarray(values.transpose(3, 2, 0, 1))
    values = np.ascontiguousarray(values.T)
    if (
        convolution
        and any(part in name for part in _CONVOLUTIONS.get(network, ()))
        and "transformer_blocks" not in name
    ):
        return values[:, :, None, None]
    return values


def _unread_layer(tensors: dict[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
    """The last layer of OpenCLIP's text encoder, which Stable Diffusion 2.x does not read: zeros."""
    block = f"{ldm.OPEN_CLIP}transformer.resblocks."
    last = config.text_encoder.num_layers
    return {
        key.replace(f"{block}0.", f"{block}{last}."): np.zeros_like(value)
        for key, value in tensors.items()
        if key.startswith(f"{block}0.")
    }


def _settings(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """What goes into each settings file."""
    text, unet, vae, schedule = config.text_encoder, config.unet, config.vae, config.schedule
    cross = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
    plain = ("DownBlock2D", "UpBlock2D")
    kinds = [cross if attention else plain for attention in unet.attention]
    linear = text.activation != "quick_gelu"
    class_name = SAMPLERS[config.defaults.sampler].aliases[:1] or ("DPMSolverMultistepScheduler",)
    guarded = config.safety_checker is not None
    return {
        "model_index.json": {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": "0.42.1",
            "feature_extractor": ["transformers", "CLIPImageProcessor"] if guarded else [None, None],
            "requires_safety_checker": guarded,
            "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"] if guarded else [None, None],
            "scheduler": ["diffusers", class_name[0]],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        },
        "text_encoder/config.json": {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "hidden_act": "quick_gelu" if text.activation == "quick_gelu" else "gelu",
            "hidden_size": text.width,
            "intermediate_size": 4 * text.width if text.mlp_width is None else text.mlp_width,
            "layer_norm_eps": 1e-5,
            "max_position_embeddings": text.max_length,
            "num_attention_heads": text.num_heads,
            "num_hidden_layers": text.num_layers,
            "vocab_size": text.vocab_size,
        },
        "unet/config.json": {
            "_class_name": "UNet2DConditionModel",
            "sample_size": config.defaults.height // config.latent_factor,
            "in_channels": unet.in_channels,
            "out_channels": unet.out_channels,
            "block_out_channels": list(unet.widths),
            "layers_per_block": unet.layers_per_level,
            "down_block_types": [down for down, _ in kinds],
            "up_block_types": [up for _, up in reversed(kinds)],
            "attention_head_dim": list(unet.num_heads),
            "cross_attention_dim": unet.context_width,
            "norm_num_groups": unet.norm_groups,
            "norm_eps": unet.norm_epsilon,
            "use_linear_projection": linear,
        },
        "vae/config.json": {
            "_class_name": "AutoencoderKL",
            "block_out_channels": list(vae.widths),
            "down_block_types": ["DownEncoderBlock2D"] * len(vae.widths),
            "up_block_types": ["UpDecoderBlock2D"] * len(vae.widths),
            "layers_per_block": vae.layers_per_level,
            "latent_channels": vae.latent_channels,
            "norm_num_groups": vae.norm_groups,
            "scaling_factor": vae.scaling_factor,
        },
        "scheduler/scheduler_config.json": {
            "_class_name": class_name[0],
            "num_train_timesteps": schedule.num_train_timesteps,
            "beta_start": schedule.beta_start,
            "beta_end": schedule.beta_end,
            "beta_schedule": schedule.beta_schedule,
            "prediction_type": schedule.prediction_type,
            **({"trained_betas": list(schedule.trained_betas)} if schedule.trained_betas is not None else {}),
            **({"rescale_betas_zero_snr": True} if schedule.rescale_betas_zero_snr else {}),
            **({} if schedule.steps_offset is None else {"steps_offset": schedule.steps_offset}),
            **({} if schedule.set_alpha_to_one is None else {"set_alpha_to_one": schedule.set_alpha_to_one}),
            **_spacing(config.defaults.spacing),
            **({"skip_prk_steps": True} if config.defaults.sampler == "pndm" else {}),
            "clip_sample": False,
        },
        **({} if config.safety_checker is None else _safety_settings(config.safety_checker)),
    }


def _spacing(name: str | None) -> dict[str, Any]:
    """How a scheduler is told its spacing; nothing for one that diffusers does not have."""
    if name in ("leading", "linspace", "trailing"):
        return {"timestep_spacing": name}
    return {flag: True for flag, meant in diffusers_folder.SPACING_FLAGS.items() if meant == name}


def _safety_settings(config: SafetyCheckerConfig) -> dict[str, dict[str, Any]]:
    resize = config.resize
    return {
        "safety_checker/config.json": {
            "architectures": ["StableDiffusionSafetyChecker"],
            "model_type": "clip",
            "projection_dim": config.projection,
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_act": "quick_gelu" if config.activation == "quick_gelu" else "gelu",
                "hidden_size": config.width,
                "image_size": config.image_size,
                "intermediate_size": config.mlp_width,
                "layer_norm_eps": 1e-5,
                "num_attention_heads": config.num_heads,
                "num_channels": 3,
                "num_hidden_layers": config.num_layers,
                "patch_size": config.patch_size,
            },
        },
        "feature_extractor/preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "crop_size": {"height": config.image_size, "width": config.image_size},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": list(config.mean),
            "image_std": list(config.std),
            "resample": 3,
            "rescale_factor": 1 / 255,
            "size": {"shortest_edge": resize} if isinstance(resize, int) else {"height": resize[0], "width": resize[1]},
        },
    }
