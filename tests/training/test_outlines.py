"""The ControlNet of the embedded model: how it is trained, and that it draws shapes where outlines are."""

from __future__ import annotations

import json
import pathlib

import cv2
import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file

from kerasdiff.checkpoints.control_files import open_control
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.models.config import TINY
from kerasdiff.training import outlines, scenes, score
from kerasdiff.training.denoiser import velocity_loss
from kerasdiff.training.lora_training import build

FOLDER = pathlib.Path(__file__).parents[1] / "data" / "outlines"
SCENES = score.held_out_scenes(16, seed=41)


@pytest.mark.parametrize(
    "hint", [outlines.edges, scenes.outlines, lambda scene: scenes.outlines(scene, 3.0)], ids=["edges", "lines", "wide"]
)
def test_hints_are_white_lines_where_shapes_end(hint):
    for scene in SCENES[:6]:
        lines, picture = hint(scene), scenes.render(scene)
        assert lines.shape == picture.shape
        assert np.array_equal(lines, np.repeat(lines[..., :1], 3, -1))
        ends = cv2.Canny(picture, 100, 200) > 0
        assert lines.max() > 200
        assert np.mean(lines[..., 0] > 0) < 0.12
        # Each end of a shape has a line beside it.
        near = cv2.dilate(lines[..., 0], np.ones((3, 3), "uint8")) > 60
        assert near[ends].mean() > 0.95


def test_how_things_are_placed():
    exact = [scenes.render(scene) for scene in SCENES]
    assert score.placement(exact, SCENES)["overlap"] > 0.99
    assert score.placement(exact, SCENES)["colours"] == 1
    moved = [np.roll(picture, 8, axis=1) for picture in exact]
    assert 0.4 < score.placement(moved, SCENES)["overlap"] < 0.75
    nothing = [np.full_like(picture, 127) for picture in exact]
    assert score.placement(nothing, SCENES)["overlap"] == 0
    two = next(scene for scene in SCENES if len(scene.things) == 2)
    half = scenes.render(scenes.Scene(two.background, two.things[:1]))
    overlaps = [seen.overlap for seen in score.placed(half, two)]
    assert overlaps[0] > 0.98
    assert overlaps[1] == 0


@pytest.fixture
def in_miniature(monkeypatch):
    monkeypatch.setattr(outlines, "NUM_SCENES", 4)
    monkeypatch.setattr(outlines, "BATCH_SIZE", 2)
    monkeypatch.setattr(outlines, "STEPS", 2)
    monkeypatch.setattr(outlines, "STEPS_PER_EPOCH", 1)
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def test_it_begins_as_nothing(in_miniature, tmp_path):
    model = open_model("tiny")
    training = outlines.ControlTraining(build(model, "unet"), build(model, "text_encoder"))
    *kept, empty = outlines.examples(tmp_path, 0)
    hints, *noised, tokens = outlines.HintedBatches(*kept, empty, size=2, seed=0)(3)
    assert hints.max() == 255
    predicted = training((hints, *noised, tokens))
    plain, loss = velocity_loss(training.unet, training.text_encoder(tokens), *noised)
    assert np.array_equal(predicted, plain)
    assert np.allclose(training.losses[0], loss)
    assert {weight.path.partition("/")[0] for weight in training.trainable_variables} == {"controlnet"}


def test_hints_are_those_of_the_latents():
    count = 30
    latents = np.arange(count, dtype="float16")[:, None, None, None] * np.ones((1, 2, 2, 4), "float16")
    hints = np.arange(count, dtype="uint8")[:, None, None] * np.ones((1, 4, 4), "uint8")
    batches = outlines.HintedBatches(hints, latents, np.zeros((count, 2, 77)), np.ones(77), size=8, seed=2)
    hints, latents, *_ = batches(5)
    assert np.array_equal(hints[:, 0, 0, 0], latents[:, 0, 0, 0])
    assert all(np.array_equal(*pair) for pair in zip(batches(5), batches(5), strict=True))


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed")
def test_a_training_repeats_exactly_and_is_a_folder_that_is_read(in_miniature, tmp_path):
    whole = outlines.trained(tmp_path).get_weights()
    # As an interruption after the first epoch leaves it.
    state = {"epochs": 1, "seconds": 0, "weights": "checkpoint0.weights.h5"}
    (tmp_path / "state.json").write_text(json.dumps(state))
    network = outlines.trained(tmp_path)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3
    for one, other in zip(network.get_weights(), whole, strict=True):
        assert np.allclose(one, other, atol=1e-6)
    assert np.abs(network.outputs[0].kernel).max() > 0
    outlines.write(network, tmp_path / "net")
    opened = open_control(str(tmp_path / "net"), TINY)
    assert opened.config.controlnet == outlines.CONFIG
    read = dict(opened.parameters("controlnet"))
    for weight in network.weights:
        value = np.asarray(read[weight.path.replace("/", ".")], "float32")
        assert np.array_equal(value, np.asarray(weight).astype("float16"))


def test_what_is_here_is_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 4_000_000
    tensors = load_file(FOLDER / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype.name for tensor in tensors.values()} == {"float16"}
    assert open_control(str(FOLDER), TINY).config.controlnet == outlines.CONFIG


def canny(scene):
    return np.repeat(cv2.Canny(scenes.render(scene), 100, 200)[..., None], 3, axis=-1)


@pytest.mark.parametrize("hint", [scenes.outlines, canny], ids=["outlines", "canny"])
def test_shapes_lie_where_the_outlines_are(openvino, hint):
    asked = SCENES[:8] if hint is canny else SCENES
    found = score.placement(score.draw_steered(openvino, FOLDER, asked, [*map(hint, asked)], seed=41), asked)
    assert found["overlap"] >= 0.8
    assert found["colours"] >= 0.9


def test_without_it_they_lie_elsewhere(openvino):
    asked = SCENES[:8]
    pictures, _ = score.draw(openvino, score.prompts_of(asked), seed=41)
    assert score.placement(pictures, asked)["overlap"] < 0.7


@pytest.mark.slow
@pytest.mark.parametrize("hint", [scenes.outlines, canny], ids=["outlines", "canny"])
def test_two_hundred_prompts(openvino, hint):
    asked = score.held_out_scenes(200, seed=43)
    found = score.placement(score.draw_steered(openvino, FOLDER, asked, [*map(hint, asked)], seed=43), asked)
    assert found["overlap"] >= 0.8
    assert found["colours"] >= 0.95
