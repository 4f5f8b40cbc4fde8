"""Latent consistency models, which take the weight of guidance as an input, against diffusers' own pipelines."""

from __future__ import annotations

import checkpoints
import numpy as np
import pytest
from checkpoints import diffusers, torch

import kerasdiff
from kerasdiff.diffusion.denoise_step import guidance_embedding

PROMPT = "a red circle"
QUICK = {"rng": "torch", "seed": 3, "progress": False}


@pytest.fixture(scope="module")
def lcm(tmp_path_factory):
    """diffusers' pipeline, and its folder."""
    folder = tmp_path_factory.mktemp("lcm")
    pipe = checkpoints.pipeline("lcm", folder / "vocabulary")
    checkpoints.save(pipe, folder / "model")
    vars(pipe.text_encoder)["text_model"] = pipe.text_encoder
    pipe.set_progress_bar_config(disable=True)
    return pipe, folder / "model"


@pytest.fixture(scope="module")
def generator(lcm):
    return kerasdiff.Generator(lcm[1], precision="float32", jit_compile=False)


def theirs(pipe, prompt=PROMPT, output_type="np", **arguments):
    seed = torch.Generator().manual_seed(3)
    return np.asarray(pipe(prompt, generator=seed, output_type=output_type, **arguments).images)


def levels(images):
    return np.round(np.asarray(images) * 255).astype(int)


def far(ours, others):
    return np.abs(np.asarray(ours) - others).max() / np.abs(others).max()


def test_the_embedding_is_that_of_diffusers(lcm):
    weights = np.array([1.0, 8.5, 0.25, 14.0], "float32")
    for width in (256, 33):
        expected = lcm[0].get_guidance_scale_embedding(torch.from_numpy(weights - 1), width).numpy()
        assert np.abs(guidance_embedding(weights, width) - expected).max() < 1e-3
        assert np.abs(guidance_embedding(weights, width) - expected).mean() < 5e-6


def test_the_unet_gives_diffusers_numbers(lcm, generator):
    pipe, _ = lcm
    rng = np.random.default_rng(0)
    x, context = rng.standard_normal((2, 4, 8, 8), "float32"), rng.standard_normal((2, 77, 64), "float32")
    predicted = []
    for weight in (1.0, 8.5):
        weights = np.full(2, weight, "float32")
        with torch.no_grad():
            condition = pipe.get_guidance_scale_embedding(torch.from_numpy(weights - 1), 256)
            inputs = torch.from_numpy(x), 259, torch.from_numpy(context)
            expected = pipe.unet(*inputs, timestep_cond=condition).sample.permute(0, 2, 3, 1).numpy()
        inputs = x.transpose(0, 2, 3, 1), np.full(2, 259, "float32"), context
        ours = generator.networks["unet"](*inputs, guidance_embedding(weights, 256))
        assert far(ours, expected) < 1e-4
        predicted.append(expected)
    assert far(*predicted) > 1e-3


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_images_are_diffusers(lcm, generator, num_steps):
    pipe, _ = lcm
    for scale in (1.0, 3.5, 8.5):
        arguments = {"guidance_scale": scale}
        ours = generator.generate(PROMPT, num_steps=num_steps, **arguments, **QUICK)
        expected = theirs(pipe, num_inference_steps=num_steps, output_type="latent", **arguments).transpose(0, 2, 3, 1)
        assert far(ours.latents, expected) < 1e-4
        image = theirs(pipe, num_inference_steps=num_steps, **arguments)
        assert np.abs(ours.images.astype(int) - levels(image)).max() <= 1


def test_the_defaults_are_those_of_the_pipeline(lcm, generator):
    request = generator.generate(PROMPT, **QUICK).request
    assert (request.recipe, request.sampler, request.spacing, request.num_steps) == ("lcm", "lcm", "lcm", 4)
    assert request.guidance_scale.plain() == 8.5
    assert np.abs(generator.generate(PROMPT, **QUICK).images.astype(int) - levels(theirs(lcm[0]))).max() <= 1


@pytest.mark.parametrize(("num_steps", "strength"), [(4, 0.8), (4, 0.5), (1, 0.3), (2, 1.0)])
def test_image_to_image_is_diffusers(lcm, generator, num_steps, strength):
    pipe = diffusers.LatentConsistencyModelImg2ImgPipeline(**lcm[0].components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype="uint8")
    scaled = torch.from_numpy(picture.astype("float32") / 255).permute(2, 0, 1)[None]
    # The encoder's mean, where diffusers draws.
    mean = generator.encode_image(picture[None]).transpose(0, 3, 1, 2) / 0.18215
    pipe.vae.encode = lambda _: diffusers.models.modeling_outputs.AutoencoderKLOutput(Mean(torch.from_numpy(mean)))
    try:
        expected = theirs(pipe, image=scaled, num_inference_steps=num_steps, strength=strength)
    finally:
        del pipe.vae.encode
    ours = generator.generate(PROMPT, image=picture, num_steps=num_steps, strength=strength, **QUICK)
    assert ours.request.all_steps
    assert ours.request.first_steps == (0,)
    assert np.abs(ours.images.astype(int) - levels(expected)).max() <= 1


class Mean:
    """A distribution without deviation, which draws from a generator all the same."""

    def __init__(self, mean):
        self._mean = mean

    def sample(self, generator):
        torch.randn(self._mean.shape, generator=generator)
        return self._mean
