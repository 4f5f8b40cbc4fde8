"""Stable Diffusion 1.x at full size: diffusers' numbers from its own pipeline, and a round trip bit by bit.

The checkpoint has random weights in half precision, which both sides compute with in float32.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import warnings

import checkpoints  # noqa: F401  (quiets diffusers and transformers)
import diffusers
import numpy as np
import pytest
import torch

import kerasdiff
from kerasdiff.checkpoints.export import write_keras_cv
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.convert import convert
from kerasdiff.models.networks import names_of

pytestmark = pytest.mark.full_size

TEXTS = ["a red circle", "a blue star \N{SNOWMAN}"]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A set of KerasCV's files, and the folder of diffusers that it was converted to."""
    made = tmp_path_factory.mktemp("full")
    write_keras_cv(open_model("sd-v1-4", "random"), made / "keras_cv", "float16")
    return made / "keras_cv", convert(made / "keras_cv", made / "diffusers", format="diffusers", dtype="float16")


def far(ours, theirs):
    """Largest difference, as a share of the largest value."""
    ours, theirs = np.asarray(ours, "float32"), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_diffusers_numbers(published):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
            published[1], safety_checker=None, torch_dtype=torch.float32
        )
    pipeline.set_progress_bar_config(disable=True)
    ours = kerasdiff.Generator(published[1], precision="float32", jit_compile=False)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        ids = pipeline.tokenizer(TEXTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
        context = pipeline.text_encoder(ids)[0]
        assert far(ours.encode_text(TEXTS), context) < 1e-4

        latents = rng.standard_normal((1, 4, 16, 16), "float32")
        for timestep in (1, 500, 981):
            theirs = pipeline.unet(torch.from_numpy(latents), timestep, context[:1]).sample
            got = ours.networks["unet"](
                latents.transpose(0, 2, 3, 1), np.full(1, timestep, "float32"), context[:1].numpy()
            )
            assert far(got, theirs.permute(0, 2, 3, 1)) < 1e-4, timestep

        theirs = pipeline.vae.decode(torch.from_numpy(latents)).sample
        got = ours.networks["decoder"](latents.transpose(0, 2, 3, 1) * ours.config.vae.scaling_factor)
        assert far(got, theirs.permute(0, 2, 3, 1)) < 1e-4

        image = rng.integers(0, 256, (1, 128, 128, 3), "uint8")
        pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).astype("float32") / 127.5 - 1)
        theirs = pipeline.vae.encode(pixels).latent_dist.mean * pipeline.vae.config.scaling_factor
        assert far(ours.encode_image(image), theirs.permute(0, 2, 3, 1)) < 1e-4

    arguments = {"negative_prompt": "a star", "height": 128, "width": 128, "guidance_scale": 5.0}
    theirs = pipeline(
        "a prompt", num_inference_steps=3, generator=torch.Generator().manual_seed(3), output_type="np", **arguments
    ).images
    images = ours.generate("a prompt", num_steps=3, rng="torch", seed=3, progress=False, **arguments).images
    assert np.abs(images.astype(int) - np.round(theirs * 255).astype(int)).max() <= 1
    assert theirs.std() > 0.01
    del pipeline, ours
    gc.collect()


def test_a_round_trip_gives_every_bit_back(published, tmp_path):
    keras_cv, folder = published
    single = convert(folder, tmp_path / "single.safetensors", dtype="float16")
    back = convert(single, tmp_path / "back", format="keras_cv", dtype="float16")
    single.unlink()
    first, last = open_model(keras_cv), open_model(back)
    for network in names_of(first.config):
        count = 0
        for (name, one), (other_name, other) in zip(first.parameters(network), last.parameters(network), strict=True):
            assert name == other_name
            assert one.dtype == other.dtype == np.float16
            assert np.array_equal(one, other), name
            count += 1
        assert count > 50


@pytest.mark.parametrize(("precision", "most"), [("float32", 8), ("bfloat16", 5)])
def test_loading_fits_into_memory(published, tmp_path, precision, most):
    script = (
        "import sys, kerasdiff\n"
        "from kerasdiff.bench.machine import peak_memory_gb\n"
        "generator = kerasdiff.Generator(sys.argv[1], precision=sys.argv[2], jit_compile=False)\n"
        "assert generator.num_parameters > 1e9\n"
        "print(peak_memory_gb())"
    )
    for gigabytes in ("0", "20", "20"):  # read, read and kept, mapped
        environment = {**os.environ, "KERASDIFF_CACHE": str(tmp_path), "KERASDIFF_CACHE_GB": gigabytes}
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script, str(published[1]), precision],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        assert float(run.stdout.split()[-1]) < most
    assert len(list((tmp_path / "weights").iterdir())) == 3
