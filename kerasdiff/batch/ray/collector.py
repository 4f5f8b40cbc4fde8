"""Collects what workers give: their entries go into the manifest, and an interrupt stops them cleanly."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from kerasdiff.batch.ray.coordinator import ActorProxy, Coordinator
from kerasdiff.batch.ray.parquet_manifest import ParquetManifest

_POLL_S = 0.5
_FLUSH_S = 30.0
# How long what remains of a stopped job, which is not generated, may take to come back from the workers.
_GRACE_S = 20.0


class Collector:
    """Takes tables of entries until there are no more; taking the first one may start the workers.

    Attributes:
        drawn: images whose entry says how long they took.
        kept: images whose entry does not, as they were found.
        failed: images whose entry says why there is none.
    """

    def __init__(
        self, coordinator: Coordinator | ActorProxy, tables: Iterator[pa.Table], manifest: ParquetManifest
    ) -> None:
        self._coordinator, self._tables, self._manifest = coordinator, tables, manifest
        self.drawn = self.kept = self.failed = 0
        self._taken: queue.SimpleQueue[pa.Table] = queue.SimpleQueue()
        self._flushed = time.monotonic()
        self._error: BaseException | None = None
        self._left = threading.Event()
        # In a thread: Ray's iterator must not be interrupted in the middle.
        self._thread = threading.Thread(target=self._take, name="kerasdiff-bulk", daemon=True)

    def run(
        self, show: Callable[[Mapping[str, Any]], None], between: Callable[[], None] | None = None
    ) -> Mapping[str, Any]:
        """Waits for the end, and returns the coordinator's last state.

        Args:
            show: called with the coordinator's state about twice a second, and at the end.
            between: called as often; a `KeyboardInterrupt`, its own or Python's, stops the workers after their
                current batches, a second one at once.

        Raises:
            KerasdiffError: workers could not continue.
            KeyboardInterrupt: it was stopped.
        """
        self._thread.start()
        try:
            try:
                state = self._wait(show, between)
            except KeyboardInterrupt:
                self._coordinator.stop()
                self._wait_for_idle()
                raise
        finally:
            self._left.set()
            self._collect()
            self._manifest.flush()
        if state["fatal"] is not None:
            raise state["fatal"]
        if self._error is not None:
            raise self._error
        return state

    def _wait(self, show: Callable[[Mapping[str, Any]], None], between: Callable[[], None] | None) -> Mapping[str, Any]:
        while True:
            ended = not self._thread.is_alive()
            state = self._coordinator.state()
            self._collect()
            if time.monotonic() - self._flushed >= _FLUSH_S:
                self._manifest.flush()
                self._flushed = time.monotonic()
            show(state)
            if ended or state["fatal"] is not None:
                return state
            if between is not None:
                between()
            self._thread.join(_POLL_S)

    def _wait_for_idle(self) -> None:
        until = float("inf")
        while self._thread.is_alive() and time.monotonic() < until:
            self._thread.join(_POLL_S)
            workers = self._coordinator.state()["workers"].values()
            if until == float("inf") and not any(worker["busy"] for worker in workers):
                until = time.monotonic() + _GRACE_S

    def _collect(self) -> None:
        """Counts by entries, as each image has one; a killed worker's reports may count an image twice."""
        while not self._taken.empty():
            entries = self._taken.get()
            failed, drawn = (entries.num_rows - entries[name].null_count for name in ("error", "seconds"))
            self.failed += failed
            self.drawn += drawn
            self.kept += entries.num_rows - failed - drawn
            self._manifest.add(entries)

    def _take(self) -> None:
        try:
            for table in self._tables:
                self._taken.put(table)
                if self._left.is_set():
                    return
        except BaseException as error:
            self._error = error
