"""kerasdiff info: versions, devices, what is chosen automatically, and what the caches hold."""

from __future__ import annotations

import pathlib
import platform
import time
from collections.abc import Callable
from typing import Any

from kerasdiff.cli.console import print_json, print_line
from kerasdiff.cli.program import Option, Program, output_options
from kerasdiff.errors import KerasdiffError
from kerasdiff.runtime import backend, cache_dir
from kerasdiff.runtime.platform_info import cpu_has_bfloat16, processor, version
from kerasdiff.runtime.precision import choose, choose_backend, prefers_openvino

PROGRAM = Program(
    name="kerasdiff.info",
    about="reports versions, devices, what is chosen automatically and why, and what the caches hold.",
    usage="python -m kerasdiff.info [--flag=value ...]",
    examples="""\
python -m kerasdiff.info
python -m kerasdiff.info --clear
KERAS_BACKEND=jax python -m kerasdiff.info --json""",
    groups={
        "caches": (Option("switch", "clear", False, "Empty the caches on disk."),),
        "output": output_options("Print one JSON object instead of lines."),
    },
    positional=False,
    status_1="the backend does not compute, or stdout cannot be written to",
)
_PACKAGES = ("kerasdiff", "tensorflow", "keras", "keras-cv", "jax", "openvino", "numpy")
_CACHES = ("weights", "constants", "programs", "blobs", "batches", "xla", "jax")


def info() -> dict[str, Any]:
    """Versions, devices, choices and caches, as plain values; imports the backend and computes a little."""
    name = choose_backend("auto")
    started = time.perf_counter()
    devices = backend.of(name).devices()
    import_s = time.perf_counter() - started
    return {
        "versions": {package: version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "backend": name,
        "import_s": round(import_s, 2),
        "processor": processor(),
        "bfloat16 on the processor": cpu_has_bfloat16(),
        "gpus": devices,
        "computes": _computes(name, False),
        "computes with XLA": None if name == "openvino" else _computes(name, True),
        "auto": {
            f"{kind} model": str(choose("auto", "auto", large))
            for kind, large in (("large", True), ("embedded", False))
        },
        "cache": {"folder": str(cache_dir.folder()), **{kind: _size(kind) for kind in _CACHES}},
    }


def clear() -> None:
    """Empties the caches of weights in our layout and of traced and compiled programs; downloads of the hub stay."""
    import shutil

    for kind in _CACHES:
        shutil.rmtree(cache_dir.folder() / kind, ignore_errors=True)


def lines(found: dict[str, Any]) -> list[str]:
    """What `info` gave, for people, with what to do where something is wrong."""
    versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items() if version)
    report = [
        f"versions   {versions}, Python {found['python']}",
        f"backend    {found['backend']}, imported in {found['import_s']} s",
        f"processor  {found['processor']}",
        f"GPU        {', '.join(found['gpus']) or 'none'}",
        f"computes   {found['computes']}" + (f"; with XLA: {xla}" if (xla := found["computes with XLA"]) else ""),
    ]
    report += [f"auto       {kind}: {choice}" for kind, choice in found["auto"].items()]
    if not found["gpus"]:
        report.append(f"           {_reason(found)}")
        if found["backend"] == "tensorflow" and pathlib.Path("/proc/driver/nvidia").exists():
            report.append(
                "           there is an NVIDIA driver that TensorFlow does not use: pip install tensorflow[and-cuda]"
            )
    cache = found["cache"]
    report.append(f"cache      {cache['folder']}")
    report += [
        f"           {kind}: {cache[kind]['files']} files, {cache[kind]['bytes'] / 1e6:.1f} MB" for kind in _CACHES
    ]
    return report


def _reason(found: dict[str, Any]) -> str:
    if found["backend"] == "openvino":
        return "OpenVINO is installed, which was the fastest and started soonest on processors with and without AMX"
    if found["backend"] == "tensorflow" and not prefers_openvino() and not found["versions"]["openvino"]:
        return f"{_without_openvino(found)}; pip install kerasdiff[openvino] is faster on this processor"
    return _without_openvino(found)


def _without_openvino(found: dict[str, Any]) -> str:
    if found["backend"] == "jax":
        return "JAX always compiles with XLA, which computes in float32 fastest on a processor"
    if found["bfloat16 on the processor"]:
        return "this processor multiplies bfloat16, for which oneDNN is faster than XLA"
    return "this processor does not multiply bfloat16; in float32 XLA is faster than oneDNN"


def _computes(name: str, jit_compile: bool) -> str:
    """Whether a small product comes out right: "yes", or "no" and why."""
    try:
        problem = None if abs(_product(name, jit_compile) - 24.0) < 1e-3 else "a wrong result"
    except Exception as error:  # whatever a broken installation raises
        problem = " ".join(str(error).split())[:200] or type(error).__name__
    return "yes" if problem is None else f"no ({problem})"


def _product(name: str, jit_compile: bool) -> float:
    product: Callable[[], Any]
    if name == "openvino":
        return backend.of(name).small_product()
    if name == "jax":
        import jax

        product = lambda: (jax.numpy.ones((2, 3)) @ jax.numpy.ones((3, 4))).sum()  # noqa: E731
        product = jax.jit(product) if jit_compile else product
    else:
        import tensorflow as tf

        product = tf.function(lambda: tf.reduce_sum(tf.ones((2, 3)) @ tf.ones((3, 4))), jit_compile=jit_compile)
    return float(product())


def _size(kind: str) -> dict[str, int]:
    files = [path.stat().st_size for path in (cache_dir.folder() / kind).rglob("*") if path.is_file()]
    return {"files": len(files), "bytes": sum(files)}


def main(_: list[str]) -> int:
    """Prints; 0, or 1 if the backend does not compute."""
    try:
        if PROGRAM.values.clear:
            clear()
        with PROGRAM.starting():
            found = info()
    except RuntimeError:
        raise KerasdiffError("no home folder is known; set KERASDIFF_CACHE") from None
    if PROGRAM.json:
        print_json(found)
    else:
        print_line("\n".join(lines(found)))
    return 0 if found["computes"] == "yes" else 1


if __name__ == "__main__":
    PROGRAM.run(main)
