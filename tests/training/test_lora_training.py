"""Training of adapters: pairs are what their files say, and interrupted is as uninterrupted."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import save_file

from kerasdiff.adapters.lora_file import read_lora
from kerasdiff.adapters.weight_change import changed
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.models.config import TINY
from kerasdiff.training import concepts, loop, lora_training


class StoppedError(Exception):
    """A run is interrupted."""


@pytest.fixture
def in_miniature(monkeypatch):
    """Two steps with a few pictures, which take longer to trace than to run."""
    monkeypatch.setattr(lora_training, "NUM_SCENES", 4)
    monkeypatch.setattr(lora_training, "BATCH_SIZE", 2)
    monkeypatch.setattr(lora_training, "ENCODER_BATCH_SIZE", 2)
    monkeypatch.setattr(lora_training, "STEPS_PER_EPOCH", 1)
    monkeypatch.setattr(lora_training, "EMA_MOMENTUM", 0.5)
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def test_recipes_and_concepts_are_of_the_same_things():
    assert lora_training.RECIPES.keys() == concepts.CONCEPTS.keys()


@pytest.mark.parametrize("shape", [(6, 5), (3, 3, 6, 5)])
def test_a_pair_changes_a_kernel_as_its_file_says(shape):
    pair, rng = lora_training.Pair(shape, 4), np.random.default_rng(0)
    assert not np.any(pair.change())
    pair.up.assign(rng.standard_normal(pair.up.shape))
    kernel = rng.standard_normal(shape, "float32")
    torch_axes = (1, 0) if len(shape) == 2 else (3, 2, 0, 1)
    tensors = {name: np.asarray(value, "float32") for name, value in pair.tensors(emphasis=1.5)}
    expected = kernel + 1.5 * np.asarray(pair.change())
    assert np.allclose(changed(tensors, kernel.transpose(torch_axes), 1.0), expected.transpose(torch_axes), atol=1e-5)


def test_vectors_take_the_place_of_a_word():
    tokenizer = open_model("tiny").tokenizer
    ids = lora_training.free_ids(tokenizer)[:2]
    row = lora_training.tokens_of(tokenizer, "a <giant> red star", "<giant>", ids).tolist()
    first, last = tokenizer.encode("a"), tokenizer.encode("red star")
    assert row[:7] == [*first[:-1], *ids, *last[1:]]
    assert not set(ids) & set(tokenizer.encode("À Á ÿ, a red star"))


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_a_lora_of_one_step_is_a_file_that_is_read(in_miniature, tmp_path):
    model = open_model("tiny")
    tensors = lora_training.train_adapter("cyan", model, tmp_path / "runs", scale=1e-3)
    assert max(np.abs(value).max() for name, value in tensors.items() if "lora_up" in name) > 0
    save_file(tensors, tmp_path / "cyan.safetensors", lora_training.metadata("cyan", 0))
    lora = read_lora(tmp_path / "cyan.safetensors")
    assert (lora.kind, lora.ranks) == ("LoCon, LoRA", (4,))
    assert lora.check({network: model.shapes(network) for network in ("unet", "text_encoder")}, TINY) is None


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_one_taken_up_again_ends_where_an_uninterrupted_one_does(in_miniature, tmp_path, monkeypatch):
    def run(folder, scale=0.01):
        return lora_training.train_adapter("<giant>", open_model("tiny"), tmp_path / folder, scale=scale)["<giant>"]

    def stop(self, epoch, logs=None):
        saved(self, epoch, logs)
        raise StoppedError

    whole, saved = run("whole"), loop._Checkpoint.on_epoch_end
    with monkeypatch.context() as patch:
        patch.setattr(loop._Checkpoint, "on_epoch_end", stop)
        with pytest.raises(StoppedError):
            run("parts")
    assert json.loads((tmp_path / "parts" / "state.json").read_text())["epochs"] == 1
    assert np.abs(run("parts") - whole).max() < 1e-3  # in float16
    assert np.abs(run("one step", scale=0.005) - whole).max() > 3e-3
    assert len((tmp_path / "parts" / "log.jsonl").read_text().splitlines()) == 2
