"""Where images of a job go: files, tar files in WebDataset's layout, or memory."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from kerasdiff.batch.job import Target
from kerasdiff.batch.manifest import Entry, Manifest, existing_entry, one_line
from kerasdiff.batch.storage import Storage, write_errors
from kerasdiff.errors import KerasdiffError, RequestError

if TYPE_CHECKING:
    from kerasdiff.metadata import Provenance
    from kerasdiff.result import Result

SHARDS = "shards"
_Entries = Manifest | list[Entry]


class Sink(contextlib.AbstractContextManager["Sink"]):
    """Takes images, and adds an entry for each that is stored or has failed to `entries`, a manifest or a list.

    A context manager; what was taken is certain once the context has ended.
    """

    def __init__(self, where: str, entries: _Entries, origin: Provenance) -> None:
        self._where, self._entries, self._origin = where, entries, origin
        self._stack, self._prefix = contextlib.ExitStack(), ""
        self.known: set[tuple[str, int]] = set()

    def __exit__(self, *error: Any) -> None:
        with write_errors(self._where):
            self._stack.__exit__(*error)

    def add(self, target: Target, result: Result, seconds: float) -> Entry:
        """Stores an image: a result with it alone, and its share of the time that its batch took."""
        nsfw = None if result.nsfw is None else result.nsfw[0]
        file, versions = f"{self._prefix}{target.file}", dict(self._origin.versions)
        entry = Entry(*target.key, target.seed, file, nsfw, seconds, versions, None)
        with write_errors(self._where):
            self._store(target, result, entry)
        return self._record(entry)

    def fail(self, target: Target, error: KerasdiffError) -> Entry:
        versions = dict(self._origin.versions)
        return self._record(Entry(*target.key, target.seed, None, None, None, versions, one_line(error)))

    @abc.abstractmethod
    def _store(self, target: Target, result: Result, entry: Entry) -> None:
        """Stores an image."""

    def _record(self, entry: Entry) -> Entry:
        self.known.add(entry.key)
        with write_errors(self._where):
            self._entries.append(entry)
        return entry


class FileSink(Sink):
    """Images as files; those of `targets` that exist are recorded, and a file that is not this job's is a failure."""

    def __init__(self, storage: Storage, entries: _Entries, origin: Provenance, targets: Sequence[Target] = ()) -> None:
        super().__init__(storage.where, entries, origin)
        self._storage = storage
        existing = storage.existing(target.file for target in targets)
        for target in targets:
            if target.file in existing:
                try:
                    self._record(existing_entry(target, storage))
                except RequestError as error:
                    self.fail(target, error)

    def _store(self, target: Target, result: Result, entry: Entry) -> None:
        (data,) = result.encode(target.file.rpartition(".")[2])
        self._storage.write(target.file, data)


class TarSink(Sink):
    """Images in a tar file in WebDataset's layout: id.png, id.txt (the prompt) and id.json (the manifest's entry).

    The file is named after the images it may contain, so that a worker with the same images finds it. `extra` is added
    to the JSON of each image.
    """

    def __init__(
        self, storage: Storage, entries: _Entries, origin: Provenance, targets: Sequence[Target], extra: dict[str, Any]
    ) -> None:
        super().__init__(storage.where, entries, origin)
        self._storage, self._extra = storage, extra
        for attempt in range(len(targets) + 1):
            digest = hashlib.sha256(repr((attempt, [target.key for target in targets])).encode()).hexdigest()
            file = f"shard-{digest[:16]}.tar"
            if not storage.existing([f"{SHARDS}/{file}"]):
                break
            # By a worker that was killed after it, or in a job that was stopped in the middle of it.
            for entry in read_shard(storage, file):
                self._record(entry)
        self._prefix = f"{file}/"
        self._tar: tarfile.TarFile | None = None

    def _store(self, target: Target, result: Result, entry: Entry) -> None:
        stem, _, extension = target.file.rpartition(".")
        (data,) = result.encode(extension)
        values = json.dumps({**dataclasses.asdict(entry), "prompt": target.row.prompt, **self._extra})
        if self._tar is None:
            path = f"{SHARDS}/{self._prefix.rstrip('/')}"
            file = self._stack.enter_context(self._storage.open_write(path))
            self._tar = self._stack.enter_context(tarfile.TarFile(fileobj=file, mode="w"))
        contents = {target.file: data, f"{stem}.txt": target.row.prompt.encode(), f"{stem}.json": values.encode()}
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            self._tar.addfile(member, io.BytesIO(content))


class MemorySink(Sink):
    """Images as bytes of a file, or as arrays for the format "array"."""

    def __init__(self, format: str, entries: _Entries, origin: Provenance) -> None:  # noqa: A002
        super().__init__("memory", entries, origin)
        self._format = format
        self.images: dict[tuple[str, int], Any] = {}

    def _store(self, target: Target, result: Result, entry: Entry) -> None:
        self.images[target.key] = result.images[0] if self._format == "array" else result.encode(self._format)[0]


def read_shard(storage: Storage, name: str) -> Iterator[Entry]:
    """The entries of the images in a tar file of `TarSink`; a RequestError if it is corrupt, or not such a file."""
    fields = [field.name for field in dataclasses.fields(Entry)]
    try:
        with tarfile.open(fileobj=io.BytesIO(storage.read(f"{SHARDS}/{name}"))) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.name.endswith(".json") else None
                if file is not None:
                    values = json.load(file)
                    yield Entry(**{field: values[field] for field in fields})
    except (tarfile.TarError, ValueError, TypeError, KeyError):
        raise RequestError(
            f"{storage.where}/{SHARDS}/{name} is corrupt; move it elsewhere, and its images are generated again"
        ) from None


def check_tar_ids(row_ids: Iterable[str]) -> None:
    """Refuses ids with a dot, behind which WebDataset expects the extension."""
    for row_id in row_ids:
        if "." in row_id:
            raise RequestError(
                f"id={row_id!r} contains a dot, which WebDataset takes for the start of the extension; use other ids, "
                "or files instead of shards"
            )
