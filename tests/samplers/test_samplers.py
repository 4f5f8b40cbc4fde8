"""The mathematics of each sampler, without a model and without an oracle: exact lines, error slopes."""

from __future__ import annotations

import re

import numpy as np
import pytest

from kerasdiff.errors import ModelError, RequestError
from kerasdiff.models.config import ScheduleConfig
from kerasdiff.samplers import (
    RECIPES,
    SAMPLERS,
    SPACINGS,
    make_table,
    run_table,
    sampler_name,
    sampling_levels,
    trajectory,
)
from kerasdiff.samplers.schedules import alphas_cumprod, sigmas_at, timesteps_at, trained_sigmas
from kerasdiff.samplers.sigmas import Levels
from kerasdiff.samplers.update import MEMORIES

SD = ScheduleConfig()
TRAINED = trained_sigmas(SD)
# Of a whole run, as the docstrings state it. LCM is none; TCD is one without its noise.
ORDERS = {
    "ddim": 1,
    "ddpm": 1,
    "pndm": 2,
    "lms": 2,
    "euler": 1,
    "euler_a": 1,
    "heun": 2,
    "kdpm2": 2,
    "kdpm2_a": 2,
    "dpmpp_2m": 2,
    "dpmpp_2m_sde": 2,
    "dpmpp_3m_sde": 1,
    "dpmpp_2s": 2,
    "dpmpp_sde": 2,
    "dpm_solver": 2,
    "deis": 2,
    "unipc": 2,
    "tcd": 1,
}
WORDS = {1: "First order", 2: "Second order"}
NOISELESS = {"tcd": {"eta": 0.0}}


def levels_through(sigmas):
    """Levels of any run: the timesteps are of a schedule that is even in log sigma."""
    trained = np.geomspace(0.01, 80, 1000)
    return Levels(sigmas, timesteps_at(trained, sigmas[:-1]), trained, "sample", float(sigmas[0]))


def table_through(name, sigmas, **options):
    levels = levels_through(sigmas)
    entry = SAMPLERS[name]
    return make_table(entry.rows(levels, **options), levels, entry.convention)


def spread_after(name, sigmas, spread, **options):
    """The deviation that a run leaves of x ~ N(0, spread ** 2 + sigmas[0] ** 2), for Gaussian data: exact.

    The best denoiser of such data is linear, so that rows are matrices, and they act on the covariance
    of x and the remembered tensors.
    """
    table = table_through(name, sigmas, **options)
    covariance = np.zeros((1 + MEMORIES, 1 + MEMORIES))
    covariance[0, 0] = spread**2 + sigmas[0] ** 2
    for inputs, update in zip(table.inputs, table.updates, strict=True):
        variance = 1 / inputs[0] ** 2 - 1
        matrix = update[:, : 1 + MEMORIES].copy()
        matrix[:, 0] += update[:, 1 + MEMORIES] * spread**2 / (spread**2 + variance)
        noise = update[:, -1]
        covariance = matrix @ covariance @ matrix.T + np.outer(noise, noise)
    return np.sqrt(covariance[0, 0])


def slopes(name, counts, **options):
    spread, errors = 0.7, []
    for count in counts:
        sigmas = np.geomspace(10.0, 0.1, count + 1)
        exact = np.sqrt(spread**2 + sigmas[-1] ** 2)
        errors.append(abs(spread_after(name, sigmas, spread, **options) - exact))
    return -np.diff(np.log(errors)) / np.diff(np.log(counts))


def test_every_sampler_has_a_stated_order():
    assert {*ORDERS, "lcm"} == set(SAMPLERS)
    for name, order in ORDERS.items():
        assert WORDS[order] in SAMPLERS[name].summary, name


