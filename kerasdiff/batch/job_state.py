"""The folder of a job: one job's alone, and one process's at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from filelock import FileLock, Timeout

from kerasdiff import validation
from kerasdiff._version import __version__
from kerasdiff.errors import RequestError
from kerasdiff.images.writer import drafted, write_whole

JOB = "job.json"
_LOCK = ".lock"
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Begun:
    """What was settled when a job began, and holds whenever it goes on.

    Attributes:
        precision: that it is drawn in; None if that is not known yet.
        together: how many images are drawn together, by size.
    """

    precision: str | None
    together: Mapping[str, int]


@contextlib.contextmanager
def hold(folder: pathlib.Path, description: Mapping[str, Any]) -> Iterator[Begun | None]:
    """A job's folder, which no other process may work in meanwhile; it is made if it is not there.

    Args:
        folder: where; what holds it must be there.
        description: of the job, as `Job.description` has it.

    Yields:
        What was settled when this job began in it; None if it is new.

    Raises:
        RequestError: it is another job's, is in use, or is somebody else's; nothing was changed in it.
    """
    _begun(folder, description)  # so that not even a lock is left where there is something else
    lock = FileLock(folder / _LOCK)
    try:
        folder.mkdir(exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise RequestError(f"{folder} is in use: another process draws into it; wait until it has ended") from None
    except OSError as error:
        raise RequestError(f"cannot write to {folder}: {error.strerror}; choose another folder") from error
    try:
        yield _begun(folder, description)
    finally:
        lock.release()


def begin(folder: pathlib.Path, description: Mapping[str, Any], images: int, begun: Begun) -> None:
    """Makes a new folder this job's.

    Raises:
        RequestError: it cannot be written to.
    """
    write_whole(folder / JOB, job_file(description, images, begun))


def job_file(description: Mapping[str, Any], images: int | None, begun: Begun) -> bytes:
    """What says whose a folder is.

    Args:
        description: of the job, as `Job.description` has it.
        images: how many it has; None if that is not known.
        begun: what was settled.
    """
    said = {"version": _VERSION, "kerasdiff": __version__, "images": images, **description}
    text = json.dumps({**said, "begun": dataclasses.asdict(begun)}, indent=2)
    return f"{text}\n".encode()


def whose(where: str, names: Iterable[str], read: Callable[[], bytes], description: Mapping[str, Any]) -> Begun | None:
    """What was settled when this job began in a folder; None if there is nothing in it yet.

    Args:
        where: the folder, in messages.
        names: of what is in it.
        read: gives its `job.json`.
        description: of the job.

    Raises:
        RequestError: the folder is another job's, or somebody else's.
        OSError: from `read`.
    """
    if JOB in names:
        return _settled(where, read(), description)
    for name in names:
        if name != _LOCK and drafted(name) != JOB:
            raise RequestError(
                f"{where} is not empty, and no job's: {validation.shown(name)} is in it; choose a new or an "
                "empty folder"
            )
    return None


def _begun(folder: pathlib.Path, description: Mapping[str, Any]) -> Begun | None:
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        if not folder.parent.is_dir():
            raise RequestError(f"cannot write to {folder}: there is no folder {folder.parent}; make it first") from None
        return None
    except OSError as error:
        raise RequestError(f"cannot write to {folder}: {error.strerror}; choose another folder") from None
    try:
        return whose(str(folder), names, (folder / JOB).read_bytes, description)
    except OSError as error:
        raise RequestError(f"{folder / JOB} cannot be read: {error.strerror}") from None


def _settled(where: str, text: bytes, description: Mapping[str, Any]) -> Begun:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or said.get("version") != _VERSION:
        raise RequestError(f"{where}/{JOB} is damaged, or of another version of kerasdiff; choose another folder")
    others = _others(said, description)
    if others:
        raise RequestError(
            f"{where} holds another job, which differs in {', '.join(others)}; choose another folder, or give what it "
            "was begun with"
        )
    try:
        begun = said["begun"]
        together = {size: validation.integer(size, count, 1) for size, count in begun["together"].items()}
        return Begun(begun["precision"], together)
    except (KeyError, TypeError, AttributeError, RequestError):
        raise RequestError(f"{where}/{JOB} is damaged; choose another folder") from None


def _others(said: Mapping[str, Any], description: Mapping[str, Any]) -> list[str]:
    """Names of what differs."""
    names = []
    for name, value in description.items():
        before = said.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            names += sorted(key for key in {*before, *value} if before.get(key) != value.get(key))
        elif before != value:
            names.append(name)
    return names
