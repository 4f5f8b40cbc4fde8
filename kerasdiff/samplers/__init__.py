"""Samplers as data: each is a generator of coefficient rows (`rows.py` has the idea)."""

from kerasdiff.samplers.catalogue import (
    SAMPLERS,
    SPACINGS,
    Sampler,
    sampler_name,
    sampling_levels,
    sampling_table,
)
from kerasdiff.samplers.levels import Levels
from kerasdiff.samplers.reference import run_table, trajectory
from kerasdiff.samplers.tables import Table, make_table

__all__ = [
    "SAMPLERS",
    "SPACINGS",
    "Levels",
    "Sampler",
    "Table",
    "make_table",
    "run_table",
    "sampler_name",
    "sampling_levels",
    "sampling_table",
    "trajectory",
]
