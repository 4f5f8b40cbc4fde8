"""Everything that can be wrong with an argument, one by one, and what defaults become."""

from __future__ import annotations

import numpy as np
import pytest

import kerasdiff
from kerasdiff.engine.noise import MAX_SEED
from kerasdiff.models.config import SD_V1, TINY
from kerasdiff.request import make_request

WRONG = [
    ({"prompt": None}, r"prompt must be a text or a list of texts, not None"),
    ({"prompt": 3}, r"prompt must be a text or a list of texts, not int \(3\)"),
    ({"prompt": []}, r"prompt is an empty list; give at least one text"),
    ({"prompt": ["a", 5]}, r"prompt\[1\] must be a text, not int \(5\)"),
    ({"batch_size": 0}, r"batch_size=0 is out of range; it must be at least 1"),
    ({"batch_size": -2}, r"batch_size=-2 is out of range"),
    ({"batch_size": 1.5}, r"batch_size must be a whole number, not float \(1.5\)"),
    ({"batch_size": True}, r"batch_size must be a whole number, not bool"),
    ({"batch_size": None}, r"batch_size must be a whole number, not None"),
    ({"negative_prompt": 3}, r"negative_prompt must be a text or a list of texts"),
    ({"negative_prompt": []}, r"negative_prompt is an empty list"),
    ({"negative_prompt": ["a", "b"]}, r"negative_prompt has 2 texts for 1 prompts; give one text, or one a prompt"),
    ({"height": 100}, r"height=100 is not a multiple of 16; the nearest valid size is 96 or 112"),
    ({"height": 8}, r"height=8 is not a multiple of 16; the nearest valid size is 16"),
    ({"height": 0}, r"height=0 is out of range"),
    ({"height": 128.0}, r"height must be a whole number, not float"),
    ({"width": -16}, r"width=-16 is out of range"),
    ({"width": 130}, r"width=130 is not a multiple of 16; the nearest valid size is 128 or 144"),
    ({"num_steps": 0}, r"num_steps=0 is out of range; it must be between 1 and 1000"),
    ({"num_steps": 1001}, r"num_steps=1001 is out of range"),
    ({"num_steps": "20"}, r"num_steps must be a whole number, not str \('20'\)"),
    ({"guidance_scale": float("nan")}, r"guidance_scale=nan is not finite"),
    ({"guidance_scale": float("inf")}, r"guidance_scale=inf is not finite"),
    ({"guidance_scale": "7"}, r"guidance_scale must be a number, not str"),
    ({"sampler": "dpmpp2m"}, r"sampler='dpmpp2m' is unknown; did you mean 'dpmpp_2m'\? known: ddim, ddpm, deis"),
    ({"sampler": 5}, r"sampler=5 is unknown; known: ddim, ddpm, deis"),
    ({"sampler_options": {"eta": 0.5}}, r"sampler 'dpmpp_2m' has no option 'eta'; its options and .* solver_type="),
    ({"sampler_options": 0.5}, r"sampler_options must be a dict such as \{'eta': 0.5\}, not float \(0.5\)"),
    ({"sampler": "ddim", "sampler_options": {"eta": "much"}}, r"eta must be a number, not str \('much'\)"),
    ({"sigmas": [100.0, 5.0]}, r"sigmas end at 5, which leaves noise in the picture; let the last entry be 0"),
    ({"sigmas": [1.0, 2.0, 0.0]}, r"sigmas must fall from step to step, but sigmas\[0\]=1 is followed by 2"),
    ({"timesteps": [999, 1200]}, r"timesteps must fall from step to step"),
    ({"timesteps": [1200, 999]}, r"timesteps must lie between 0 and 999, not 1200 to 999"),
    ({"timesteps": [999, 500], "spacing": "karras"}, r"spacing and timesteps both say which noise levels"),
    ({"timesteps": [999, 500], "num_steps": 3}, r"num_steps=3, but timesteps makes 2 steps; leave num_steps out"),
    (
        {"guidance_scale": [3.0, 2.0]},
        r"guidance_scale has 2 entries for 20 steps and 1 images; give one",
    ),
    ({"guidance_scale": [3.0, "x"]}, r"guidance_scale\[1\] must be a number, not str"),
    ({"guidance_interval": (0.5, 0.1)}, r"guidance_interval must be \(start, end\) with 0 <= start <= end <= 1"),
    ({"guidance_interval": (0.5,)}, r"guidance_interval must be \(start, end\)"),
    ({"guidance_interval": 0.5}, r"guidance_interval must be a list of numbers, not float"),
    ({"guidance_rescale": 1.5}, r"guidance_rescale=1.5 is out of range; it must be between 0 and 1"),
    ({"rng": "numpy"}, r"rng='numpy' is unknown; known: philox, torch"),
    ({"spacing": "tailing"}, r"spacing='tailing' is unknown; did you mean 'trailing'\?"),
    ({"seed": -1}, r"seed=-1 is out of range"),
    ({"seed": 2**64}, r"seed=18446744073709551616 is out of range"),
    ({"seed": 1.0}, r"seed must be a whole number, not float"),
    ({"seed": [1, 2]}, r"seed has 2 entries for 1 images; give one number, or one an image"),
    ({"seed": ["x"]}, r"seed\[0\] must be a whole number, not str"),
    ({"num_steps": 1000, "spacing": "leading"}, r"spacing='leading' with num_steps=1000 visits a timestep"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_a_wrong_argument_is_one_clear_line(arguments, message):
    with pytest.raises(kerasdiff.RequestError, match=message) as caught:
        make_request(TINY, **{"prompt": "a red circle", **arguments})
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, kerasdiff.KerasdiffError)
    assert isinstance(caught.value, ValueError)


def test_full_size_models_have_sizes_of_their_own():
    with pytest.raises(kerasdiff.RequestError, match=r"height=500 is not a multiple of 64.* 448 or 512"):
        make_request(SD_V1, "x", height=500)


def test_defaults_are_the_models():
    request = make_request(TINY, "a red circle")
    defaults = TINY.defaults
    assert (request.height, request.width) == (128, 128)
    assert request.num_steps == defaults.num_steps
    assert request.sampler == defaults.sampler
    assert request.guidance_scale == defaults.guidance_scale
    assert request.negative_prompts == ("",)


def test_images_are_ordered_by_prompt_and_seeds_count_up():
    request = make_request(TINY, ["a", "b"], batch_size=2, seed=7, negative_prompt=["c", "d"])
    assert request.prompts == ("a", "a", "b", "b")
    assert request.negative_prompts == ("c", "c", "d", "d")
    assert request.seeds == (7, 8, 9, 10)
    assert make_request(TINY, ["a", "b"], negative_prompt="c").negative_prompts == ("c", "c")
    assert make_request(TINY, "a", batch_size=3, seed=[5, 0, MAX_SEED]).seeds == (5, 0, MAX_SEED)


def test_a_seed_is_drawn_and_recorded():
    first, second = (make_request(TINY, "a", batch_size=2).seeds for _ in range(2))
    assert first != second
    assert first[1] == first[0] + 1


def test_numpy_numbers_are_numbers():
    request = make_request(TINY, "a", batch_size=np.int64(2), seed=np.int32(3), guidance_scale=np.float32(2.5))
    assert len(request) == 2
    assert request.seeds == (3, 4)
    assert request.guidance_scale == 2.5


def test_equal_requests_are_equal():
    assert make_request(TINY, "a", seed=1) == make_request(TINY, "a", seed=1)
    assert make_request(TINY, "a", seed=1) != make_request(TINY, "a", seed=2)


def test_a_sampler_may_be_called_as_in_diffusers():
    assert make_request(TINY, "a", sampler="EulerAncestralDiscreteScheduler").sampler == "euler_a"
    assert make_request(TINY, "a", sampler="DPM++ 2M").sampler == "dpmpp_2m"


def test_noise_levels_are_the_models_then_the_samplers_own():
    assert make_request(TINY, "a", sampler="ddim").spacing == "trailing"
    assert make_request(SD_V1, "a", sampler="ddim").spacing is None
    request = make_request(SD_V1, "a", timesteps=[999, 400.5, 20])
    assert (request.num_steps, request.spacing, request.timesteps) == (3, None, (999.0, 400.5, 20.0))
    request = make_request(SD_V1, "a", sigmas=np.array([14.6, 3.0, 0.5, 0.0]))
    assert (request.num_steps, request.spacing, request.sigmas) == (3, None, (14.6, 3.0, 0.5, 0.0))


def test_guidance_is_one_weight_a_step_or_an_image():
    def guidance(prompt="a", **arguments):
        return make_request(TINY, prompt, num_steps=3, **arguments).guidance.T.tolist()

    assert guidance(guidance_scale=4) == [[4, 4, 4]]
    assert guidance(guidance_scale=[1, 2, 3]) == [[1, 2, 3]]
    assert guidance(["a", "b"], guidance_scale=[1, 2, 3]) == [[1, 2, 3]] * 2
    assert guidance(["a", "b"], guidance_scale=[5, 6], batch_size=2) == [[5] * 3] * 2 + [[6] * 3] * 2
    assert guidance(batch_size=2, guidance_scale=[5, 6]) == [[5] * 3, [6] * 3]
    assert guidance(batch_size=3, guidance_scale=[[5], [6], [7]]) == [[5] * 3, [6] * 3, [7] * 3]
    assert guidance(batch_size=3, guidance_scale=[[5, 6, 7]]) == [[5, 6, 7]] * 3
    assert guidance(batch_size=2, guidance_scale=[[1, 2, 3], [4, 5, 6]]) == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(kerasdiff.RequestError, match=r"as many steps as images; write \[\[a\], \[b\], \.\.\.\]"):
        guidance(batch_size=3, guidance_scale=[5, 6, 7])
    for wrong in ([[5, 6]], [[5], [6, 7]]):
        with pytest.raises(kerasdiff.RequestError, match="must have one number for each image, or 3, one a step"):
            guidance(guidance_scale=wrong)


def test_guidance_can_be_on_for_a_part_of_the_run():
    half = make_request(TINY, "a", num_steps=4, guidance_scale=4, guidance_interval=(0.25, 0.75))
    assert half.guidance[:, 0].tolist() == [1, 4, 4, 1]
    assert half.guided
    assert not make_request(TINY, "a", guidance_interval=(0.5, 0.5)).guided
    assert not make_request(TINY, "a", num_steps=2, guidance_scale=[1, 1]).guided


def test_a_run_that_starts_where_little_noise_is_expected_warns():
    with pytest.warns(UserWarning, match=r"starts from pure noise at timestep 0 of 999.* spacing='trailing'"):
        make_request(TINY, "a", sampler="euler", spacing="linspace", num_steps=1)
