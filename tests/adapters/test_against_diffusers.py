"""Whole images with LoRAs, of models of every kind, against diffusers with peft."""

from __future__ import annotations

import warnings

import diffusers
import numpy as np
import pytest
import torch
from checkpoints import pipeline, save
from lora_files import write_lora

import kerasdiff
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.convert import convert

# Not proj_in, whose 1 x 1 convolution diffusers fits with no matrix.
LAYERS = ("to_q", "to_k", "to_v", "to_out", "ff", "conv1", "conv_in")
STEPS = 4


def theirs(pipe, **arguments):
    arguments = {"generator": torch.Generator().manual_seed(3), "output_type": "np", **arguments}
    prompts = {"prompt": "a red circle", "negative_prompt": "a star"}
    return pipe(**prompts, num_inference_steps=STEPS, guidance_scale=5.0, **arguments).images


def ours(generator, **arguments):
    arguments = {"num_steps": STEPS, "guidance_scale": 5.0, "rng": "torch", "seed": 3, "progress": False, **arguments}
    return generator.generate("a red circle", negative_prompt="a star", **arguments)


def as_theirs(latents):
    return torch.from_numpy(np.asarray(latents).transpose(0, 3, 1, 2).copy())


@pytest.mark.parametrize("kind", ["v1", "v2", "inpainting"])
def test_images_are_those_of_diffusers(kind, tmp_path):
    pipe = pipeline(kind, tmp_path / "tokenizer")
    folder = save(pipe, tmp_path / "model")
    model = open_model(folder)
    shapes = {network: model.shapes(network) for network in ("unet", "text_encoder")}
    files = [
        write_lora(tmp_path / "one.safetensors", shapes, 1, layers=LAYERS, networks=("unet",)),
        write_lora(tmp_path / "two.safetensors", shapes, 2, rank=3, layers=("to_q", "to_out"), networks=("unet",)),
    ]
    generator = kerasdiff.Generator(folder, precision="float32")
    more, pictures = {}, {}
    if kind == "inpainting":
        pipe = diffusers.StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False)
        picture, mask = np.full((64, 64, 3), 200, "uint8"), np.ones((64, 64), "float32")
        more = {"latents": as_theirs(generator.initial_latents(1, height=64, width=64, seed=3)), "strength": 1.0}
        more |= {"image": as_theirs(generator.encode_image(picture[None])), "mask_image": torch.ones(1, 1, 64, 64)}
        hidden = generator._pipeline.encode(np.zeros((64, 64, 3), "float32"))  # what is covered is grey
        more |= {"masked_image_latents": as_theirs(hidden[None]), "height": 64, "width": 64, "output_type": "latent"}
        pictures = {"image": picture, "mask": mask, "rng": "philox"}
    pipe.set_progress_bar_config(disable=True)
    plain = ours(generator, **pictures)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, file in zip(("one", "two"), files, strict=True):
            pipe.load_lora_weights(str(file), adapter_name=name)
    for names, scales in ((["one"], [0.8]), (["one", "two"], [0.6, -0.7])):
        pipe.set_adapters(names, scales)
        expected, loras = theirs(pipe, **more), list(zip(files, scales, strict=False))
        drawn = ours(generator, loras=loras, **pictures)
        assert np.abs(drawn.latents - plain.latents).max() > 0.1
        if kind == "inpainting":
            assert (as_theirs(drawn.latents) - expected).abs().max() < 1e-3
        else:
            assert np.abs(drawn.images - np.round(expected * 255)).max() <= 1
    if kind == "v1":
        single = convert(folder, tmp_path / "single.safetensors", dtype="float32", loras=loras[:1])
        generator = kerasdiff.Generator(single, precision="float32")
        lost = {"sampler": "pndm", "spacing": "leading", "height": 64, "width": 64}  # which a single file does not keep
        drawn = ours(generator, loras=loras[1:], **lost)
        assert np.abs(drawn.images - np.round(expected * 255)).max() <= 1