@pytest.mark.parametrize("name", ORDERS)
def test_the_error_on_gaussian_data_falls_with_the_stated_order(name):
    # The steps of LMS and UniPC are of higher order; what is left of their ends shows late.
    counts = (512, 1024, 2048) if name in ("lms", "unipc") else (64, 128, 256)
    assert slopes(name, counts, **NOISELESS.get(name, {})) == pytest.approx(ORDERS[name], abs=0.15)


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        ("unipc", {"lower_order_final": False}, 3),
        ("unipc", {"solver_order": 1}, 2),
        ("pndm", {"skip_prk_steps": False}, 2),
        ("dpmpp_3m_sde", {"third_order": "exact"}, 2),
        ("dpmpp_sde", {"eta": 0.0}, 2),
        ("kdpm2_a", {"eta": 0.0}, 2),
        ("euler_a", {"eta": 0.0}, 1),
        ("ddim", {"eta": 1.0}, 1),
        ("dpmpp_2m", {"solver_type": "heun"}, 2),
        ("dpmpp_2m", {"solver_order": 1}, 1),
        ("dpmpp_2m", {"solver_order": 3}, 2),
        ("dpm_solver", {"solver_order": 3}, 2),
        ("dpmpp_2s", {"solver_type": "heun"}, 2),
        ("dpm_solver", {"solver_type": "heun"}, 2),
    ],
)
def test_options_keep_or_raise_the_order(name, options, order):
    assert slopes(name, (64, 128, 256), **options) == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("num_steps", [1, 2, 7, 20])
def test_a_constant_denoiser_gives_the_exact_line(name, num_steps):
    answer, start = np.array([2.0, -1.0]), np.array([30.0, 11.0])
    sigmas = np.append(np.geomspace(14.6, 0.03, num_steps), 0)
    table = table_through(name, sigmas, **NOISELESS.get(name, {}))
    states = run_table(table, lambda x, t: answer, start / table.initial_scale)
    assert np.allclose(states[-1], answer, atol=1e-9)
    # Without noise, every state on the way lies on the line from the start to the answer, at its noise level.
    if not table.noisy.any():
        following = np.append(np.sqrt(1 / table.inputs[1:, 0] ** 2 - 1), 0)
        for state, sigma in zip(states, following, strict=True):
            assert np.allclose(state, answer + (start - answer) * sigma / sigmas[0], atol=1e-9)


@pytest.mark.parametrize("name", [name for name in ORDERS if "eta" in SAMPLERS[name].options or name == "ddpm"])
def test_fresh_noise_restores_the_noise_level(name):
    """With data at one point, x is that point plus noise of exactly the level that a run has reached."""
    sigmas = np.geomspace(14.6, 0.5, 12)
    assert spread_after(name, sigmas, 0.0) == pytest.approx(0.5, rel=1e-9)


def test_lcm_jumps_to_the_data_and_puts_the_next_noise_on_it():
    table = table_through("lcm", np.array([14.6, 3.0, 0.0]), timestep_scaling=1e6)
    assert np.allclose(table.updates[0, 0], [0, 0, 0, 0, 0, 1, 3.0], atol=1e-9)
    assert np.allclose(table.updates[1, 0], [0, 0, 0, 0, 0, 1, 0.0], atol=1e-9)
    # The boundary condition: at timestep 0 the state is already the data.
    levels = Levels(np.array([TRAINED[0], 0.0]), np.array([0.0]), TRAINED, "epsilon", 1.0)
    (row,) = SAMPLERS["lcm"].rows(levels)
    assert np.allclose(row.x, np.eye(7)[0] / np.sqrt(1 + TRAINED[0] ** 2))


def test_ddim_is_equation_12_in_its_own_variables():
    """Song et al. write DDIM in variance-preserving variables; ours must give the same numbers."""
    alphas = alphas_cumprod(SD)
    timesteps = [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]

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
    ours = trajectory("ddim", model, start, num_steps=10, final_sigmas_type="zero")[-1]
    assert np.allclose(ours, x, rtol=1e-9)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_the_denoised_prediction_is_the_same_from_every_kind_of_output(prediction_type, zero_snr):
    if zero_snr and prediction_type == "epsilon":
        return  # pure noise says nothing about the picture
    schedule = ScheduleConfig(prediction_type=prediction_type, rescale_betas_zero_snr=zero_snr)
    rng = np.random.default_rng(1)
    x0, start = rng.standard_normal(16), rng.standard_normal(16)
    trained = trained_sigmas(schedule)

    def model(scaled, timestep):
        sigma = sigmas_at(trained, timestep)
        x = scaled * np.sqrt(1 + sigma**2)
        noise = (x - x0) / sigma
        signal = 1 / np.sqrt(1 + sigma**2)
        return {"epsilon": noise, "v_prediction": signal * noise - sigma * signal * x0, "sample": x0}[prediction_type]

    states = trajectory(
        "euler",
        model,
        start,
        num_steps=5,
        spacing="trailing",
        prediction_type=prediction_type,
        rescale_betas_zero_snr=zero_snr,
    )
    assert np.allclose(states[-1], x0, atol=1e-9)


