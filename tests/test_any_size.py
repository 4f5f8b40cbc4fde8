"""Pictures whose latents' sides cannot be halved evenly, against diffusers; what cells and tiles make of them."""

from __future__ import annotations

import checkpoints
import numpy as np
import pytest
from checkpoints import torch

import kerasdiff

# Stable Diffusion's levels; None of these can be halved three times.
SIZES = [(8, 9), (9, 8), (5, 7), (10, 6), (11, 13), (1, 1), (2, 15), (12, 14)]
CROSS = {True: ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D"), False: ("DownBlock2D", "UpBlock2D")}
WIDTHS = {"v1": (32, 32, 64, 64), "v2": (64, 64, 128, 128)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """kind -> (diffusers' pipeline, the folder of the same weights), with four levels."""
    place, found = tmp_path_factory.mktemp("sizes"), {}
    kinds = [CROSS[attends] for attends in (True, True, True, False)]
    for kind, widths in WIDTHS.items():
        settings = {
            "block_out_channels": widths,
            "layers_per_block": 1,
            "down_block_types": [down for down, _ in kinds],
            "up_block_types": [up for _, up in reversed(kinds)],
            "attention_head_dim": [width // 64 for width in widths] if kind == "v2" else 8,
        }
        pipe = checkpoints.pipeline(kind, place / kind / "vocabulary", **settings)
        pipe.set_progress_bar_config(disable=True)
        found[kind] = pipe, checkpoints.save(pipe, place / kind / "model")
    return found


@pytest.fixture(scope="module")
def generator(made):
    """A function of a kind to a generator of it."""
    found = {
        kind: kerasdiff.Generator(str(made[kind][1]), precision="float32", backend="tensorflow", jit_compile=False)
        for kind in WIDTHS
    }
    return found.__getitem__


def far(ours, theirs):
    theirs = theirs.detach().numpy().transpose(0, 2, 3, 1)
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_the_unet_takes_every_size_as_diffusers_does(made, generator, kind):
    pipe, rng = made[kind][0], np.random.default_rng(0)
    context = rng.standard_normal((2, 77, 64), "float32")
    for size in SIZES:
        x = rng.standard_normal((2, 4, *size), "float32")
        with torch.no_grad():
            theirs = pipe.unet(torch.from_numpy(x), 500, torch.from_numpy(context)).sample
        ours = generator(kind).networks["unet"](x.transpose(0, 2, 3, 1), np.full(2, 500, "float32"), context)
        assert far(ours, theirs) < 1e-4, size


def drawn(pipe, height, width):
    """What diffusers draws: its latents, and its image in grey levels."""
    found = [
        pipe(
            "a red circle",
            height=height,
            width=width,
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(3),
            output_type=kind,
        ).images
        for kind in ("latent", "np")
    ]
    return found[0], np.round(found[1] * 255).astype(int)


@pytest.mark.parametrize(
    ("kind", "backend", "jit_compile", "size"),
    [
        pytest.param("v1", "tensorflow", False, (72, 56), marks=pytest.mark.slow),
        pytest.param("v1", "tensorflow", True, (72, 56), marks=pytest.mark.slow),
        pytest.param("v1", "openvino", False, (72, 56), marks=pytest.mark.slow),
        ("v2", "openvino", False, (40, 104)),
    ],
)
def test_a_seed_gives_diffusers_image(made, kind, backend, jit_compile, size):
    pipe, folder = made[kind]
    height, width = size
    latents, image = drawn(pipe, height, width)
    generator = kerasdiff.Generator(str(folder), precision="float32", backend=backend, jit_compile=jit_compile)
    asked = {"height": height, "width": width, "num_steps": 3, "rng": "torch", "seed": 3, "progress": False}
    ours = generator.generate("a red circle", **asked)
    assert far(ours.latents, latents) < 1e-4
    assert np.abs(ours.images.astype(int) - image).max() <= 1
    assert (ours.request.height, ours.request.width) == size
    plan = generator.plan(height=height, width=width)
    assert {*plan.programs.values()} == {"ready"}


def test_less_arithmetic_and_previews_know_the_larger_halves(openvino):
    told, less = [], {"token_merging_ratio": 0.5, "deep_cache_interval": 2}
    openvino.warm_up(height=104, width=72, **less)
    asked = {"height": 104, "width": 72, "num_steps": 4, "seed": 3, "progress": False}
    traces = openvino.traces
    result = openvino.generate("a star", **asked, **less, callback=lambda *step: told.append(step[2].shape))
    assert openvino.traces == traces
    assert result.images.shape == (1, 104, 72, 3)
    assert {*told} == {(1, 13, 9, 3)}
    exact = openvino.generate("a star", **asked)
    assert np.abs(result.latents - exact.latents).max() > 1e-3
