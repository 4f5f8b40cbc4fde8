"""Tables that go through Ray: rows to workers, and lines of the manifest back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from kerasdiff.batch.rows import Row

_ROWS = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("seed", pa.uint64()),
        ("guidance_scale", pa.float64()),
        ("num_steps", pa.int64()),
        ("sampler", pa.string()),
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("image", pa.string()),
        ("strength", pa.float64()),
    ]
)
MANIFEST = pa.schema(
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


def of_rows(rows: Sequence[Row]) -> pa.Table:
    """Rows as a table with a column for each attribute."""
    return pa.Table.from_pylist([dataclasses.asdict(row) for row in rows], _ROWS)


def of_lines(lines: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Lines of a manifest, from values by the names of its columns."""
    return pa.Table.from_pylist(
        [{**line, "versions": list((line["versions"] or {}).items())} for line in lines], MANIFEST
    )
