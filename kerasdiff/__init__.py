"""Stable Diffusion for Keras and TensorFlow that starts fast, runs fast and does not fall over."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kerasdiff._version import __version__ as __version__

if TYPE_CHECKING:
    from kerasdiff.api import generate, replay
    from kerasdiff.compat.stable_diffusion import StableDiffusion, StableDiffusionV2
    from kerasdiff.errors import KerasdiffError, ModelError, NonFiniteError, OutOfMemoryError, RequestError
    from kerasdiff.generator import Generator
    from kerasdiff.request import Request
    from kerasdiff.result import Result
    from kerasdiff.runtime.tf_setup import inference_only
    from kerasdiff.samplers import SAMPLERS, SPACINGS

__all__ = [
    "SAMPLERS",
    "SPACINGS",
    "Generator",
    "KerasdiffError",
    "ModelError",
    "NonFiniteError",
    "OutOfMemoryError",
    "Request",
    "RequestError",
    "Result",
    "StableDiffusion",
    "StableDiffusionV2",
    "generate",
    "inference_only",
    "replay",
]

# Name -> module, imported at first use: `import kerasdiff` and `--help` do not wait for TensorFlow.
_HOMES = {
    "SAMPLERS": "samplers",
    "SPACINGS": "samplers",
    "Generator": "generator",
    "KerasdiffError": "errors",
    "ModelError": "errors",
    "NonFiniteError": "errors",
    "OutOfMemoryError": "errors",
    "Request": "request",
    "RequestError": "errors",
    "Result": "result",
    "StableDiffusion": "compat.stable_diffusion",
    "StableDiffusionV2": "compat.stable_diffusion",
    "generate": "api",
    "inference_only": "runtime.tf_setup",
    "replay": "api",
}
# Used as kerasdiff.samplers.trajectory, without an import of their own.
_MODULES = {
    "batch": "batch",
    "bulk": "bulk",
    "images": "images",
    "jobs": "batch",
    "metadata": "metadata",
    "receipts": "metadata",
    "samplers": "samplers",
}
# help(kerasdiff) and completion look at every name of dir(), and stop at one that is an error.
_OF_KERAS_CV = ("StableDiffusion", "StableDiffusionV2")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"kerasdiff.{_MODULES[name]}")
    if name not in _HOMES:
        raise AttributeError(f"module 'kerasdiff' has no attribute {name!r}")
    return getattr(importlib.import_module(f"kerasdiff.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    from importlib.util import find_spec

    missing = () if find_spec("keras_cv") else _OF_KERAS_CV
    return [*(name for name in __all__ if name not in missing), "__version__", *_MODULES]
