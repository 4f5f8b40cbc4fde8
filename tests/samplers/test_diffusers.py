"""Every sampler against its class in diffusers, state by state."""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings

import keras
import numpy as np
import oracle
import pytest
from oracle import STABLE_DIFFUSION, diffusers, in_float64, states_of

from kerasdiff.diffusion.conditioning import Conditioning, ContextTable
from kerasdiff.diffusion.denoise_step import DenoiseStage
from kerasdiff.diffusion.initial_state import InitialState
from kerasdiff.models.config import ScheduleConfig
from kerasdiff.runtime.compiled import LayerNetwork
from kerasdiff.samplers import SAMPLERS, run_table, sampling_levels, sampling_table, trajectory
from kerasdiff.samplers.batched import same_for_all

# Our name -> its class, and the settings of Stable Diffusion's own configuration.
CLASSES = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "kdpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_3m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler", {}),
    "dpmpp_sde": ("DPMSolverSDEScheduler", {}),
    "dpm_solver": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    "deis": ("DEISMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
# The last step of LMS reaches a hundred times further than the steps that its cubic goes through, which
# multiplies any rounding by a million: diffusers' own float32 is as far from its float64 as ours.
ILL_CONDITIONED = [("lms", "karras", 999)]
# There diffusers mixes up two histories when it begins in the middle: LMS takes the weights of a full history for one
# that is empty, and PNDM counts a step that it does twice as two.
BEGIN_OTHERWISE = ("lms", "pndm")
STEPS = (1, 2, 5, 10, 25, 50)
MOST_STEPS = 999
SHAPE = (2, 4, 4, 4)
START = np.random.default_rng(0).standard_normal(SHAPE)


def noise(draw, shape):
    return np.random.default_rng(1000 + draw).standard_normal(shape)


def model(x, t, xp=np):
    """A stand-in for the U-Net: smooth, not linear, dependent on the timestep."""
    return 0.9 * xp.tanh(x) * (t / 1000) + 0.1 * xp.sin(2 * x)


def make(name, **settings):
    class_name, own = CLASSES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(diffusers, class_name)(**{**STABLE_DIFFUSION, **own, **settings})


def has(name, setting):
    return setting in inspect.signature(getattr(diffusers, CLASSES[name][0]).__init__).parameters


def distilled(name, num_steps):
    """Traceable longer than the distillation need more steps to choose from."""
    return {"original_inference_steps": 1000} if name in ("lcm", "tcd") and num_steps > 50 else {}


@functools.cache
def expected(name, prediction_type, spacing, num_steps, double):
    settings = {} if spacing is None else {f"use_{spacing}_sigmas": True}
    settings.update(distilled(name, num_steps))
    with in_float64() if double else contextlib.nullcontext():
        return states_of(make(name, prediction_type=prediction_type, **settings), model, START, num_steps, noise)


def spacings_of(name):
    return [None, "karras"] if has(name, "use_karras_sigmas") else [None]


def worst(ours, theirs):
    assert len(ours) == len(theirs)
    return max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(ours, theirs, strict=True))


CASES = [(name, kind) for name in CLASSES for kind in ("epsilon", "v_prediction")]
# Of the longest runs one for each sampler is enough; the others are slow.
LONGEST = [
    pytest.param(name, kind, spacing, marks=[] if spacing is None and kind == "epsilon" else pytest.mark.slow)
    for name, kind in CASES
    for spacing in spacings_of(name)
]


def test_every_sampler_is_compared():
    assert set(CLASSES) == set(SAMPLERS)


def in_numpy(name, prediction_type, spacing, num_steps):
    return trajectory(
        name,
        model,
        START,
        num_steps=num_steps,
        spacing=spacing,
        prediction_type=prediction_type,
        noise=noise,
        **distilled(name, num_steps),
    )


class Draws:
    """The noise that diffusers gets, by the number of its draw."""

    def __init__(self, draws):
        self._draws = draws

    def fresh(self, rows):
        return noise(int(self._draws[rows[0]]), SHAPE).astype("float32")


