"""The sums that diffusers' own scheduler tests check, without diffusers."""

from __future__ import annotations

import numpy as np
import pytest

from kerasdiff.models.config import ScheduleConfig
from kerasdiff.samplers import run_table, sampling_levels, sampling_table, trajectory
from kerasdiff.samplers.noise import torch_normal

# Dummy sample and dummy model of those tests. Stochastic ones draw from torch's generator, seed 0.
DUMMY = (np.arange(768, dtype="float32").reshape(3, 8, 8, 4) / 768).transpose(3, 0, 1, 2).astype("float64")


def model(x, t):
    return x * t / (t + 1)


def torch_noise():
    state = np.random.RandomState(0)
    return lambda draw, shape: torch_normal(state, shape)


def check(result, total, mean, mean_tolerance=1e-3):
    if total is not None:
        # Theirs is a float32 sum.
        assert np.abs(result).sum() == pytest.approx(total, abs=1e-2, rel=1e-6)
    assert np.abs(result).mean() == pytest.approx(mean, abs=mean_tolerance)


LINEAR = {"betas": "linear", "beta_start": 0.0001, "beta_end": 0.02}
LOWEST = {"final_sigmas_type": "sigma_min"}
PIXELS = {"steps_offset": 0, "set_alpha_to_one": True, "clip_sample": True}


@pytest.mark.parametrize(
    ("sampler", "settings", "total", "mean"),
    [
        ("ddim", {**LINEAR, **PIXELS}, 172.0067, 0.223967),
        ("ddim", {**LINEAR, **PIXELS, "prediction_type": "v_prediction"}, 52.5302, 0.0684),
        ("ddpm", {**LINEAR, "clip_sample": True, "num_steps": 1000}, 258.9606, 0.3372),
        ("pndm", {**LINEAR, "skip_prk_steps": False, "steps_offset": 0}, 198.1318, 0.2580),
        ("dpmpp_2m", {**LINEAR, **LOWEST, "lower_order_final": False}, None, 0.3301),
        ("dpmpp_2s", {**LINEAR, **LOWEST}, None, 0.2791),
        ("unipc", {**LINEAR, **LOWEST}, None, 0.2464),
        ("deis", LINEAR, None, 0.23916),
        ("lcm", {}, 197.7616, 0.2575),
    ],
)
def test_the_published_sums_of_the_family_of_unit_variance(sampler, settings, total, mean):
    result = trajectory(sampler, model, DUMMY, **{"num_steps": 10, "noise": torch_noise(), **settings})[-1]
    check(result, total, mean)


@pytest.mark.parametrize(
    ("sampler", "total", "mean", "mean_tolerance"),
    [
        ("lms", 1006.388, 1.31, 1e-3),
        ("euler", 10.0807, 0.0131, 1e-3),
        ("euler_a", 152.3192, 0.1983, 1e-3),
        ("heun", 0.1233, 0.0002, 1e-3),
        ("kdpm2", 20.4125, 0.0266, 1e-3),
        ("kdpm2_a", 13979.9433, 18.2030, 5e-3),
    ],
)
def test_the_published_sums_of_the_family_of_noise_levels(sampler, total, mean, mean_tolerance):
    schedule = ScheduleConfig(num_train_timesteps=1100, beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
    levels = sampling_levels(schedule, sampler, 10)
    table = sampling_table(levels, sampler, {})
    # Those tests feed the scaled input back as the sample: every row sees an x that was scaled before.
    table.updates[:, :, 0] *= table.inputs[:, :1]
    table.inputs[:, 2] *= table.inputs[:, 0]
    draw = torch_noise()
    check(
        run_table(table, model, DUMMY, lambda row: draw(row, DUMMY.shape))[-1],
        total,
        mean,
        mean_tolerance,
    )
