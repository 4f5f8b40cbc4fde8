"""Tables that Ray moves: rows to workers, and entries of the manifest back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from kerasdiff.batch.manifest import Entry
from kerasdiff.batch.rows import FIELDS, INTEGERS, REALS, Row

_TYPES = {**dict.fromkeys(INTEGERS, pa.int64()), **dict.fromkeys(REALS, pa.float64()), "seed": pa.uint64()}
_ROWS = pa.schema([(name, _TYPES.get(name, pa.string())) for name in FIELDS])
ENTRIES = pa.schema(
    [
        ("id", pa.string()),
        ("number", pa.int32()),
        ("seed", pa.uint64()),
        ("file", pa.string()),
        ("nsfw", pa.bool_()),
        ("seconds", pa.float64()),
        ("worker", pa.string()),
        ("versions", pa.map_(pa.string(), pa.string())),
        ("error", pa.string()),
    ]
)


def rows_table(rows: Sequence[Row]) -> pa.Table:
    """Rows as a table with a column per attribute."""
    return pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], _ROWS)


def entries_table(entries: Sequence[Entry], worker: str | None = None) -> pa.Table:
    """Entries of a manifest as a table, with the name of the worker that made them."""
    values = [{**vars(entry), "versions": list(entry.versions.items()), "worker": worker} for entry in entries]
    return pa.Table.from_pylist(values, ENTRIES)


def records(batch: Any) -> list[dict[str, Any]]:
    """A batch of Ray Data as a dictionary per row; whatever NumPy, pandas or Arrow have for a missing value is None."""
    if hasattr(batch, "to_pylist"):
        rows = batch.to_pylist()
    else:
        columns = batch if isinstance(batch, Mapping) else {name: batch[name].to_numpy() for name in batch.columns}
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return [{name: _plain(name, value) for name, value in row.items()} for row in rows]


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        if math.isnan(value):
            return None
        # Where values are missing, pandas makes floats of integers.
        if name in INTEGERS and value.is_integer():
            return int(value)
    # pandas has its own values for what is missing.
    return None if type(value).__name__ in ("NAType", "NaTType") else value