def compiled(prediction_type):
    """The compiled step around the stand-in, and a function that runs a whole trajectory through it."""
    schedule = ScheduleConfig(prediction_type=prediction_type)
    network = LayerNetwork(lambda x, t, context: model(x, keras.ops.reshape(t, (-1, 1, 1, 1)), keras.ops))
    denoise = DenoiseStage(network, jit_compile=False)
    context = np.zeros((len(START), 1, 1), "float32")

    def run(name, spacing, num_steps):
        levels = sampling_levels(schedule, name, num_steps, spacing=spacing, **distilled(name, num_steps))
        table = sampling_table(levels, name, {})
        states = denoise(
            InitialState((START * table.initial_scale).astype("float32")),
            Conditioning(ContextTable.same(context, len(START))),
            None,
            same_for_all(table, len(START)),
            Draws(np.cumsum(table.noisy) - 1),
        )
        return [np.asarray(state.x) * scale for state, scale in zip(states, table.scales, strict=True)]

    return denoise, run


@pytest.mark.parametrize(("name", "prediction_type"), CASES)
def test_whole_trajectories_in_float64(name, prediction_type):
    """diffusers' tables are float32; with float64 in their place nothing is left but rounding."""
    for spacing in spacings_of(name):
        for num_steps in STEPS:
            case = name, prediction_type, spacing, num_steps
            assert worst(in_numpy(*case), expected(*case, True)) < 1e-9, (spacing, num_steps)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "prediction_type"), CASES)
def test_whole_trajectories_as_people_run_them(name, prediction_type):
    for spacing in spacings_of(name):
        for num_steps in STEPS:
            case = name, prediction_type, spacing, num_steps
            assert worst(in_numpy(*case)[-1:], expected(*case, False)[-1:]) < 1e-4, (spacing, num_steps)


@pytest.mark.parametrize(("name", "prediction_type"), CASES)
def test_whole_trajectories_through_the_compiled_step(name, prediction_type):
    denoise, run = compiled(prediction_type)
    for spacing in spacings_of(name):
        for num_steps in STEPS:
            theirs = expected(name, prediction_type, spacing, num_steps, True)
            assert worst(run(name, spacing, num_steps), theirs) < 1e-3, (spacing, num_steps)
    assert denoise.traces == 1


@pytest.mark.parametrize(("name", "prediction_type", "spacing"), LONGEST)
def test_the_longest_trajectories(name, prediction_type, spacing):
    # TCD's float64 loses a whole timestep to rounding in a few of 999 steps; its float32 does not.
    double = name != "tcd"
    case = name, prediction_type, spacing, MOST_STEPS
    theirs = expected(*case, double)
    assert worst(in_numpy(*case), theirs) < (1e-9 if double else 1e-4)
    if (name, spacing, MOST_STEPS) not in ILL_CONDITIONED:
        _, run = compiled(prediction_type)
        assert worst(run(name, spacing, MOST_STEPS), theirs) < 1e-3


@pytest.mark.parametrize("spacing", [None, "karras"])
@pytest.mark.parametrize("name", [name for name in CLASSES if name not in BEGIN_OTHERWISE])
def test_runs_that_begin_at_a_picture(name, spacing):
    if spacing not in spacings_of(name):
        return
    grain = np.random.default_rng(5).standard_normal(SHAPE)
    settings = {} if spacing is None else {f"use_{spacing}_sigmas": True}
    for num_steps, strength in ((10, 1.0), (10, 0.75), (10, 0.34), (10, 0.1), (25, 0.5), (7, 0.6)):
        first = num_steps - int(num_steps * strength)
        if name == "dpmpp_2s" and first % 2:
            continue  # diffusers begins in the middle of a pair of steps, as if its first one had been done
        with in_float64():
            scheduler = make(name, **settings)
            theirs = states_of(scheduler, model, START, num_steps, noise, strength=strength, grain=grain)
        levels = sampling_levels(ScheduleConfig(), name, num_steps, spacing=spacing).from_step(first)
        table = sampling_table(levels, name, {})
        draws = np.cumsum(table.noisy) - 1
        start = (START + table.initial_sigma * grain) / table.initial_scale
        states = run_table(table, model, start, lambda row, draws=draws: noise(int(draws[row]), SHAPE))
        ours = [state * scale for state, scale in zip(states, table.scales, strict=True)]
        assert worst(ours, theirs) < 1e-8, (num_steps, strength)


