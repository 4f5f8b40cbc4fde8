"""What the workers of a job have in common: how far they are, what was settled, and whether to stop."""

from __future__ import annotations

import dataclasses
import time
from typing import Any


@dataclasses.dataclass
class Worker:
    """How far a worker is.

    Attributes:
        drawn: images that it drew.
        kept: images that it found there.
        failed: images that it could not draw.
        busy: whether it is drawing.
        memory: bytes that its process held last.
    """

    drawn: int = 0
    kept: int = 0
    failed: int = 0
    busy: bool = False
    memory: int = 0


class Coordinator:
    """One for each job: an actor of Ray's, or an object of the only process.

    Args:
        settled: what an earlier run of the job settled, by name.
        done: (id, number) of the images that are there.
    """

    def __init__(self, settled: dict[str, Any] | None = None, done: frozenset[tuple[str, int]] = frozenset()) -> None:
        self._settled, self._done = dict(settled or {}), done
        self._workers: dict[str, Worker] = {}
        self._claimed: set[str] = set()
        self._primed: set[str] = set()
        self._stopped = False
        self._first: float | None = None
        self._fatal: BaseException | None = None

    def settle(self, name: str, value: Any) -> Any:
        """What holds for all workers: what the first one says."""
        return self._settled.setdefault(name, value)

    def done(self) -> frozenset[tuple[str, int]]:
        """(id, number) of the images that were there when the job went on."""
        return self._done

    def claim(self, cache: str) -> bool:
        """Whether a worker is the first that is to fill a cache."""
        first = cache not in self._claimed
        self._claimed.add(cache)
        return first

    def is_primed(self, cache: str) -> bool:
        """Whether a worker has filled a cache."""
        return cache in self._primed

    def prime(self, cache: str) -> None:
        """A worker has filled a cache, which others now only read."""
        self._primed.add(cache)

    def tell(self, name: str, drawn: int, kept: int, failed: int, busy: bool, memory: int) -> bool:
        """A worker tells how far it has come since it last did, and is told whether to go on."""
        worker = self._workers.setdefault(name, Worker())
        worker.drawn += drawn
        worker.kept += kept
        worker.failed += failed
        worker.busy, worker.memory = busy, memory
        if drawn and self._first is None:
            self._first = time.time()
        return not self._stopped

    def fail(self, error: BaseException) -> None:
        """A worker cannot go on, and no other could."""
        self._fatal = self._fatal or error

    def stop(self) -> None:
        """Workers end after the batch that they are drawing."""
        self._stopped = True

    def state(self) -> dict[str, Any]:
        """Everything that is known: "settled", "workers", "first" (when the first image was there), "fatal"."""
        return {
            "settled": dict(self._settled),
            "workers": {name: dataclasses.asdict(worker) for name, worker in self._workers.items()},
            "first": self._first,
            "fatal": self._fatal,
        }


class Remote:
    """The same methods, of a coordinator that is an actor.

    Args:
        name: of the actor, in the namespace of the job.
    """

    def __init__(self, name: str) -> None:
        import ray

        self._get, self._actor = ray.get, ray.get_actor(name)

    def __getattr__(self, method: str) -> Any:
        remote = getattr(self._actor, method).remote
        return lambda *arguments: self._get(remote(*arguments))
