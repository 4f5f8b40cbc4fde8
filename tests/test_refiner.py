"""A second model that finishes the images: against diffusers, against one model's own run, and by what must hold."""

from __future__ import annotations

import dataclasses
import types
import warnings

import numpy as np
import pytest
import torch
from checkpoints import diffusers, save
from xl_checkpoints import xl_pipeline

import kerasdiff
from kerasdiff.cli.bulk_options import PROGRAM as BULK
from kerasdiff.cli.interpolate_command import PROGRAM as INTERPOLATE
from kerasdiff.cli.options import BATCH, GENERATE
from kerasdiff.diffusion import refining
from kerasdiff.errors import ModelError, RequestError
from kerasdiff.metadata import a1111_text, read_any
from kerasdiff.metadata.a1111 import parameters_text
from kerasdiff.models.config import SD_V1, TINY
from kerasdiff.request import make_request
from kerasdiff.samplers import SAMPLERS, experts, sampling_levels, sampling_table

PROMPT = "a red circle on a blue background"
SMALL = {"height": 64, "width": 64, "num_steps": 8, "seed": 3, "progress": False}
REFINED = dataclasses.replace(TINY, refiner=TINY)


@pytest.fixture(scope="module")
def twice() -> kerasdiff.Generator:
    """The embedded model, which also refines what it draws."""
    return kerasdiff.Generator("tiny", refiner="tiny", precision="float32")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """Stable Diffusion XL's two pipelines in small, with one autoencoder, and the folders that they are saved in."""
    pipes, folders = [], []
    for kind in ("base", "refiner"):
        place = tmp_path_factory.mktemp(kind)
        pipes.append(xl_pipeline(kind, place, seed=len(pipes)))
        pipes[-1].vae = pipes[0].vae
        pipes[-1].set_progress_bar_config(disable=True)
        folders.append(save(pipes[-1], place / "saved"))
    return pipes, folders


@pytest.fixture(scope="module")
def ours(theirs):
    _, (base, refiner) = theirs
    return kerasdiff.Generator(base, refiner=refiner, precision="float32", jit_compile=False)


@pytest.mark.parametrize(
    ("sampler", "scheduler", "negative", "how"),
    [
        ("euler", "EulerDiscreteScheduler", None, {"denoising_end": 0.8}),
        ("dpmpp_2m", "DPMSolverMultistepScheduler", "", {"denoising_end": 0.5}),
        ("heun", "HeunDiscreteScheduler", "a star", {"denoising_end": 0.5}),
        ("euler_a", "EulerAncestralDiscreteScheduler", None, {"denoising_end": 0.8}),
        ("heun", "HeunDiscreteScheduler", None, {"refiner_strength": 0.5}),
    ],
)
def test_whole_images_are_those_of_diffusers(theirs, ours, sampler, scheduler, negative, how):
    """One generator goes through both of their pipelines; the noise is drawn in the same order here."""
    base, refiner = theirs[0]
    arguments = {"prompt": PROMPT, "negative_prompt": negative, "num_inference_steps": 6, "guidance_scale": 4.0}
    end, generator = how.get("denoising_end"), torch.Generator().manual_seed(3)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' own
        for pipe in (base, refiner):
            pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
        size = {"height": 64, "width": 64, "output_type": "latent"}
        latents = base(**arguments, **size, denoising_end=end, generator=generator).images
        more = {"strength": how.get("refiner_strength", 0.3)} if end is None else {"denoising_start": end}
        expected = refiner(**arguments, **more, image=latents, generator=generator, output_type="latent").images
        images = refiner.vae.decode(expected / refiner.vae.config.scaling_factor, return_dict=False)[0]
    drawn = {"sampler": sampler, "num_steps": 6, "guidance_scale": 4.0, "rng": "torch", "negative_prompt": negative}
    result = ours.generate(PROMPT, **drawn, **how, height=64, width=64, seed=3, progress=False)
    scale = np.abs(expected.numpy()).max()
    assert np.abs(result.latents[0] - expected[0].permute(1, 2, 0).numpy()).max() < 1e-4 * max(scale, 1)
    pixels = (images[0].permute(1, 2, 0).numpy() / 2 + 0.5).clip(0, 1) * 255
    assert np.abs(result.images[0] - pixels.round()).max() <= 1


