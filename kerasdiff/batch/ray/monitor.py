"""Following workers: their lines go into the manifest, and an interrupt ends them in order."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from kerasdiff.batch.ray.parquet_manifest import Parts

_POLL_S = 0.5
_FLUSH_S = 30.0
# How long the rest of the batches, which are not drawn, may take to come back from workers that were ended.
_GRACE_S = 20.0


class Following:
    """Takes what workers give until there is no more.

    Args:
        coordinator: of the workers: an actor.
        get: gives the value of what an actor's method returned.
        lines: tables of the manifest; taking the first one may start the workers.
        parts: the manifest.

    Attributes:
        drawn: images with a line that says how long they took.
        kept: images with a line that does not, as they were found there.
        failed: images with a line that says why there are none.
    """

    def __init__(self, coordinator: Any, get: Callable[[Any], Any], lines: Iterator[Any], parts: Parts) -> None:
        self._coordinator, self._get, self._lines, self._parts = coordinator, get, lines, parts
        self.drawn = self.kept = self.failed = 0
        self._came: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._flushed = time.monotonic()
        self._error: BaseException | None = None
        self._left = threading.Event()
        # Ray's iterator is not to be interrupted in the middle, so it has a thread of its own.
        self._thread = threading.Thread(target=self._take, name="kerasdiff-bulk", daemon=True)

    def all(
        self, show: Callable[[Mapping[str, Any]], None], between: Callable[[], None] | None = None
    ) -> Mapping[str, Any]:
        """Waits for the end.

        Args:
            show: called with the coordinator's state about twice a second, and at the end.
            between: called as often; a `KeyboardInterrupt`, its own or Python's, ends the workers after the batches
                that they are drawing, a second one at once.

        Returns:
            The coordinator's last state.

        Raises:
            KerasdiffError: workers could not go on.
            KeyboardInterrupt: it was ended.
        """
        self._thread.start()
        try:
            try:
                state = self._wait(show, between)
            except KeyboardInterrupt:
                self._get(self._coordinator.stop.remote())
                self._wait_for_idle()
                raise
        finally:
            self._left.set()
            self._keep(at_once=True)
        if state["fatal"] is not None:
            raise state["fatal"]
        if self._error is not None:
            raise self._error
        return state

    def _wait(self, show: Callable[[Mapping[str, Any]], None], between: Callable[[], None] | None) -> Mapping[str, Any]:
        while True:
            ended = not self._thread.is_alive()
            state = self._get(self._coordinator.state.remote())
            self._keep()
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
            workers = self._get(self._coordinator.state.remote())["workers"].values()
            if until == float("inf") and not any(worker["busy"] for worker in workers):
                until = time.monotonic() + _GRACE_S

    def _keep(self, at_once: bool = False) -> None:
        while not self._came.empty():
            self._count(self._came.get())
        if at_once or time.monotonic() - self._flushed >= _FLUSH_S:
            self._parts.flush()
            self._flushed = time.monotonic()

    def _count(self, lines: pa.Table) -> None:
        """By lines, as each image has one: a worker that is killed has told of images that are told of again."""
        failed, found = (lines.num_rows - lines[name].null_count for name in ("error", "seconds"))
        self.failed += failed
        self.drawn += found
        self.kept += lines.num_rows - failed - found
        self._parts.add(lines)

    def _take(self) -> None:
        try:
            for lines in self._lines:
                self._came.put(lines)
                if self._left.is_set():
                    return
        except BaseException as error:
            self._error = error
