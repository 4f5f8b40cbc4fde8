"""The machine and the versions, without which a figure means nothing, and the memory of a process."""

import datetime
import json
import os
import pathlib
import platform
import subprocess
from typing import Any

from kerasdiff.runtime import backend
from kerasdiff.runtime.platform_info import processor, processor_slug, version

PACKAGES = ("kerasdiff", "tensorflow", "jax", "keras", "keras-cv", "numpy")
PEERS = ("torch", "diffusers", "transformers", "openvino", "onnxruntime")


def facts() -> dict[str, Any]:
    """Processor, cores, memory in GB, GPU, Python, versions, commit and day (UTC)."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "processor": processor(),
        "cores": cores(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": backend.devices(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: installed for name in (*PACKAGES, *PEERS) if (installed := version(name))},
        "commit": commit.stdout.strip() or None,
        "day": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def cores() -> int:
    """How many this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def results_folder() -> pathlib.Path:
    """Where a checkout keeps what was measured on this kind of processor: figures of two are not to be compared."""
    return pathlib.Path("benchmarks/results") / processor_slug()


def write_results(path: pathlib.Path, results: dict[str, Any]) -> None:
    """Writes results with the machine's facts as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**results, "machine": facts()}, indent=2) + "\n")


def peak_memory_gb() -> float:
    """The most memory that this process ever held, in GB.

    On Linux not `ru_maxrss`, which begins with the memory of the process that started this one.
    """
    try:
        status = pathlib.Path("/proc/self/status").read_text()
    except OSError:
        import resource

        unit = 1 if platform.system() == "Darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e9
