"""What the workers of a job share: how far they are, what was decided, and whether to stop."""

import collections
import time
from typing import Any


class Coordinator:
    """One per job: a Ray actor, or an object if there is only one process."""

    def __init__(self, settled: dict[str, Any] | None = None, done: frozenset[tuple[str, int]] = frozenset()) -> None:
        self._settled, self._done = dict(settled or {}), done
        # Images that a worker generated, found, or failed to generate; whether it is busy; bytes its process holds.
        self._workers: dict[str, collections.Counter[str]] = {}
        self._claimed: set[str] = set()
        self._warm: set[str] = set()
        self._stopped = False
        self._first: float | None = None
        self._fatal: BaseException | None = None

    def settle(self, name: str, value: Any) -> Any:
        """The value of the first worker that names one; it holds for all."""
        return self._settled.setdefault(name, value)

    def done(self) -> frozenset[tuple[str, int]]:
        """Keys of the images that existed when the job resumed."""
        return self._done

    def claim_warm_up(self, cache: str) -> bool:
        """Returns whether the worker is the first for a cache, and so has to fill it."""
        first = cache not in self._claimed
        self._claimed.add(cache)
        return first

    def mark_warm(self, cache: str) -> None:
        """A worker has filled a cache; others only read it from now on."""
        self._warm.add(cache)

    def is_warm(self, cache: str) -> bool:
        return cache in self._warm

    def report(self, name: str, drawn: int, kept: int, failed: int, busy: bool, memory: int) -> bool:
        """Adds a worker's progress since its last report, and returns whether to continue."""
        worker = self._workers.setdefault(name, collections.Counter())
        worker.update(drawn=drawn, kept=kept, failed=failed)
        worker["busy"], worker["memory"] = busy, memory
        if drawn and self._first is None:
            self._first = time.time()
        return not self._stopped

    def fail(self, error: BaseException) -> None:
        """A worker cannot continue, and no other could."""
        self._fatal = self._fatal or error

    def stop(self) -> None:
        """Workers stop after their current batch."""
        self._stopped = True

    def state(self) -> dict[str, Any]:
        """Everything that is known: "settled", "workers", "first" (time of the first image) and "fatal"."""
        return {
            "settled": dict(self._settled),
            "workers": {name: dict(worker) for name, worker in self._workers.items()},
            "first": self._first,
            "fatal": self._fatal,
        }


class ActorProxy:
    """Calls methods of a Ray actor, given by its handle or its name, and waits for what they return."""

    def __init__(self, actor: Any) -> None:
        import ray

        self._get, self._actor = ray.get, ray.get_actor(actor) if isinstance(actor, str) else actor

    def __getattr__(self, method: str) -> Any:
        remote = getattr(self._actor, method).remote
        return lambda *arguments: self._get(remote(*arguments))
