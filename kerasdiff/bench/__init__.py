"""What a run costs here, cold and warm, and what it costs elsewhere; `python -m kerasdiff.bench` compares."""

import importlib
from typing import Any

# Name -> module, imported at first use: a process that is timed imports only what it needs.
_MODULES = {
    "Subject": "task",
    "Workload": "task",
    "our_subjects": "ours",
    "peer_subjects": "subjects",
    "run_benchmark": "run",
    "table": "report",
}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'kerasdiff.bench' has no attribute {name!r}")
    return getattr(importlib.import_module(f"kerasdiff.bench.{_MODULES[name]}"), name)
