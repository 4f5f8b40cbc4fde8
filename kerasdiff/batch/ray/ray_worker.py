"""A worker of a job: batches of rows become files of its output, and rows of its manifest."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Sequence
from typing import Any

import psutil
import pyarrow as pa

from kerasdiff.batch.job import Target
from kerasdiff.batch.job_state import JOB
from kerasdiff.batch.ray import arrow
from kerasdiff.batch.ray.actor import Drawer, Settings, failed
from kerasdiff.batch.ray.batches import listed
from kerasdiff.batch.ray.coordinator import Coordinator, Remote
from kerasdiff.batch.rows import Row
from kerasdiff.batch.sinks import Files, Shard, check_names
from kerasdiff.batch.storage import open_output
from kerasdiff.errors import KerasdiffError, RequestError


class Worker:
    """What Ray Data makes one of in each process of a job.

    What makes it useless, and others like it, is told to the coordinator before it is raised, in one line.

    Args:
        settings: what to draw with.
        output: where to, as `open_output` takes it.
        shards: whether images go into tar files.
        coordinator: an object, or the name of an actor.
    """

    def __init__(self, settings: Settings, output: str, shards: bool, coordinator: Coordinator | str) -> None:
        self._coordinator = Remote(coordinator) if isinstance(coordinator, str) else coordinator
        self._output, self._shards = open_output(output), shards
        try:
            if not self._output.there([JOB]):
                raise RequestError(
                    f"a worker on {socket.gethostname()} does not see {self._output.where}; give a folder that all "
                    "machines share, or a bucket"
                )
            self._drawer = Drawer(settings, self._coordinator)
            self._done = self._coordinator.done()
        except KerasdiffError as error:
            self._coordinator.fail(error)
            raise

    def __call__(self, batch: Any) -> pa.Table:
        """Draws a batch of rows, and gives their lines of the manifest."""
        try:
            return self._draw(listed(batch))
        except KerasdiffError as error:
            self._coordinator.fail(error)
            raise

    def _draw(self, batch: list[dict[str, Any]]) -> pa.Table:
        if not self._tell(busy=True):
            self._tell(busy=False)
            return arrow.of_lines([])
        rows, unfit = self._drawer.rows(batch)
        bad = [(batch[place], why) for place, why in unfit]
        if self._shards:
            rows = [row for row in rows if self._fits_shard(row, bad)]
        targets = [target for target in self._drawer.targets(rows) if target.key not in self._done]
        album = self._album(targets)
        told = album.kept

        def go_on() -> bool:
            nonlocal told
            new, told = album.entries[told:], len(album.entries)
            return self._tell(entries=new, busy=True)

        self._tell(kept=album.kept, busy=True)
        with album:
            self._drawer.draw(targets, album, go_on)
            # Nothing is left where nobody waits for it any more: a job that is gone may have been begun again.
            self._tell(busy=True)
        self._tell(entries=album.entries[told:], failed=len(bad), busy=False)
        lines = [dataclasses.asdict(entry) for entry in album.entries] + [failed(values, why) for values, why in bad]
        return arrow.of_lines([{**line, "worker": self._drawer.name} for line in lines])

    def _fits_shard(self, row: Row, bad: list[tuple[dict[str, Any], str]]) -> bool:
        try:
            check_names(self._drawer.targets([row]))
        except RequestError as error:
            bad.append(({"id": row.id, "seed": row.seed}, str(error)))
            return False
        return True

    def _album(self, targets: Sequence[Target]) -> Files | Shard:
        origin = self._drawer.generator.origin
        if self._shards:
            return Shard(self._output, targets, origin, {"worker": self._drawer.name})
        return Files(self._output, targets, origin)

    def _tell(self, *, entries: Sequence[Any] = (), kept: int = 0, failed: int = 0, busy: bool) -> bool:
        errors = sum(entry.error is not None for entry in entries)
        memory = psutil.Process().memory_info().rss
        return self._coordinator.tell(self._drawer.name, len(entries) - errors, kept, failed + errors, busy, memory)
