"""ONNX Runtime with the networks of diffusers, exported by PyTorch, in float32."""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
from typing import Any

from kerasdiff.bench import checkpoint_files
from kerasdiff.bench.case import Job, Row
from kerasdiff.bench.peers import modules
from kerasdiff.bench.peers.bare_networks import NetworksSession
from kerasdiff.bench.worker import Clock
from kerasdiff.models.config import ModelConfig

_OPSET = 18


def rows(precisions: list[str], gpu: bool) -> list[Row]:
    """One row: its CPU kernels know float32 only."""
    return [Row("onnxruntime f32", __name__, {"precision": "float32"})] if "float32" in precisions else []


def cannot(config: ModelConfig, job: Job) -> str | None:
    """Why it cannot do this work, or None."""
    if importlib.util.find_spec("onnx") is None:
        return "onnx, which PyTorch exports with, is not installed"
    if job.options.get("gpu"):
        providers = importlib.import_module("onnxruntime").get_available_providers()
        if "CUDAExecutionProvider" not in providers:
            return "this onnxruntime has no GPU support: pip install onnxruntime-gpu"
    return None


def folder(job: Job) -> pathlib.Path:
    settings = job.settings
    guided = "guided" if settings.guided else "unguided"
    return job.model_folder / f"onnx-{settings.height}x{settings.width}-{settings.batch_size}-{guided}"


def prepare(job: Job) -> None:
    import torch

    onnx = importlib.import_module("onnx")
    with checkpoint_files.made_whole(folder(job)) as draft, torch.no_grad():
        for network in modules.NETWORKS:
            theirs = modules.exported(job, network)
            # A model of more than 2 GB leaves one file a tensor; they are put together below.
            loose = draft / f"{network}.loose"
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
                model, str(draft / f"{network}.onnx"), save_as_external_data=True, location=f"{network}.data"
            )
            del model
            for path in loose.iterdir():
                path.unlink()
            loose.rmdir()


def start(job: Job, clock: Clock) -> NetworksSession:
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
        session = onnxruntime.InferenceSession(str(folder(job) / f"{network}.onnx"), options, providers=providers)
        names = [given.name for given in session.get_inputs()]
        return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))[0]

    networks = [loaded(network) for network in modules.NETWORKS]
    clock.done("load")
    session = NetworksSession(job, "float32", *networks)
    clock.done("build")
    return session