def test_zero_terminal_snr_leaves_no_signal():
    schedule = ScheduleConfig(rescale_betas_zero_snr=True)
    alphas = alphas_cumprod(schedule)
    assert alphas[-1] == 0
    assert alphas[0] == pytest.approx(alphas_cumprod(SD)[0])
    assert np.all(np.diff(alphas) < 0)
    for name in ("ddim", "euler"):
        levels = sampling_levels(schedule, name, 4, spacing="trailing")
        assert np.all(np.isfinite(levels.sigmas))
        assert levels.sigmas[0] > 4000
        assert levels.timesteps[0] == 999


@pytest.mark.parametrize("spacing", [name for name in SPACINGS if name != "flow"])
@pytest.mark.parametrize("name", ["ddim", "euler", "dpmpp_2m", "deis"])
@pytest.mark.parametrize("num_steps", [1, 2, 25, 50, 999])
def test_every_spacing_goes_with_every_family(spacing, name, num_steps):
    if spacing == "lcm" and num_steps > 50:
        return
    levels = sampling_levels(SD, name, num_steps, spacing=spacing)
    assert levels.timesteps.shape == (num_steps,)
    assert levels.sigmas.shape == (num_steps + 1,)
    steps = np.diff(levels.sigmas)
    assert np.all(steps[:-1] < 0)
    assert steps[-1] <= 0
    assert levels.timesteps.min() >= 0
    assert levels.timesteps.max() <= 999
    final = levels.sigmas[-1]
    # DEIS of a single step by noise levels ends where it starts, as in diffusers.
    alone = name == "deis" and num_steps == 1 and spacing in ("karras", "lu", "exponential", "beta")
    assert final in (0, TRAINED[0]) or alone


