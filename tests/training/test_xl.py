"""Training in SDXL's shape: what sizes and crops do to pictures, and where the U-Net starts."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.models.config import TINY_XL
from kerasdiff.models.tokenizer import pad_ids
from kerasdiff.training import framing, scenes, text, xl
from kerasdiff.training.framing import Framing
from kerasdiff.training.lora_training import build

SCENES = [scene for (scene, _), _ in zip(scenes.scene_stream(3, "train", 1), range(8), strict=False)]


@pytest.mark.parametrize("axis", [0, 1])
def test_a_crop_moves_what_is_seen(axis):
    centres = {
        crop: np.array(
            [
                framing.centre(framing.render(scene, Framing(crop=((crop, 0), (0, crop))[axis])))[axis]
                for scene in SCENES
            ]
        )
        for crop in (0, 8, 16)
    }
    slope, correlation = framing.shift(centres)
    assert 0.9 < slope < 1.1
    assert correlation > 0.4  # scenes differ in where their things are
    assert np.isnan(framing.centre(np.full((128, 128, 3), 255, "uint8"))).all()


def test_a_small_original_has_less_detail():
    picture = framing.render(SCENES[0], Framing()).astype("float32")
    blurred = framing.enlarged(picture, Framing(original_size=(32, 32)))
    assert framing.detail(blurred) < 0.3 * framing.detail(picture)
    assert framing.enlarged(picture, Framing(original_size=(256, 128))) is picture
    assert framing.enlarged(picture, Framing((64, 64), target_size=(64, 64))) is picture


def test_framings_are_of_all_kinds():
    drawn = [framing.random_framing(np.random.default_rng(seed)) for seed in range(200)]
    assert {framed.target_size == (128, 128) for framed in drawn} == {True, False}
    assert {framed.original_size == framed.target_size for framed in drawn} == {True, False}
    crops = np.array([framed.crop for framed in drawn])
    assert crops.min() == 0
    assert crops.max() == framing.LARGEST_CROP
    assert np.array(Framing((1, 2), (3, 4), (5, 6)).time_ids).tolist() == [1, 2, 3, 4, 5, 6]


@pytest.fixture(scope="module")
def encoders():
    keras.utils.set_random_seed(0)
    return xl.first_encoder(), text.Reader(77, TINY_XL.text_encoder_2, dtype="float32").encoder


@pytest.fixture(scope="module")
def model(encoders):
    return xl.SizedDenoiser(encoders, dtype="float32")


def test_the_u_net_starts_as_the_embedded_models(monkeypatch, encoders, model):
    monkeypatch.setattr(xl, "CAPTIONS_READ", 48)
    xl.warm_start(model.unet, encoders)
    rng = np.random.default_rng(0)
    latents, timesteps = rng.standard_normal((2, 16, 16, 4), "float32"), np.array([999.0, 500.0], "float32")
    ids = [xl.tokenizers()[0].encode(scenes.plain_caption(scene)) for scene in SCENES[:2]]
    tokens, ends = np.stack([pad_ids(row, 77) for row in ids]), np.array([len(row) - 1 for row in ids], "int32")
    context, pooled = xl.embed(encoders, tokens, ends, model.pad_id)
    sizes = np.full((2, 6), 128, "float32")
    found = np.asarray(model.unet(latents, timesteps, context, pooled=pooled, time_ids=sizes))
    tiny = {network: build(open_model("tiny"), network) for network in ("text_encoder", "unet")}
    wanted = np.asarray(tiny["unet"](latents, timesteps, tiny["text_encoder"](tokens)))
    assert np.abs(found - wanted).mean() < 0.15 * np.abs(wanted).mean()


def test_what_it_learns_is_kept_and_batches_depend_on_the_step_alone(tmp_path, monkeypatch, encoders):
    monkeypatch.setattr(xl, "SHARD", 3)
    kept = xl.data(tmp_path, seed=0, num_scenes=5)
    assert {name: len(part) for name, part in kept.items()} == dict.fromkeys(kept, 5)
    monkeypatch.setattr(xl, "shard", None)  # nothing is made anew
    again = xl.data(tmp_path, seed=0, num_scenes=5)
    batches = xl.Batches(kept, seed=1), xl.Batches(again, seed=1)
    for step in (0, 7):
        for one, other in zip(*(batch(step) for batch in batches), strict=True):
            assert np.array_equal(one, other)
    assert not np.array_equal(batches[0](0)[1], batches[0](1)[1])
    told = np.concatenate([batches[0](step)[6] for step in range(20)])
    assert 0.02 < 1 - told.mean() < 0.2


def test_what_is_the_embedded_models_is_not_written(tmp_path, encoders, model):
    xl.write(encoders[1], model.unet, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "tokenizer_2.json",
        "text_encoder_2.safetensors",
        "unet.safetensors",
    }


def test_each_number_gets_units_of_its_own(model):
    unet = model.unet
    unet.add_linear2.weights[0].assign(np.random.default_rng(0).standard_normal((256, 256)))
    xl.read_apart(unet)
    kernel, out = np.asarray(unet.add_linear1.weights[0]), np.asarray(unet.add_linear2.weights[0])
    own = np.flatnonzero(~out.any(1))
    assert len(own) == 4 * 12
    read = kernel[:, own].nonzero()[0]
    config = TINY_XL.unet
    numbers, counts = np.unique((read - config.pooled_width) // config.time_id_width, return_counts=True)
    assert dict(zip(numbers.tolist(), counts.tolist(), strict=True)) == dict.fromkeys(range(4), 12)


def test_layouts_are_learned_from_cropped_pictures_and_much_noise():
    kept = {
        "latents": np.zeros((40, 2, 2, 4), "float16"),
        "tokens": np.zeros((40, 77), "int16"),
        "ends": np.zeros(40, "int16"),
        "time_ids": np.array([[128, 128, 0, 9 * (row == 7), 128, 128] for row in range(40)], "int16"),
    }
    cropped, noise = {}, {}
    for layouts in (False, True):
        *_, timesteps, _, _, _, _, time_ids = zip(*map(xl.Batches(kept, 0, layouts), range(10)), strict=True)
        cropped[layouts], noise[layouts] = np.mean(np.concatenate(time_ids)[:, 3] > 0), np.mean(timesteps)
    assert cropped[True] > 0.5 > 0.2 > cropped[False]
    assert noise[True] > 600 > noise[False]
