"""The output of a job: it belongs to one job, and to one process at a time."""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from filelock import FileLock, Timeout

from kerasdiff import validation
from kerasdiff._version import __version__
from kerasdiff.atomic_write import final_name
from kerasdiff.batch.job import Target
from kerasdiff.batch.manifest import Manifest, existing_entry
from kerasdiff.batch.storage import Folder, Storage
from kerasdiff.errors import RequestError

JOB = "job.json"
_LOCK = ".lock"
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class JobState:
    """What was decided when a job started, and holds whenever it resumes; batch sizes are by image size.

    `adapters` are hashes of files by path; None is one that was not there so far.
    """

    precision: str | None
    batch_sizes: Mapping[str, int]
    adapters: Mapping[str, str | None] = dataclasses.field(default_factory=dict)


@contextlib.contextmanager
def lock(storage: Storage, description: Mapping[str, Any]) -> Iterator[JobState | None]:
    """Holds the output of a job, and yields what was decided when it started there; None if it is new.

    A folder is created if need be, and no other process can lock it meanwhile. If the output is another job's, is
    locked, or holds something else, that is a RequestError, and nothing was changed in it.
    """
    # Before anything is written, so that not even a lock is left where there is something else.
    state = read_state(storage, description)
    if not isinstance(storage, Folder):
        yield state
        return
    folder = storage.where
    file_lock = FileLock(os.path.join(folder, _LOCK))
    try:
        pathlib.Path(folder).mkdir(exist_ok=True)
        file_lock.acquire(timeout=0)
    except Timeout:
        raise RequestError(f"{folder} is locked by another process; wait for it to finish") from None
    except FileNotFoundError:
        parent = pathlib.Path(folder).parent
        raise RequestError(f"cannot write to {folder}: there is no folder {parent}; create it first") from None
    except OSError as error:
        raise RequestError(f"cannot write to {folder}: {error.strerror}; choose another folder") from error
    try:
        yield read_state(storage, description)
    finally:
        file_lock.release()


def write_state(storage: Storage, description: Mapping[str, Any], images: int | None, state: JobState) -> None:
    """Makes an output this job's; `images` is their number, None if that is not known."""
    begun = {"precision": state.precision, "together": dict(state.batch_sizes)}
    described = {**description, "adapters": dict(state.adapters)} if state.adapters else description
    values = {"version": _VERSION, "kerasdiff": __version__, "images": images, **described, "begun": begun}
    storage.write(JOB, f"{json.dumps(values, indent=2)}\n".encode())


def read_state(storage: Storage, description: Mapping[str, Any]) -> JobState | None:
    """What was decided when this job started; None if the output is empty, a RequestError if it is another's."""
    where = storage.where
    try:
        names = storage.names(temporary=True)
        text = storage.read(JOB) if JOB in names else None
    except OSError as error:
        reason = error.strerror or validation.reason(error)
        raise RequestError(f"cannot read {where}: {reason}; choose another output") from None
    if text is not None:
        return _parse(where, text, description)
    for name in names:
        if name != _LOCK and final_name(name) != JOB:
            raise RequestError(
                f"{where} is not empty and is not a job folder (it contains {validation.shown(name)}); choose a new "
                "or empty folder"
            )
    return None


def recover(storage: Folder, targets: Sequence[Target], manifest: Manifest) -> set[tuple[str, int]]:
    """Completes what a killed process left half done, and gives the keys of the images that exist.

    Temporary files are removed. An image without an entry gets one, if its metadata says that it is the row's; else it
    is a RequestError.
    """
    storage.remove_temporary({JOB, *(target.file for target in targets)})
    existing = storage.existing(target.file for target in targets)
    for target in targets:
        entry = manifest.entries.get(target.key)
        if target.file in existing and (entry is None or entry.error is not None):
            manifest.append(existing_entry(target, storage))
    return {target.key for target in targets if target.file in existing}


def _parse(where: str, text: bytes, description: Mapping[str, Any]) -> JobState:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict) or values.get("version") != _VERSION:
        raise RequestError(f"{where}/{JOB} is corrupt, or from another version of kerasdiff; choose another folder")
    differences = _differences(values, description)
    if differences:
        raise RequestError(
            f"{where} holds another job, which differs in {', '.join(differences)}; choose another folder, or use the "
            "arguments that it was started with"
        )
    try:
        begun = values["begun"]
        sizes = {size: validation.integer(size, count, 1) for size, count in begun["together"].items()}
        adapters = dict(description.get("adapters", {}))
        known = {file: digest for file, digest in (values.get("adapters") or {}).items() if digest is not None}
        return JobState(begun["precision"], sizes, adapters | known)
    except (KeyError, TypeError, AttributeError, RequestError):
        raise RequestError(f"{where}/{JOB} is corrupt; choose another folder") from None


def _differences(values: Mapping[str, Any], description: Mapping[str, Any]) -> list[str]:
    names = []
    for name, value in description.items():
        before = values.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            changed = (key for key in {*before, *value} if before.get(key) != value.get(key))
            # A file of an adapter that is not there fails its rows only, and may come later.
            late = [key for key in before if name == "adapters" and None in (before[key], value.get(key))]
            names += sorted(key for key in changed if key not in late)
        elif before != value:
            names.append(name)
    return names
