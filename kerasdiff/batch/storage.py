"""Where a job's files go: a folder that all machines see, or a bucket."""

from __future__ import annotations

import contextlib
import os
import pathlib
import posixpath
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO, Protocol

from kerasdiff import validation
from kerasdiff.errors import RequestError
from kerasdiff.images.writer import drafted, write_whole


class Output(Protocol):
    """Files by name; one is there whole or not at all. A name may have one folder before it, as in "shards/a.tar".

    Attributes:
        where: the folder or the bucket, for messages.
        url: what `open_output` makes the same of in another process.
    """

    where: str
    url: str

    def names(self, folder: str = "") -> list[str]:
        """What is in a folder, but for drafts; nothing if it is not there."""

    def there(self, names: Iterable[str]) -> set[str]:
        """Those of some files that are there."""

    def read(self, name: str) -> bytes:
        """What a file holds."""

    def write(self, name: str, data: bytes) -> None:
        """Writes a file, in place of one that is there."""

    def remove(self, name: str) -> None:
        """Removes a file."""

    def writing(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """A file to write bit by bit; it is there once the context ends, unless by an error."""


class Folder:
    """A folder of a file system that is mounted on all machines.

    Args:
        path: of the folder.
    """

    def __init__(self, path: str) -> None:
        self.where = self.url = path
        self._folder = pathlib.Path(path)

    def names(self, folder: str = "") -> list[str]:
        """As in `Output`."""
        try:
            return sorted(name for name in os.listdir(self._folder / folder) if drafted(name) is None)
        except FileNotFoundError:
            return []

    def there(self, names: Iterable[str]) -> set[str]:
        """As in `Output`."""
        return {name for name in names if os.path.isfile(self._folder / name)}

    def read(self, name: str) -> bytes:
        """As in `Output`."""
        return (self._folder / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """As in `Output`."""
        path = self._folder / name
        path.parent.mkdir(exist_ok=True)
        write_whole(path, data)

    def remove(self, name: str) -> None:
        """As in `Output`."""
        (self._folder / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """As in `Output`."""
        path = self._folder / name
        path.parent.mkdir(exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with draft.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes what processes left that were killed while they wrote; nobody may be writing."""
        for folder, _, names in os.walk(self._folder):
            for name in names:
                if drafted(name) is not None:
                    (pathlib.Path(folder) / name).unlink(missing_ok=True)


class Bucket:
    """A bucket, or a folder in one; an object appears there when it is whole.

    Args:
        url: such as "s3://bucket/folder" or "gs://bucket/folder", as pyarrow reads it.

    Raises:
        RequestError: pyarrow cannot reach it.
    """

    def __init__(self, url: str) -> None:
        from pyarrow import ArrowInvalid
        from pyarrow.fs import FileSystem

        self.url = url
        # Behind a question mark are options, and before an @ may be keys.
        scheme, _, rest = url.partition("?")[0].partition("://")
        self.where = f"{scheme}://{rest.rpartition('@')[2]}"
        try:
            self._files, self._folder = FileSystem.from_uri(url)
        except (ArrowInvalid, OSError, ValueError) as error:
            raise RequestError(f"output={self.where}: {validation.reason(error)}") from None

    def names(self, folder: str = "") -> list[str]:
        """As in `Output`."""
        from pyarrow.fs import FileSelector

        found = self._files.get_file_info(FileSelector(self._path(folder), allow_not_found=True))
        return sorted(one.base_name for one in found)

    def there(self, names: Iterable[str]) -> set[str]:
        """As in `Output`."""
        asked = list(names)
        found = self._files.get_file_info([self._path(name) for name in asked]) if asked else []
        return {name for name, one in zip(asked, found, strict=True) if one.is_file}

    def read(self, name: str) -> bytes:
        """As in `Output`."""
        with self._files.open_input_file(self._path(name)) as file:
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        """As in `Output`."""
        with self._files.open_output_stream(self._path(name)) as file:
            file.write(data)

    def remove(self, name: str) -> None:
        """As in `Output`."""
        with contextlib.suppress(FileNotFoundError):
            self._files.delete_file(self._path(name))

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        """As in `Output`."""
        # By way of a file, as an upload that has begun cannot be taken back.
        with tempfile.TemporaryFile() as file:
            yield file
            file.seek(0)
            with self._files.open_output_stream(self._path(name)) as stream:
                shutil.copyfileobj(file, stream, 2**20)

    def _path(self, name: str) -> str:
        return posixpath.join(self._folder, name) if name else self._folder


def open_output(where: str | os.PathLike[str]) -> Folder | Bucket:
    """A folder, or a bucket for what has "://" in it.

    Raises:
        RequestError: it is no path, or the bucket cannot be reached.
    """
    path = validation.path("output", where)
    return Bucket(path) if "://" in path else Folder(os.path.abspath(path))
