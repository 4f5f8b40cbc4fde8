"""The safety checker's network against diffusers', with random weights."""

from __future__ import annotations

import dataclasses
import json
import math

import checkpoints
import keras
import numpy as np
import pytest
from checkpoints import torch

from kerasdiff.checkpoints.formats.diffusers_folder import COMPONENTS
from kerasdiff.checkpoints.mapped_source import MappedSource
from kerasdiff.errors import ModelError
from kerasdiff.models.config import SD_V1, ModelConfig
from kerasdiff.models.layers import parameters_of, values_from
from kerasdiff.models.network_configs import SafetyCheckerConfig
from kerasdiff.models.networks import make_network, names_of
from kerasdiff.models.safety_checker import SafetyChecker
from kerasdiff.runtime.safetensors_map import TensorFiles

CONFIG = SafetyCheckerConfig(
    image_size=18, patch_size=4, width=16, num_layers=2, num_heads=2, mlp_width=40, projection=12, resize=18
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """diffusers' checker and the file of its weights."""
    theirs, _ = checkpoints.safety_checker()
    folder = tmp_path_factory.mktemp("safety")
    theirs.save_pretrained(folder)
    return theirs, folder / "model.safetensors"


@pytest.fixture
def both(made):
    """diffusers' checker and ours, for tests that change their weights."""
    return checkpoints.safety_checker()[0], layer_of(made[1])


def layer_of(path, dtype="float32"):
    shapes = parameters_of(SafetyChecker(CONFIG))
    component = COMPONENTS["safety_checker"]
    source = MappedSource(TensorFiles([path]), shapes, component.slices, component.is_unread)
    layer = SafetyChecker(CONFIG, dtype=dtype)
    with values_from(source):
        layer.build()
    return layer


def pictures(count=12, seed=0):
    """Normalised pictures, as diffusers and as we take them."""
    ours = np.random.default_rng(seed).standard_normal((count, 18, 18, 3), "float32")
    return torch.from_numpy(ours.transpose(0, 3, 1, 2).copy()), ours


def features_of(theirs, inputs):
    with torch.no_grad():
        return theirs.visual_projection(theirs.vision_model(inputs)[1]).numpy()


def flags_of(theirs, inputs):
    return theirs(inputs, np.ones((len(inputs), 1)))[1]


def test_features_are_those_of_transformers(made):
    inputs, ours = pictures()
    expected = features_of(made[0], inputs)
    got = np.asarray(layer_of(made[1]).features(ours))
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.ptp(expected, axis=0).min() > 0.1


def test_flags_are_those_of_diffusers(made):
    layer = layer_of(made[1])
    inputs, ours = pictures(64)
    scores, flags = (np.asarray(each) for each in layer(ours))
    assert flags.tolist() == flags_of(made[0], inputs)
    assert 10 < flags.sum() < 54
    assert (scores.shape, scores.dtype) == ((64, 17), np.float32)
    assert np.array_equal(scores, np.round(scores, 3))


def similarities(theirs, ours_features, name):
    embeds = getattr(theirs, name).numpy()
    unit = [rows / np.linalg.norm(rows, axis=-1, keepdims=True) for rows in (ours_features, embeds)]
    return unit[0] @ unit[1].T


def put(theirs, ours, **values):
    """Gives both checkers the same concepts."""
    for name, value in values.items():
        value = np.asarray(value, "float32")
        with torch.no_grad():
            getattr(theirs, name).copy_(torch.from_numpy(value))
        getattr(ours, name).assign(value)


def decide(theirs, ours):
    """What ours says of the first picture, once diffusers says the same."""
    inputs, picture = pictures(1)
    scores, flags = (np.asarray(each) for each in ours(picture))
    assert flags.tolist() == flags_of(theirs, inputs)
    return bool(flags[0]), scores[0]


def test_a_picture_that_is_a_concept_is_flagged(both):
    feature = features_of(both[0], pictures(1)[0])[0]
    embeds = both[0].concept_embeds.numpy().copy()
    high = np.full(17, 0.99)
    put(*both, concept_embeds_weights=high, special_care_embeds_weights=np.full(3, 2.0))
    assert not decide(*both)[0]
    embeds[4] = 3 * feature  # lengths do not matter
    put(*both, concept_embeds=embeds)
    flagged, scores = decide(*both)
    assert flagged
    assert np.flatnonzero(scores > 0).tolist() == [4]
    assert scores[4] == np.float32(0.01)


def test_only_a_special_concept_makes_the_difference(both):
    """A concept 0.005 below its threshold is over it once thresholds fall by 0.01."""
    feature = features_of(both[0], pictures(1)[0])
    thresholds = np.full(17, 2.0)
    thresholds[7] = similarities(both[0], feature, "concept_embeds")[0, 7] + 0.005
    special = similarities(both[0], feature, "special_care_embeds")[0]
    put(*both, concept_embeds_weights=thresholds, special_care_embeds_weights=special + 0.1)
    flagged, scores = decide(*both)
    assert not flagged
    assert scores[7] == np.float32(-0.005)
    put(*both, special_care_embeds_weights=special + np.array([0.1, 0.1, -0.1]))
    flagged, scores = decide(*both)
    assert flagged
    assert scores[7] == np.float32(0.005)
    # One that is special itself is no reason to be flagged.
    put(*both, concept_embeds_weights=np.full(17, 2.0))
    assert not decide(*both)[0]


@pytest.mark.parametrize(("distance", "flagged"), [(0.0004, False), (0.0006, True), (-0.0006, False)])
def test_scores_have_three_digits(both, distance, flagged):
    thresholds = np.full(17, 2.0)
    feature = features_of(both[0], pictures(1)[0])
    thresholds[0] = similarities(both[0], feature, "concept_embeds")[0, 0] - distance
    put(*both, concept_embeds_weights=thresholds, special_care_embeds_weights=np.full(3, 2.0))
    assert decide(*both)[0] == flagged


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 0.004), ("bfloat16", 0.03), ("mixed_bfloat16", 0.03)])
def test_half_precision_is_near(made, dtype, tolerance):
    _, ours = pictures()
    expected, _ = layer_of(made[1])(ours)
    layer = layer_of(made[1], dtype)
    scores, _ = layer(ours)
    assert keras.backend.standardize_dtype(scores.dtype) == "float32"
    assert np.abs(np.asarray(scores) - np.asarray(expected)).max() < tolerance
    types = {weight.name: weight.dtype for weight in layer.weights}
    for name in ("concept_embeds", "concept_embeds_weights", "special_care_embeds", "special_care_embeds_weights"):
        assert types.pop(name) == "float32"
    assert set(types.values()) == {layer.variable_dtype}


