"""Which peers can do a workload here, and what a benchmark may be asked for."""

import functools
import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any

from kerasdiff.bench import ours
from kerasdiff.bench.peers import diffusers, keras_cv, onnxruntime, openvino_ir, stable_diffusion_cpp
from kerasdiff.bench.task import Subject, Workload
from kerasdiff.errors import RequestError
from kerasdiff.models.config import ModelConfig

CONFIGS = tuple(ours.CONFIGS)
PRECISIONS = ("float32", "bfloat16", "float16")
_compiled = functools.partial(diffusers.subjects, compiled=True)
# Module -> its package, where that is not the module's name.
_PACKAGES = {"stable_diffusion_cpp": "stable-diffusion-cpp-python"}
_DIFFUSERS = ("diffusers", "torch", "transformers")
# Name -> its subjects by precision, why it cannot do a workload, and what must be installed.
PEERS: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "keras_cv": (keras_cv.subjects, keras_cv.unsupported, ("keras_cv",)),
    "diffusers": (diffusers.subjects, None, _DIFFUSERS),
    "diffusers_compile": (_compiled, diffusers.compile_unsupported, _DIFFUSERS),
    "openvino": (openvino_ir.subjects, openvino_ir.unsupported, ("openvino", "diffusers", "torch")),
    "onnxruntime": (onnxruntime.subjects, onnxruntime.unsupported, ("onnxruntime", "onnx", "diffusers")),
    "stable_diffusion_cpp": (
        *(stable_diffusion_cpp.subjects, stable_diffusion_cpp.unsupported),
        ("stable_diffusion_cpp",),
    ),
}


def check_names(name: str, requested: Sequence[str], known: Sequence[str]) -> None:
    """Raises RequestError for an unknown or duplicate name."""
    for value in requested:
        if value not in known:
            raise RequestError(f"{name}={','.join(requested)}: {value!r} is unknown; known: {', '.join(known)}")
    if len(set(requested)) < len(requested):
        raise RequestError(f"{name}={','.join(requested)} has a duplicate name")


def all_names(peers: Iterable[str]) -> list[str]:
    """Names of all subjects that peers can have, on any device."""
    peers = list(peers)
    found = [subject for gpu in (False, True) for peer in peers for subject in PEERS[peer][0](PRECISIONS, gpu)]
    return list(dict.fromkeys(subject.name for subject in found))


def with_controls(subjects: Iterable[Subject], control: bool) -> list[Subject]:
    """Subjects, and with `control` behind each the same with a ControlNet, if it can have one."""
    able = (ours.OurSession, diffusers.DiffusersSession)
    found = []
    for subject in subjects:
        steered = control and subject.session.rpartition(":")[2] in [one.__name__ for one in able]
        found += [subject, *([subject.with_control] if steered else [])]
    return found


def peer_subjects(
    peers: Sequence[str],
    config: ModelConfig,
    workload: Workload,
    gpu: bool,
    precisions: Sequence[str] | None = None,
) -> tuple[list[Subject], dict[str, str]]:
    """Subjects of the peers, and why a peer has none: (subjects, name -> reason).

    Without `precisions` there is one in float32 and one in the half precision that the device computes in.
    """
    if precisions is None:
        precisions = ["float32", "float16" if gpu else "bfloat16"]
    subjects: list[Subject] = []
    absent: dict[str, str] = {}
    for name in peers:
        subjects_of, unsupported, packages = PEERS[name]
        reason = _not_installed(packages) or (unsupported(config, workload, gpu) if unsupported else None)
        found = [] if reason else subjects_of(precisions, gpu)
        subjects += found
        if not found:
            absent[name] = reason or f"it does not compute in {' or '.join(precisions)} here"
    return subjects, absent


def _not_installed(packages: Iterable[str]) -> str | None:
    for package in packages:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed: pip install {_PACKAGES.get(package, package.replace('_', '-'))}"
    return None
