"""`diffusers.StableDiffusionPipeline` on PyTorch, eager or with `torch.compile`."""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
import warnings
from collections.abc import Mapping

import numpy as np

from kerasdiff.bench import checkpoint_files
from kerasdiff.bench.case import Job, Row
from kerasdiff.bench.ddim_loop import levels_of
from kerasdiff.bench.worker import Clock
from kerasdiff.models.config import ModelConfig

SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def rows(precisions: list[str], gpu: bool, compiled: bool = False) -> list[Row]:
    """One row a precision."""
    name = "diffusers compile" if compiled else "diffusers"
    environment = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if compiled:
        # Inductor keeps what it compiled; where it does is told, so that "first" is an empty folder.
        environment["TORCHINDUCTOR_CACHE_DIR"] = "{cache}"
    return [
        Row(
            f"{name} {SHORT[precision]}",
            __name__,
            {"precision": precision, "compile": compiled},
            caches=compiled,
            environment=environment,
        )
        for precision in precisions
    ]


def cannot(config: ModelConfig, job: Job) -> str | None:
    """Why it cannot do this work, or None."""
    return None


def folder(job: Job) -> pathlib.Path:
    return checkpoint_files.diffusers_folder(job, job.options["precision"])


def prepare(job: Job) -> None:
    checkpoint_files.write_diffusers_folder(job, job.options["precision"])


class DiffusersSession:
    """A pipeline with the settings that its documentation recommends for speed."""

    def __init__(self, job: Job, folder: pathlib.Path) -> None:
        import torch

        theirs = importlib.import_module("diffusers")
        self._torch, self._settings = torch, job.settings
        self.precision, self._compiled = job.options["precision"], job.options["compile"]
        self._dtype = getattr(torch, self.precision)
        pipeline = theirs.StableDiffusionPipeline.from_pretrained(
            folder,
            torch_dtype=self._dtype,
            safety_checker=None,
            requires_safety_checker=False,
            local_files_only=True,
            low_cpu_mem_usage=importlib.util.find_spec("accelerate") is not None,
        )
        # Euler's method in the noise level is DDIM; its scheduler takes KerasCV's timesteps, DDIM's does not.
        # Spacing "leading" is what starts from unit variance.
        pipeline.scheduler = theirs.EulerDiscreteScheduler.from_config(
            pipeline.scheduler.config, timestep_spacing="leading"
        )
        pipeline.set_progress_bar_config(disable=True)
        if torch.cuda.is_available():
            # TensorFlow has it on by default: float32 rows then round the factors of products alike.
            torch.set_float32_matmul_precision("high")
            pipeline.to("cuda")
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.vae.to(memory_format=torch.channels_last)
        if self._compiled:
            pipeline.unet.compile()
            pipeline.vae.decoder.compile()
        self._pipeline = pipeline
        from kerasdiff.checkpoints.formats.diffusers_config import read_config

        self._schedule = read_config(folder).schedule

    def run(self, latents: np.ndarray, num_steps: int) -> np.ndarray:
        settings, torch = self._settings, self._torch
        noise = torch.from_numpy(latents.transpose(0, 3, 1, 2).copy()).to(self._dtype)
        with torch.inference_mode():
            images = self._pipeline(
                settings.prompt,
                height=settings.height,
                width=settings.width,
                timesteps=levels_of(self._schedule, num_steps).timesteps.astype(int).tolist(),
                guidance_scale=settings.guidance_scale,
                num_images_per_prompt=settings.batch_size,
                latents=noise.to(self._pipeline.device),
                output_type="np",
            ).images
        return np.round(images * 255).astype("uint8")

    @property
    def times(self) -> Mapping[str, float]:
        if not self._compiled:
            return {}
        # Of tracing and compiling together; torch has no public way to ask.
        return {"compile": self._torch._dynamo.utils.calculate_time_spent().get("total_wall_time", 0.0)}

    @property
    def device_memory_gb(self) -> float | None:
        cuda = self._torch.cuda
        return cuda.max_memory_allocated() / 1e9 if cuda.is_available() else None


def start(job: Job, clock: Clock) -> DiffusersSession:
    warnings.simplefilter("ignore")
    theirs = importlib.import_module("diffusers")
    # Attributes that are looked up are what is imported: diffusers is lazy.
    _ = theirs.StableDiffusionPipeline, theirs.EulerDiscreteScheduler
    clock.done("import")
    session = DiffusersSession(job, checkpoint_files.diffusers_folder(job, job.options["precision"]))
    clock.done("load")
    return session
