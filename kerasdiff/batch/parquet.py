"""Parquet files, for which the extra `ray` brings a reader."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kerasdiff import validation
from kerasdiff.errors import RequestError


def records(path: pathlib.Path, check: Callable[[Sequence[str]], None]) -> Iterator[dict[str, Any]]:
    """The records of a file, one after the other.

    Args:
        path: of the file.
        check: is shown the names of its columns before any record is read.

    Raises:
        RequestError: pyarrow is not installed, or the file cannot be read.
    """
    try:
        from pyarrow import ArrowInvalid, parquet
    except ModuleNotFoundError:
        raise RequestError(
            f"reading {path} takes pyarrow, which is not installed: pip install 'kerasdiff[ray]'"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            check(file.schema_arrow.names)
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except ArrowInvalid as error:
        raise RequestError(f"{path} is not Parquet, or damaged: {validation.reason(error)}") from None
    except OSError as error:
        raise RequestError(f"cannot read rows from {path}: {error.strerror or validation.reason(error)}") from None
