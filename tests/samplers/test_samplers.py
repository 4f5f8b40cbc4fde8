"""The mathematics of each sampler, without a model: exact lines, error slopes, published sums."""

from __future__ import annotations

import numpy as np
import pytest

from kerasdiff.models.config import ScheduleConfig
from kerasdiff.samplers import SAMPLERS, SPACINGS, make_table, run_table
from kerasdiff.samplers.schedules import alphas_cumprod, sigmas_at, timesteps_at

ORDERS = {"euler": 1, "ddim": 1, "dpmpp_2m": 2}
SD = ScheduleConfig()


def run_rows(sampler, sigmas, denoiser, x, scale_input=False):
    """x after a sampler's rows, D being `denoiser(x, sigma)`."""
    memories = [np.zeros_like(x)] * 4
    for row in SAMPLERS[sampler](sigmas):
        if scale_input:
            x = x / np.sqrt(1 + row.sigma**2)
        terms = np.stack([x, *memories, denoiser(x, row.sigma), np.zeros_like(x)])
        x = np.tensordot(row.x, terms, axes=1)
        kept = [np.tensordot(coefficients, terms, axes=1) for coefficients in row.keep]
        memories = kept + [np.zeros_like(x)] * (4 - len(kept))
    return x


def test_every_sampler_has_a_stated_order():
    assert set(ORDERS) == set(SAMPLERS)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_a_constant_denoiser_gives_the_exact_line(sampler, num_steps):
    answer, start = np.array([2.0, -1.0]), np.array([30.0, 11.0])
    sigmas = np.append(np.geomspace(14.6, 0.03, num_steps), 0)
    assert np.allclose(run_rows(sampler, sigmas, lambda x, sigma: answer, start), answer, atol=1e-12)
    # Stopped half-way, x is still on the line from the start to the answer.
    if num_steps > 1:
        stopped = run_rows(sampler, sigmas[:-1], lambda x, sigma: answer, start)
        assert np.allclose(stopped, answer + (start - answer) * sigmas[-2] / sigmas[0], atol=1e-12)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_error_on_gaussian_data_falls_with_the_stated_order(sampler):
    spread = 0.7

    def denoiser(x, sigma):
        return x * spread**2 / (spread**2 + sigma**2)

    errors = []
    counts = (32, 64, 128)
    for count in counts:
        sigmas = np.geomspace(10.0, 0.1, count + 1)
        exact = np.sqrt((spread**2 + sigmas[-1] ** 2) / (spread**2 + sigmas[0] ** 2))
        errors.append(abs(run_rows(sampler, sigmas, denoiser, np.ones(1))[0] - exact))
    slopes = -np.diff(np.log(errors)) / np.diff(np.log(counts))
    assert slopes == pytest.approx(ORDERS[sampler], abs=0.15)


def test_ddim_is_equation_12_in_its_own_variables():
    """Song et al. write DDIM in variance-preserving variables; ours must give the same numbers."""
    alphas = alphas_cumprod(SD)
    timesteps = SPACINGS["leading"](10, 1000).astype(int)

    def model(x, timestep):
        return np.tanh(x) * timestep / 1000

    start = np.random.default_rng(0).standard_normal(64)
    x = start.copy()
    for place, t in enumerate(timesteps):
        a = alphas[t]
        a_next = alphas[timesteps[place + 1]] if place + 1 < len(timesteps) else 1.0
        noise = model(x, t)
        x0 = (x - np.sqrt(1 - a) * noise) / np.sqrt(a)
        x = np.sqrt(a_next) * x0 + np.sqrt(1 - a_next) * noise
    table = make_table(SAMPLERS["ddim"], np.append(sigmas_at(SD, timesteps), 0), SD)
    assert np.allclose(run_table(table, model, start)[-1], x, rtol=1e-9)


# The published checks of diffusers' scheduler tests: dummy sample, dummy model, 10 steps.
DUMMY = (np.arange(768, dtype="float32").reshape(3, 8, 8, 4) / 768).transpose(3, 0, 1, 2).astype("float64")


