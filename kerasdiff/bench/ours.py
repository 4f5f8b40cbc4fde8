"""kerasdiff itself as a subject, reading a folder in diffusers' layout."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kerasdiff.bench.checkpoint_files import control_folder, hint_of
from kerasdiff.bench.task import Subject, Task, Workload
from kerasdiff.bench.worker import Clock, Session
from kerasdiff.runtime import backend, memory
from kerasdiff.runtime.platform_info import cpu_has_bfloat16
from kerasdiff.runtime.precision import choose_backend
from kerasdiff.runtime.tf_setup import import_tensorflow, inference_only

if TYPE_CHECKING:
    from kerasdiff.models.config import ModelConfig
    from kerasdiff.request import Request

# Name of a configuration, which is a row of a table -> arguments of `Generator`, any of them; "mixed" becomes a policy
# when the device is known, and "keras" the backend that Keras has.
CONFIGS: dict[str, dict[str, Any]] = {
    "standard": {"precision": "float32", "jit_compile": False, "backend": "keras"},
    "mixed": {"precision": "mixed", "jit_compile": False, "backend": "keras"},
    "xla": {"precision": "float32", "jit_compile": True, "backend": "keras"},
    "xla_mixed": {"precision": "mixed", "jit_compile": True, "backend": "keras"},
    "auto": {"precision": "auto", "jit_compile": "auto", "backend": "auto"},
    "tensorflow": {"precision": "auto", "jit_compile": "auto", "backend": "tensorflow"},
    "auto_float32": {"precision": "float32", "jit_compile": "auto", "backend": "auto"},
}

# A key of `Generator.times` -> the part of a cold start, as for the others. A program's first call compiles it
# and runs it once; "programs" is reading those that an earlier process traced.
_PARTS = {"weights": "load", "load": "programs", "first": "compile"}


def our_subjects(configs: Sequence[str], gpu: bool, large: bool = True) -> list[Subject]:
    """A subject for each configuration; `large` as in `kerasdiff.models.config.UNetConfig`."""
    half = "float16" if gpu else "bfloat16"
    subjects = []
    for config in configs:
        options = dict(CONFIGS[config])
        if options["precision"] == "mixed":
            options["precision"] = f"mixed_{half}"
        # Mixed policies keep float32 weights. Files are in the type of the weights, so that loading converts nothing.
        halved = options["precision"] == "auto" and (gpu or (large and cpu_has_bfloat16()))
        options["files"] = half if halved else "float32"
        environment = {"KERASDIFF_CACHE": "{cache}"}
        subjects.append(Subject(f"kerasdiff {config}", f"{__name__}:OurSession", options, True, environment))
    return subjects


def request_of(config: ModelConfig, workload: Workload, num_steps: int, controls: Any = None) -> Request:
    """The workload as a request to kerasdiff."""
    from kerasdiff.request import make_request

    # The sampler is the one that all can do, not the best for few steps.
    with warnings.catch_warnings(action="ignore"):
        return make_request(
            config,
            workload.prompt,
            batch_size=workload.batch_size,
            height=workload.height,
            width=workload.width,
            num_steps=num_steps,
            guidance_scale=workload.guidance_scale,
            sampler="ddim",
            spacing=workload.spacing,
            seed=0,
            controls=controls,
        )


# Options of a subject that are not a generator's.
_OTHERS = ("files", "at_once", "control")


class TensorFlowSession(Session):
    """A session whose networks run in TensorFlow."""

    @property
    def device_memory_gb(self) -> float | None:
        """The most that TensorFlow held on the first GPU, or None."""
        tf = sys.modules.get("tensorflow")  # which a process need not have imported
        if tf is None or not tf.config.list_physical_devices("GPU"):
            return None
        return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e9


class OurSession(Session):
    """A generator and the workload that it is given; its option `at_once` is how many images may be drawn at once."""

    def __init__(self, task: Task, clock: Clock) -> None:
        super().__init__(task, clock)
        inference_only()  # as the command line does: the process is ours, and weights never change
        options = {name: value for name, value in task.subject.options.items() if name not in _OTHERS}
        if options["backend"] == "keras":
            options["backend"] = backend.of_keras()
        # Here, so that it does not count as building.
        if choose_backend(**options) == "tensorflow":
            import_tensorflow()
        from kerasdiff.diffusion import memory_model
        from kerasdiff.generator import Generator

        clock.done("import")
        if "at_once" in task.subject.options:
            memory_model.MAX_BATCH = dict.fromkeys(memory_model.MAX_BATCH, task.subject.options["at_once"])
        self._generator, self._controls = Generator(self.folder(task), **options), None
        if "control" in task.subject.options:
            from kerasdiff.controls import Control

            folder = control_folder(task, task.subject.options["files"])
            self._controls = Control(str(folder), hint_of(self.workload))
        self.precision = self._generator.execution.precision.removeprefix("mixed_")
        clock.done("build", self.times)

    def run(self, latents: np.ndarray, num_steps: int) -> np.ndarray:
        request = request_of(self._generator.config, self.workload, num_steps, self._controls)
        return self._generator.run(request, latents=latents, progress=False).images

    @property
    def device_memory_gb(self) -> float | None:
        peak = memory.device_peak()
        return None if peak is None else peak / 1e9

    @property
    def times(self) -> Mapping[str, float]:
        return {_PARTS.get(name, name): seconds for name, seconds in self._generator.times.items()}
