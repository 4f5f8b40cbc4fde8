"""scheduler_config.json: what is drawn is what diffusers draws with the same file, or there is one warning."""

import json
import warnings

import numpy as np
import pytest
from oracle import diffusers, states_of

from kerasdiff.checkpoints.formats.diffusers_scheduler import read_scheduler, scheduler_settings
from kerasdiff.errors import RequestError
from kerasdiff.models.config import Defaults, ModelConfig
from kerasdiff.request import make_request
from kerasdiff.samplers import run_table, sampling_levels, sampling_table
from kerasdiff.samplers.sigmas import level_options

BASE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "trained_betas": None,
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}
SHAPE = (1, 4, 4, 4)
START = np.random.default_rng(0).standard_normal(SHAPE)
MISSING = object()

ALL = [{}, {"prediction_type": "v_prediction"}, {"beta_schedule": "linear"}, {"num_train_timesteps": 500}]
WITHOUT_BETAS = {"beta_start": MISSING, "beta_end": MISSING, "beta_schedule": MISSING}
TIMESTEPS = [
    {"timestep_spacing": "leading"},
    {"timestep_spacing": "leading", "steps_offset": MISSING},
    {"timestep_spacing": "leading", "steps_offset": 5},
]
SPACED = [*TIMESTEPS, {"timestep_spacing": "linspace"}, {"timestep_spacing": "trailing"}]
SIGMAS = [{f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta")]
SIGMAS_OVER = [{**one, "timestep_spacing": spacing} for one in SIGMAS for spacing in ("leading", "trailing")]
ENDS = [{**one, "sigma_min": 0.1, "sigma_max": 10.0} for one in SIGMAS]
TO_MIN = {"final_sigmas_type": "sigma_min"}
V_TRAILING = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
FAMILY = [*ALL, *SPACED, *SIGMAS, *SIGMAS_OVER, *ENDS, WITHOUT_BETAS]
SOLVER = [{"solver_order": 1}, {"solver_order": 3}, {"lower_order_final": False}, TO_MIN, {**TO_MIN, **SIGMAS[0]}]
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
FLOWS = [FLOW, {**FLOW, "flow_shift": 3.0}, {**FLOW, **TO_MIN}]
ON_NOISE = [{**TO_MIN, "algorithm_type": "dpmsolver", **one} for one in ({}, {"solver_type": "heun"})]
WITH_NOISE = [
    {"algorithm_type": "sde-dpmsolver++", **one}
    for one in ({}, {"solver_order": 1}, {"solver_type": "heun"}, {"solver_order": 3}, TO_MIN)
]

# The class -> what files of it say over the base.
EQUAL = {
    "DDIMScheduler": [
        *ALL,
        *TIMESTEPS,
        {"set_alpha_to_one": MISSING},
        {"clip_sample": True},
        {"clip_sample": MISSING},
        {**V_TRAILING, "timestep_spacing": "leading"},
        {"use_karras_sigmas": True},  # not a field of this class
        {"prediction_type": "sample"},
    ],
    "DDIMParallelScheduler": [{}],
    "DDPMScheduler": [
        *ALL,
        *SPACED,
        {"variance_type": "fixed_large"},
        {"variance_type": "fixed_small_log"},
        {"beta_schedule": "sigmoid"},
        {"beta_schedule": "laplace"},
    ],
    "DDPMParallelScheduler": [{}],
    "PNDMScheduler": [*ALL, *TIMESTEPS, {"skip_prk_steps": False}, {"skip_prk_steps": MISSING}],
    "LMSDiscreteScheduler": FAMILY,
    "EulerDiscreteScheduler": [
        *FAMILY,
        V_TRAILING,
        TO_MIN,
        {"interpolation_type": "log_linear"},
        {"interpolation_type": "log_linear", "timestep_spacing": "leading", **SIGMAS[0]},
        {"timestep_type": "continuous"},
        {"timestep_type": "continuous", "prediction_type": "v_prediction"},
        {"prediction_type": "original_sample"},
        {"_use_default_values": ["timestep_spacing"], "timestep_spacing": "leading"},
    ],
    "EulerAncestralDiscreteScheduler": [*ALL, *SPACED, {"use_karras_sigmas": True}],
    "HeunDiscreteScheduler": [*FAMILY, {"clip_sample": True}, {"beta_schedule": "exp", "beta_end": 0.02}],
    # Classes that take half a second to make.
    "KDPM2DiscreteScheduler": [{}, TIMESTEPS[0], *SIGMAS, *SIGMAS_OVER[::3], ENDS[0], WITHOUT_BETAS],
    "KDPM2AncestralDiscreteScheduler": [{}, ALL[1], SPACED[-1], *SIGMAS, SIGMAS_OVER[0], ENDS[1], WITHOUT_BETAS],
    "DPMSolverMultistepScheduler": [
        *FAMILY,
        *FLOWS,
        *SOLVER,
        *ON_NOISE,
        *WITH_NOISE,
        V_TRAILING,
        {"solver_type": "heun"},
        {"solver_type": "bh2"},
        {"euler_at_final": True},
        {**TO_MIN, "solver_order": 3, "lower_order_final": False},
        {**TO_MIN, "algorithm_type": "sde-dpmsolver"},
        {**TO_MIN, "algorithm_type": "sde-dpmsolver", "solver_type": "heun"},
        {"use_lu_lambdas": True},
        {"lambda_min_clipped": -2.0},
        {"lambda_min_clipped": -2.0, "timestep_spacing": "leading"},
        {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"},
        {"lambda_min_clipped": float("-inf")},
        {"variance_type": "fixed_small"},
    ],
    "DPMSolverSinglestepScheduler": [
        *FAMILY,
        *FLOWS,
        *SOLVER,
        *ON_NOISE,
        *WITH_NOISE,
        {"solver_type": "heun"},
        {"solver_order": 3, "solver_type": "heun"},
        {**TO_MIN, "solver_order": 3},
        {**TO_MIN, "solver_order": 3, "algorithm_type": "dpmsolver", "solver_type": "heun"},
        {"lambda_min_clipped": -2.0},
    ],
    "DEISMultistepScheduler": [
        *FAMILY,
        FLOW,
        *SOLVER[:3],
        {"solver_type": "midpoint", "algorithm_type": "dpmsolver++"},
    ],
    "UniPCMultistepScheduler": [
        *FAMILY,
        *FLOWS,
        *SOLVER[:2],
        *SOLVER[3:],
        V_TRAILING,
        {"solver_type": "bh1", **TO_MIN},
        {"lower_order_final": False, **TO_MIN},
        {"predict_x0": False, **TO_MIN},
        {"predict_x0": False, "solver_order": 3, "solver_type": "bh1", **TO_MIN},
        {"disable_corrector": [0, 2]},
        {"solver_type": "midpoint"},
    ],
    "LCMScheduler": [*ALL, *SPACED, {"original_inference_steps": 100}, {"timestep_scaling": 5.0}, WITHOUT_BETAS],
    "TCDScheduler": [*ALL, *SPACED, {"original_inference_steps": 100}, WITHOUT_BETAS],
}


def noise(draw, shape=SHAPE):
    return np.random.default_rng(1000 + draw).standard_normal(shape)


def model(x, t):
    """A stand-in for the U-Net: smooth, not linear, dependent on the timestep."""
    return 0.9 * np.tanh(x) * (t / 1000) + 0.1 * np.sin(2 * x)


def written(path, class_name, changes):
    settings = {"_class_name": class_name, **BASE, **changes}
    settings = {name: value for name, value in settings.items() if value is not MISSING}
    path.write_text(json.dumps(settings))
    return settings


def theirs(class_name, settings):
    """The latents of the pipeline, which changes two fields of the file and passes eta = 0, by the number of steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = getattr(diffusers, class_name).from_config(settings)
        scheduler.register_to_config(steps_offset=1, clip_sample=False)
        step = {"eta": 0.0} if class_name in ("DDIMScheduler", "DDIMParallelScheduler", "TCDScheduler") else {}
        return {count: states_of(scheduler, model, START, count, noise, step=step)[-1] for count in (4, 7, 25)}


def ours(sampling, num_steps):
    options = dict(sampling.options)
    levels = sampling_levels(
        sampling.schedule, sampling.sampler, num_steps, spacing=sampling.spacing, **level_options(options)
    )
    table = sampling_table(levels, sampling.sampler, options)
    draws = np.cumsum(table.noisy) - 1
    return run_table(table, model, START, lambda row: noise(int(draws[row])))[-1] * table.scales[-1]


@pytest.mark.parametrize("class_name", EQUAL)
def test_the_latents_are_those_of_diffusers(tmp_path, class_name):
    path = tmp_path / "scheduler_config.json"
    far = {}
    for changes in EQUAL[class_name]:
        settings = written(path, class_name, changes)
        sampling = read_scheduler(path)
        for num_steps, expected in theirs(class_name, settings).items():
            error = np.abs(ours(sampling, num_steps) - expected).max() / np.abs(expected).max()
            if not error < 1e-4:
                far[str(changes), num_steps] = error
    assert not far


SAID = [
    ("DDIMScheduler", {"thresholding": True}, "thresholding=True is not supported; False is used instead"),
    (
        "DDPMScheduler",
        {"variance_type": "learned"},
        r"variance_type='learned' is not supported .* 'fixed_small' is used",
    ),
    ("DPMSolverMultistepScheduler", {"variance_type": "learned_range"}, "variance_type='learned_range' is not supp"),
    ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True}, "use_flow_sigmas=True is not supported; False is used"),
    ("DPMSolverMultistepScheduler", {"solver_order": 4}, r"solver_order=4 is not supported .*; 2 is used instead"),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "dpm"}, "algorithm_type='dpm' is not supported; 'dpmsolver"),
    (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "zero"},
        "'sigma_min' is used",
    ),
    ("EulerDiscreteScheduler", FLOW, "EulerDiscreteScheduler of diffusers does not sample flow"),
    (
        "UniPCMultistepScheduler",
        {**FLOW, **SIGMAS[0]},
        "spacing 'karras' of a model that predicts flow is not supported",
    ),
    ("DPMSolverSDEScheduler", {"noise_sampler_seed": 3}, "noise_sampler_seed=3 is not supported; None is used instead"),
    ("EulerDiscreteScheduler", {"timestep_spacing": "cosine"}, "timestep_spacing='cosine' is not supported; the sched"),
    ("EulerDiscreteScheduler", {"interpolation_type": "cubic"}, "interpolation_type='cubic' is not supported"),
    ("EulerDiscreteScheduler", {**SIGMAS[0], **SIGMAS[1]}, "use_exponential_sigmas are both set; use_karras_sigmas is"),
    ("EulerDiscreteScheduler", {"gamma_schedule": 3, "warp": 1}, "unknown fields are ignored: gamma_schedule, warp"),
    (
        "HeunDiscreteScheduler",
        {"rescale_betas_zero_snr": True},
        "HeunDiscreteScheduler of diffusers does not look at it",
    ),
    ("UniPCMultistepScheduler", {"solver_p": ["diffusers", "DDIMScheduler"]}, "solver_p=.* is not supported; None is"),
    ("IPNDMScheduler", {}, "scheduler 'IPNDMScheduler' is not supported; sampler 'dpmpp_2m' is used instead"),
]


@pytest.mark.parametrize(("class_name", "changes", "message"), SAID)
def test_what_cannot_be_done_is_one_warning(tmp_path, class_name, changes, message):
    path = tmp_path / "scheduler_config.json"
    written(path, class_name, changes)
    with pytest.warns(UserWarning, match=message) as caught:
        sampling = read_scheduler(path)
    assert len(caught) == 1
    assert np.isfinite(ours(sampling, 4)).all()


@pytest.mark.parametrize(
    ("class_name", "changes", "num_steps"),
    [
        ("DDIMScheduler", {"timestep_spacing": "linspace"}, 4),
        ("DDIMScheduler", {"timestep_spacing": "trailing"}, 7),
        ("PNDMScheduler", {"timestep_spacing": "trailing"}, 7),
    ],
)
def test_steps_that_end_where_the_next_one_begins_are_one_warning(tmp_path, class_name, changes, num_steps):
    config = model_of(tmp_path, class_name, changes)
    with pytest.warns(
        UserWarning, match=f"{class_name} of diffusers takes each step {1000 // num_steps} timesteps"
    ) as w:
        make_request(config, "a red circle", num_steps=num_steps)
    assert len(w) == 1
    for wanted in ({"spacing": "trailing"}, {"sampler": "euler"}, {"timesteps": [900, 500, 20], "num_steps": None}):
        make_request(config, "a red circle", **{"num_steps": num_steps, **wanted})


def model_of(tmp_path, class_name, changes):
    path = tmp_path / "scheduler_config.json"
    written(path, class_name, changes)
    sampling = read_scheduler(path)
    defaults = Defaults(sampler=sampling.sampler, spacing=sampling.spacing, sampler_options=sampling.options)
    return ModelConfig(schedule=sampling.schedule, defaults=defaults)


def test_options_of_the_model_show_and_give_way(tmp_path):
    changes = {"solver_order": 3, "final_sigmas_type": "sigma_min", **SIGMAS[0]}
    config = model_of(tmp_path, "DPMSolverMultistepScheduler", changes)
    assert config.defaults.sampler_options == (("final_sigmas_type", "sigma_min"), ("solver_order", 3))
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    request = make_request(config, "a red circle")
    assert dict(request.sampler_options) == {"final_sigmas_type": "sigma_min", "solver_order": 3}
    request = make_request(config, "a red circle", sampler_options={"solver_order": 1, "euler_at_final": True})
    assert dict(request.sampler_options) == {
        "euler_at_final": True,
        "final_sigmas_type": "sigma_min",
        "solver_order": 1,
    }
    # They are those of the model's sampler, not of another one.
    assert make_request(config, "a red circle", sampler="euler").sampler_options == ()
    assert make_request(config, "a red circle", sampler="euler").spacing == "karras"


def test_the_class_in_the_index_counts(tmp_path):
    path = tmp_path / "scheduler_config.json"
    written(path, "PNDMScheduler", {"timestep_spacing": "leading", "_use_default_values": ["timestep_spacing"]})
    assert read_scheduler(path, "EulerDiscreteScheduler")[1:] == ("euler", None, ())


@pytest.mark.parametrize("class_name", EQUAL)
def test_what_is_written_is_read_again(tmp_path, class_name):
    path = tmp_path / "scheduler_config.json"
    for changes in EQUAL[class_name]:
        config = model_of(tmp_path, class_name, changes)
        path.write_text(json.dumps(scheduler_settings(config)))
        again = read_scheduler(path)
        assert again == (
            config.schedule,
            config.defaults.sampler,
            config.defaults.spacing,
            config.defaults.sampler_options,
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"final_sigmas_type": "one"}, "final_sigmas_type='one' is unknown; known: sigma_min, zero"),
        ({"spacing": "karras"}, "has no option 'spacing'"),
        ({"sigma_min": 20.0}, "sigma_min=20 must be less than sigma_max=14.6146"),
        ({"steps_offset": -1}, "steps_offset=-1 is out of range"),
        ({"flow_shift": 0}, "flow_shift=0 is out of range"),
        ({"lambda_min_clipped": 0.0}, "lambda_min_clipped=0 leaves 9 of the 25 timesteps of spacing='trailing'"),
    ],
)
def test_a_wrong_option_of_noise_levels_is_one_clear_line(options, message):
    spacing = "karras" if "sigma_min" in options else "trailing"
    with pytest.raises(RequestError, match=message):
        make_request(ModelConfig(), "a red circle", spacing=spacing, sampler_options=options)