def test_euler_hits_the_published_sum():
    schedule = ScheduleConfig(1100, 0.0001, 0.02, "linear")
    timesteps = SPACINGS["linspace"](10, 1100)
    sigmas = np.append(sigmas_at(schedule, timesteps), 0)
    times = dict(zip(sigmas, timesteps, strict=False))

    def denoiser(x, sigma):
        t = times[sigma]
        return x - sigma * x * t / (t + 1)

    # That test feeds the scaled input back as the sample.
    result = run_rows("euler", sigmas, denoiser, DUMMY * sigmas[0], scale_input=True)
    assert np.abs(result).sum() == pytest.approx(10.0807, abs=1e-2)
    assert np.abs(result).mean() == pytest.approx(0.0131, abs=1e-3)


def test_dpmpp_2m_hits_the_published_mean():
    schedule = ScheduleConfig(1000, 0.0001, 0.02, "linear")
    timesteps = np.linspace(0, 999, 11).round()[::-1]
    sigmas = sigmas_at(schedule, timesteps)
    times = dict(zip(sigmas, timesteps, strict=True))

    def denoiser(x, sigma):
        t = times[sigma]
        return x - sigma * (x / np.sqrt(1 + sigma**2)) * t / (t + 1)

    result = run_rows("dpmpp_2m", sigmas, denoiser, DUMMY * np.sqrt(1 + sigmas[0] ** 2))
    assert np.abs(result / np.sqrt(1 + sigmas[-1] ** 2)).mean() == pytest.approx(0.3301, abs=1e-3)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_denoised_prediction_is_the_same_from_every_kind_of_output(prediction_type):
    schedule = ScheduleConfig(prediction_type=prediction_type)
    rng = np.random.default_rng(1)
    x0, start = rng.standard_normal(16), rng.standard_normal(16)
    sigmas = np.append(sigmas_at(schedule, SPACINGS["trailing"](5, 1000)), 0)

    def model(scaled, timestep):
        sigma = sigmas_at(schedule, timestep)
        x = scaled * np.sqrt(1 + sigma**2)
        noise = (x - x0) / sigma
        signal = 1 / np.sqrt(1 + sigma**2)
        return {"epsilon": noise, "v_prediction": signal * noise - sigma * signal * x0, "sample": x0}[prediction_type]

    table = make_table(SAMPLERS["euler"], sigmas, schedule)
    assert np.allclose(run_table(table, model, start)[-1], x0, atol=1e-9)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("num_steps", [1, 2, 25, 50, 1000])
def test_spacings_fall_and_stay_within_the_trained_timesteps(spacing, num_steps):
    timesteps = SPACINGS[spacing](num_steps, 1000)
    assert timesteps.shape == (num_steps,)
    assert np.all(np.diff(timesteps) < 0)
    # Stable Diffusion's offset takes a run over every timestep one past the end, as in diffusers.
    assert timesteps.min() >= 0
    assert timesteps.max() <= 999 + (spacing == "leading" and num_steps == 1000)


def test_spacings_are_the_published_ones():
    assert SPACINGS["leading"](4, 1000).tolist() == [751, 501, 251, 1]
    assert SPACINGS["trailing"](4, 1000).tolist() == [999, 749, 499, 249]
    assert SPACINGS["linspace"](4, 1000).tolist() == [999, 666, 333, 0]
    assert SPACINGS["keras_cv"](3, 1000).tolist() == [999, 500, 0]
    assert SPACINGS["keras_cv"](1, 1000).tolist() == [0]


def test_timesteps_and_noise_levels_are_inverse():
    timesteps = np.arange(1000)
    assert np.allclose(timesteps_at(SD, sigmas_at(SD, timesteps)), timesteps, atol=1e-7)


def test_the_schedule_of_stable_diffusion():
    sigmas = sigmas_at(SD, np.array([0, 999]))
    assert sigmas == pytest.approx([0.02916, 14.6146], rel=1e-3)
