"""Tables that Ray moves: rows to workers, and entries back, which become the manifest: Parquet files."""

import dataclasses
import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import compute, parquet

from kerasdiff import validation
from kerasdiff.batch.manifest import Entry
from kerasdiff.batch.rows import FIELDS, INTEGERS, REALS, Row
from kerasdiff.batch.storage import Storage
from kerasdiff.errors import RequestError

# Of the manifest's files.
FOLDER = "manifest"
_PART = re.compile(r"part-(\d{6,})\.parquet")
_STEERING = [("model", pa.string()), *((name, pa.float64()) for name in ("scale", "start", "end"))]
_TYPES = {
    **dict.fromkeys(INTEGERS, pa.int64()),
    **dict.fromkeys(REALS, pa.float64()),
    "seed": pa.uint64(),
    "loras": pa.list_(pa.struct([("file", pa.string()), ("scale", pa.float64()), ("text_scale", pa.float64())])),
    "upscale": pa.struct([("file", pa.string()), ("scale", pa.float64())]),
    "controls": pa.list_(pa.struct([*_STEERING, *((name, pa.string()) for name in ("image", "mode", "hint"))])),
    "image_prompts": pa.list_(pa.struct([*_STEERING, ("image", pa.list_(pa.string())), ("encoder", pa.string())])),
    "embeddings": pa.list_(pa.struct([("file", pa.string()), ("trigger", pa.string())])),
}
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
    if isinstance(value, np.ndarray):  # a list
        value = value.tolist()
    if isinstance(value, float):
        if math.isnan(value):
            return None
        # Where values are missing, pandas makes floats of integers.
        if name in INTEGERS and value.is_integer():
            return int(value)
    # pandas has its own values for what is missing.
    return None if type(value).__name__ in ("NAType", "NaTType") else value


class ParquetManifest:
    """The manifest of an output: read once, then files are only added; a RequestError if one is corrupt.

    Failed images are removed from it when it is opened, as they are tried again; so no image has two rows.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        # Keys of the images that exist, and names of the tar files that rows name.
        self.done: set[tuple[str, int]] = set()
        self.shards: set[str] = set()
        self._next = 0
        self._waiting: list[pa.Table] = []
        for name in storage.names(FOLDER):
            match = _PART.fullmatch(name)
            if match is not None:
                self._next = max(self._next, int(match[1]) + 1)
                self._read(f"{FOLDER}/{name}")

    def add(self, rows: pa.Table) -> None:
        self._waiting.append(rows)

    def flush(self) -> None:
        """Writes what was added as one file; if that fails, it can be tried again."""
        if self._waiting:
            self._write(f"{FOLDER}/part-{self._next:06}.parquet", pa.concat_tables(self._waiting))
            self._next += 1
            self._waiting = []

    def _read(self, name: str) -> None:
        try:
            rows = parquet.read_table(io.BytesIO(self._storage.read(name)), schema=ENTRIES)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise RequestError(
                f"{self._storage.where}/{name} is corrupt ({validation.reason(error)}); move it elsewhere, and its "
                "rows are restored from the images"
            ) from None
        good = rows.filter(compute.is_null(rows["error"]))
        if len(good) == 0:
            self._storage.remove(name)
        elif len(good) < len(rows):
            self._write(name, good)
        self.done.update(zip(good["id"].to_pylist(), good["number"].to_pylist(), strict=True))
        self.shards.update(file.partition("/")[0] for file in good["file"].to_pylist() if "/" in file)

    def _write(self, name: str, rows: pa.Table) -> None:
        file = io.BytesIO()
        parquet.write_table(rows, file, compression="zstd")
        self._storage.write(name, file.getvalue())