@pytest.mark.parametrize("sampler", ["euler", "heun", "kdpm2", "kdpm2_a", "dpmpp_2m", "unipc", "ddim"])
def test_the_cut_is_where_diffusers_has_it(theirs, sampler):
    """Of all shares: how many evaluations are the first model's, and with which the second one begins."""
    pipe, (name, *_) = theirs[0][1], SAMPLERS[sampler].aliases
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # diffusers' own
        pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config)
        pipe.scheduler.set_timesteps(10)
    table = sampling_table(sampling_levels(SD_V1.schedule, sampler, 10, spacing="leading"), sampler, {})
    evaluated, order = pipe.scheduler.timesteps.numpy(), pipe.scheduler.order
    np.testing.assert_allclose(table.inputs[:, 1], evaluated, atol=1e-2)
    for share in np.arange(0.05, 1, 0.0375):
        timestep = experts.cut(share, 1000)
        assert experts.evaluations(table, timestep) == np.count_nonzero(evaluated >= timestep)
        _, left = pipe.get_timesteps(10, 0.3, "cpu", denoising_start=share)
        assert experts.next_step(table, timestep) == (len(evaluated) - left) // order


@pytest.mark.parametrize(("sampler", "end"), [("euler", 0.8), ("euler_a", 0.5), ("ddpm", 0.8)])
def test_a_model_that_goes_on_from_itself_does_one_run(twice, tiny, sampler, end):
    """With samplers that remember nothing, noise of each step among them; prompts that change go on changing."""
    arguments = {**SMALL, "sampler": sampler, "prompt_syntax": "a1111", "negative_prompt": "[a star:a ring:5]"}
    seen = []
    shared = twice.generate(PROMPT, 3, denoising_end=end, callback=lambda *a: seen.append(a[:2]), **arguments)
    whole = tiny.generate(PROMPT, 3, **arguments)
    assert seen == [(step, 8) for step in range(1, 9)]
    assert np.abs(shared.latents - whole.latents).max() < 1e-4
    assert np.abs(shared.images.astype(int) - whole.images).max() <= 1


@pytest.mark.parametrize(("sampler", "rng"), [("euler_a", "philox"), ("euler_a", "torch"), ("heun", "philox")])
def test_call_by_call_is_the_same(twice, sampler, rng):
    """Latents that one call leaves noisy go on in another, as of diffusers' two pipelines; bit by bit."""
    arguments = {**SMALL, "sampler": sampler, "exact": True, "rng": rng}
    shared = twice.generate([PROMPT, "a blue star"], denoising_end=0.6, **arguments)
    noisy = twice.generate([PROMPT, "a blue star"], denoising_end=0.6, refiner_strength=0, **arguments)
    assert np.abs(noisy.latents - shared.latents).max() > 0.1
    after = twice.generate(
        [PROMPT, "a blue star"], latents=noisy.latents, denoising_start=0.6, refiner_strength=0, **arguments
    )
    assert np.array_equal(after.latents, shared.latents)
    assert np.array_equal(after.images, shared.images)
    alone = twice.generate("a blue star", denoising_end=0.6, **{**arguments, "seed": 4})
    assert np.array_equal(alone.latents[0], shared.latents[1])


def test_three_experts_share_a_run(tiny):
    arguments = {**SMALL, "sampler": "euler"}
    latents, ends = None, (0.3, 0.7, None)
    for start, end in zip((None, *ends), ends, strict=False):
        result = tiny.generate(PROMPT, latents=latents, denoising_start=start, denoising_end=end, **arguments)
        latents = result.latents
    assert np.abs(latents - tiny.generate(PROMPT, **arguments).latents).max() < 1e-4


def test_what_a_run_leaves_noisy_is_shown_as_the_model_takes_it(tiny):
    result, whole = (tiny.generate(PROMPT, denoising_end=end, **SMALL).images.astype(int) for end in (0.8, None))
    noisy = tiny.decode(tiny.generate(PROMPT, denoising_end=0.8, **SMALL).latents)
    assert np.abs(result - whole).mean() < 0.3 * np.abs(noisy - whole).mean()


def test_finished_latents_get_noise_of_their_own(twice, tiny):
    """Image to image, by default with the last 0.3 of the steps; noise goes on behind that of the first run."""
    arguments = {**SMALL, "num_steps": 10, "sampler": "euler_a"}
    result = twice.generate(PROMPT, 3, **arguments)
    assert result.request.refiner_strength == 0.3
    without = twice.generate(PROMPT, 3, refiner_strength=0, **arguments)
    assert np.array_equal(without.images, tiny.generate(PROMPT, 3, **arguments).images)
    assert 0.5 < np.abs(result.images - without.images.astype(int)).mean() < 20
    alone = twice.generate(PROMPT, **{**arguments, "seed": 4})
    assert np.abs(alone.latents[0] - result.latents[1]).max() < 1e-4


