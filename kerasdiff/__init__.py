"""Stable Diffusion for Keras and TensorFlow that starts fast, runs fast and does not fall over."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kerasdiff.engine.process import inference_only
    from kerasdiff.errors import KerasdiffError, ModelError, NonFiniteError, OutOfMemoryError, RequestError
    from kerasdiff.generator import Generator
    from kerasdiff.once import generate
    from kerasdiff.replaying import replay
    from kerasdiff.request import Request
    from kerasdiff.result import Result
    from kerasdiff.samplers import SAMPLERS, SPACINGS
    from kerasdiff.stable_diffusion import StableDiffusion, StableDiffusionV2

__version__ = "0.1.0"
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
    "StableDiffusion": "stable_diffusion",
    "StableDiffusionV2": "stable_diffusion",
    "generate": "once",
    "inference_only": "engine.process",
    "replay": "replaying",
}
# Used as kerasdiff.samplers.trajectory, without an import of their own.
_MODULES = ("bulk", "images", "jobs", "receipts", "samplers")
# help(kerasdiff) and completion look at every name of dir(), and stop at one that is an error.
_OF_KERAS_CV = ("StableDiffusion", "StableDiffusionV2")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"kerasdiff.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'kerasdiff' has no attribute {name!r}")
    return getattr(importlib.import_module(f"kerasdiff.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    from importlib.util import find_spec

    missing = () if find_spec("keras_cv") else _OF_KERAS_CV
    return [*(name for name in __all__ if name not in missing), "__version__", *_MODULES]
