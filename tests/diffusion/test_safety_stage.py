"""From images to flags: what a picture goes through before the safety checker, and what is made of its answer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from kerasdiff.diffusion.safety_stage import SafetyStage, prepare
from kerasdiff.errors import ModelError, RequestError
from kerasdiff.models.network_configs import SafetyCheckerConfig
from kerasdiff.models.safety_checker import SafetyChecker
from kerasdiff.runtime.compiled import LayerNetwork

CONFIG = SafetyCheckerConfig(
    image_size=18, patch_size=4, width=16, num_layers=1, num_heads=2, mlp_width=32, projection=12, resize=18
)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, "uint8")


@pytest.mark.parametrize(
    "size", [(512, 384), (384, 512), (224, 224), (225, 337), (100, 64), (3, 5), (1, 40), (640, 641)]
)
def test_pictures_are_prepared_as_transformers_does(size):
    image = noise(*size, 3)
    expected = CLIPImageProcessorPil()([image], input_data_format="channels_last").pixel_values[0]
    got = prepare(image, SafetyCheckerConfig())
    assert got.dtype == np.float32
    assert np.abs(got - expected.transpose(1, 2, 0)).max() < 1e-6


@pytest.mark.parametrize("size", [(40, 30), (31, 64), (9, 13)])
@pytest.mark.parametrize(
    ("resize", "theirs"),
    [
        (17, 17),  # smaller than what is cut out of it
        (13, {"shortest_edge": 13}),
        ((18, 18), {"height": 18, "width": 18}),
        ((11, 25), {"height": 11, "width": 25}),
    ],
)
def test_other_sizes_are_cut_and_filled_up_as_there(size, resize, theirs):
    image, mean, std = noise(*size, 3), (0.1, 0.5, 0.9), (0.2, 0.3, 0.7)
    processor = CLIPImageProcessorPil(size=theirs, crop_size=18, image_mean=list(mean), image_std=list(std))
    expected = processor([image], input_data_format="channels_last").pixel_values[0]
    got = prepare(image, dataclasses.replace(CONFIG, resize=resize, mean=mean, std=std))
    assert np.abs(got - expected.transpose(1, 2, 0)).max() < 1e-6


@pytest.fixture(scope="module")
def layer():
    """A checker that flags about half of all noise."""
    import keras

    keras.utils.set_random_seed(0)
    checker = SafetyChecker(CONFIG)
    checker.build()
    rng = np.random.default_rng(1)
    for weight in checker.weights:
        if not weight.name.endswith("_weights"):
            weight.assign(rng.standard_normal(weight.shape) * 0.5 + (weight.name == "gamma"))
    checker.special_care_embeds_weights.assign(np.full(3, 2.0))
    prepared = np.stack([prepare(image, CONFIG) for image in noise(24, 30, 24, 3)])
    checker.concept_embeds_weights.assign(np.zeros(17))
    nearest = np.asarray(checker(prepared)[0]).max(axis=1)
    checker.concept_embeds_weights.assign(np.full(17, np.median(nearest) + 2e-4))
    return checker


@pytest.mark.parametrize("jit_compile", [False, True])
def test_images_are_flagged_one_by_one(layer, jit_compile):
    check = SafetyStage(LayerNetwork(layer), jit_compile, None, CONFIG)
    assert check(noise(0, 30, 24, 3)).tolist() == []
    assert not check.compiled  # a checker is loaded only if there is something to check
    images = noise(24, 30, 24, 3)
    flags = check(images)
    assert (flags.dtype, flags.shape) == (np.dtype(bool), (24,))
    assert 6 < flags.sum() < 18
    assert flags.tolist() == [bool(check(image[None])[0]) for image in images]
    assert flags.tolist() == np.asarray(layer(np.stack([prepare(image, CONFIG) for image in images]))[1]).tolist()
    check(noise(1, 64, 32, 3))
    (compiled,) = check.compiled
    assert compiled.traces == 1  # whatever the images' size


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 8, 8, 3), "float32"),
        np.zeros((8, 8, 3), "uint8"),
        np.zeros((1, 8, 8, 4), "uint8"),
        np.zeros((1, 0, 8, 3), "uint8"),
    ],
)
def test_other_arrays_are_refused(layer, images):
    check = SafetyStage(LayerNetwork(layer), False, None, CONFIG)
    with pytest.raises(RequestError, match=r"^images must be uint8 \(N, height, width, 3\), not"):
        check(images)


def test_a_checker_that_gives_no_numbers_passes_nothing(layer):
    broken = SafetyChecker(CONFIG)
    broken.build()
    for weight, value in zip(broken.weights, layer.weights, strict=True):
        weight.assign(np.full(weight.shape, np.nan) if "visual_projection" in weight.path else value)
    check = SafetyStage(LayerNetwork(broken), False, None, CONFIG)
    with pytest.raises(ModelError, match="the safety checker gives numbers that are not finite"):
        check(noise(1, 8, 8, 3))
