"""What became of each image of a job: a line of JSON, written once it is certain."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pathlib
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING

from kerasdiff import validation
from kerasdiff.batch.job import Target
from kerasdiff.errors import RequestError
from kerasdiff.metadata import Provenance, Receipt

if TYPE_CHECKING:
    from kerasdiff.result import Result

MANIFEST = "manifest.jsonl"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of a manifest.

    Attributes:
        id: of the row.
        number: which of the row's images, from 1.
        seed: of the image.
        file: its name in the folder; None if there is none.
        nsfw: whether the safety filter flagged it; None if it did not run.
        seconds: that it took, or its share of those it was drawn with; None if that is not known any more.
        versions: of the packages that drew it.
        error: why there is no image, in one line.
    """

    id: str
    number: int
    seed: int
    file: str | None
    nsfw: bool | None
    seconds: float | None
    versions: Mapping[str, str]
    error: str | None

    @property
    def key(self) -> tuple[str, int]:
        """What it is about."""
        return self.id, self.number


def drawn(target: Target, result: Result, file: str, seconds: float) -> Entry:
    """The line of an image that was drawn.

    Args:
        target: what it is.
        result: it alone.
        file: where it was saved.
        seconds: that it took.
    """
    assert result.origin is not None
    nsfw = None if result.nsfw is None else result.nsfw[0]
    return Entry(*target.key, target.seed, file, nsfw, seconds, dict(result.origin.versions), None)


def failure(target: Target, error: BaseException, origin: Provenance) -> Entry:
    """The line of an image that could not be drawn.

    Args:
        target: what it is.
        error: why.
        origin: of what tried to.
    """
    return Entry(*target.key, target.seed, None, None, None, dict(origin.versions), " ".join(str(error).split()))


def found(target: Target, receipt: Receipt, path: str | os.PathLike[str]) -> Entry:
    """The line of an image that was there without one, from its receipt.

    Args:
        target: what goes there.
        receipt: of what is there.
        path: where.

    Raises:
        RequestError: it is somebody else's.
    """
    request, index = receipt.request, receipt.index
    if (request.prompts[index], request.seeds[index]) != (target.row.prompt, target.seed):
        raise RequestError(
            f"{os.fspath(path)} is somebody else's, made with another prompt or seed than row "
            f"{validation.shown(target.row.id)} has; move it away"
        )
    return Entry(*target.key, target.seed, target.file, receipt.nsfw, None, dict(receipt.versions), None)


class Manifest:
    """A manifest that is open: read once, then lines are only added. Use it as a context manager.

    A line is added by a single write and is on the disk before the next one, so that a process that is killed, or a
    machine that loses power, leaves at most one torn line, the last, which is cut off when the manifest is opened.

    Args:
        folder: of the job, held by this process.

    Raises:
        RequestError: another line is damaged.
        OSError: it cannot be read or written.

    Example:
        ```python
        with Manifest(folder) as manifest:
            manifest.entries["cat", 1].seed
        ```
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

    def __enter__(self) -> Manifest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        os.close(self._file)

    def append(self, entry: Entry) -> None:
        """Adds a line; what was said of the same image before holds no more.

        Raises:
            OSError: it cannot be written, and nothing of it is.
        """
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
            entry = _entry(line)
            if entry is not None:
                self.entries[entry.key] = entry
            elif number == len(lines):
                end -= len(line) + 1
            else:
                raise RequestError(
                    f"{self.path} is damaged in line {number}; take that line out, and what it said is found out again"
                )
        if end < len(data):
            os.ftruncate(self._file, end)


def _entry(line: bytes) -> Entry | None:
    """What a line says, or None if it is damaged."""
    try:
        return Entry(**json.loads(line))
    except (TypeError, ValueError, RecursionError):
        return None
