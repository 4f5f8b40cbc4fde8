"""OpenVINO's runtime with the networks of diffusers as static IR.

For bfloat16 the files are compressed to float16, as its converter does unless told otherwise; for float32 they are
not, as the images would differ by many grey levels. A network in float16 is never there in float32, dense layers are
not computed while it is traced, and the pictures of that are small: a large model is exported in little more memory
than its files take.
"""

import importlib
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from kerasdiff.bench.checkpoint_files import new_folder
from kerasdiff.bench.peers.bare_networks import NetworksSession, exported, static_folder
from kerasdiff.bench.peers.diffusers import SHORT
from kerasdiff.bench.task import Subject, Task, Workload
from kerasdiff.bench.worker import Clock
from kerasdiff.models.config import ModelConfig

# The precision that is computed in -> that of the files.
_FILES = {"float32": "float32", "bfloat16": "float16"}
# Of latents while a network is traced.
_TRACED_SIDE = 16


def subjects(precisions: Sequence[str], gpu: bool) -> list[Subject]:
    """One per precision."""
    return [
        Subject(f"openvino {SHORT[precision]}", f"{__name__}:OpenVINOSession", {"precision": precision}, caches=True)
        for precision in precisions
        if precision in _FILES
    ]


def unsupported(config: ModelConfig, workload: Workload, gpu: bool) -> str | None:
    """Why it cannot do this work, or None."""
    return "OpenVINO does not run on this GPU" if gpu else None


def _runtime() -> Any:
    # Importing openvino reports that to its makers; without this module it does not.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return importlib.import_module("openvino")


def _traced(module: Any, inputs: Iterable[Any]) -> Any:
    """A module as OpenVINO's converter takes it, run once with small inputs."""
    decoder = importlib.import_module("openvino.frontend.pytorch.ts_decoder").TorchScriptPythonDecoder
    return decoder(module, example_input=tuple(map(_small, inputs)), trace_kwargs={"check_trace": False})


def _small(example: Any) -> Any:
    """Smaller latents to trace with, unless a side is not halved evenly: that one is doubled again in another way."""
    sides = example.shape[2:] if example.ndim == 4 else ()
    if not sides or any(side % _TRACED_SIDE for side in sides):
        return example
    return example[:, :, :_TRACED_SIDE, :_TRACED_SIDE].contiguous()


class OpenVINOSession(NetworksSession):
    """Networks as IR files."""

    @classmethod
    def folder(cls, task: Task) -> pathlib.Path:
        return static_folder(task, f"openvino-{_FILES[task.subject.options['precision']]}")

    @classmethod
    def files(cls, task: Task) -> str:
        return task.subject.options["precision"]

    @classmethod
    def prepare(cls, task: Task) -> None:
        openvino = _runtime()
        compressed = _FILES[task.subject.options["precision"]] == "float16"
        with new_folder(cls.folder(task)) as partial:
            for network in cls.networks_of(task):
                module, inputs = exported(task, network, cls.files(task))
                if compressed:
                    # As optimum-intel does; the name has no public counterpart.
                    patches = importlib.import_module("openvino.frontend.pytorch.patch_model")
                    getattr(patches, "__make_16bit_traceable")(module)
                shapes = [tuple(value.shape) for value in inputs.values()]
                model = openvino.convert_model(_traced(module, inputs.values()), input=shapes)
                openvino.save_model(model, partial / f"{network}.xml", compress_to_fp16=compressed)
                del module, model

    def __init__(self, task: Task, clock: Clock) -> None:
        openvino = _runtime()
        clock.done("import")
        self.precision = task.subject.options["precision"]
        core = openvino.Core()
        properties = {
            "INFERENCE_PRECISION_HINT": SHORT[self.precision],
            "PERFORMANCE_HINT": "LATENCY",
            "CACHE_DIR": task.cache,
        }

        def compiled(network: str) -> Any:
            path = self.folder(task) / f"{network}.xml"
            request = core.compile_model(path, "CPU", properties).create_infer_request()

            def run(*inputs: np.ndarray) -> list[np.ndarray]:
                request.infer(list(inputs), share_inputs=True)
                return [tensor.data.copy() for tensor in request.output_tensors]

            return run

        self.networks = {network: compiled(network) for network in self.networks_of(task)}
        clock.done("compile")
        super().__init__(task, clock)
        clock.done("load")