def compare(name, settings, ours, *, num_steps=10, double=True, tolerance=1e-9, run=None, **arguments):
    with in_float64() if double else contextlib.nullcontext():
        theirs = states_of(make(name, **settings), model, START, num_steps, noise, **(run or {}))
    result = trajectory(name, model, START, num_steps=num_steps, noise=noise, **{**arguments, **ours})
    assert worst(result, theirs) < tolerance


# Settings of the classes that are not their defaults -> ours.
VARIANTS = [
    ("ddim", {}, {"eta": 0.7}, {"step": {"eta": 0.7}}),
    ("ddim", {"set_alpha_to_one": True, "steps_offset": 0}, {"set_alpha_to_one": True, "steps_offset": 0}, {}),
    ("ddim", {"timestep_spacing": "trailing"}, {"spacing": "trailing"}, {}),
    ("ddpm", {"variance_type": "fixed_large"}, {"variance_type": "fixed_large"}, {}),
    ("ddpm", {"timestep_spacing": "linspace"}, {"spacing": "linspace"}, {}),
    ("ddpm", {"timestep_spacing": "trailing"}, {"spacing": "trailing"}, {}),
    ("pndm", {"skip_prk_steps": False}, {"skip_prk_steps": False}, {}),
    ("pndm", {"skip_prk_steps": False, "steps_offset": 0}, {"skip_prk_steps": False, "steps_offset": 0}, {}),
    ("pndm", {"timestep_spacing": "trailing"}, {"spacing": "trailing"}, {}),
    ("lms", {}, {"order": 2}, {"step": {"order": 2}}),
    ("dpmpp_2m", {"solver_type": "heun"}, {"solver_type": "heun"}, {}),
    ("dpmpp_2m_sde", {"solver_type": "heun"}, {"solver_type": "heun"}, {}),
    (
        "dpmpp_2m",
        {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
        {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
        {},
    ),
    ("dpmpp_2m", {"solver_order": 3}, {"solver_order": 3}, {}),
    ("dpmpp_2m", {"solver_order": 1}, {"solver_order": 1}, {}),
    (
        "dpmpp_2m",
        {"solver_order": 3, "final_sigmas_type": "sigma_min"},
        {"solver_order": 3, "final_sigmas_type": "sigma_min"},
        {},
    ),
    (
        "dpmpp_2m",
        {"solver_order": 3, "lower_order_final": False, "final_sigmas_type": "sigma_min"},
        {"solver_order": 3, "lower_order_final": False, "final_sigmas_type": "sigma_min"},
        {},
    ),
    (
        "dpmpp_2m",
        {"euler_at_final": True, "lower_order_final": False, "final_sigmas_type": "sigma_min"},
        {"euler_at_final": True, "lower_order_final": False, "final_sigmas_type": "sigma_min"},
        {},
    ),
    ("dpm_solver", {"solver_order": 3}, {"solver_order": 3}, {}),
    (
        "dpm_solver",
        {"solver_order": 3, "lower_order_final": False},
        {"solver_order": 3, "lower_order_final": False},
        {},
    ),
    ("dpm_solver", {"solver_order": 1}, {"solver_order": 1}, {}),
    ("dpmpp_2s", {"solver_type": "heun"}, {"solver_type": "heun"}, {}),
    ("dpmpp_2s", {"final_sigmas_type": "sigma_min"}, {"final_sigmas_type": "sigma_min"}, {}),
    (
        "dpmpp_2s",
        {"final_sigmas_type": "sigma_min", "lower_order_final": True},
        {"final_sigmas_type": "sigma_min", "lower_order_final": True},
        {},
    ),
    ("dpm_solver", {"solver_type": "heun"}, {"solver_type": "heun"}, {}),
    ("dpm_solver", {"lower_order_final": False}, {"lower_order_final": False}, {}),
    ("deis", {"solver_order": 3}, {"solver_order": 3}, {}),
    ("deis", {"solver_order": 1}, {"solver_order": 1}, {}),
    ("deis", {"lower_order_final": False}, {"lower_order_final": False}, {}),
    ("unipc", {"solver_order": 3}, {"solver_order": 3}, {}),
    ("unipc", {"solver_order": 1}, {"solver_order": 1}, {}),
    # diffusers' bh1 gives NaN in a last step to sigma = 0.
    (
        "unipc",
        {"solver_type": "bh1", "final_sigmas_type": "sigma_min"},
        {"solver_type": "bh1", "final_sigmas_type": "sigma_min"},
        {},
    ),
    (
        "unipc",
        {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
        {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
        {},
    ),
    ("lcm", {"original_inference_steps": 20}, {"original_inference_steps": 20}, {}),
    ("lcm", {"timestep_scaling": 0.1}, {"timestep_scaling": 0.1}, {}),
    ("tcd", {}, {"eta": 0.0}, {"step": {"eta": 0.0}}),
    ("tcd", {}, {"eta": 1.0}, {"step": {"eta": 1.0}}),
    ("euler", {"final_sigmas_type": "sigma_min"}, {"final_sigmas_type": "sigma_min"}, {}),
    ("euler", {"prediction_type": "sample"}, {"prediction_type": "sample"}, {}),
    ("dpmpp_2m", {"prediction_type": "sample"}, {"prediction_type": "sample"}, {}),
    ("dpmpp_2m", {"beta_schedule": "linear"}, {"betas": "linear"}, {}),
    ("dpmpp_2m", {"beta_schedule": "squaredcos_cap_v2"}, {"betas": "squaredcos_cap_v2"}, {}),
]


@pytest.mark.parametrize(("name", "settings", "ours", "run"), VARIANTS)
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_every_other_setting(name, settings, ours, run, prediction_type):
    given = {"prediction_type": prediction_type}
    compare(name, {**given, **settings}, {**given, **ours}, run=run)


@pytest.mark.parametrize(
    "name", [name for name in CLASSES if has(name, "timestep_spacing") and name not in ("lcm", "tcd")]
)  # these two do not look at it
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing", "exponential", "beta"])
@pytest.mark.parametrize("num_steps", [7, 20])
def test_every_spacing_that_the_class_has(name, spacing, num_steps):
    if spacing in ("exponential", "beta"):
        if not has(name, f"use_{spacing}_sigmas"):
            return
        settings = {f"use_{spacing}_sigmas": True}
    else:
        # Where diffusers steps from one level and goes on from another, ours does not.
        if name in ("ddim", "pndm") and (spacing == "linspace" or num_steps == 7) and spacing != "leading":
            return
        settings = {"timestep_spacing": spacing, "steps_offset": 1}
    # Where timesteps are rounded down, those of diffusers' float32 tables count.
    floored = spacing in SAMPLERS[name].convention.timestep_rounding
    tolerance = {"double": False, "tolerance": 1e-4} if floored else {}
    compare(name, settings, {"spacing": spacing, "steps_offset": 1}, num_steps=num_steps, **tolerance)


def test_custom_timesteps_and_sigmas():
    timesteps = [900, 600, 333, 40]
    for name in ("euler", "heun", "dpmpp_2m", "ddpm"):
        key = {"num_steps": None, "timesteps": timesteps}
        with in_float64():
            if name == "heun":
                scheduler = make(name)
                theirs = states_of(scheduler, model, START, None, noise, timesteps=timesteps)
            else:
                theirs = states_of(make(name), model, START, None, noise, timesteps=timesteps)
        assert worst(trajectory(name, model, START, noise=noise, **key), theirs) < 1e-9
    sigmas = [12.0, 5.0, 1.5, 0.4, 0.0]
    with in_float64():
        theirs = states_of(make("euler"), model, START, None, noise, sigmas=sigmas)
    assert worst(trajectory("euler", model, START, sigmas=sigmas), theirs) < 1e-9


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "ddpm"])
@pytest.mark.parametrize(("spacing", "table"), [("ays", "StableDiffusion"), ("ays_sdxl", "StableDiffusionXL")])
def test_align_your_steps(name, spacing, table):
    tables = diffusers.schedulers.AysSchedules
    with in_float64():
        theirs = states_of(make(name), model, START, None, noise, timesteps=tables[f"{table}Timesteps"])
    ours = trajectory(name, model, START, noise=noise, num_steps=10, spacing=spacing)
    assert worst(ours, theirs) < 1e-9
    levels = sampling_levels(ScheduleConfig(), name, 10, spacing=spacing)
    assert levels.sigmas == pytest.approx(tables[f"{table}Sigmas"], abs=6e-3)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "euler", "euler_a", "dpmpp_2m", "unipc"])
