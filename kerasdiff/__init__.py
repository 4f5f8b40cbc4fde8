"""Stable Diffusion for Keras and TensorFlow that starts fast, runs fast and does not fall over."""

from __future__ import annotations

import importlib
import os
import sys

from kerasdiff._version import __version__ as __version__

TYPE_CHECKING = False  # not that of typing: only what Python has imported by now is certain to be its own
if TYPE_CHECKING:
    from typing import Any

    from kerasdiff.api import generate, interpolate, replay
    from kerasdiff.compat.stable_diffusion import StableDiffusion, StableDiffusionV2
    from kerasdiff.controls import Control, ImagePrompt
    from kerasdiff.errors import KerasdiffError, ModelError, NonFiniteError, OutOfMemoryError, RequestError
    from kerasdiff.generator import Generator
    from kerasdiff.request import Request
    from kerasdiff.result import Result
    from kerasdiff.runtime.tf_setup import inference_only
    from kerasdiff.samplers import RECIPES, SAMPLERS, SPACINGS
    from kerasdiff.upscaling import upscale

__all__ = [
    "RECIPES",
    "SAMPLERS",
    "SPACINGS",
    "Control",
    "Generator",
    "ImagePrompt",
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
    "interpolate",
    "replay",
    "upscale",
]

# help(kerasdiff) and completion look at every name of dir(), and stop at one that is an error.
_OF_KERAS_CV = ("StableDiffusion", "StableDiffusionV2")
# Module -> names, imported at first use: `import kerasdiff` and `--help` do not wait for TensorFlow.
_NAMES = {
    "api": ("generate", "interpolate", "replay"),
    "compat.stable_diffusion": _OF_KERAS_CV,
    "controls": ("Control", "ImagePrompt"),
    "errors": ("KerasdiffError", "ModelError", "NonFiniteError", "OutOfMemoryError", "RequestError"),
    "generator": ("Generator",),
    "request": ("Request",),
    "result": ("Result",),
    "runtime.tf_setup": ("inference_only",),
    "samplers": ("RECIPES", "SAMPLERS", "SPACINGS"),
    "upscaling": ("upscale",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}
# Used as kerasdiff.samplers.trajectory, without an import of their own.
_MODULES = {name: name for name in ("batch", "bulk", "hints", "images", "metadata", "samplers")}
_MODULES |= {"jobs": "batch", "receipts": "metadata"}


def _leave_current_folder() -> None:
    """For `python -m kerasdiff...`: modules are not looked for among somebody's pictures, where one may be a json.py.

    As with `python -P`, but for a checkout from which this package itself comes.
    """
    if sys.argv[:1] != ["-m"]:  # as it is while Python looks for what it is to run
        return
    word = sys.orig_argv[-len(sys.argv)]  # what precedes the program's own arguments; -m may be part of it
    module = word.partition("m")[2] if word.startswith("-") else word
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if module.partition(".")[0] == __name__ and not sys.flags.safe_path and sys.path[0] != here:
        del sys.path[0]


_leave_current_folder()


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