def test_a_picture_is_refined_and_what_a_mask_keeps_stays(twice, tiny):
    picture = tiny.generate(PROMPT, **SMALL)
    mask = np.zeros((64, 64), "uint8")
    mask[:, 32:] = 255
    for more in ({"denoising_end": 0.7}, {"refiner_strength": 0.5}):
        result = twice.generate("a blue star", image=picture, strength=0.6, sampler="euler", **more, **SMALL)
        whole = tiny.generate("a blue star", image=picture, strength=0.6, sampler="euler", **SMALL)
        near = np.abs(result.latents - whole.latents).max() < 1e-4
        assert near == ("denoising_end" in more)
        masked = twice.generate("a blue star", image=picture, mask=mask, **more, **SMALL)
        assert np.array_equal(masked.images[0, :, :32], picture.images[0, :, :32])
        # In latents, too, so that the other side goes with it.
        kept = tiny.encode_image(picture.images)
        assert np.abs(masked.latents - kept)[:, :, :4].max() < 1e-4


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"hires": 2}, "hires does not go with a refiner; leave it out, or refine nothing with refiner_strength=0"),
        ({"hires": 2, "denoising_end": 0.5}, "hires does not go with denoising_end=0.5, which is about one pass"),
        ({"denoising_end": 0.5, "refiner_strength": 0.3}, "denoising_end and refiner_strength both say"),
        (
            {"denoising_end": 0.01, "spacing": "leading"},
            "denoising_end=0.01 of 8 steps leaves none before it; give a higher one",
        ),
        ({"denoising_end": 1}, "denoising_end=1 of 8 steps leaves none after it; give a lower one"),
        ({"denoising_end": 1.5}, "denoising_end=1.5 is out of range; it must be between 0 and 1"),
        ({"denoising_start": 0.5, "denoising_end": 0.4}, "denoising_start=0.5 must be less than denoising_end=0.4"),
        (
            {"denoising_start": 0.51, "denoising_end": 0.52},
            "denoising_start=0.51 and denoising_end=0.52 of 8 steps leave none between them",
        ),
        ({"denoising_start": 0.5, "image": np.zeros((64, 64, 3), "uint8")}, "denoising_start goes on from latents"),
        (
            {"denoising_end": 0.5, "image": np.zeros((64, 64, 3), "uint8"), "strength": 0.3},
            "strength=0.3 and denoising_end=0.5 of 8 steps leave none between them; give more steps or strength",
        ),
        ({"refiner_strength": 0.1}, "refiner_strength=0.1 of 8 steps leaves the refiner none"),
        ({"num_steps": None, "recipe": "dmd2"}, "recipe 'dmd2' has timesteps for its own model and none for a refiner"),
    ],
)
def test_what_does_not_go_together_is_one_line(more, line):
    with pytest.raises(RequestError, match=r"^.*$") as caught:
        make_request(REFINED, PROMPT, **{"height": 64, "width": 64, "num_steps": 8, **more})
    assert str(caught.value).startswith(line)


def test_of_the_refiner_itself(twice, tiny):
    with pytest.raises(RequestError, match="refiner_strength needs a refiner"):
        make_request(TINY, PROMPT, refiner_strength=0.5)
    assert make_request(TINY, PROMPT, refiner_strength=0).refiner_strength is None
    other = dataclasses.replace(TINY, text_encoder=dataclasses.replace(TINY.text_encoder, num_layers=3))
    with pytest.raises(RequestError, match="clip_skip=3 is more than the 2 of the refiner's text encoder"):
        make_request(dataclasses.replace(TINY, refiner=other), PROMPT, clip_skip=3)
    with pytest.raises(RequestError, match="a refiner reads texts and no embeddings"):
        twice.generate(prompt_embeds=tiny.encode_text([PROMPT]), progress=False)
    with pytest.raises(RequestError, match="denoising_start goes on from noisy latents; give them as latents"):
        tiny.generate(PROMPT, denoising_start=0.5, progress=False)
    with pytest.raises(
        ModelError, match=r"^sd-v1-4 \(random.* cannot refine what tiny \(random.* draws: it has latents"
    ):
        kerasdiff.Generator("tiny", refiner="sd-v1-4", weights="random")
    with pytest.raises(ModelError, match="refiner must be a name or a path, not int"):
        kerasdiff.Generator("tiny", refiner=3)
    with pytest.raises(ModelError, match=r"^refiner='sdxl-refined' is unknown; did you mean 'sdxl-refiner'"):
        kerasdiff.Generator("tiny", refiner="sdxl-refined")


