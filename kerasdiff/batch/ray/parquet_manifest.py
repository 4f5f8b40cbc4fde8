"""What became of each image of a job on many machines: Parquet files, of which each image has one row."""

from __future__ import annotations

import io
import re

import pyarrow as pa
from pyarrow import compute, parquet

from kerasdiff import validation
from kerasdiff.batch.ray.arrow import ENTRIES
from kerasdiff.batch.storage import Storage
from kerasdiff.errors import RequestError

FOLDER = "manifest"
_PART = re.compile(r"part-(\d{6,})\.parquet")


class ParquetManifest:
    """The manifest of an output: read once, then files are only added.

    Failed images are removed from it when it is opened, as they are tried again; so no image has two rows.

    Attributes:
        done: keys of the images that exist.
        shards: names of the tar files that rows name.

    Raises:
        RequestError: a file is corrupt.
        OSError: one cannot be read or written.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
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
        """Adds rows to the next file."""
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
