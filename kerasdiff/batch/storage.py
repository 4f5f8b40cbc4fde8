"""Where a job's files go: a folder, or a bucket."""

import contextlib
import errno
import os
import pathlib
import posixpath
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO

from kerasdiff import validation
from kerasdiff.atomic_write import atomic_write, beginning, final_name
from kerasdiff.errors import RequestError
from kerasdiff.images.writer import write_whole

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class CannotWriteError(RequestError):
    """A job's output cannot be written; what is finished stays, and the same job resumes once it can."""


@contextlib.contextmanager
def write_errors(where: str) -> Iterator[None]:
    """Turns an `OSError`, or a `RequestError` caused by one, into a `CannotWriteError` of one line."""
    try:
        yield
    except (RequestError, OSError) as error:
        cause = error.__cause__ if isinstance(error, RequestError) else error
        if not isinstance(cause, OSError):
            raise
        reason = "the disk is full" if cause.errno in _DISK_FULL else cause.strerror or cause
        raise CannotWriteError(f"cannot write to {where}: {reason}") from cause


class Folder:
    """Files in a folder; one exists whole or not at all. A name may contain one folder, as in "shards/a.tar"."""

    def __init__(self, path: str) -> None:
        self._folder = pathlib.Path(path)
        self.where = self.url = str(self._folder)

    def names(self, folder: str = "", temporary: bool = False) -> list[str]:
        """Sorted names in a folder, with or without those of temporary files; none if it does not exist."""
        try:
            names = sorted(os.listdir(self._folder / folder))
        except FileNotFoundError:
            return []
        return [name for name in names if temporary or final_name(name) is None]

    def existing(self, names: Iterable[str]) -> set[str]:
        return {name for name in names if os.path.isfile(self._folder / name)}

    def read(self, name: str) -> bytes:
        return (self._folder / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Writes or replaces a file."""
        write_whole(self._path(name), data)

    def remove(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)

    def open_write(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """A file to write piece by piece; it exists once the context ends without an error."""
        return atomic_write(self._path(name))

    def remove_temporary(self, names: Iterable[str] | None = None) -> None:
        """Removes what killed processes left of some files, or of any; nobody may be writing."""
        known = None if names is None else {beginning(name) for name in names}
        for folder, _, files in os.walk(self._folder):
            for file in files:
                final = final_name(file)
                if final is not None and (known is None or final in known):
                    (pathlib.Path(folder) / file).unlink(missing_ok=True)

    def _path(self, name: str) -> pathlib.Path:
        path = self._folder / name
        path.parent.mkdir(exist_ok=True)
        return path


class Bucket:
    """Objects in a bucket, or in a folder of one, with the methods of `Folder`; RequestError if it cannot be opened."""

    def __init__(self, url: str) -> None:
        from pyarrow import ArrowInvalid
        from pyarrow.fs import FileSystem

        self.url = url
        # Options follow a question mark, and keys may precede an @.
        scheme, _, rest = url.partition("?")[0].partition("://")
        self.where = f"{scheme}://{rest.rpartition('@')[2]}"
        try:
            self._files, self._folder = FileSystem.from_uri(url)
        except (ArrowInvalid, OSError, ValueError) as error:
            raise RequestError(f"output={self.where}: {validation.reason(error)}") from None

    def names(self, folder: str = "", temporary: bool = False) -> list[str]:
        from pyarrow.fs import FileSelector

        files = self._files.get_file_info(FileSelector(self._path(folder), allow_not_found=True))
        return sorted(file.base_name for file in files)

    def existing(self, names: Iterable[str]) -> set[str]:
        names = list(names)
        files = self._files.get_file_info([self._path(name) for name in names]) if names else []
        return {name for name, file in zip(names, files, strict=True) if file.is_file}

    def read(self, name: str) -> bytes:
        with self._files.open_input_file(self._path(name)) as file:
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        with self._files.open_output_stream(self._path(name)) as file:
            file.write(data)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.delete_file(self._path(name))

    @contextlib.contextmanager
    def open_write(self, name: str) -> Iterator[IO[bytes]]:
        # By way of a file: an upload that has started cannot be taken back.
        with tempfile.TemporaryFile() as file:
            yield file
            file.seek(0)
            with self._files.open_output_stream(self._path(name)) as stream:
                shutil.copyfileobj(file, stream, 2**20)

    def _path(self, name: str) -> str:
        return posixpath.join(self._folder, name) if name else self._folder


Storage = Folder | Bucket


def open_storage(output: str | os.PathLike[str]) -> Storage:
    """A bucket if the path contains "://", else a folder; a RequestError if it cannot be one."""
    path = validation.path("output", output)
    return Bucket(path) if "://" in path else Folder(os.path.abspath(path))
