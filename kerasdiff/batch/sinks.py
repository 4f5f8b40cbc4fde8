"""Where a worker puts images: each in a file of its own, or many in an archive of WebDataset's."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import tarfile
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

from kerasdiff import metadata
from kerasdiff.batch.job import Target
from kerasdiff.batch.local import writing
from kerasdiff.batch.manifest import Entry, drawn, failure, found
from kerasdiff.batch.storage import Output
from kerasdiff.errors import KerasdiffError, RequestError

if TYPE_CHECKING:
    from kerasdiff.metadata import Provenance
    from kerasdiff.result import Result

SHARDS = "shards"


class _Noting:
    """What is known of images.

    Args:
        output: where they go.
        origin: of what draws.
    """

    def __init__(self, output: Output, origin: Provenance) -> None:
        self._output, self._origin = output, origin
        self.entries: list[Entry] = []
        self.kept = 0
        self._known: set[tuple[str, int]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        """Makes what was taken certain."""

    def has(self, target: Target) -> bool:
        """Whether it is known what became of an image."""
        return target.key in self._known

    def fail(self, target: Target, error: KerasdiffError) -> None:
        """Notes why there is none."""
        self._note(failure(target, error, self._origin))

    def _note(self, entry: Entry) -> None:
        self._known.add(entry.key)
        self.entries.append(entry)


class Files(_Noting):
    """Images as files of an output. Those that are there are known by their receipts.

    Args:
        output: where to.
        targets: what may be drawn.
        origin: of what draws.

    Attributes:
        entries: lines of the manifest, one for each image that is there or failed.
        kept: how many images were there before.
    """

    def __init__(self, output: Output, targets: Sequence[Target], origin: Provenance) -> None:
        super().__init__(output, origin)
        there = output.there(target.file for target in targets)
        for target in targets:
            if target.file in there:
                self._find(target)
        self.kept = sum(entry.error is None for entry in self.entries)

    def take(self, target: Target, result: Result, seconds: float) -> None:
        """Writes it.

        Raises:
            CannotWriteError: it cannot be written.
        """
        (data,) = result.encode(target.file.rpartition(".")[2])
        with writing(self._output.where):
            self._output.write(target.file, data)
        self._note(drawn(target, result, target.file, seconds))

    def _find(self, target: Target) -> None:
        path = f"{self._output.where}/{target.file}"
        try:
            self._note(found(target, metadata.read_bytes(self._output.read(target.file), path), path))
        except RequestError as error:
            self.fail(target, error)


class Shard(_Noting):
    """Images in a tar file in WebDataset's layout: id.png, id.txt (the prompt) and id.json (the manifest's line).

    The file is named after what it may hold, so that whoever is to draw the same again finds it.

    Args:
        output: where to.
        targets: what may be drawn.
        origin: of what draws.
        told: what else is said of each image.

    Attributes:
        entries: as in `Files`; they are certain once the context has ended.
        kept: as in `Files`.
    """

    def __init__(self, output: Output, targets: Sequence[Target], origin: Provenance, told: dict[str, Any]) -> None:
        super().__init__(output, origin)
        self._told = told
        for try_number in range(len(targets) + 1):
            digest = hashlib.sha256(repr((try_number, [target.key for target in targets])).encode()).hexdigest()
            self._name = f"shard-{digest[:16]}.tar"
            if not output.there([f"{SHARDS}/{self._name}"]):
                break
            # A worker that was ended after it, or a job that was stopped in the middle of it.
            for entry in read_shard(output, self._name):
                self._note(entry)
        self.kept = len(self.entries)
        self._stack = contextlib.ExitStack()
        self._tar: tarfile.TarFile | None = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        with writing(self._output.where):
            self._stack.__exit__(kind, error, trace)

    def take(self, target: Target, result: Result, seconds: float) -> None:
        """Adds it.

        Raises:
            CannotWriteError: it cannot be written.
        """
        stem, _, ending = target.file.rpartition(".")
        entry = drawn(target, result, f"{self._name}/{target.file}", seconds)
        (data,) = result.encode(ending)
        told = json.dumps({**dataclasses.asdict(entry), "prompt": target.row.prompt, **self._told})
        with writing(self._output.where):
            tar = self._open()
            for name, content in (
                (target.file, data),
                (f"{stem}.txt", target.row.prompt.encode()),
                (f"{stem}.json", told.encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        self._note(entry)

    def _open(self) -> tarfile.TarFile:
        if self._tar is None:
            file = self._stack.enter_context(self._output.writing(f"{SHARDS}/{self._name}"))
            self._tar = self._stack.enter_context(tarfile.TarFile(fileobj=file, mode="w"))
        return self._tar


def read_shard(output: Output, name: str) -> Iterator[Entry]:
    """What a tar file of `Shard` says of its images.

    Args:
        output: that it is in.
        name: of the file.

    Raises:
        RequestError: it is damaged, or not one of these.
    """
    fields = {field.name for field in dataclasses.fields(Entry)}
    try:
        with tarfile.open(fileobj=io.BytesIO(output.read(f"{SHARDS}/{name}"))) as tar:
            for member in tar:
                file = tar.extractfile(member) if member.name.endswith(".json") else None
                if file is not None:
                    told = json.load(file)
                    yield Entry(**{field: told[field] for field in fields})
    except (tarfile.TarError, ValueError, TypeError, KeyError):
        raise RequestError(f"{output.where}/{SHARDS}/{name} is damaged; move it away, and it is drawn again") from None


def check_names(targets: Iterable[Target]) -> None:
    """Ids that a member of a tar file of WebDataset's can have, where what is behind the first dot is what it is.

    Raises:
        RequestError: one has a dot.
    """
    for target in targets:
        if "." in target.row.id:
            raise RequestError(
                f"id={target.row.id!r} has a dot in it, which WebDataset takes for the end of a name; use other ids, "
                "or files in place of shards"
            )
