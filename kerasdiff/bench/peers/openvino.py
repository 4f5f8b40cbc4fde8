"""OpenVINO's runtime with the networks of diffusers as static IR.

For bfloat16 the files are compressed to float16, as its converter does unless told otherwise; for float32 they are
not, as the images would differ by many grey levels.
"""

from __future__ import annotations

import importlib
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from kerasdiff.bench import checkpoint_files
from kerasdiff.bench.peers import modules
from kerasdiff.bench.peers.bare_networks import NetworksSession
from kerasdiff.bench.peers.diffusers import SHORT
from kerasdiff.bench.task import Subject, Task, Workload
from kerasdiff.bench.worker import Clock
from kerasdiff.models.config import ModelConfig

_HINTS = {"float32": "f32", "bfloat16": "bf16"}


def subjects(precisions: Sequence[str], gpu: bool) -> list[Subject]:
    """One per precision."""
    return [
        Subject(f"openvino {SHORT[precision]}", __name__, {"precision": precision}, caches=True)
        for precision in precisions
        if precision in _HINTS
    ]


def unsupported(config: ModelConfig, workload: Workload, gpu: bool) -> str | None:
    """Why it cannot do this work, or None."""
    return "OpenVINO does not run on this GPU" if gpu else None


def folder(task: Task) -> pathlib.Path:
    return modules.static_folder(task, f"openvino-{'float16' if _compressed(task) else 'float32'}")


def _compressed(task: Task) -> bool:
    return task.options["precision"] != "float32"


def _runtime() -> Any:
    # Importing openvino reports that to its makers; without this module it does not.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


def prepare(task: Task) -> None:
    openvino = _runtime()
    with checkpoint_files.new_folder(folder(task)) as partial:
        for network in modules.NETWORKS:
            theirs = modules.exported(task, network)
            shapes = [tuple(value.shape) for value in theirs.inputs]
            model = openvino.convert_model(theirs.module, example_input=theirs.inputs, input=shapes)
            openvino.save_model(model, partial / f"{network}.xml", compress_to_fp16=_compressed(task))


def start(task: Task, clock: Clock) -> NetworksSession:
    openvino = _runtime()
    clock.done("import")
    core = openvino.Core()
    properties = {
        "INFERENCE_PRECISION_HINT": _HINTS[task.options["precision"]],
        "PERFORMANCE_HINT": "LATENCY",
        "CACHE_DIR": task.cache,
    }

    def compiled(network: str) -> Any:
        request = core.compile_model(folder(task) / f"{network}.xml", "CPU", properties).create_infer_request()

        def run(*inputs: np.ndarray) -> np.ndarray:
            request.infer(list(inputs), share_inputs=True)
            return request.get_output_tensor().data.copy()

        return run

    networks = [compiled(network) for network in modules.NETWORKS]
    clock.done("compile")
    session = NetworksSession(task, task.options["precision"], *networks)
    clock.done("load")
    return session
