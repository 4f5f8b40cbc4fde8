"""What became of each image of a job on several machines: Parquet files, of which each image has one row."""

from __future__ import annotations

import io
import re

import pyarrow as pa
from pyarrow import compute, parquet

from kerasdiff import validation
from kerasdiff.batch.ray.arrow import MANIFEST
from kerasdiff.batch.storage import Output
from kerasdiff.errors import RequestError

FOLDER = "manifest"
_NAME = re.compile(r"part-(\d{6,})\.parquet")


class Parts:
    """The manifest of an output: read once, then files are only added.

    What failed is taken out when it is opened, as it is tried again; so no image has two rows.

    Args:
        output: of the job.

    Attributes:
        done: (id, number) of the images that are there.
        shards: names of tar files that rows name.

    Raises:
        RequestError: a file is damaged.
        OSError: one cannot be read or written.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self.done: set[tuple[str, int]] = set()
        self.shards: set[str] = set()
        self._next = 0
        self._waiting: list[pa.Table] = []
        for name in output.names(FOLDER):
            match = _NAME.fullmatch(name)
            if match is not None:
                self._next = max(self._next, int(match[1]) + 1)
                self._take_up(f"{FOLDER}/{name}")

    def add(self, rows: pa.Table) -> None:
        """Rows of `tables.MANIFEST`, for the next file."""
        self._waiting.append(rows)

    def flush(self) -> None:
        """Writes what was added as one file.

        Raises:
            RequestError: it cannot be written, and is not lost for a folder that can be written later.
            OSError: the same.
        """
        if self._waiting:
            self._output.write(f"{FOLDER}/part-{self._next:06}.parquet", _encoded(pa.concat_tables(self._waiting)))
            self._next += 1
            self._waiting = []

    def _take_up(self, name: str) -> None:
        try:
            rows = parquet.read_table(io.BytesIO(self._output.read(name)), schema=MANIFEST)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise RequestError(
                f"{self._output.where}/{name} is damaged ({validation.reason(error)}); move it away, and what it said "
                "is found out again"
            ) from None
        good = rows.filter(compute.is_null(rows["error"]))
        if len(good) == 0:
            self._output.remove(name)
        elif len(good) < len(rows):
            self._output.write(name, _encoded(good))
        self.done.update(zip(good["id"].to_pylist(), good["number"].to_pylist(), strict=True))
        for file in compute.unique(good["file"]).to_pylist():
            shard, slash, _ = file.partition("/")
            if slash:
                self.shards.add(shard)


def _encoded(rows: pa.Table) -> bytes:
    file = io.BytesIO()
    parquet.write_table(rows, file, compression="zstd")
    return file.getvalue()
