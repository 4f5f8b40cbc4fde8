"""ONNX Runtime with the networks of diffusers, exported by PyTorch, in float32."""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

from kerasdiff.bench import checkpoint_files
from kerasdiff.bench.peers import modules
from kerasdiff.bench.peers.bare_networks import NetworksSession
from kerasdiff.bench.task import Subject, Task, Workload
from kerasdiff.bench.worker import Clock
from kerasdiff.models.config import ModelConfig

_OPSET = 18


def subjects(precisions: Sequence[str], gpu: bool) -> list[Subject]:
    """One: its CPU kernels know float32 only."""
    return [Subject("onnxruntime f32", __name__, {"precision": "float32"})] if "float32" in precisions else []


def unsupported(config: ModelConfig, workload: Workload, gpu: bool) -> str | None:
    """Why it cannot do this work, or None."""
    if importlib.util.find_spec("onnx") is None:
        return "onnx, which PyTorch exports with, is not installed"
    if gpu and "CUDAExecutionProvider" not in importlib.import_module("onnxruntime").get_available_providers():
        return "this onnxruntime has no GPU support: pip install onnxruntime-gpu"
    return None


def folder(task: Task) -> pathlib.Path:
    return modules.static_folder(task, "onnx")


def prepare(task: Task) -> None:
    import torch

    onnx = importlib.import_module("onnx")
    with checkpoint_files.new_folder(folder(task)) as partial, torch.no_grad():
        for network in modules.NETWORKS:
            theirs = modules.exported(task, network)
            # A model of more than 2 GB leaves one file per tensor; they are joined below.
            loose = partial / f"{network}.loose"
            loose.mkdir()
            torch.onnx.export(
                theirs.module,
                theirs.inputs,
                str(loose / "model.onnx"),
                input_names=list(theirs.names),
                output_names=["output"],
                opset_version=_OPSET,
                dynamo=False,
            )
            del theirs
            model = onnx.load(str(loose / "model.onnx"))
            onnx.save_model(
                model, str(partial / f"{network}.onnx"), save_as_external_data=True, location=f"{network}.data"
            )
            del model
            shutil.rmtree(loose)


def start(task: Task, clock: Clock) -> NetworksSession:
    onnxruntime = importlib.import_module("onnxruntime")
    clock.done("import")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    providers = [
        name
        for name in ("CUDAExecutionProvider", "CPUExecutionProvider")
        if name in onnxruntime.get_available_providers()
    ]

    def loaded(network: str) -> Any:
        session = onnxruntime.InferenceSession(str(folder(task) / f"{network}.onnx"), options, providers=providers)
        names = [argument.name for argument in session.get_inputs()]
        return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))[0]

    networks = [loaded(network) for network in modules.NETWORKS]
    clock.done("load")
    session = NetworksSession(task, "float32", *networks)
    clock.done("build")
    return session
