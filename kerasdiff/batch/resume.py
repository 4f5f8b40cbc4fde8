"""What a folder already has of a job."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable

from kerasdiff import metadata, validation
from kerasdiff.batch.job import Target
from kerasdiff.batch.job_state import JOB
from kerasdiff.batch.manifest import Entry, Manifest, found
from kerasdiff.errors import RequestError
from kerasdiff.images.writer import drafted


def there(folder: pathlib.Path, targets: Iterable[Target]) -> set[str]:
    """The files of a job that are in its folder: a file is there whole or not at all."""
    expected = {target.file for target in targets}
    with os.scandir(folder) as found:
        return {one.name for one in found if one.name in expected and one.is_file()}


def take_up(folder: pathlib.Path, targets: Iterable[Target], manifest: Manifest) -> set[str]:
    """Sets right what a process that was ended left half done, and gives the files that are there.

    Drafts are removed. A picture without a line in the manifest gets one, if its receipt says that it is the row's.

    Raises:
        RequestError: it is not.
        OSError: the folder cannot be read or written.
    """
    wanted = {target.file: target for target in targets}
    for name in os.listdir(folder):
        whole = drafted(name)
        if whole in wanted or whole == JOB:
            (folder / name).unlink(missing_ok=True)
    files = there(folder, wanted.values())
    for file, target in wanted.items():
        entry = manifest.entries.get(target.key)
        if file in files and (entry is None or entry.error is not None):
            manifest.append(_entry(folder / file, target))
    return files


def _entry(path: pathlib.Path, target: Target) -> Entry:
    """The line of a picture, from its receipt."""
    try:
        receipt = metadata.read(path)
    except RequestError as error:
        raise RequestError(f"{error}; row {validation.shown(target.row.id)} goes there, so move it away") from None
    return found(target, receipt, path)
