"""A second model that finishes the images: against diffusers, against one model's own run, and by what must hold."""

from __future__ import annotations

import numpy as np
import pytest

import kerasdiff

PROMPT = "a red circle on a blue background"
SMALL = {"height": 64, "width": 64, "num_steps": 8, "seed": 3, "progress": False}


@pytest.fixture(scope="module")
def twice() -> kerasdiff.Generator:
    """The embedded model, which also refines what it draws."""
    return kerasdiff.Generator("tiny", refiner="tiny", precision="float32")


@pytest.mark.parametrize("sampler", ["euler", "euler_a", "ddim", "ddpm"])
@pytest.mark.parametrize("end", [0.8, 0.5])
def test_a_model_that_goes_on_from_itself_does_one_run(twice, tiny, sampler, end):
    """With samplers that remember nothing, noise of each step among them."""
    arguments = {**SMALL, "sampler": sampler, "negative_prompt": "a star"}
    shared = twice.generate(PROMPT, 2, denoising_end=end, **arguments)
    whole = tiny.generate(PROMPT, 2, **arguments)
    assert np.abs(shared.latents - whole.latents).max() < 1e-4
    assert np.abs(shared.images.astype(int) - whole.images).max() <= 1
