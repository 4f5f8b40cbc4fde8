"""What a single file says of its schedule: markers among its tensors, and metadata of the modelspec standard."""

import dataclasses
import re
from typing import Literal

import numpy as np

from kerasdiff.models.config import SDXL, Defaults, ModelConfig, ScheduleConfig
from kerasdiff.runtime.safetensors_map import TensorFiles

Kind = Literal["v1", "v2", "xl"]
# Where the training of Stable Diffusion 2.x's base model, which predicts the noise, ended.
_BASE_STEPS = 875_000
# modelspec's names of what a model predicts, and of the size that it was trained for.
_PREDICTIONS = {"epsilon": False, "v": True, "v_prediction": True}
_RESOLUTION, _SIZE = "modelspec.resolution", re.compile(r"(\d{2,4})x(\d{2,4})", re.ASCII)


def kind_of(config: ModelConfig) -> Kind:
    """What a file does not say of a model that is this one."""
    if config.unet.embeds_sizes:
        return "xl"
    return "v1" if config.main_text_encoder.activation == "quick_gelu" else "v2"


def read_sampling(tensors: TensorFiles, kind: Kind) -> tuple[ScheduleConfig, Defaults]:
    """The schedule and the defaults of a file.

    Stable Diffusion 2.x is taken to predict v unless the file's `global_step` says that it is the base model, as
    diffusers does.
    """
    said = _PREDICTIONS.get(tensors.metadata.get("modelspec.prediction_type", "").lower())
    predicts_v = said if said is not None else kind == "v2" and _global_step(tensors) != _BASE_STEPS
    zero_snr = "ztsnr" in tensors
    schedule = ScheduleConfig(
        steps_offset=1,
        set_alpha_to_one=False,
        prediction_type="v_prediction" if predicts_v or zero_snr or "v_pred" in tensors else "epsilon",
        rescale_betas_zero_snr=zero_snr,
    )
    side = _usual_side(kind, predicts_v)
    defaults = dataclasses.replace(SDXL.defaults if kind == "xl" else Defaults(), height=side, width=side)
    if zero_snr:  # Only a run from the last timestep begins where such a schedule has no signal.
        defaults = dataclasses.replace(defaults, spacing="trailing")
    size = _SIZE.fullmatch(tensors.metadata.get(_RESOLUTION, ""))
    if size is not None and all(int(side) % 8 == 0 for side in size.groups()):
        defaults = dataclasses.replace(defaults, width=int(size[1]), height=int(size[2]))
    return schedule, defaults


def _usual_side(kind: Kind, predicts_v: bool) -> int:
    """diffusers has 768 pixels for 2.x and 512 for its base model; markers say how a fine-tuned one was trained."""
    return 1024 if kind == "xl" else 768 if kind == "v2" and predicts_v else 512


def size_metadata(config: ModelConfig) -> dict[str, str]:
    """The metadata that say the size of a model's pictures, where that is not the usual."""
    height, width = config.defaults.height, config.defaults.width
    side = _usual_side(kind_of(config), config.schedule.prediction_type == "v_prediction")
    said = f"{width}x{height}"
    return {_RESOLUTION: said} if (height, width) != (side, side) and _SIZE.fullmatch(said) else {}


def markers(config: ModelConfig) -> dict[str, np.ndarray]:
    """The tensors that say what a model predicts and on which schedule, where that is not the usual."""
    v2, prediction_type = kind_of(config) == "v2", config.schedule.prediction_type
    found = {"global_step": np.array(_BASE_STEPS)} if v2 and prediction_type == "epsilon" else {}
    found |= {"v_pred": np.zeros(0, "float32")} if prediction_type == "v_prediction" and not v2 else {}
    return found | ({"ztsnr": np.zeros(0, "float32")} if config.schedule.rescale_betas_zero_snr else {})


def _global_step(tensors: TensorFiles) -> int | None:
    if "global_step" not in tensors:
        beside = tensors.metadata.get("global_step", "")  # in a file of PyTorch's
        return int(beside) if re.fullmatch(r"\d{1,18}", beside, re.ASCII) else None
    if tensors.dtype("global_step") not in ("I64", "I32"):
        return None
    return next((int(step) for step in tensors.read("global_step").reshape(-1)[:1]), None)
