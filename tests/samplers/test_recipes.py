"""Recipes: what a model was distilled for, under one name."""

from __future__ import annotations

import dataclasses
import json
import logging
import warnings

import numpy as np
import pytest

import kerasdiff
from kerasdiff import info, metadata
from kerasdiff.batch import Row
from kerasdiff.batch.job import make_job
from kerasdiff.checkpoints.resolve import TINY_FOLDER
from kerasdiff.models.config import SD_V1, SD_V2, SDXL, Defaults
from kerasdiff.request import make_request
from kerasdiff.samplers import RECIPES, recipes, sampling_levels, sampling_table

# As published: sampler, spacing, steps.
SETTINGS = {
    "lcm": ("lcm", "lcm", 4),
    "tcd": ("tcd", "lcm", 4),
    "turbo": ("euler", "trailing", 1),
    "turbo-xl": ("euler_a", "trailing", 1),
    "lightning-1": ("euler", "trailing", 1),
    "lightning-2": ("euler", "trailing", 2),
    "lightning-4": ("euler", "trailing", 4),
    "lightning-8": ("euler", "trailing", 8),
    "hyper-1": ("tcd", "lcm", 1),
    "hyper-2": ("ddim", "trailing", 2),
    "hyper-4": ("ddim", "trailing", 4),
    "hyper-8": ("ddim", "trailing", 8),
    "hyper-unet": ("lcm", None, 1),
    "dmd2": ("lcm", None, 4),
    "dmd2-1": ("lcm", None, 1),
    "flash": ("lcm", "lcm", 4),
    "sdxs": ("euler", "trailing", 1),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_request(name):
    request = make_request(SD_V2, "a dog", recipe=name)
    assert (request.sampler, request.spacing, request.num_steps) == SETTINGS[name]
    assert (request.recipe, request.guided) == (name, False)
    assert dict(request.sampler_options) == dict(RECIPES[name].sampler_options)
    spelt = {"sampler": request.sampler, "spacing": request.spacing, "sampler_options": dict(request.sampler_options)}
    spelt |= {"timesteps": request.timesteps, "num_steps": None if request.timesteps else request.num_steps}
    with warnings.catch_warnings():
        if name == "dmd2-1":  # begins amid the levels, which without the recipe is a warning
            warnings.filterwarnings("ignore", "the run starts from pure noise at timestep 399")
        same = make_request(SD_V2, "a dog", guidance_scale=1.0, seed=request.seeds[0], **spelt)
    assert dataclasses.replace(request, recipe=None) == same
    # A receipt has what it came to, and so does a request that is made of it.
    again = make_request(SD_V2, **request.arguments())
    assert again == request


def test_what_a_request_says_comes_first():
    request = make_request(SD_V1, "a dog", recipe="lightning-4", sampler="heun", num_steps=6, guidance_scale=2.0)
    assert (request.sampler, request.spacing, request.num_steps) == ("heun", "trailing", 6)
    assert (request.recipe, request.guidance_scale.plain()) == ("lightning-4", 2.0)
    assert dict(make_request(SD_V1, "a", recipe="tcd", sampler_options={"eta": 0.5}).sampler_options) == {"eta": 0.5}
    assert make_request(SD_V1, "a", recipe="dmd2", num_steps=2).timesteps is None
    assert make_request(SD_V1, "a", recipe="dmd2", sampler="euler").timesteps == (999, 749, 499, 249)
    assert make_request(SD_V1, "a", recipe="dmd2", spacing="karras").spacing == "karras"


def test_sdxl_turbo_was_distilled_at_512_pixels():
    sizes = [make_request(SDXL, "a dog", recipe=recipe).height for recipe in ("turbo-xl", "turbo", "lightning-4")]
    assert sizes == [512, 1024, 1024]
    request = make_request(SDXL, "a dog", recipe="turbo-xl", height=768)
    assert (request.height, request.width) == (768, 512)
    assert str(RECIPES["turbo-xl"]).endswith("1 step, no guidance, predicts epsilon, 512 x 512.")


def test_a_model_has_its_own_and_a_request_may_have_none():
    config = dataclasses.replace(SD_V1, defaults=Defaults(recipe="turbo"))
    assert make_request(config, "a dog").recipe == "turbo"
    assert make_request(config, "a dog", recipe="lcm").sampler == "lcm"
    assert make_request(config, "a dog", recipe="none", seed=1) == make_request(SD_V1, "a dog", seed=1)
    for wrong in ("turbot", "", 3):
        with pytest.raises(kerasdiff.RequestError, match=r"recipe=.* is unknown|recipe must be"):
            make_request(SD_V1, "a", recipe=wrong)


def test_options_of_a_models_own_sampler_stay():
    """Such as those of its LCMScheduler."""
    own = Defaults(sampler="lcm", sampler_options=(("original_inference_steps", 100),))
    config = dataclasses.replace(SD_V1, defaults=own)
    assert dict(make_request(config, "a", recipe="lcm").sampler_options) == {"original_inference_steps": 100}
    assert make_request(config, "a", recipe="turbo").sampler_options == ()


def test_a_negative_prompt_without_guidance_is_one_warning():
    with pytest.warns(UserWarning, match="negative_prompt has no effect: recipe 'turbo' is without guidance") as found:
        make_request(SD_V1, "a dog", negative_prompt="a cat", recipe="turbo")
    assert len(found) == 1
    assert make_request(SD_V1, "a dog", negative_prompt="a cat", recipe="turbo", guidance_scale=2.0).guided


def test_no_guidance_is_0_with_a_recipe_as_in_diffusers():
    for scale in (0, 0.5, [0, 0.5, 1, -1]):
        request = make_request(SD_V1, "a dog", recipe="lightning-4", guidance_scale=scale, hires={"guidance_scale": 0})
        assert not request.guided
        assert np.all(request.second_pass(SD_V1).guidance == 1)
    assert make_request(SD_V1, "a dog", recipe="lightning-4", guidance_scale=[0, 0, 2, 2]).guidance.T.tolist() == [
        [1, 1, 2, 2]
    ]
    for scale, what in ((0, "guidance_scale=0 ignores"), (0.5, "guidance_scale=0.5 weakens")):
        with pytest.warns(UserWarning, match=f"{what} the prompt; 1 is without guidance, as 0 is in diffusers"):
            assert make_request(SD_V1, "a dog", guidance_scale=scale).guided


def test_what_a_recipe_predicts_is_what_the_step_computes(tiny):
    """The embedded model predicts v; one step of Lightning takes what it gives for the picture."""
    request = make_request(tiny.config, "a ring", recipe="lightning-1", seed=1)
    table = tiny.table(request)
    assert np.allclose(table.inputs[:, 2:], [[0, 1]])
    sample = dataclasses.replace(tiny.config.schedule, prediction_type="sample")
    levels = sampling_levels(sample, "euler", 1, spacing="trailing")
    assert np.array_equal(table.updates, sampling_table(levels, "euler", {}).updates)
    without = tiny.table(dataclasses.replace(request, recipe=None))
    assert without.inputs[0, 2] == pytest.approx(1 / (1 + levels.sigmas[0] ** 2))


def test_a_generators_recipe_is_in_the_receipt_and_replayed(tmp_path):
    generator = kerasdiff.Generator("tiny", precision="float32", recipe="lightning-2")
    result = generator.generate("a ring", seed=1, progress=False)
    assert (result.request.recipe, result.request.num_steps) == ("lightning-2", 2)
    (path,) = result.save(tmp_path / "a.png")
    receipt = metadata.read(path)
    assert json.loads(receipt.to_json())["request"]["recipe"] == "lightning-2"
    assert receipt.request == dataclasses.replace(result.request, pictures=None)
    again = kerasdiff.replay(path, progress=False)
    assert again.request == result.request
    assert np.array_equal(again.images, result.images)
    without = dataclasses.replace(receipt, request=dataclasses.replace(receipt.request, recipe=None))
    assert "recipe" not in json.loads(without.to_json())["request"]
    with pytest.raises(kerasdiff.RequestError, match="recipe='fast' is unknown"):
        kerasdiff.Generator("tiny", recipe="fast")


def test_rows_of_a_job_have_one(tiny):
    rows = [Row("a", "a ring"), Row("b", "a star", recipe="lightning-2"), Row("c", "a dot", recipe="none")]
    job = make_job(rows, {"model": "tiny"}, {"recipe": "lcm"})
    job.check(tiny.config)
    blocks = job.blocks(tiny.config, {"128x128": 8})
    requests = [make_request(tiny.config, **job.request(block)) for block in blocks]
    assert [one.recipe for one in requests] == ["lcm", "lightning-2", None]
    assert [one.num_steps for one in requests] == [4, 2, 20]
    with pytest.raises(kerasdiff.RequestError, match="recipe='fast' is unknown"):
        Row("a", "a ring", recipe="fast")


@pytest.mark.parametrize(
    ("text", "recipe"),
    [
        ("Hyper-SD15-4steps-lora.safetensors", "hyper-4"),
        ("Hyper-SD15-1step-lora", "hyper-1"),
        ("sdxl_lightning_8step_lora", "lightning-8"),
        ("LCM_Dreamshaper_v7_4k.safetensors", "lcm"),
        ("lcm-lora-sdv1-5", "lcm"),
        ("sd_turbo", "turbo"),
        ("SD-Turbo", "turbo"),
        *[(name, "turbo-xl") for name in ("sdxl-turbo", "sd_xl_turbo_1.0_fp16", "Stable Diffusion XL 1.0 Turbo")],
        ("Hyper-SDXL-1step-Unet", "hyper-unet"),
        ("Hyper-SDXL-8steps-CFG-lora", None),
        ("dmd2_sdxl_4step_lora_fp16", "dmd2"),
        ("dmd2_sdxl_1step_unet_fp16", "dmd2-1"),
        ("flash-sdxl", "flash"),
        ("sdxs-512-0.9", "sdxs"),
        ("TCD-SD15-LoRA", "tcd"),
        *[(name, None) for name in ("lightning bolts", "turbo girl", "hyperreal v3", "calcmodel", "flash photo")],
    ],
)
def test_names_that_speak_of_a_recipe(text, recipe):
    assert recipes.told_by(text) == recipe


def test_names_on_the_hub():
    assert recipes.published("stabilityai/sd-turbo") == recipes.published("hf://stabilityai/SD-Turbo") == "turbo"
    assert recipes.published("stabilityai/sdxl-turbo") == "turbo-xl"
    assert recipes.published("runwayml/stable-diffusion-v1-5") is recipes.published(None) is None
    assert {*recipes.PUBLISHED.values()} <= {*RECIPES}


def test_a_lora_for_few_steps_is_a_hint_once(caplog):
    recipes.hint.cache_clear()
    with caplog.at_level(logging.WARNING, "kerasdiff"):
        for arguments in ({}, {}, {"recipe": "lcm"}, {"sampler": "lcm"}, {"recipe": "none"}):
            make_request(SD_V1, "a", loras=["latent-consistency/lcm-lora-sdv1-5"], **arguments)
        make_request(SD_V1, "a", loras=["loras/film_grain.safetensors"])
    (line,) = [one.getMessage() for one in caplog.records]
    assert line.startswith("latent-consistency/lcm-lora-sdv1-5 seems to be made for few steps, for which recipe='lcm'")


def test_info_tells_a_models_own():
    told = info.model_info(str(TINY_FOLDER))
    assert (told["recipe"], told["sampler"], told["spacing"], told["num_steps"]) == (None, "dpmpp_2m", "trailing", 20)
    assert info.model_lines(told)[1] == "recipe   none by its files"
    lines = info.model_lines({**told, "recipe": "turbo"})
    assert lines[1].startswith(
        "recipe   turbo: SD Turbo (arXiv:2311.17042): euler, spacing trailing, 1 step, no guidance"
    )
