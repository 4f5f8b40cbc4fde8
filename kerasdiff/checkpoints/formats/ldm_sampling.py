"""What a single file says of its schedule: markers among its tensors."""

import re

import numpy as np

from kerasdiff.models.config import Defaults, ModelConfig, ScheduleConfig
from kerasdiff.runtime.safetensors_map import TensorFiles

# Where the training of Stable Diffusion 2.x's base model, which predicts the noise, ended.
_BASE_STEPS = 875_000


def read_sampling(tensors: TensorFiles, v2: bool) -> tuple[ScheduleConfig, Defaults]:
    """The schedule and the defaults of a file.

    Stable Diffusion 2.x is taken to predict v unless the file's `global_step` says that it is the base model, as
    diffusers does.
    """
    # diffusers has 768 pixels for 2.x and 512 for the base model. Markers say what a fine-tuned model was trained for.
    large = v2 and _global_step(tensors) != _BASE_STEPS
    zero_snr = "ztsnr" in tensors
    schedule = ScheduleConfig(
        steps_offset=1,
        set_alpha_to_one=False,
        prediction_type="v_prediction" if large or zero_snr or "v_pred" in tensors else "epsilon",
        rescale_betas_zero_snr=zero_snr,
    )
    size = 768 if large else 512
    # Only a run from the last timestep begins where such a schedule has no signal.
    return schedule, Defaults(height=size, width=size, spacing="trailing" if zero_snr else None)


def markers(config: ModelConfig) -> dict[str, np.ndarray]:
    """The tensors that say what a model predicts and on which schedule, where that is not the usual."""
    v2, prediction_type = config.main_text_encoder.activation != "quick_gelu", config.schedule.prediction_type
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
