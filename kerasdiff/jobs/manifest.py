"""What became of each image of a job: a line of JSON, written once it is certain."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pathlib
import types
from collections.abc import Mapping

from kerasdiff.errors import RequestError

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
