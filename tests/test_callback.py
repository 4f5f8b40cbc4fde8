"""Looking at a run while it is on, and stopping it."""

from __future__ import annotations

import numpy as np
import pytest

import kerasdiff
from kerasdiff.diffusion.conditioning import Conditioning, ContextTable
from kerasdiff.diffusion.initial_state import from_noise
from kerasdiff.diffusion.preview import preview
from kerasdiff.models.config import SD_V1, TINY
from kerasdiff.models.network_configs import VAEConfig
from kerasdiff.training import scenes, score

PROMPT = "a red circle on a blue background"


@pytest.mark.parametrize("sampler", ["euler_a", "heun", "kdpm2", "pndm"])
def test_it_is_called_once_a_step(tiny, sampler):
    seen = []
    tiny.generate(
        PROMPT, 2, sampler=sampler, num_steps=5, callback=lambda *arguments: seen.append(arguments), progress=False
    )
    assert [(step, of) for step, of, _ in seen] == [(step, 5) for step in range(1, 6)]
    assert all(picture.shape == (2, 16, 16, 3) and picture.dtype == np.uint8 for _, _, picture in seen)


def test_the_one_call_that_does_it_all_takes_one():
    stopped = kerasdiff.generate(PROMPT, num_steps=4, seed=3, callback=lambda step, *_: step < 2, progress=False)
    assert stopped.stopped_after == 2
    latents = stopped.latents[:, ::-1]
    seen = []
    kerasdiff.generate(PROMPT, latents=latents, num_steps=2, callback=lambda *a: seen.append(a[:2]), progress=False)
    assert seen == [(1, 2), (2, 2)]


def test_steps_are_those_that_a_picture_has_left(tiny):
    picture = scenes.render(score.held_out_scenes(1, seed=5)[0])
    seen = []
    tiny.generate(
        PROMPT, image=picture, strength=0.5, num_steps=8, callback=lambda *a: seen.append(a[:2]), progress=False
    )
    assert seen == [(step, 4) for step in range(1, 5)]


@pytest.mark.parametrize("sampler", ["ddim", "heun", "unipc"])
def test_a_stopped_run_has_the_latents_of_that_step(tiny, sampler):
    arguments = {"sampler": sampler, "num_steps": 6, "seed": 3, "progress": False}
    for stop in (1, 4):
        result = tiny.generate(PROMPT, callback=lambda step, *_, stop=stop: step < stop, **arguments)
        assert result.stopped_after == stop
        request = result.request
        run = tiny.schedule(request)
        rows = [row for row in range(len(run)) if run.ends_step(row)]
        context = np.concatenate([tiny.encode_text([""]), tiny.encode_text([PROMPT])])
        start = from_noise(tiny.initial_latents(seed=3), run)
        conditioning = Conditioning(ContextTable.same(context, 1))
        states = list(tiny._pipeline.denoise(start, conditioning, request.guidance, run, None))
        expected = np.asarray(states[rows[stop - 1]].x) * run.scales[rows[stop - 1], 0]
        assert np.abs(result.latents - expected).max() < 1e-5 * np.abs(expected).max()
        shown = tiny.decode(np.asarray(states[rows[stop - 1]].denoised))
        assert np.abs(result.images.astype(int) - shown).max() <= 1
    whole = tiny.generate(PROMPT, callback=lambda *_: True, **arguments)
    assert whole.stopped_after is None
    assert np.array_equal(whole.images, tiny.generate(PROMPT, **arguments).images)


def test_images_that_wait_when_a_run_is_stopped_are_where_they_began(tiny):
    """One with fewer steps, in a sampler whose states have unit variance: its latents are the noised picture."""
    picture = scenes.render(score.held_out_scenes(1, seed=5)[0])
    arguments = {"image": picture, "num_steps": 4, "sampler": "ddim", "seed": [3, 4], "progress": False}
    result = tiny.generate(PROMPT, 2, strength=[1.0, 0.25], callback=lambda step, *_: False, **arguments)
    sigma = tiny.table(result.request, 3).initial_sigma
    began = tiny.encode_image(picture[None]) + sigma * tiny.initial_latents(seed=4)
    assert np.abs(result.latents[1] - began[0] / np.sqrt(1 + sigma**2)).max() < 1e-5


def test_a_callback_that_raises_leaves_the_generator_as_it_was(tiny):
    before = tiny.generate(PROMPT, seed=3, num_steps=4, progress=False)

    def fails_at_two(step, *_):
        if step == 2:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        tiny.generate(PROMPT, seed=3, num_steps=4, callback=fails_at_two, progress=False)
    assert np.array_equal(tiny.generate(PROMPT, seed=3, num_steps=4, progress=False).images, before.images)


def test_previews_look_like_the_pictures(tiny):
    pictures = np.stack([scenes.render(scene) for scene in score.held_out_scenes(24, seed=31)])
    rough = preview(TINY.vae, tiny.encode_image(pictures)).astype(float)
    small = pictures.reshape(24, 16, 8, 16, 8, 3).mean((2, 4))
    assert np.corrcoef(rough.ravel(), small.ravel())[0, 1] > 0.85
    assert preview(SD_V1.vae, np.zeros((1, 2, 2, 4), "float32")).shape == (1, 2, 2, 3)
    assert preview(VAEConfig(widths=(32, 64)), np.zeros((1, 2, 2, 4), "float32")) is None


def test_the_middle_stage_on_its_own_can_be_stopped_too(tiny):
    context, noise = tiny.encode_text([PROMPT]), tiny.initial_latents(seed=1)
    stopped = tiny.denoise(noise, context, num_steps=4, callback=lambda step, *_: step < 2, progress=False)
    assert stopped.shape == (1, 16, 16, 4)
    assert not np.array_equal(stopped, tiny.denoise(noise, context, num_steps=4, progress=False))
