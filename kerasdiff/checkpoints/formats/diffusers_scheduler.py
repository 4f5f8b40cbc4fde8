"""scheduler_config.json of diffusers: read to a schedule and a sampler with its options, and written from them.

What is read is what diffusers' pipelines do with the file: the class in model_index.json decides which fields count,
and `StableDiffusionPipeline` itself, unlike that of Stable Diffusion XL, sets `steps_offset` to 1 and `clip_sample` to
false. What cannot be done is one warning each.
"""

import dataclasses
import math
import pathlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from kerasdiff.checkpoints import recognition
from kerasdiff.checkpoints.formats.json_settings import JsonSettings, read_json
from kerasdiff.errors import RequestError
from kerasdiff.models.config import ModelConfig, ScheduleConfig
from kerasdiff.samplers import SAMPLERS, sampling_levels, sampling_table
from kerasdiff.samplers.sigmas import LEVEL_OPTIONS, level_options

_SPACING_FLAGS = {
    "use_karras_sigmas": "karras",
    "use_lu_lambdas": "lu",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
}
_USUAL_FLAGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
_TIMESTEP_SPACINGS = ("leading", "linspace", "trailing")
_SIGMA_ENDS = {"sigma_min": None, "sigma_max": None}
_SOLVER = {"solver_order": 2, "solver_type": "midpoint", "lower_order_final": True}
_END = {"final_sigmas_type": "zero"}


@dataclasses.dataclass(frozen=True)
class _Scheduler:
    """A class of diffusers: its sampler here, and what it reads.

    `options` are fields that are options of the sampler or of its noise levels, with the defaults of the class.
    `flags` choose a spacing. `unsupported` are fields that can only have these values here, the default first, and
    `betas` the defaults of beta_start, beta_end and beta_schedule.
    """

    sampler: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    flags: tuple[str, ...] = ()
    spaced: bool = True  # reads timestep_spacing
    karras_ends: bool = True  # takes sigma_min and sigma_max for Karras' levels too
    rescales: bool = False  # reads rescale_betas_zero_snr
    set_alpha_to_one: bool | None = None
    unsupported: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    betas: tuple[float, float, str] = (0.0001, 0.02, "linear")


