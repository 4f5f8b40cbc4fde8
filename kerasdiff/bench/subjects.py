"""Which rows a benchmark has: configurations of kerasdiff, and peers that are installed and can do the work."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterable, Sequence

from kerasdiff.bench import ours
from kerasdiff.bench.case import Job, Row, Settings
from kerasdiff.bench.peers import diffusers, keras_cv, onnxruntime, openvino
from kerasdiff.errors import RequestError
from kerasdiff.models.config import ModelConfig

CONFIGS = tuple(ours.CONFIGS)
PRECISIONS = ("float32", "bfloat16", "float16")
# Name -> module of ours, and what must be installed: package to import -> what to install.
PEERS = {
    "keras_cv": (keras_cv, {"keras_cv": "keras-cv"}),
    "diffusers": (diffusers, {"diffusers": "diffusers", "torch": "torch", "transformers": "transformers"}),
    "diffusers_compile": (diffusers, {"diffusers": "diffusers", "torch": "torch", "transformers": "transformers"}),
    "openvino": (openvino, {"openvino": "openvino", "diffusers": "diffusers", "torch": "torch"}),
    "onnxruntime": (onnxruntime, {"onnxruntime": "onnxruntime", "onnx": "onnx", "diffusers": "diffusers"}),
}


def check_names(name: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Raises RequestError for a name that is unknown or there twice."""
    for value in given:
        if value not in known:
            raise RequestError(f"{name}={','.join(given)}: {value!r} is unknown; known: {', '.join(known)}")
    if len(set(given)) < len(given):
        raise RequestError(f"{name}={','.join(given)} names something twice")


def all_names(peers: Iterable[str]) -> list[str]:
    """Names of all rows that peers can have, on any device."""
    names: dict[str, None] = {}
    for gpu in (False, True):
        for peer in peers:
            names.update(dict.fromkeys(row.name for row in _rows(peer, PRECISIONS, gpu)))
    return list(names)


def _rows(peer: str, precisions: Sequence[str], gpu: bool) -> list[Row]:
    module = PEERS[peer][0]
    if peer == "diffusers_compile":
        return module.rows(list(precisions), gpu, compiled=True)
    return module.rows(list(precisions), gpu)


def peer_rows(
    peers: Sequence[str],
    config: ModelConfig,
    settings: Settings,
    gpu: bool,
    precisions: Sequence[str] | None = None,
) -> tuple[list[Row], dict[str, str]]:
    """Rows of the peers, and why a peer has none: (rows, name -> reason).

    Args:
        peers: names from `PEERS`.
        config: of the model.
        settings: the work.
        gpu: whether TensorFlow sees a GPU.
        precisions: of the peers; None is float32 and the half precision that the device computes in.
    """
    known = ["float32", "float16" if gpu else "bfloat16"] if precisions is None else list(precisions)
    rows: list[Row] = []
    absent: dict[str, str] = {}
    for name in peers:
        module, packages = PEERS[name]
        job = Job("measure", settings, Row(name, module.__name__, {"gpu": gpu}), "")
        reason = _not_installed(packages) or module.cannot(config, job)
        if name == "diffusers_compile" and reason is None:
            reason = None if gpu or shutil.which("c++") or shutil.which("g++") else "it needs a C++ compiler (g++)"
        if reason is not None:
            absent[name] = reason
            continue
        found = _rows(name, known, gpu)
        rows += found
        if not found:
            absent[name] = f"it does not compute in {' or '.join(known)} here"
    return rows, absent


def _not_installed(packages: dict[str, str]) -> str | None:
    for module, package in packages.items():
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed: pip install {package}"
    return None
