"""Latent consistency models, which take the weight of guidance as an input, against diffusers' own pipelines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings

import checkpoints
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import diffusers, torch
from lora_files import write_lora

import kerasdiff
from kerasdiff.checkpoints.export import write_diffusers, write_keras_cv, write_native, write_single_file
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.diffusion.denoise_step import guidance_embedding
from kerasdiff.models.network_configs import UNetConfig
from kerasdiff.request import make_request

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
    assert far(*predicted) > 0.03


@pytest.mark.parametrize(("num_steps", "scale"), [(1, 1.0), (4, 8.5), (8, 14.0)])
def test_images_are_diffusers(lcm, generator, num_steps, scale):
    ours = generator.generate(PROMPT, num_steps=num_steps, guidance_scale=scale, **QUICK)
    expected = theirs(lcm[0], num_inference_steps=num_steps, output_type="latent", guidance_scale=scale)
    assert far(ours.latents, expected.transpose(0, 2, 3, 1)) < 1e-4
    with torch.no_grad():
        decoded = lcm[0].vae.decode(torch.from_numpy(expected) / 0.18215).sample
    image = lcm[0].image_processor.postprocess(decoded, output_type="np")
    assert np.abs(ours.images.astype(int) - levels(image)).max() <= 1


def test_the_defaults_are_those_of_the_pipeline(lcm, generator):
    request = generator.generate(PROMPT, **QUICK).request
    assert (request.recipe, request.sampler, request.spacing, request.num_steps) == ("lcm", "lcm", "lcm", 4)
    assert request.guidance_scale.plain() == 8.5
    assert np.abs(generator.generate(PROMPT, **QUICK).images.astype(int) - levels(theirs(lcm[0]))).max() <= 1


@pytest.mark.parametrize(("num_steps", "strength"), [(4, 0.8), (1, 0.3), (2, 1.0)])
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


def test_guidance_is_of_each_step_and_image(generator):
    """A row has its own, and nothing of it reaches another."""
    arguments = {"num_steps": 2, "progress": False}
    alone = [
        generator.generate(PROMPT, seed=seed, guidance_scale=scale, **arguments).latents[0]
        for seed, scale in ((1, 2.0), (2, [9.0, 3.0]))
    ]
    both = generator.generate(PROMPT, 2, seed=1, guidance_scale=[[2.0, 2.0], [9.0, 3.0]], **arguments)
    for one, other in zip(both.latents, alone, strict=True):
        assert far(one, other) < 1e-5
    assert far(generator.generate(PROMPT, seed=2, guidance_scale=9.0, **arguments).latents[0], alone[1]) > 1e-4


def test_there_is_no_second_half(generator):
    """Neither in what is computed nor in what memory is expected."""
    rows = []
    denoise = generator._pipeline.denoise

    class Seen(type(denoise)):
        def _step(self, inputs, *rest):
            if not isinstance(inputs.text, tuple):  # not only shapes
                rows.append((len(inputs.text), inputs.guidance is None))
            return super()._step(inputs, *rest)

    denoise.__class__ = Seen
    try:
        generator.generate(PROMPT, 2, num_steps=2, seed=1, progress=False, deep_cache_interval=2)
    finally:
        denoise.__class__ = Seen.__mro__[1]
    assert {*rows} == {(2, True)}
    assert "U-Net 2" in generator.plan(2, height=64, width=64).programs


def test_what_it_cannot_do_is_one_line(generator):
    config = generator.config
    for arguments, message in (
        (
            {"guidance_interval": (0.2, 1.0)},
            "guidance_interval is about two predictions, and this model takes guidance",
        ),
        ({"guidance_rescale": 0.5}, "guidance_rescale is about two predictions"),
        ({"prompt": "a ring AND a star", "prompt_syntax": "a1111"}, "AND joins several predictions"),
        (
            {"image": np.zeros((64, 64, 3), "uint8"), "strength": 0.05},
            r"strength=0\.05 leaves 2 of the 50 timesteps",
        ),
    ):
        with pytest.raises(kerasdiff.RequestError, match=message):
            make_request(config, **{"prompt": "a ring", **arguments})
    with pytest.warns(UserWarning, match="negative_prompt has no effect: it needs a second prediction") as found:
        make_request(config, "a ring", negative_prompt="a star")
    assert len(found) == 1
    embeddings = generator.encode_text([""])[:, :5]
    with pytest.warns(UserWarning, match="negative_context has no effect"):
        generator.denoise(generator.initial_latents(height=64, width=64), embeddings, embeddings, num_steps=1, seed=1)
    with pytest.raises(kerasdiff.ModelError, match="time_cond_proj_dim=2 must be between 4"):
        UNetConfig(time_cond_proj_dim=2)


def test_strength_of_a_picture_takes_all_steps(generator):
    picture = np.zeros((64, 64, 3), "uint8")
    request = make_request(generator.config, ["a", "b", "c"], image=picture, strength=[1.0, 0.5, 0.0], seed=1)
    assert request.first_steps == (0, 0, 4)
    assert request.from_noise.tolist() == [True, False, False]
    run = generator.schedule(request)
    assert run.inputs[:, 0, 1].tolist() == [999, 759, 499, 259]
    assert run.inputs[:, 1, 1].tolist() == [499, 379, 259, 139]
    assert np.all(run.steps[:, 2] == -1)
    # What says itself which levels it visits is as with every other model.
    other = make_request(generator.config, "a", image=picture, strength=0.5, timesteps=[999, 499], seed=1)
    assert (other.all_steps, other.first_steps) == (False, (1,))


def same(one, other):
    for network in ("unet", "text_encoder", "decoder"):
        pairs = zip(one.parameters(network), other.parameters(network), strict=True)
        for (name, value), (again, copy) in pairs:
            assert name == again
            assert np.array_equal(value, copy), name


def test_it_goes_through_every_format(lcm, tmp_path):
    pipe, folder = lcm
    model = open_model(folder)
    assert model.config.unet.time_cond_proj_dim == 256
    write_single_file(model, tmp_path / "single.safetensors")
    with safetensors.safe_open(tmp_path / "single.safetensors", "np") as file:
        metadata, kernel = file.metadata(), file.get_tensor("model.diffusion_model.time_embed.cond_proj.weight")
    assert np.array_equal(kernel, pipe.unet.time_embedding.cond_proj.weight.detach().numpy())
    write_diffusers(open_model(tmp_path / "single.safetensors"), tmp_path / "folder")
    write_native(open_model(tmp_path / "folder"), tmp_path / "native", "float32")
    for path in ("single.safetensors", "folder", "native"):
        found = open_model(tmp_path / path)
        same(found, model)
        assert found.config.unet == model.config.unet
        defaults = found.config.defaults
        assert (defaults.recipe, defaults.sampler) == ("lcm", "lcm")
        assert (defaults.num_steps, defaults.guidance_scale) == (4, 8.5)
    index = json.loads((tmp_path / "folder" / "model_index.json").read_text())
    assert (index["_class_name"], index["scheduler"]) == (
        "LatentConsistencyModelPipeline",
        ["diffusers", "LCMScheduler"],
    )
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "folder")
    assert torch.equal(again.unet.time_embedding.cond_proj.weight, pipe.unet.time_embedding.cond_proj.weight)
    with pytest.raises(kerasdiff.ModelError, match="takes guidance as an input, which KerasCV has no place for"):
        write_keras_cv(model, tmp_path / "keras_cv")
    # As diffusers' own script names it, which leaves what it does not know.
    tensors = safetensors.numpy.load_file(tmp_path / "single.safetensors")
    old, new = "time_embed.cond_proj", "time_embedding.cond_proj"
    tensors = {key.replace(old, new): one for key, one in tensors.items()}
    safetensors.numpy.save_file(tensors, tmp_path / "b.safetensors", metadata)
    same(open_model(tmp_path / "b.safetensors"), model)


def test_files_that_say_what_they_are_have_a_recipe(models, copy_of, tmp_path):
    copy = copy_of("v1").change("model_index.json", _name_or_path="stabilityai/sd-turbo")
    model = copy.open()
    assert model.config.defaults.recipe == "turbo"
    write_diffusers(model, tmp_path / "folder")
    write_native(model, tmp_path / "native")
    write_single_file(model, tmp_path / "single.safetensors")
    for path in ("folder", "native", "single.safetensors"):
        assert open_model(tmp_path / path).config.defaults.recipe == "turbo"
    tensors = safetensors.numpy.load_file(models.single_file("v1"))
    for title, recipe in (("SD Turbo", "turbo"), ("My lightning 4-step", "lightning-4"), ("A model", None)):
        told = {**models.metadata("v1"), "modelspec.title": title}
        safetensors.numpy.save_file(tensors, tmp_path / "a.safetensors", told)
        assert open_model(tmp_path / "a.safetensors").config.defaults.recipe == recipe
    # A file's name alone is a hint, and so is the scheduler of a model that may be any.
    assert open_model(models.single_file("v1")).config.defaults.recipe is None


JAX = """
import sys
import numpy as np
import kerasdiff
generator = kerasdiff.Generator(sys.argv[1], precision="float32")
np.save(sys.argv[2], generator.generate("a red circle", 2, guidance_scale=[2.0, 8.5], seed=3, progress=False).images)
"""


BOTH = {"batch_size": 2, "guidance_scale": [2.0, 8.5], "seed": 3, "progress": False}


def test_openvino_draws_the_same(lcm, generator):
    expected = generator.generate(PROMPT, **BOTH).images.astype(int)
    openvino = kerasdiff.Generator(lcm[1], precision="float32", backend="openvino")
    assert np.abs(openvino.generate(PROMPT, **BOTH).images - expected).max() <= 1


@pytest.mark.slow
def test_jax_draws_the_same(lcm, generator, tmp_path):
    expected = generator.generate(PROMPT, **BOTH).images.astype(int)
    command = [sys.executable, "-W", "ignore", "-c", JAX, str(lcm[1]), str(tmp_path / "images.npy")]
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    environment.pop("KERASDIFF_BACKEND", None)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert np.abs(np.load(tmp_path / "images.npy") - expected).max() <= 1


def test_a_lora_of_it_makes_an_ordinary_model_one(models, tmp_path):
    """LCM-LoRA: diffusers changes the scheduler, here recipe="lcm" does; with guidance and without."""
    folder = models.folder("v1")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    vars(pipe.text_encoder)["text_model"] = pipe.text_encoder
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)
    shapes = {"unet": open_model(folder).shapes("unet")}
    file = write_lora(
        tmp_path / "pytorch_lora_weights.safetensors", shapes, 1, layers=("to_q", "to_k", "to_v"), networks=("unet",)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.load_lora_weights(str(file))
    ordinary = kerasdiff.Generator(folder, precision="float32", jit_compile=False, recipe="lcm")
    for scale in (1.0, 1.8):
        ours = ordinary.generate(PROMPT, loras=[file], guidance_scale=scale, **QUICK)
        assert (ours.request.sampler, ours.request.num_steps) == ("lcm", 4)
        expected = theirs(pipe, num_inference_steps=4, guidance_scale=scale)
        assert np.abs(ours.images.astype(int) - levels(expected)).max() <= 1
    assert (
        np.abs(ordinary.generate(PROMPT, guidance_scale=1.8, **QUICK).images.astype(int) - levels(expected)).max() > 1
    )
