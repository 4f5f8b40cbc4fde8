"""Images one by one, batches in several blocks, and what is left of an interrupted run."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import kerasdiff
from kerasdiff import metadata
from kerasdiff.request import make_request
from kerasdiff.training import scenes, score

PROMPT = "a red circle above a blue square on a yellow background"
QUICK = {"num_steps": 3, "seed": 5, "progress": False}


@pytest.fixture
def by_two(tiny, monkeypatch):
    """The embedded model, two images at a time."""
    monkeypatch.setattr(tiny._pipeline.costs, "max_batch", 2)
    return tiny


def levels(first, second):
    return int(np.abs(np.asarray(first, int) - np.asarray(second, int)).max())


def test_a_stream_gives_the_images_of_generate_one_by_one(by_two):
    whole = by_two.generate([PROMPT, "a white star"], 2, **QUICK)
    parts = list(by_two.stream([PROMPT, "a white star"], 2, **QUICK))
    assert [part.places for part in parts] == [(0,), (1,), (2,), (3,)]
    assert np.array_equal(np.concatenate([part.images for part in parts]), whole.images)
    assert np.array_equal(np.concatenate([part.latents for part in parts]), whole.latents)
    assert [part.seeds for part in parts] == [(5,), (6,), (7,), (8,)]


def test_a_stream_draws_no_more_than_is_taken(by_two, monkeypatch):
    steps = []
    stream = by_two.stream(PROMPT, 6, callback=lambda step, *_: steps.append(step), **QUICK)
    assert steps == []
    next(stream)
    next(stream)
    assert len(steps) == 3
    next(stream)
    assert len(steps) == 6
    stream.close()


def test_a_stream_refuses_before_it_is_read(tiny):
    with pytest.raises(kerasdiff.RequestError, match="num_steps"):
        tiny.stream(PROMPT, num_steps=0)


def test_files_of_a_stream_say_which_image_they_are(by_two, tmp_path):
    for number, part in enumerate(by_two.stream(PROMPT, 3, **QUICK)):
        part.save(tmp_path / f"{number}.png")
    assert [metadata.read(tmp_path / f"{number}.png").index for number in range(3)] == [0, 1, 2]
    again = kerasdiff.replay(tmp_path / "2.png", progress=False)
    assert again.seeds == (7,)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"sampler": "euler_a"},
        {"sampler": "dpmpp_2m_sde"},
        {"rng": "torch", "sampler": "euler_a"},
        {"guidance_scale": [[1.0], [3.0], [1.0], [5.0], [2.0]]},
        {"guidance_interval": (0.0, 0.5)},
        {"pictures": True, "strength": [0.4, 1.0, 0.7, 0.0, 0.9]},
        {"pictures": True, "strength": 0.8, "rng": "torch"},
        {"pictures": True, "mask": True, "strength": [0.4, 1.0, 0.7, 0.0, 0.9], "feather": 2},
        {"long_prompts": "chunk", "prompt": " ".join([PROMPT] * 12)},
    ],
    ids=str,
)
def test_blocks_change_nothing(tiny, monkeypatch, arguments):
    """Noise is the same to the bit; pixels as near as for any batch size."""
    arguments = {**QUICK, **arguments}
    prompt = arguments.pop("prompt", PROMPT)
    if arguments.pop("pictures", False):
        arguments["image"] = [scenes.render(scene) for scene in score.held_out_scenes(5, seed=9)]
    if arguments.pop("mask", False):
        mask = np.zeros((128, 128), bool)
        mask[30:90, 41:77] = True
        arguments["mask"] = mask
    whole = tiny.generate(prompt, 5, **arguments)
    monkeypatch.setattr(tiny._pipeline.costs, "max_batch", 2)
    assert tiny.plan(5).chunks == (2, 2, 1)
    split = tiny.generate(prompt, 5, **arguments)
    assert np.abs(split.latents - whole.latents).max() < 2e-4
    assert levels(split.images, whole.images) <= 1


def test_arrays_are_given_to_the_blocks_that_they_belong_to(tiny, monkeypatch):
    noise = tiny.initial_latents(5, seed=40)
    context = tiny.encode_text([PROMPT, "a white star", "a ring", "a heart", "a blue square"])
    given = {"latents": noise, "prompt_embeds": context, "negative_prompt_embeds": context[::-1], "guidance_scale": 2.0}
    whole = tiny.generate(**given, **QUICK)
    denoised = tiny.denoise(noise, context, context[::-1], guidance_scale=2.0, **QUICK)
    monkeypatch.setattr(tiny._pipeline.costs, "max_batch", 2)
    split = tiny.generate(**given, **QUICK)
    assert levels(split.images, whole.images) <= 1
    assert np.abs(tiny.denoise(noise, context, context[::-1], guidance_scale=2.0, **QUICK) - denoised).max() < 2e-4


def test_exact_images_are_bit_equal_in_any_batch(tiny):
    arguments = {**QUICK, "exact": True}
    alone = tiny.generate(PROMPT, **{**arguments, "seed": 22})
    for batch_size, place in ((2, 1), (5, 0), (5, 4), (9, 3)):
        seeds = list(range(100, 100 + batch_size))
        seeds[place] = 22
        together = tiny.generate(PROMPT, batch_size, **{**arguments, "seed": seeds})
        assert np.array_equal(together[place], alone[0])
        assert np.array_equal(together.latents[place], alone.latents[0])
    assert tiny.plan(5, exact=True).chunks == (1,) * 5


def test_a_callback_sees_one_block_after_the_other(by_two):
    seen = []
    by_two.generate(PROMPT, 5, callback=lambda *told: seen.append((*told[:2], len(told[2]))), **QUICK)
    assert seen == [(step, 3, images) for images in (2, 2, 1) for step in (1, 2, 3)]


def test_a_callback_that_stops_leaves_what_was_begun(by_two):
    seen = []
    result = by_two.generate(PROMPT, 6, callback=lambda *_: seen.append(1) or len(seen) < 5, **QUICK)
    assert result.places == (0, 1, 2, 3)
    assert result.stopped_after == 2
    whole = by_two.generate(PROMPT, 6, **QUICK)
    assert np.array_equal(result.images[:2], whole.images[:2])
    assert levels(result.images[2:], whole.images[2:4]) > 1


def test_an_interrupt_gives_back_what_is_finished(by_two, caplog):
    seen = []

    def interrupt(*_):
        seen.append(1)
        if len(seen) == 5:
            raise KeyboardInterrupt

    with caplog.at_level(logging.WARNING, "kerasdiff"):
        result = by_two.generate(PROMPT, 6, callback=interrupt, **QUICK)
    assert result.places == (0, 1)
    assert len(result) == 2
    assert result.seeds == (5, 6)
    assert "interrupted: 2 of 6 images are finished" in caplog.text
    whole = by_two.generate(PROMPT, 6, **QUICK)
    assert np.array_equal(result.images, whole.images[:2])


def test_an_interrupt_before_anything_is_finished_is_an_interrupt(by_two):
    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        by_two.generate(PROMPT, 6, callback=interrupt, **QUICK)


def test_a_bar_counts_the_steps_of_all_blocks(by_two, capsys):
    by_two.generate(PROMPT, 5, num_steps=3, seed=1, progress=True)
    assert "9/9" in capsys.readouterr().err


def test_a_request_that_was_made_is_streamed_as_it_is(by_two):
    request = make_request(by_two.config, PROMPT, batch_size=3, num_steps=3, seed=5)
    parts = list(by_two.each(request, progress=False))
    whole = by_two.generate(PROMPT, 3, **QUICK)
    assert all(part.request == request for part in parts)
    assert np.array_equal(np.concatenate([part.images for part in parts]), whole.images)
