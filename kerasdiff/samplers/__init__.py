"""Samplers as data: each is a generator of coefficient rows (`rows.py` has the idea)."""

from kerasdiff.samplers.ddim import ddim
from kerasdiff.samplers.dpmpp_2m import dpmpp_2m
from kerasdiff.samplers.euler import euler
from kerasdiff.samplers.schedules import SPACINGS
from kerasdiff.samplers.tables import Table, make_table, run_table

SAMPLERS = {"ddim": ddim, "dpmpp_2m": dpmpp_2m, "euler": euler}

__all__ = ["SAMPLERS", "SPACINGS", "Table", "make_table", "run_table"]
