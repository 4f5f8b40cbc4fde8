"""Measuring: what a run costs here, and what it costs elsewhere. `python -m kerasdiff.bench` compares."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kerasdiff.bench.case import Row, Settings
    from kerasdiff.bench.ours import rows as our_rows
    from kerasdiff.bench.report import table
    from kerasdiff.bench.run import run_rows
    from kerasdiff.bench.subjects import peer_rows

__all__ = ["Row", "Settings", "our_rows", "peer_rows", "run_rows", "table"]

# Name -> module and its name there, imported at first use: a process that is timed imports only what it needs.
_HOMES = {
    "Row": ("job", "Row"),
    "Settings": ("job", "Settings"),
    "our_rows": ("ours", "rows"),
    "peer_rows": ("rows", "peer_rows"),
    "run_rows": ("run", "run_rows"),
    "table": ("report", "table"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kerasdiff.bench' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(f"kerasdiff.bench.{module}"), attribute)
