"""The subject of the benchmark: kerasdiff itself, reading a folder of diffusers."""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kerasdiff.bench import checkpoint_files
from kerasdiff.bench.case import Job, Row
from kerasdiff.bench.worker import Clock
from kerasdiff.runtime.platform_info import cpu_has_bfloat16
from kerasdiff.runtime.tf_setup import import_tensorflow, inference_only

# Name of a configuration -> arguments of `Generator`; "mixed" is settled when the device is known.
CONFIGS: dict[str, dict[str, Any]] = {
    "standard": {"precision": "float32", "jit_compile": False},
    "mixed": {"precision": "mixed", "jit_compile": False},
    "xla": {"precision": "float32", "jit_compile": True},
    "xla_mixed": {"precision": "mixed", "jit_compile": True},
    "auto": {"precision": "auto", "jit_compile": "auto"},
}

# What `Generator.times` calls it -> the part of a cold start, as for the others. A program's first call compiles it
# and runs it once; "programs" is reading those that an earlier process traced.
_PARTS = {"weights": "load", "load": "programs", "first": "compile"}


def rows(configs: Sequence[str], gpu: bool, large: bool = True) -> list[Row]:
    """A row for each configuration; `large` as in `kerasdiff.models.config.UNetConfig`."""
    return [_row(config, gpu, large) for config in configs]


def _row(config: str, gpu: bool, large: bool) -> Row:
    options = dict(CONFIGS[config])
    half = "float16" if gpu else "bfloat16"
    if options["precision"] == "mixed":
        options["precision"] = f"mixed_{half}"
    # Mixed policies keep float32 weights. Files are in the type that is kept, so that loading converts nothing.
    halved = config == "auto" and (gpu or (large and cpu_has_bfloat16()))
    options["files"] = half if halved else "float32"
    return Row(f"kerasdiff {config}", __name__, options, caches=True, environment={"KERASDIFF_CACHE": "{cache}"})


def folder(job: Job) -> pathlib.Path:
    return checkpoint_files.diffusers_folder(job, job.options["files"])


def prepare(job: Job) -> None:
    checkpoint_files.write_diffusers_folder(job, job.options["files"])


class OurSession:
    """A generator and the request that it is given."""

    def __init__(self, job: Job, path: pathlib.Path) -> None:
        from kerasdiff.generator import Generator

        options = {name: job.options[name] for name in ("precision", "jit_compile")}
        self._generator = Generator(path, **options)
        self._settings = job.settings
        self.precision = self._generator.execution.precision.removeprefix("mixed_")

    def run(self, latents: np.ndarray, num_steps: int) -> np.ndarray:
        from kerasdiff.request import make_request

        settings = self._settings
        request = make_request(
            self._generator.config,
            settings.prompt,
            batch_size=settings.batch_size,
            height=settings.height,
            width=settings.width,
            num_steps=num_steps,
            guidance_scale=settings.guidance_scale,
            sampler="ddim",
            spacing="keras_cv",
            seed=0,
        )
        return self._generator.run(request, latents=latents, progress=False).images

    @property
    def device_memory_gb(self) -> float | None:
        return tensorflow_memory_gb()

    @property
    def times(self) -> Mapping[str, float]:
        told = getattr(self._generator, "times", {})
        return {_PARTS.get(name, name): seconds for name, seconds in told.items()}


def start(job: Job, clock: Clock) -> OurSession:
    import warnings

    # One step starts at timestep 0 in KerasCV's spacing: odd as a picture, right as a measure of time.
    warnings.filterwarnings("ignore", "the run starts from pure noise at timestep")
    inference_only()  # as the command line does: the process is ours, and weights never change
    # Here, so that it does not look like building.
    import_tensorflow()
    importlib.import_module("kerasdiff.generator")
    clock.done("import")
    session = OurSession(job, folder(job))
    clock.done("build", session.times)
    return session


def tensorflow_memory_gb() -> float | None:
    """The most that TensorFlow held on the first GPU, or None."""
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        return None
    return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e9
