"""Training: interrupted is as uninterrupted, and the whole path runs in miniature."""

from __future__ import annotations

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from kerasdiff.models.config import TINY
from kerasdiff.training import autoencoder, scenes
from kerasdiff.training.dataset import CaptionedShapes
from kerasdiff.training.loop import train


class StoppedError(Exception):
    """A run is interrupted."""


class Line(keras.Model):
    """A model small enough to train in a test."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(1, kernel_initializer="ones")
        self.dense.build((None, 2))
        self.built = True

    def call(self, inputs):
        features, wanted = inputs
        self.add_loss(keras.ops.mean(keras.ops.square(self.dense(features)[:, 0] - wanted)))
        return wanted


def batch(step):
    features = np.random.default_rng(step).standard_normal((8, 2), "float32")
    return features, features @ np.array([2.0, -3.0], "float32")


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_a_run_taken_up_again_ends_where_an_uninterrupted_one_does(tmp_path):
    def run(folder, stop_after=None):
        def epoch_end(steps):
            if steps == stop_after:
                raise StoppedError

        model = Line()
        train(
            model,
            batch,
            folder=folder,
            total_steps=60,
            steps_per_epoch=10,
            learning_rate=0.3,
            ema_momentum=0.9,
            epoch_end=epoch_end,
        )
        return model.dense.kernel.numpy()

    whole = run(tmp_path / "whole")
    with pytest.raises(StoppedError):
        run(tmp_path / "parts", stop_after=20)
    state = json.loads((tmp_path / "parts" / "state.json").read_text())
    assert state["epochs"] == 2
    resumed = run(tmp_path / "parts")
    assert np.allclose(resumed, whole, atol=1e-6)
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert steps == [10, 20, 30, 40, 50, 60]
    assert np.abs(whole[:, 0] - [2, -3]).max() < 0.5


@pytest.fixture
def eagerly():
    """For a few steps of a large model, which take longer to trace than to run."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_a_real_stage_taken_up_again_does_too(tmp_path, monkeypatch, eagerly):
    monkeypatch.setattr(autoencoder, "STEPS_PER_EPOCH", 1)
    monkeypatch.setattr(autoencoder, "DECODER_BATCH_SIZE", 2)
    pictures = np.stack([_picture(index) for index in range(4)])[:, :32, :32]
    latents = np.random.default_rng(0).standard_normal((4, 4, 4, 4), "float32")

    def run(folder):
        keras.utils.set_random_seed(1)
        decoder = autoencoder.Autoencoder(dtype="float32").decoder
        before = decoder.conv_in.kernel.numpy()
        autoencoder.train_decoder(decoder, pictures, latents, folder, total_steps=2)
        assert not np.array_equal(decoder.conv_in.kernel, before)
        return [weight.numpy() for weight in decoder.weights]

    def stop(*_):
        raise StoppedError

    whole = run(tmp_path / "whole")
    assert (tmp_path / "whole" / "samples.png").exists()
    with monkeypatch.context() as patch:
        patch.setattr(autoencoder, "_sheet", stop)
        with pytest.raises(StoppedError):
            run(tmp_path / "parts")
    assert json.loads((tmp_path / "parts" / "state.json").read_text())["epochs"] == 1
    for one, other in zip(run(tmp_path / "parts"), whole, strict=True):
        assert np.allclose(one, other, atol=1e-6)


def test_latents_are_normalised_without_changing_pictures():
    keras.utils.set_random_seed(0)
    model = autoencoder.Autoencoder(dtype="float32")
    pictures = np.stack([_picture(index) for index in range(6)])
    before = keras.ops.convert_to_numpy(model.decoder(autoencoder.encode_all(model.encoder, pictures)))
    autoencoder.normalise(model, autoencoder.encode_all(model.encoder, pictures))
    latents = autoencoder.encode_all(model.encoder, pictures)
    assert np.allclose(latents.mean((0, 1, 2)), 0, atol=1e-3)
    assert np.allclose(latents.std((0, 1, 2)), 1, atol=1e-3)
    assert np.allclose(keras.ops.convert_to_numpy(model.decoder(latents)), before, atol=1e-3)


def _picture(index):
    stream = scenes.scene_stream(index, "train")
    return scenes.render(next(stream)[0])


def test_the_data_set(tmp_path):
    builder = CaptionedShapes(data_dir=tmp_path, num_train=12, num_held_out=4, seed=3)
    builder.download_and_prepare()
    assert builder.info.splits["train"].num_examples == 12
    assert builder.info.splits["held_out"].num_examples == 4
    stream = scenes.scene_stream(3, "train")
    expected = {scenes.render(next(stream)[0]).tobytes() for _ in range(1)}
    found = set()
    for example in builder.as_dataset(split="train").as_numpy_iterator():
        assert example["image"].shape == (128, 128, 3)
        assert len(example["captions"]) == 3
        found.add(example["image"].tobytes())
    assert expected <= found
    assert len(found) == 12


@pytest.mark.slow
def test_the_whole_path_in_miniature(tmp_path):
    """Every stage from data to export, a few steps each; what comes out opens as a model."""
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "kerasdiff.training",
            f"--folder={tmp_path / 'runs'}",
            f"--output={tmp_path / 'model'}",
            "--num_train=100",
            "--shorten=0.001",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    from kerasdiff.checkpoints.formats.native import NativeSource, read_config
    from kerasdiff.models.layers import values_from
    from kerasdiff.models.networks import make_network, names_of
    from kerasdiff.runtime.precision import Execution

    assert read_config(tmp_path / "model") == TINY
    for name in names_of(TINY):
        source = NativeSource(tmp_path / "model" / f"{name}.safetensors")
        network = make_network(name, TINY, Execution("CPU", "float32", False).policy)
        with values_from(source):
            network.build()
        source.finish()
    assert len(list((tmp_path / "runs").rglob("samples.png"))) == 3


def test_an_unknown_stage_is_refused(tmp_path):
    run = subprocess.run(
        [sys.executable, "-m", "kerasdiff.training", f"--folder={tmp_path}", "--stages=bake"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode != 0
    assert "unknown stages ['bake']" in run.stdout + run.stderr
