"""diffusers' pipeline on PyTorch, eager or with `torch.compile`."""

import importlib
import importlib.util
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from kerasdiff.bench.checkpoint_files import control_folder, hint_of
from kerasdiff.bench.ddim_loop import levels_of
from kerasdiff.bench.task import Subject, Task, Workload
from kerasdiff.bench.worker import Clock, Session
from kerasdiff.models.config import ModelConfig

# Of a pipeline's class, without a filter or a watermark: none of the others has them.
_WITHOUT_FILTERS: dict[str, dict[str, Any]] = {
    "StableDiffusionPipeline": {"safety_checker": None, "requires_safety_checker": False},
    "StableDiffusionXLPipeline": {"add_watermarker": False},
}
SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def subjects(precisions: Sequence[str], gpu: bool, compiled: bool = False) -> list[Subject]:
    """One per precision."""
    name = "diffusers compile" if compiled else "diffusers"
    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if compiled:
        # Inductor caches what it compiled; the folder is set, so that "first" is an empty one.
        environment["TORCHINDUCTOR_CACHE_DIR"] = "{cache}"
    return [
        Subject(
            f"{name} {SHORT[precision]}",
            f"{__name__}:DiffusersSession",
            {"files": precision, "compile": compiled},
            compiled,
            environment,
        )
        for precision in precisions
    ]


def compile_unsupported(config: ModelConfig, workload: Workload, gpu: bool) -> str | None:
    """Why `torch.compile` cannot, or None."""
    return None if gpu or shutil.which("c++") or shutil.which("g++") else "it needs a C++ compiler (g++)"


class DiffusersSession(Session):
    """A pipeline with the settings that its documentation recommends for speed."""

    def __init__(self, task: Task, clock: Clock) -> None:
        super().__init__(task, clock)
        warnings.simplefilter("ignore")
        import torch

        diffusers = importlib.import_module("diffusers")
        source = self.folder(task)
        name = json.loads((source / "model_index.json").read_text())["_class_name"]
        without = dict(_WITHOUT_FILTERS.get(name, {}))
        steered = "control" in task.subject.options
        if steered:
            name = name.replace("Pipeline", "ControlNetPipeline")
        # Attributes that are looked up are what is imported: diffusers is lazy.
        pipeline_class, scheduler_class = getattr(diffusers, name), diffusers.EulerDiscreteScheduler
        controlnet_class = diffusers.ControlNetModel if steered else None
        clock.done("import")
        self._torch = torch
        self.precision, self._compiled = task.subject.options["files"], task.subject.options["compile"]
        self._dtype = getattr(torch, self.precision)
        self._more: dict[str, Any] = {}
        if controlnet_class is not None:
            folder = control_folder(task, self.precision)
            without["controlnet"] = controlnet_class.from_pretrained(folder, torch_dtype=self._dtype)
            self._more["image"] = Image.fromarray(hint_of(self.workload))
        pipeline = pipeline_class.from_pretrained(
            source,
            torch_dtype=self._dtype,
            **without,
            local_files_only=True,
            low_cpu_mem_usage=importlib.util.find_spec("accelerate") is not None,
        )
        # Euler's method in the noise level is DDIM; its scheduler takes KerasCV's timesteps, DDIM's does not.
        # Spacing "leading" is what starts from unit variance.
        pipeline.scheduler = scheduler_class.from_config(pipeline.scheduler.config, timestep_spacing="leading")
        pipeline.set_progress_bar_config(disable=True)
        if torch.cuda.is_available():
            # TensorFlow has it on by default: float32 rows then round the factors of products alike.
            torch.set_float32_matmul_precision("high")
            pipeline.to("cuda")
        pipeline.unet.to(memory_format=torch.channels_last)
        if steered:
            pipeline.controlnet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
        if self._compiled:
            pipeline.unet.compile()
            pipeline.vae.decoder.compile()
        self._pipeline = pipeline
        from kerasdiff.checkpoints.formats.diffusers_config import read_config

        self._schedule = read_config(source).schedule
        clock.done("load")

    def run(self, latents: np.ndarray, num_steps: int) -> np.ndarray:
        workload, torch = self.workload, self._torch
        noise = torch.from_numpy(latents.transpose(0, 3, 1, 2).copy()).to(self._dtype)
        with torch.inference_mode():
            images = self._pipeline(
                workload.prompt,
                height=workload.height,
                width=workload.width,
                timesteps=levels_of(self._schedule, num_steps, workload.spacing).timesteps.astype(int).tolist(),
                guidance_scale=workload.guidance_scale,
                num_images_per_prompt=workload.batch_size,
                latents=noise.to(self._pipeline.device),
                output_type="np",
                **self._more,
            ).images
        return np.round(images * 255).astype("uint8")

    @property
    def times(self) -> Mapping[str, float]:
        if not self._compiled:
            return {}
        # Tracing and compiling together; torch has no public way to ask.
        return {"compile": self._torch._dynamo.utils.calculate_time_spent().get("total_wall_time", 0.0)}

    @property
    def device_memory_gb(self) -> float | None:
        cuda = self._torch.cuda
        return cuda.max_memory_allocated() / 1e9 if cuda.is_available() else None
