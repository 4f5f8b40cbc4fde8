"""Batches of rows as Ray Data has them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

# Columns that hold whole numbers; where values are missing, pandas makes floats of them.
_WHOLE = ("seed", "num_steps", "height", "width")


def listed(batch: Any) -> list[dict[str, Any]]:
    """A batch as one dictionary a row; what is missing, as NumPy, pandas or Arrow tell it, is None.

    Args:
        batch: a `pyarrow.Table`, a `pandas.DataFrame`, or a dictionary of arrays.
    """
    if hasattr(batch, "to_pylist"):
        rows = batch.to_pylist()
    else:
        columns = batch if isinstance(batch, Mapping) else {name: batch[name].to_numpy() for name in batch.columns}
        names = list(columns)
        rows = [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [{name: _plain(name, value) for name, value in row.items()} for row in rows]


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if name in _WHOLE and value.is_integer():
            return int(value)
    # pandas has a value of its own for what is missing.
    return None if type(value).__name__ in ("NAType", "NaTType") else value