def test_spacings_are_the_published_ones():
    assert SPACINGS["leading"](4, 1000, 1).tolist() == [751, 501, 251, 1]
    assert SPACINGS["trailing"](4, 1000).tolist() == [999, 749, 499, 249]
    assert SPACINGS["linspace"](4, 1000).tolist() == [999, 666, 333, 0]
    assert SPACINGS["keras_cv"](3, 1000).tolist() == [999, 500, 0]
    assert SPACINGS["keras_cv"](1, 1000).tolist() == [0]
    assert SPACINGS["lcm"](4, 1000).tolist() == [999, 759, 499, 259]
    assert SPACINGS["lcm"](4, 1000, 50, 0.5).tolist() == [499, 379, 259, 139]
    assert SPACINGS["ays"](10, 1000).tolist() == [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
    assert SPACINGS["ays_sdxl"](10, 1000).tolist() == [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]
    # Half as many visit every second level, and twice as many the geometric mean of neighbours besides.
    assert SPACINGS["ays"](5, 1000) == pytest.approx([999, 736, 545, 343, 124])
    twice = sampling_levels(SD, "euler", 20, spacing="ays").sigmas
    assert twice[1] == pytest.approx((twice[0] * twice[2]) ** 0.5, rel=1e-3)
    assert SPACINGS["ays"](10, 500)[0] == 499
    karras = SPACINGS["karras"](3, 0.1, 10.0)
    assert karras == pytest.approx([10.0, ((10 ** (1 / 7) + 0.1 ** (1 / 7)) / 2) ** 7, 0.1])
    assert SPACINGS["exponential"](3, 0.1, 10.0) == pytest.approx([10, 1, 0.1])
    assert SPACINGS["beta"](3, 0.0, 10.0) == pytest.approx([10, 5, 0])


def test_the_spacing_of_keras_cv_ends_at_no_noise_as_keras_cv_does():
    for name in SAMPLERS:
        assert sampling_levels(SD, name, 10, spacing="keras_cv").sigmas[-1] == 0


def test_timesteps_and_noise_levels_are_inverse():
    timesteps = np.arange(1000)
    assert np.allclose(timesteps_at(TRAINED, sigmas_at(TRAINED, timesteps)), timesteps, atol=1e-7)


def test_the_schedule_of_stable_diffusion():
    assert TRAINED[[0, 999]] == pytest.approx([0.02916, 14.6146], rel=1e-3)
    given = ScheduleConfig(trained_betas=tuple(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))
    assert np.allclose(trained_sigmas(given), TRAINED)


def test_each_row_belongs_to_the_step_whose_level_it_is_at():
    """What a guidance weight per step is applied to."""

    def steps(name, **options):
        return table_through(name, np.array([10.0, 5.0, 1.0, 0.0]), **options).steps.tolist()

    assert steps("euler") == [0, 1, 2]
    assert steps("heun") == [0, 1, 1, 2, 2]
    assert steps("kdpm2") == [0, 0, 1, 1, 2]
    assert steps("kdpm2_a") == [0, 1, 1, 2, 2]  # its middle is the next level
    assert steps("pndm") == [0, 1, 1, 2]


def test_catalogue_prints_one_line_a_sampler():
    for catalogue in (SAMPLERS, SPACINGS, RECIPES):
        lines = str(catalogue).splitlines()
        assert [line.split()[0] for line in lines] == list(catalogue)
        assert all(len(line.split()) > 3 and line.endswith(".") for line in lines)
        assert repr(catalogue) == str(catalogue)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("PNDMScheduler", "pndm"),
        ("PLMS", "pndm"),
        ("DPMSolverMultistepScheduler", "dpmpp_2m"),
        ("DPMSolverSinglestepScheduler", "dpmpp_2s"),
        ("LMSDiscreteScheduler", "lms"),
        ("EulerAncestralDiscreteScheduler", "euler_a"),
        ("KDPM2AncestralDiscreteScheduler", "kdpm2_a"),
        ("UniPCMultistepScheduler", "unipc"),
        ("DPM++ 2M SDE", "dpmpp_2m_sde"),
        ("Euler a", "euler_a"),
        ("DPM2", "kdpm2"),
        ("dpm-solver", "dpm_solver"),
    ],
)
def test_other_peoples_names(said, meant):
    assert sampler_name(said) == meant


