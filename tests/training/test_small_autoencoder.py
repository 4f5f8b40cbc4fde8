"""The small autoencoder of the embedded model: how it was distilled, and what it is beside the large one."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import kerasdiff
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.checkpoints.vae_files import TINY_TAESD_FOLDER
from kerasdiff.models.config import TINY
from kerasdiff.models.networks import make_network
from kerasdiff.training import score, small_autoencoder

SCENES = score.held_out_scenes(8, seed=7)


@pytest.fixture(scope="module")
def small():
    return kerasdiff.Generator("tiny", vae="taesd", precision="float32")


@pytest.fixture(scope="module")
def drawn(tiny):
    return tiny.generate(score.prompts_of(SCENES), num_steps=8, seed=7, progress=False)


def decibels(images, others):
    """The mean over images of their ratio of peak signal to noise."""
    errors = np.square(images.astype("float64") - others).mean((1, 2, 3))
    return np.mean(10 * np.log10(255**2 / errors))


def test_it_draws_what_the_large_one_draws(tiny, small, drawn):
    images = small.decode(drawn.latents)
    assert decibels(images, drawn.images) >= 30
    judged = [
        [score.judge(image, scene).all for image, scene in zip(some, SCENES, strict=True)]
        for some in (images, drawn.images)
    ]
    assert sum(judged[0]) >= sum(judged[1]) - 1


def test_it_encodes_what_the_large_one_decodes(tiny, small, drawn):
    large = tiny.decode(tiny.encode_image(drawn.images))
    assert decibels(tiny.decode(small.encode_image(drawn.images)), large) >= 35


def test_its_file(small):
    assert sorted(path.name for path in TINY_TAESD_FOLDER.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
    ]
    assert sum(path.stat().st_size for path in TINY_TAESD_FOLDER.iterdir()) <= 500_000
    assert small.config.vae == small_autoencoder.CONFIG


def products(config, monkeypatch):
    """The multiplications of the convolutions of a decoder of 128 x 128 pixels."""
    counts = []

    def conv(inputs, kernel, *args, **kwargs):
        result = original(inputs, kernel, *args, **kwargs)
        counts.append(int(np.prod(result.shape)) * int(np.prod(kernel.shape[:-1])))
        return result

    decoder, original = make_network("decoder", config, "float32"), keras.ops.conv
    decoder.build()
    with monkeypatch.context() as patch:
        for module in (keras.ops, keras.src.ops):
            patch.setattr(module, "conv", conv)
        decoder(np.zeros((1, 16, 16, 4), "float32"))
    return sum(counts)


def test_it_takes_a_quarter_of_the_arithmetic(small, monkeypatch):
    assert 0 < products(small.config, monkeypatch) <= products(TINY, monkeypatch) / 4


@pytest.fixture
def in_miniature(monkeypatch):
    monkeypatch.setattr(small_autoencoder, "NUM_SCENES", 8)
    monkeypatch.setattr(small_autoencoder, "NUM_DRAWN", 8)
    monkeypatch.setattr(small_autoencoder, "STEPS_PER_EPOCH", 1)
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_a_training_of_one_step_writes_what_is_opened(in_miniature, tmp_path):
    halves = small_autoencoder.distil(tmp_path / "runs", scale=1e-9)
    small_autoencoder.write(halves, tmp_path / "small")
    model = open_model("tiny", vae=tmp_path / "small")
    assert model.config.vae == small_autoencoder.CONFIG
    for half, network in halves.items():
        for (_, value), weight in zip(model.parameters(half), network.weights, strict=True):
            assert np.array_equal(value, np.asarray(weight).astype("float16").astype(value.dtype))
    state = json.loads((tmp_path / "runs" / "encoder" / "state.json").read_text())
    assert state["epochs"] == 1
    pictures, latents, encoded = small_autoencoder.examples(tmp_path / "runs", 0)
    assert (pictures.shape, latents.shape, encoded.shape) == ((16, 128, 128, 3), (16, 16, 16, 4), (16, 16, 16, 4))