def test_zero_terminal_snr(name):
    settings = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    spacing = {"timestep_spacing": "trailing"}
    compare(name, {**settings, **spacing}, {**settings, "spacing": "trailing"})


def test_the_whole_of_the_third_order_term_is_k_diffusions():
    """Without noise it is DPM-Solver++(3M); diffusers' differs in one sign (test_samplers.py has the orders)."""
    exact = trajectory("dpmpp_3m_sde", model, START, num_steps=20, noise=noise, eta=0.0, third_order="exact")
    without = trajectory("dpmpp_2m", model, START, num_steps=20, solver_order=3)
    assert worst(exact, without) < 1e-12


def test_torch_noise_is_torchs():
    from kerasdiff.samplers.noise import TorchNoise, torch_normal

    torch = oracle.torch
    for seed in (0, 7, 2**32 - 1, 2**32 + 5, 2**64 - 1):
        generator, state = torch.Generator().manual_seed(seed), np.random.RandomState(seed % 2**32)
        for shape in ((1, 4, 8, 8), (3, 5, 7), (17,), (16,)):
            assert np.allclose(torch_normal(state, shape), torch.randn(shape, generator=generator), atol=2e-6, rtol=0)
    # As diffusers draws latents and a step's noise for a batch with one generator an image.
    seeds, source = (3, 9), TorchNoise((3, 9), (8, 6, 4))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for draw in (source.initial(), source.fresh([5, 5]), source.fresh([7, 7])):
        theirs = np.concatenate([torch.randn((1, 4, 8, 6), generator=one).numpy() for one in generators])
        assert np.allclose(draw, theirs.transpose(0, 2, 3, 1), atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("sampler", "class_name"),
    [
        ("dpmpp_2m", "DPMSolverMultistepScheduler"),
        ("euler_a", "EulerAncestralDiscreteScheduler"),
        ("kdpm2_a", "KDPM2AncestralDiscreteScheduler"),
        ("pndm", "PNDMScheduler"),
        ("lcm", "LCMScheduler"),
    ],
)
def test_the_same_seed_gives_the_latents_that_diffusers_would_have(tiny, sampler, class_name):
    """The embedded model inside diffusers' own loop, with torch's own generator, against one call of ours."""
    torch, prompt, schedule = oracle.torch, "a red circle on a blue background", tiny.config.schedule
    settings = {"timestep_spacing": "trailing", "prediction_type": schedule.prediction_type}
    if sampler == "pndm":
        settings["skip_prk_steps"] = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = getattr(diffusers, class_name)(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", **settings)
    context = tiny.encode_text(["", prompt])

    def unet(x, t):
        latents = keras.ops.convert_to_tensor(np.repeat(x, 2, 0).transpose(0, 2, 3, 1).astype("float32"))
        predicted = tiny.networks["unet"](latents, np.full(2, t, "float32"), context)
        without, conditional = np.asarray(predicted, "float64").transpose(0, 3, 1, 2)
        return (without + 3.0 * (conditional - without))[None]

    generator = torch.Generator().manual_seed(11)
    start = torch.randn((1, 4, 16, 16), generator=generator).numpy()
    states = states_of(scheduler, unet, start, 10, lambda i, shape: torch.randn(shape, generator=generator).numpy())
    ours = tiny.generate(
        prompt, sampler=class_name, num_steps=10, guidance_scale=3.0, rng="torch", seed=11, progress=False
    ).latents.transpose(0, 3, 1, 2)
    assert np.abs(ours - states[-1]).max() < 1e-3 * np.abs(states[-1]).max()