def test_a_configuration_survives_json():
    config = dataclasses.replace(SD_V1, safety_checker=dataclasses.replace(CONFIG, resize=(20, 24)))
    values = json.loads(json.dumps(config.to_json()))
    assert ModelConfig.from_json(values) == config
    assert names_of(config) == (*names_of(SD_V1), "safety_checker")
    del values["safety_checker"]
    assert ModelConfig.from_json(values) == SD_V1


def test_a_model_without_one_says_so():
    with pytest.raises(ModelError, match="this model has no safety checker"):
        make_network("safety_checker", SD_V1, "float32")


def test_the_usual_one_has_the_published_size():
    shapes = parameters_of(make_network("safety_checker", ModelConfig(safety_checker=SafetyCheckerConfig()), "float32"))
    assert shapes["safety_checker.patch_embedding.kernel"] == (14, 14, 3, 1024)
    assert shapes["safety_checker.position_embedding.embeddings"] == (257, 1024)
    # CLIP ViT-L/14's 303,966,208 of the tower and its projection, and 20 concepts with a threshold each.
    assert sum(map(math.prod, shapes.values())) == 303_966_208 + 20 * 769


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 10**5}, "image_size=100000 is out of range"),
        ({"patch_size": 19}, "patches of 19 do not fit into 18 pixels"),
        ({"num_heads": 3}, "width 16 is not a multiple of 3 heads"),
        ({"activation": "relu"}, "unknown activation 'relu'"),
        ({"resize": 0}, "resize=0 is out of range"),
        ({"resize": (3, 4, 5)}, r"resize=\(3, 4, 5\) must be one number, or a height and a width"),
        ({"mean": (0.5, math.nan, 0.5)}, r"mean=\(0.5, nan, 0.5\) must be three numbers"),
        ({"std": (0.5, 0.0, 0.5)}, r"std=\(0.5, 0.0, 0.5\) must be three positive numbers"),
    ],
)
def test_wrong_configurations_are_refused(change, message):
    with pytest.raises(ModelError, match=message):
        dataclasses.replace(CONFIG, **change)
