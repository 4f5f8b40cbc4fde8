"""The small model in SDXL's shape: it draws what prompts say, and sizes, crops and negative prompts act on it."""

from __future__ import annotations

import numpy as np
import pytest

import kerasdiff
from kerasdiff.checkpoints.resolve import BUNDLED, is_current, open_model
from kerasdiff.models.config import TINY_XL
from kerasdiff.training import framing, score

ONE_THING = score.held_out_scenes(8, 2, 1)


@pytest.fixture(scope="module")
def draw():
    generator = kerasdiff.Generator("tiny-xl", precision="float32")

    def draw(scenes=ONE_THING, **arguments):
        return score.draw(generator, score.prompts_of(scenes), 1, num_steps=10, **arguments)[0]

    return draw


@pytest.fixture(scope="module")
def whole(draw):
    return draw()


def test_what_it_does_not_have_is_the_embedded_models():
    model, tiny = open_model("tiny-xl"), open_model("tiny")
    assert (model.name, model.config, model.config.family) == ("tiny-xl", TINY_XL, "sdxl")
    for network in ("text_encoder", "decoder", "encoder"):
        assert model.files(network) == tiny.files(network)
    assert model.files("unet") == [BUNDLED["tiny-xl"][0] / "unet.safetensors"]
    assert is_current(model)
    model.check_unchanged("decoder")
    first, second = model.tokenizers.values()
    assert first.encode("a red circle") == second.encode("a red circle")
    assert first.word(first.pad_id), second.word(second.pad_id) == ("<|endoftext|>", "!")


def test_it_draws_what_prompts_say(draw):
    asked = score.held_out_scenes(16, 1)
    judged = [score.judge(picture, scene) for picture, scene in zip(draw(asked), asked, strict=True)]
    assert score.summary(judged, asked)["all"] >= 0.75


@pytest.mark.parametrize("axis", [0, 1])
def test_a_crop_shifts_the_scene(draw, whole, axis):
    drawn = {0: whole, 40: draw(crop=(40, 0) if axis == 0 else (0, 40))}
    slope, correlation = framing.shift(
        {crop: np.array([framing.centre(picture)[axis] for picture in pictures]) for crop, pictures in drawn.items()}
    )
    assert 0.75 < slope < 1.25
    assert correlation > 0.8


def test_a_small_original_is_blurred(draw, whole):
    blurred = draw(original_size=(40, 40))
    detail = [np.mean([framing.detail(picture) for picture in pictures]) for pictures in (whole, blurred)]
    assert detail[1] < 0.6 * detail[0]


def test_no_negative_prompt_is_another_one_than_an_empty_one(draw, whole):
    empty = draw(negative_prompt="")
    assert np.abs(empty.astype(int) - whole).mean() > 0.1
    judged = [score.judge(picture, scene) for picture, scene in zip(empty, ONE_THING, strict=True)]
    assert score.summary(judged, ONE_THING)["all"] >= 0.5
