"""OpenVINO's runtime with the networks of diffusers as static IR.

For bfloat16 the files are compressed to float16, as its converter does unless told otherwise; for float32 they are
not, as the images would differ by many grey levels.
"""

from __future__ import annotations

import importlib
import pathlib
import sys
from typing import Any

import numpy as np

from kerasdiff.bench import checkpoint_files
from kerasdiff.bench.case import Job, Row
from kerasdiff.bench.peers import modules
from kerasdiff.bench.peers.bare_networks import NetworksSession
from kerasdiff.bench.peers.diffusers import SHORT
from kerasdiff.bench.worker import Clock
from kerasdiff.models.config import ModelConfig

_HINTS = {"float32": "f32", "bfloat16": "bf16"}


def rows(precisions: list[str], gpu: bool) -> list[Row]:
    """One row a precision."""
    return [
        Row(f"openvino {SHORT[precision]}", __name__, {"precision": precision}, caches=True)
        for precision in precisions
        if precision in _HINTS
    ]


def cannot(config: ModelConfig, job: Job) -> str | None:
    """Why it cannot do this work, or None."""
    return "OpenVINO does not run on this GPU" if job.options.get("gpu") else None


def folder(job: Job) -> pathlib.Path:
    settings = job.settings
    guided = "guided" if settings.guided else "unguided"
    size = f"{settings.height}x{settings.width}-{settings.batch_size}-{guided}"
    return job.model_folder / f"openvino-{'float16' if _compressed(job) else 'float32'}-{size}"


def _compressed(job: Job) -> bool:
    return job.options["precision"] != "float32"


def _runtime() -> Any:
    # Importing openvino reports that to its makers; without this module it does not.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


def prepare(job: Job) -> None:
    openvino = _runtime()
    with checkpoint_files.made_whole(folder(job)) as draft:
        for network in modules.NETWORKS:
            theirs = modules.exported(job, network)
            shapes = [tuple(value.shape) for value in theirs.inputs]
            model = openvino.convert_model(theirs.module, example_input=theirs.inputs, input=shapes)
            openvino.save_model(model, draft / f"{network}.xml", compress_to_fp16=_compressed(job))


def start(job: Job, clock: Clock) -> NetworksSession:
    openvino = _runtime()
    clock.done("import")
    core = openvino.Core()
    settings = {
        "INFERENCE_PRECISION_HINT": _HINTS[job.options["precision"]],
        "PERFORMANCE_HINT": "LATENCY",
        "CACHE_DIR": job.cache,
    }

    def compiled(network: str) -> Any:
        request = core.compile_model(folder(job) / f"{network}.xml", "CPU", settings).create_infer_request()

        def run(*inputs: np.ndarray) -> np.ndarray:
            request.infer(list(inputs), share_inputs=True)
            return request.get_output_tensor().data.copy()

        return run

    networks = [compiled(network) for network in modules.NETWORKS]
    clock.done("compile")
    session = NetworksSession(job, job.options["precision"], *networks)
    clock.done("load")
    return session
