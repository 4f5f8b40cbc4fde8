"""What became of each image of a job: a line of JSON, written once it is certain."""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from kerasdiff import metadata, validation
from kerasdiff.batch.job import Target
from kerasdiff.batch.storage import Storage
from kerasdiff.errors import RequestError

MANIFEST = "manifest.jsonl"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of a manifest; None is what there is not, or is not known.

    `number` is which of the row's images it is, from 1. `file` is relative to the output, `nsfw` whether the safety
    filter flagged the image, `seconds` its share of the time of its batch, and `error` why there is none, in one line.
    """

    id: str
    number: int
    seed: int | None
    file: str | None
    nsfw: bool | None
    seconds: float | None
    versions: Mapping[str, str]
    error: str | None

    @property
    def key(self) -> tuple[str, int]:
        return self.id, self.number


def invalid_entry(values: Mapping[str, Any], error: BaseException) -> Entry:
    """The entry of values that are no row."""
    row_id, seed = values.get("id"), values.get("seed")
    row_id = row_id if isinstance(row_id, str) else repr(row_id)
    seed = seed if isinstance(seed, int) and 0 <= seed < 2**64 else None
    return Entry(row_id, 1, seed, None, None, None, {}, one_line(error))


def existing_entry(target: Target, storage: Storage) -> Entry:
    """The entry of an image that exists, from its metadata; a RequestError if the file was not created by this job."""
    path, row = os.path.join(storage.where, target.file), validation.shown(target.row.id)
    try:
        receipt = metadata.read_bytes(storage.read(target.file), path)
    except RequestError as error:
        raise RequestError(f"{error}; row {row} needs this file name, so move it elsewhere") from None
    request, index = receipt.request, receipt.index
    if (request.prompts[index], request.seeds[index]) != (target.row.prompt, target.seed):
        raise RequestError(
            f"{path} was not created by this job (prompt or seed differ from row {row}); move it elsewhere"
        )
    return Entry(*target.key, target.seed, target.file, receipt.nsfw, None, dict(receipt.versions), None)


def one_line(error: BaseException) -> str:
    """The message of an error, for an entry."""
    return " ".join(str(error).split())


class Manifest(contextlib.AbstractContextManager["Manifest"]):
    """An open manifest: read once, then lines are only added; a RequestError if a line but the last is corrupt.

    A line is added by a single write and is on the disk before the next one, so that a killed process, or a power
    failure, leaves at most one torn line, the last, which is cut off when the manifest is opened.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(folder) / MANIFEST
        self.entries: dict[tuple[str, int], Entry] = {}
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            self._read()
        except BaseException:
            os.close(self._file)
            raise

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def append(self, entry: Entry) -> None:
        """Adds a line, which replaces an earlier one of the same image; if that fails, no part of it is there."""
        line = json.dumps(dataclasses.asdict(entry)).encode() + b"\n"
        size = os.fstat(self._file).st_size
        if os.write(self._file, line) < len(line):
            os.ftruncate(self._file, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        os.fsync(self._file)
        self.entries[entry.key] = entry

    def _read(self) -> None:
        data = self.path.read_bytes()
        lines = data.split(b"\n")
        end = len(data) - len(lines.pop())
        for number, line in enumerate(lines, 1):
            entry = _parse(line)
            if entry is not None:
                self.entries[entry.key] = entry
            elif number == len(lines):
                end -= len(line) + 1
            else:
                raise RequestError(
                    f"{self.path} is corrupt in line {number}; delete that line, and it is restored from the image"
                )
        if end < len(data):
            os.ftruncate(self._file, end)


def _parse(line: bytes) -> Entry | None:
    """The entry in a line; None if it is corrupt."""
    try:
        return Entry(**json.loads(line))
    except (TypeError, ValueError, RecursionError):
        return None