ZEROS = np.zeros(4)
MISTAKES = [
    ({"sampler": "eulr"}, "sampler='eulr' is unknown; did you mean 'euler'? known: ddim, ddpm, deis"),
    ({"sampler": "PNDMSheduler"}, "did you mean 'pndm'?"),
    ({"sampler": 3}, "sampler=3 is unknown; known: ddim"),
    (
        {"spacing": "karas"},
        "spacing='karas' is unknown; did you mean 'karras'? known: ays, ays_sdxl, beta, exponential",
    ),
    ({"prediction_type": "v_pred"}, "prediction_type='v_pred' is unknown; did you mean 'v_prediction'?"),
    ({"betas": "scaled"}, "betas='scaled' is unknown; did you mean 'scaled_linear'?"),
    ({"num_steps": 0}, "num_steps=0 is out of range; it must be between 1 and 1000"),
    ({"num_steps": 1001}, "num_steps=1001 is out of range; it must be between 1 and 1000"),
    ({"num_steps": None}, "num_steps is missing"),
    ({"num_steps": 5, "timesteps": [9, 5]}, "num_steps=5, but timesteps makes 2 steps; leave num_steps out"),
    ({"num_steps": 4, "sigmas": [9, 5, 1, 0]}, "num_steps=4, but sigmas makes 3 steps; leave num_steps out"),
    ({"spacing": "karras", "timesteps": [9]}, "spacing and timesteps both say which noise levels to visit"),
    ({"sigmas": [5.0, 6.0, 0.0]}, "sigmas must fall from step to step, but sigmas[0]=5 is followed by 6"),
    ({"sigmas": [5.0, 5.0, 0.0]}, "sigmas must fall from step to step, but sigmas[0]=5 is followed by 5"),
    ({"sigmas": [80.0, 0.0]}, "sigmas start at 80; the model was trained up to a noise level of 14.6146"),
    ({"sigmas": [5.0, -1.0]}, "sigmas end at -1; the lowest noise level is 0"),
    ({"sigmas": [5.0]}, "sigmas needs at least two levels"),
    ({"sigmas": []}, "sigmas is an empty list"),
    ({"sigmas": 5}, "sigmas must be a list of numbers, not int (5)"),
    ({"sigmas": ["a", 0]}, "sigmas[0] must be a number, not str ('a')"),
    ({"timesteps": [5, 7]}, "timesteps must fall from step to step, but timesteps[0]=5 is followed by 7"),
    ({"timesteps": [1000, 7]}, "timesteps must lie between 0 and 999, not 1000 to 7"),
    ({"sampler": "ddim", "num_steps": 1000}, "spacing='leading' with num_steps=1000 visits a timestep that"),
    ({"sampler": "dpmpp_2m", "num_steps": 1000}, "spacing='linspace' with num_steps=1000 visits a timestep twice"),
    ({"sampler": "lcm", "num_steps": 51}, "num_steps=51 is more than the 50 steps that spacing='lcm' chooses"),
    ({"sampler": "pndm", "skip_prk_steps": False, "num_steps": 3}, "pndm with skip_prk_steps=False needs at least 4"),
    ({"sampler": "ddim", "eta": 2}, "eta=2 is out of range; it must be between 0 and 1"),
    ({"sampler": "unipc", "solver_type": "bh3"}, "solver_type='bh3' is unknown; did you mean"),
    ({"sampler": "euler", "eta": 1}, "sampler 'euler' has no option 'eta'; its options and their defaults: none"),
    ({"sampler": "lms", "ordr": 1}, "sampler 'lms' has no option 'ordr'; its options and their defaults: order=4"),
    ({"sampler": "euler_a"}, "sampler 'euler_a' takes fresh noise; give noise"),
    ({"final_sigmas_type": "none"}, "final_sigmas_type='none' is unknown; known: sigma_min, zero"),
]


@pytest.mark.parametrize(("wrong", "line"), MISTAKES)
def test_bad_input_is_one_clear_line(wrong, line):
    arguments = {"sampler": "euler", "num_steps": None if {"sigmas", "timesteps"} & set(wrong) else 10, **wrong}
    with pytest.raises(RequestError, match=re.escape(line)) as caught:
        trajectory(model=lambda x, t: x, x=ZEROS, **arguments)
    assert "\n" not in str(caught.value)


def test_a_model_or_noise_of_another_shape_is_one_clear_line():
    with pytest.raises(RequestError, match=re.escape("model gave an array of shape (3,); x has shape (4,)")):
        trajectory("euler", lambda x, t: x[1:], ZEROS, num_steps=2)
    with pytest.raises(RequestError, match=re.escape("noise gave an array of shape (); x has shape (4,)")):
        trajectory("euler_a", lambda x, t: x, ZEROS, num_steps=2, noise=lambda i, shape: 0.0)
    with pytest.raises(ModelError, match="trained_betas must lie between 0 and 1"):
        trajectory("euler", lambda x, t: x, ZEROS, num_steps=2, betas=[0.1, 1.5])
    with pytest.raises(ModelError, match=r"betas must rise within 0 and 1, not from 0\.5 to 0\.1"):
        trajectory("euler", lambda x, t: x, ZEROS, num_steps=2, beta_start=0.5, beta_end=0.1)


def test_trajectory_has_as_many_states_as_evaluations():
    calls = []

    def model(x, t):
        calls.append(t)
        return x

    for name, evaluations in {"euler": 10, "heun": 19, "kdpm2": 19, "pndm": 11, "dpmpp_sde": 19, "unipc": 10}.items():
        calls.clear()
        states = trajectory(name, model, ZEROS, num_steps=10, noise=lambda i, shape: np.zeros(shape))
        assert len(states) == len(calls) == evaluations
