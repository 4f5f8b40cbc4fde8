"""ControlNets of small models against diffusers."""

from __future__ import annotations

import warnings

import checkpoints
import numpy as np
import pytest
from checkpoints import diffusers, torch
from control_checkpoints import controlnet
from PIL import Image

import kerasdiff

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers' schedulers
QUICK = {"height": 64, "width": 96, "num_steps": 3, "seed": 3, "rng": "torch", "progress": False, "sampler": "ddim"}
PROMPT = "a red circle"
SCALES = (1.0, 0.6, 0.3)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """diffusers' pipeline of Stable Diffusion 1.x, its folder, and three ControlNets with their folders."""
    place = tmp_path_factory.mktemp("control")
    pipe = checkpoints.pipeline("v1", place / "vocabulary")
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    folder = checkpoints.save(pipe, place / "model")
    nets = []
    for number in range(3):
        net = controlnet(pipe.unet, seed=number)
        net.save_pretrained(place / f"net{number}")
        nets.append((net, place / f"net{number}"))
    return pipe, folder, nets


@pytest.fixture(scope="module")
def generator(made):
    return kerasdiff.Generator(made[1], precision="float32", jit_compile=False, backend="openvino")


def hint(seed):
    return np.random.default_rng(seed).integers(0, 256, (64, 96, 3), "uint8")


def expected(made, count, prompt=PROMPT, **settings):
    """Latents (1, h, w, 4) of diffusers with some of the ControlNets."""
    pipe, _, nets = made
    steered = diffusers.StableDiffusionControlNetPipeline(
        **pipe.components, controlnet=[net for net, _ in nets[:count]], requires_safety_checker=False
    )
    steered.set_progress_bar_config(disable=True)
    arguments = {"controlnet_conditioning_scale": list(SCALES[:count])} | settings
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = steered(
            prompt,
            image=[Image.fromarray(hint(number)) for number in range(count)],
            height=64,
            width=96,
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(3),
            output_type="latent",
            **arguments,
        ).images
    return found.permute(0, 2, 3, 1).numpy()


def controls(made, count, **settings):
    each = zip(range(count), SCALES, made[2], strict=False)
    return [kerasdiff.Control(str(folder), hint(number), scale, **settings) for number, scale, (_, folder) in each]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_several_controls_are_those_of_diffusers(made, generator, count):
    found = generator.generate(PROMPT, **QUICK, controls=controls(made, count)).latents
    plain = generator.generate(PROMPT, **QUICK).latents
    assert np.abs(found - plain).max() > 0.1
    np.testing.assert_allclose(found, expected(made, count), atol=1e-3)
