"""ONNX Runtime with the networks of diffusers, exported by PyTorch, in float32."""

import importlib
import importlib.util
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

from kerasdiff.bench.checkpoint_files import new_folder
from kerasdiff.bench.peers.bare_networks import NetworksSession, exported, static_folder
from kerasdiff.bench.task import Subject, Task, Workload
from kerasdiff.bench.worker import Clock
from kerasdiff.models.config import ModelConfig

_OPSET = 18


def subjects(precisions: Sequence[str], gpu: bool) -> list[Subject]:
    """One: its CPU kernels know float32 only."""
    return [Subject("onnxruntime f32", f"{__name__}:OnnxSession")] if "float32" in precisions else []


def unsupported(config: ModelConfig, workload: Workload, gpu: bool) -> str | None:
    """Why it cannot do this work, or None."""
    if config.unet.embeds_sizes:
        return "ONNX Runtime is compared on Stable Diffusion 1.x and 2.x only: its files of a larger model are float32"
    if gpu and "CUDAExecutionProvider" not in importlib.import_module("onnxruntime").get_available_providers():
        return "this onnxruntime has no GPU support: pip install onnxruntime-gpu"
    return None


class OnnxSession(NetworksSession):
    """Networks as ONNX files."""

    precision = "float32"

    @classmethod
    def folder(cls, task: Task) -> pathlib.Path:
        return static_folder(task, "onnx")

    @classmethod
    def prepare(cls, task: Task) -> None:
        import torch

        onnx = importlib.import_module("onnx")
        with new_folder(cls.folder(task)) as partial, torch.no_grad():
            for network in cls.networks_of(task):
                module, inputs = exported(task, network)
                # A model of more than 2 GB leaves one file per tensor; they are joined below.
                loose = partial / f"{network}.loose"
                loose.mkdir()
                path = str(loose / "model.onnx")
                torch.onnx.export(
                    module,
                    tuple(inputs.values()),
                    path,
                    input_names=list(inputs),
                    output_names=["output"],
                    opset_version=_OPSET,
                    dynamo=False,
                )
                del module
                model, target = onnx.load(path), str(partial / f"{network}.onnx")
                onnx.save_model(model, target, save_as_external_data=True, location=f"{network}.data")
                del model
                shutil.rmtree(loose)

    def __init__(self, task: Task, clock: Clock) -> None:
        onnxruntime = importlib.import_module("onnxruntime")
        clock.done("import")
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        available = onnxruntime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]

        def loaded(network: str) -> Any:
            path = str(self.folder(task) / f"{network}.onnx")
            session = onnxruntime.InferenceSession(path, options, providers=providers)
            names = [argument.name for argument in session.get_inputs()]
            return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))

        self.networks = {network: loaded(network) for network in self.networks_of(task)}
        clock.done("load")
        super().__init__(task, clock)
        clock.done("build")