def test_it_is_part_of_what_a_generator_has(twice, tiny):
    plan = twice.plan(2, height=64, width=64)
    assert plan.refiner is not None
    assert plan.refiner.chunks == (2,)
    assert "decoder" not in plan.refiner.programs
    assert "\nrefiner, 2 images of 64 x 64" in str(plan)
    assert tiny.plan(2, height=64, width=64).refiner is None
    assert twice.plan(2, height=64, width=64, hires=2).second_pass is not None
    before = twice.traces
    twice.warm_up(height=64, width=64)
    ready = twice.traces
    twice.generate(PROMPT, denoising_end=0.5, **SMALL)
    assert twice.traces == ready >= before
    assert twice.num_parameters > 1.8 * tiny.num_parameters
    pipeline = twice._pipeline
    assert pipeline.weight_bytes > 1.8 * tiny._pipeline.weight_bytes
    assert twice.release()
    assert pipeline.weight_bytes == pipeline.refiner.weight_bytes == 0


def test_one_leaves_before_the_other_comes_where_memory_is_short(twice, monkeypatch):
    arguments = {**SMALL, "denoising_end": 0.5, "exact": True}
    expected = twice.generate(PROMPT, 2, **arguments)
    unets = [each.networks.network("unet") for each in (twice._pipeline, twice._pipeline.refiner)]
    loaded = []
    look = lambda *_: loaded.append([unet.nbytes > 0 for unet in unets])  # noqa: E731
    twice.release()
    monkeypatch.setattr(refining, "memory", types.SimpleNamespace(free=lambda: 0))
    result = twice.generate(PROMPT, 2, callback=look, **arguments)
    assert loaded == 2 * (4 * [[True, False]] + 4 * [[False, True]])
    assert np.array_equal(result.images, expected.images)


def test_files_tell_of_it(twice, tiny, tmp_path):
    for more in ({"denoising_end": 0.5}, {"refiner_strength": 0.5}):
        (path,) = twice.generate(PROMPT, sampler="euler", **more, **SMALL).save(tmp_path / "out.png")
        receipt = read_any(path)
        assert receipt.refiner == "tiny"
        assert receipt.refiner_hash == receipt.model_hash
        (name, value), *_ = more.items()
        assert getattr(receipt.request, name) == value
        text = parameters_text(receipt)
        assert f"Refiner: tiny [{receipt.model_hash[:10]}], " in text
        assert ("Refiner switch at: 0.5, " in text) == ("denoising_end" in more)
    again = kerasdiff.replay(path)  # with a warning if a pixel differs
    assert again.request == receipt.request
    (path,) = twice.generate(PROMPT, refiner_strength=0, **SMALL).save(tmp_path / "out.png")
    assert "Refiner" not in parameters_text(read_any(path))
    (path,) = tiny.generate(PROMPT, **SMALL).save(tmp_path / "plain.png")
    assert "refiner" not in read_any(path).to_json()
    with pytest.raises(RequestError, match="was made without a refiner; leave refiner out"):
        kerasdiff.replay(path, refiner="tiny")


def test_another_programs_refiner_is_taken_over_if_one_is_given():
    text = (
        "a cat\nSteps: 20, Sampler: Euler, CFG scale: 7, Seed: 1, Refiner: sd_xl_refiner_1.0 [7440042bbd], "
        "Refiner switch at: 0.8, Version: v1.9.0"
    )
    for more, given, taken in (("", True, True), ("", False, False), (", Hires upscale: 2", True, False)):
        settings = a1111_text.read({"parameters": text + more})
        settings.take_refiner(given)
        assert settings.arguments.get("denoising_end") == (0.8 if taken else None)
        assert ("refiner sd_xl_refiner_1.0 [7440042bbd]" in settings.left_out) == (not taken)


def test_all_programs_take_it():
    for program in (GENERATE, BATCH, BULK, INTERPOLATE):
        assert [option.name for option in program.groups["refiner"]] == ["refiner", "denoising_end", "refiner_strength"]
