"""Samplers as data: each is a generator of coefficient rows (`update.py` has the idea)."""

from kerasdiff.samplers.coefficients import Table, make_table
from kerasdiff.samplers.names import sampler_name
from kerasdiff.samplers.recipes import RECIPES, SamplingRecipe
from kerasdiff.samplers.reference import run_table, trajectory
from kerasdiff.samplers.registry import SAMPLERS, SPACINGS, Sampler, sampling_levels, sampling_table
from kerasdiff.samplers.sigmas import LevelOptions, Levels

__all__ = [
    "RECIPES",
    "SAMPLERS",
    "SPACINGS",
    "LevelOptions",
    "Levels",
    "SamplingRecipe",
    "Sampler",
    "Table",
    "make_table",
    "run_table",
    "sampler_name",
    "sampling_levels",
    "sampling_table",
    "trajectory",
]