_THRESHOLDING = {"thresholding": (False,)}
_FLOW = {"use_flow_sigmas": (False,), "use_dynamic_shifting": (False,)}
_FIXED = (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
_DPM_SOLVER = {**_THRESHOLDING, **_FLOW, "variance_type": _FIXED}
_K_BETAS = (0.00085, 0.012, "linear")
_DISTILLED_BETAS = (0.00085, 0.012, "scaled_linear")

_SCHEDULERS = {
    "DDIMScheduler": _Scheduler("ddim", rescales=True, set_alpha_to_one=True, unsupported=_THRESHOLDING),
    "DDPMScheduler": _Scheduler("ddpm", {"variance_type": "fixed_small"}, rescales=True, unsupported=_THRESHOLDING),
    "PNDMScheduler": _Scheduler("pndm", {"skip_prk_steps": False}, set_alpha_to_one=False),
    "LMSDiscreteScheduler": _Scheduler("lms", _SIGMA_ENDS, _USUAL_FLAGS, karras_ends=False),
    "EulerDiscreteScheduler": _Scheduler(
        "euler",
        {**_SIGMA_ENDS, **_END, "interpolation_type": "linear", "timestep_type": "discrete"},
        _USUAL_FLAGS,
        rescales=True,
    ),
    "EulerAncestralDiscreteScheduler": _Scheduler("euler_a", rescales=True),
    "HeunDiscreteScheduler": _Scheduler("heun", _SIGMA_ENDS, _USUAL_FLAGS, betas=_K_BETAS),
    "KDPM2DiscreteScheduler": _Scheduler("kdpm2", _SIGMA_ENDS, _USUAL_FLAGS, betas=_K_BETAS),
    "KDPM2AncestralDiscreteScheduler": _Scheduler("kdpm2_a", _SIGMA_ENDS, _USUAL_FLAGS, betas=_K_BETAS),
    "DPMSolverMultistepScheduler": _Scheduler(
        "dpmpp_2m",
        {**_SIGMA_ENDS, **_SOLVER, **_END, "euler_at_final": False, "lambda_min_clipped": None},
        tuple(_SPACING_FLAGS),
        rescales=True,
        unsupported=_DPM_SOLVER,
    ),
    "DPMSolverSinglestepScheduler": _Scheduler(
        "dpmpp_2s",
        {**_SIGMA_ENDS, **_SOLVER, **_END, "lower_order_final": False, "algorithm_type": "dpmsolver++"}
        | {"lambda_min_clipped": None},
        _USUAL_FLAGS,
        spaced=False,
        unsupported=_DPM_SOLVER,
    ),
    "DPMSolverSDEScheduler": _Scheduler(
        "dpmpp_sde",
        _SIGMA_ENDS,
        _USUAL_FLAGS,
        karras_ends=False,
        unsupported={"noise_sampler_seed": (None,)},
        betas=_K_BETAS,
    ),
    "DEISMultistepScheduler": _Scheduler(
        "deis",
        {**_SIGMA_ENDS, "solver_order": 2, "lower_order_final": True},
        _USUAL_FLAGS,
        unsupported={**_THRESHOLDING, **_FLOW},
    ),
    "UniPCMultistepScheduler": _Scheduler(
        "unipc",
        {**_SIGMA_ENDS, **_SOLVER, **_END, "solver_type": "bh2", "predict_x0": True, "disable_corrector": ()},
        _USUAL_FLAGS,
        rescales=True,
        unsupported={**_THRESHOLDING, **_FLOW, "solver_p": (None,), "shift_terminal": (None,)},
    ),
    "LCMScheduler": _Scheduler(
        "lcm",
        {"original_inference_steps": 50, "timestep_scaling": 10.0},
        spaced=False,
        rescales=True,
        unsupported=_THRESHOLDING,
        betas=_DISTILLED_BETAS,
    ),
    "TCDScheduler": _Scheduler(
        "tcd",
        {"original_inference_steps": 50},
        spaced=False,
        rescales=True,
        unsupported=_THRESHOLDING,
        betas=_DISTILLED_BETAS,
    ),
}
_SCHEDULERS["DDIMParallelScheduler"] = _SCHEDULERS["DDIMScheduler"]
_SCHEDULERS["DDPMParallelScheduler"] = _SCHEDULERS["DDPMScheduler"]

# algorithm_type of the multistep class -> the sampler, and the one for order 3.
_MULTISTEP = {
    "dpmsolver++": ("dpmpp_2m", "dpmpp_2m"),
    "sde-dpmsolver++": ("dpmpp_2m_sde", "dpmpp_3m_sde"),
    "dpmsolver": ("dpm_solver", "dpm_solver"),
    "sde-dpmsolver": ("dpm_solver", "dpm_solver"),
}
# These predict noise, and end at the lowest trained level.
_ON_NOISE = ("dpmsolver", "sde-dpmsolver")
# (field, value) -> the value that classes take it for; solver types are those of other classes.
_TRANSLATED = {
    ("algorithm_type", "deis"): "dpmsolver++",
    ("variance_type", "fixed_small_log"): "fixed_small",
    ("prediction_type", "original_sample"): "sample",
}
_SOLVER_TYPES = {"unipc": dict.fromkeys(("midpoint", "heun", "logrho"), "bh2")}
_OTHER_SOLVER_TYPES = dict.fromkeys(("logrho", "bh1", "bh2"), "midpoint")
# What else these classes have or had. None of it changes an image: clipping is off in the pipeline, or warned of.
_WITHOUT_EFFECT = {
    *("clip_sample", "clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value", "flow_shift"),
    *("time_shift_type", "sigma_data", "sigma_schedule", "rho", "tensor_format", "quantization_config"),
}
_OF_SCHEDULE = {
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type"),
    *("steps_offset", "rescale_betas_zero_snr", "set_alpha_to_one", "timestep_spacing", "algorithm_type"),
}
# Samplers of classes that clip unless their settings say otherwise.
_CLIPPING = ("ddim", "ddpm")
_KNOWN = {
    *(_WITHOUT_EFFECT | _OF_SCHEDULE | set(_SPACING_FLAGS)),
    *(name for entry in _SCHEDULERS.values() for name in (*entry.options, *entry.unsupported)),
}


class Sampling(NamedTuple):
    """What a scheduler's settings come to."""

    schedule: ScheduleConfig
    sampler: str
    spacing: str | None
    options: tuple[tuple[str, Any], ...]


def read_scheduler(path: pathlib.Path, class_name: str | None = None, xl: bool = False) -> Sampling:
    """The schedule, sampler, spacing and options of a scheduler_config.json, for Stable Diffusion `xl` or not.

    `class_name` is the class in model_index.json, which counts where it is another one than the file's.
    """
    values = read_json(path)
    filled_in = values.get("_use_default_values") or ()  # by a class by itself; they are left to the class that reads
    values = {key: value for key, value in values.items() if key not in filled_in and value is not None}
    unknown = [key for key in values if key not in _KNOWN and not key.startswith("_")]
    if unknown:
        _warn(path, f"unknown fields are ignored: {', '.join(unknown)[:400]}")
    class_name = class_name or str(values.get("_class_name"))
    entry = _SCHEDULERS.get(class_name)
    if entry is None:
        kind = recognition.of_class(class_name)
        if kind is not None and kind.architecture:
            raise kind.error(path)
        entry = _SCHEDULERS["DPMSolverMultistepScheduler"]
        _warn(path, f"scheduler {class_name!r:.80} is not supported; sampler {entry.sampler!r} is used instead")
    solver_types = _SOLVER_TYPES.get(entry.sampler, _OTHER_SOLVER_TYPES)
    translated = _TRANSLATED | {("solver_type", name): meant for name, meant in solver_types.items()}
    values = {
        key: translated.get((key, value), value) if isinstance(value, str) else value for key, value in values.items()
    }
    options = {key: values.get(key, default) for key, default in entry.options.items()}
    sampler, extra = _sampler(path, class_name, entry, values)
    options |= extra
    if options.get("algorithm_type") in _ON_NOISE and options["final_sigmas_type"] == "zero":
        if "final_sigmas_type" in values:
            _warn(path, f"final_sigmas_type='zero' does not go with {options['algorithm_type']!r}; 'sigma_min' is used")
        options["final_sigmas_type"] = "sigma_min"
    if xl and entry.sampler in _CLIPPING and values.get("clip_sample", True):
        _warn(path, "clip_sample=True is not supported; latents are not clipped")
    schedule = _schedule(path, class_name, entry, JsonSettings(path, values))
    if xl:
        offset = JsonSettings(path, values).get("steps_offset", 0, int)
        schedule = dataclasses.replace(schedule, steps_offset=offset)
    spacing = _spacing(path, entry, values)
    flow = schedule.prediction_type == "flow_prediction"
    if flow:
        options["flow_shift"] = values.get("flow_shift", 1.0)
        if not values.get("use_flow_sigmas") or "use_flow_sigmas" not in entry.unsupported:
            _warn(path, f"{class_name} of diffusers does not sample flow with these settings; spacing 'flow' is used")
        elif spacing != "flow":
            _warn(path, f"spacing {spacing!r} of a model that predicts flow is not supported; 'flow' is used instead")
        spacing = "flow"
    if spacing in _SPACING_FLAGS.values() and not SAMPLERS[sampler].convention.extra_point and entry.spaced:
        options["timestep_spacing"] = values.get("timestep_spacing", "linspace")
    if spacing == "karras" and not entry.karras_ends:
        options = {name: value for name, value in options.items() if name not in _SIGMA_ENDS}
    for name, neutral in entry.unsupported.items():
        if values.get(name, neutral[0]) not in neutral and not (flow and name == "use_flow_sigmas"):
            _warn(path, f"{name}={values[name]!r:.80} is not supported; {neutral[0]!r} is used instead")
    return Sampling(schedule, sampler, spacing, tuple(sorted(_changed(path, schedule, sampler, spacing, options))))


def _warn(path: pathlib.Path, message: str) -> None:
    warnings.warn(f"{path}: {message}", stacklevel=2)


def _sampler(
    path: pathlib.Path, class_name: str, entry: _Scheduler, values: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The sampler, and options of it that are not fields by themselves."""
    if entry.sampler == "tcd":
        return "tcd", {"eta": 0.0}  # what the pipeline passes; the class's own default is 0.3
    if class_name != "DPMSolverMultistepScheduler":
        return entry.sampler, {}
    algorithm = values.get("algorithm_type", "dpmsolver++")
    if algorithm not in _MULTISTEP:
        _warn(path, f"algorithm_type={algorithm!r:.80} is not supported; 'dpmsolver++' is used instead")
        algorithm = "dpmsolver++"
    sampler = _MULTISTEP[algorithm][values.get("solver_order") == 3]
    return sampler, {"algorithm_type": algorithm} if sampler == "dpm_solver" else {}


def _schedule(path: pathlib.Path, class_name: str, entry: _Scheduler, settings: JsonSettings) -> ScheduleConfig:
    betas = settings.get("trained_betas", None, list)
    rescale = settings.get("rescale_betas_zero_snr", False, bool)
    if rescale and not entry.rescales:
        _warn(path, f"rescale_betas_zero_snr=True is used here; {class_name} of diffusers does not look at it")
    start, end, kind = entry.betas
    return ScheduleConfig(
        num_train_timesteps=settings.get("num_train_timesteps", 1000, int),
        beta_start=settings.get("beta_start", start, float),
        beta_end=settings.get("beta_end", end, float),
        beta_schedule=settings.get("beta_schedule", kind, str),
        prediction_type=settings.get("prediction_type", "epsilon", str),
        trained_betas=None if betas is None else tuple(betas),
        rescale_betas_zero_snr=rescale,
        steps_offset=1,  # the usual pipeline changes any other value
        set_alpha_to_one=settings.get("set_alpha_to_one", entry.set_alpha_to_one, bool),
    )


def _spacing(path: pathlib.Path, entry: _Scheduler, values: Mapping[str, Any]) -> str | None:
    """None is the sampler's own."""
    flags = [flag for flag in entry.flags if values.get(flag)]
    if flags:
        if len(flags) > 1:
            _warn(path, f"{' and '.join(flags)} are both set; {flags[0]} is used")
        return _SPACING_FLAGS[flags[0]]
    if values.get("use_flow_sigmas") and values.get("prediction_type") == "flow_prediction":
        return "flow"
    spacing = values.get("timestep_spacing") if entry.spaced else None
    if spacing is not None and spacing not in _TIMESTEP_SPACINGS:
        _warn(path, f"timestep_spacing={spacing!r:.80} is not supported; the scheduler's own is used instead")
        spacing = None
    return spacing


def _changed(
    path: pathlib.Path, schedule: ScheduleConfig, sampler: str, spacing: str | None, options: Mapping[str, Any]
) -> Iterator[tuple[str, Any]]:
    """The options that are not what the sampler does anyway."""
    usual = LEVEL_OPTIONS | SAMPLERS[sampler].options | {"final_sigmas_type": SAMPLERS[sampler].final_sigmas_type}
    for name, value in options.items():
        value = tuple(value) if isinstance(value, list) else value
        if name not in usual or value == usual[name] or value == -math.inf:
            continue
        error = _error(schedule, sampler, spacing, {name: value})
        if error is None:
            yield name, value
        else:
            _warn(path, f"{name}={value!r:.80} is not supported ({error}); {usual[name]!r} is used instead")


def _error(schedule: ScheduleConfig, sampler: str, spacing: str | None, options: Mapping[str, Any]) -> str | None:
    """What is wrong with options in runs of any length; None if they are right in some."""
    message = None
    for num_steps in (1, 4, 10):
        try:
            levels = sampling_levels(schedule, sampler, num_steps, spacing=spacing, **level_options(options))
            sampling_table(levels, sampler, options)
        except RequestError as error:
            message = str(error)
        else:
            return None
    return message


def scheduler_settings(config: ModelConfig) -> dict[str, Any]:
    """The scheduler_config.json of a model: the inverse of `read_scheduler` as far as diffusers has a sampler."""
    defaults, schedule = config.defaults, config.schedule
    by_algorithm = {name: algorithm for algorithm, pair in reversed(_MULTISTEP.items()) for name in pair}
    algorithm = by_algorithm.get(defaults.sampler)
    if algorithm is not None:
        class_name = "DPMSolverMultistepScheduler"
    else:
        class_name = next(name for name, entry in _SCHEDULERS.items() if entry.sampler == defaults.sampler)
    entry = _SCHEDULERS[class_name]
    settings: dict[str, Any] = {
        "_class_name": class_name,
        "num_train_timesteps": schedule.num_train_timesteps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": schedule.beta_schedule,
        "prediction_type": schedule.prediction_type,
        "trained_betas": None if schedule.trained_betas is None else list(schedule.trained_betas),
        "rescale_betas_zero_snr": schedule.rescale_betas_zero_snr or None,
        "steps_offset": schedule.steps_offset,
        "set_alpha_to_one": schedule.set_alpha_to_one,
        "clip_sample": False,
        "timestep_spacing": defaults.spacing if defaults.spacing in _TIMESTEP_SPACINGS else None,
        "use_flow_sigmas": True if defaults.spacing == "flow" else None,
        **{flag: True for flag, meant in _SPACING_FLAGS.items() if meant == defaults.spacing},
    }
    if algorithm not in (None, "dpmsolver++"):
        settings["algorithm_type"] = algorithm
    if defaults.sampler == "dpmpp_3m_sde":
        settings["solver_order"] = 3
    usual = SAMPLERS[defaults.sampler]
    given = {"final_sigmas_type": usual.final_sigmas_type, **usual.options, **dict(defaults.sampler_options)}
    for name, default in entry.options.items():
        if name in given and given[name] != default:
            settings[name] = given[name]
    settings |= {name: value for name, value in defaults.sampler_options if name in _KNOWN}
    return {name: value for name, value in settings.items() if value is not None}
