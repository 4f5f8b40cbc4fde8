"""How many images go through a stage at once: predicted from memory, halved when it runs out, and remembered."""

from __future__ import annotations

import abc
import dataclasses
import functools
import json
import logging
import operator
import os
from collections.abc import Callable
from typing import Any

import psutil

from kerasdiff.runtime.cache_dir import cache_key
from kerasdiff.runtime.program_cache import ProgramCache

_LOG = logging.getLogger("kerasdiff")
# Batches are padded to one of these, so that the rest of a split does not compile anew for every number.
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
MAX_PARTS = 16
# Of what is free, the share that a batch is planned to take.
SHARE = 0.8
# How much more must be free than when a batch failed before it is tried again.
_MORE = 1.5
# From this share of what is free on, a batch may end the process, which the next one should know.
_RISKY = 0.4
# What takes back each note of a micro-batch that is running and may end the process.
_taking_back: dict[tuple[Any, ...], Callable[[], None]] = {}


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """How many images go through a stage at once."""

    images: int = 1
    # Of each image, if even one is too much: slices of attention, or tiles along each side.
    parts: int = 1

    def smaller(self, max_parts: int) -> MicroBatch | None:
        """What to try when this did not fit; None if there is nothing smaller."""
        if self.images > 1:
            return MicroBatch(max(size for size in SIZES if size <= self.images // 2))
        return MicroBatch(1, 2 * self.parts) if 2 * self.parts <= max_parts else None

    def larger(self) -> MicroBatch:
        """The next step up."""
        if self.parts > 1:
            return MicroBatch(1, self.parts // 2)
        return MicroBatch(next((size for size in SIZES if size > self.images), self.images))

    @property
    def order(self) -> tuple[int, int]:
        """Sorts micro-batches by the memory that they take."""
        return self.images, -self.parts

    def __str__(self) -> str:
        if self.parts > 1:
            return f"1 image in {self.parts} parts"
        return f"{self.images} image{'s' if self.images > 1 else ''}"


@dataclasses.dataclass(frozen=True)
class StageCost(abc.ABC):
    """What a stage takes at one size in pixels.

    Beyond `max_batch` images a batch is not faster; one image may be cut into at most `max_parts` parts. `leaving`
    bytes will be free beside those that are, since other networks leave before it runs. Those named in `beside` run in
    turns with its own, and stay.
    """

    stage: str
    height: int
    width: int
    network: str
    max_batch: int = 1
    max_parts: int = 1
    leaving: int = 0
    beside: tuple[str, ...] = ()

    @property
    def identity(self) -> tuple[str, int, int]:
        """What is remembered under the same name."""
        return self.stage, self.height, self.width

    @property
    def work(self) -> int:
        """Bytes that one image takes besides weights, in whatever order these are."""
        return self.need(MicroBatch())

    @abc.abstractmethod
    def need(self, micro_batch: MicroBatch) -> int:
        """Bytes that a micro-batch takes besides weights."""


@dataclasses.dataclass
class _Record:
    """What is known about the work that a `StageCost` describes."""

    # The largest that may be used, once one failed.
    allowed: MicroBatch | None = None
    # The smallest that failed, and the bytes that were free when it did.
    failed: MicroBatch | None = None
    free: int = 0
    # A micro-batch that was started and may end the process, and in which process.
    trying: dict[str, Any] | None = None

    @classmethod
    def from_json(cls, payload: bytes) -> _Record:
        values = json.loads(payload)
        known = {name: MicroBatch(**values[name]) if values[name] else None for name in ("allowed", "failed")}
        return cls(**{**values, **known})


class BatchSizer:
    """What fits, learned by stage and size; shared through files with processes of the same `identity`."""

    def __init__(self, cache: ProgramCache, identity: tuple[Any, ...], free: Callable[[], int]) -> None:
        self._cache, self._identity, self._free = cache, identity, free
        self._known: dict[tuple[str, int, int], _Record] = {}
        self._stamps: dict[tuple[str, int, int], int | None] = {}
        self._before: dict[tuple[str, int, int], int] = {}
        # Libraries keep memory that was used once, which then does not look free: what worked will work again.
        self._worked: dict[tuple[str, int, int], MicroBatch] = {}

    def of(self, what: Any) -> BatchSizer:
        """The same for something else, in place of the first value of the identity."""
        return BatchSizer(self._cache, (what, *self._identity[1:]), self._free)

    @property
    def free(self) -> int:
        """Bytes that are free now."""
        return self._free()

    def has_worked(self, cost: StageCost) -> bool:
        """Whether this process ran it before."""
        return cost.identity in self._worked

    def largest(self, cost: StageCost) -> MicroBatch:
        """The largest micro-batch that is expected to fit now."""
        record, free = self._record(cost), self._free() + cost.leaving
        worked = self._worked.get(cost.identity, _NOTHING)
        predicted = self._predicted(cost, free)
        if worked.images <= cost.max_batch:
            predicted = max(predicted, worked, key=_order)
        if record.allowed is None or record.failed is None:
            return predicted
        allowed = record.allowed
        # More than this failed: it is tried, a step at a time, only where there is clearly more room than there was.
        if free >= _MORE * record.free:
            allowed = allowed.larger()
        return min(predicted, allowed, key=_order)

    def started(self, cost: StageCost, micro_batch: MicroBatch) -> None:
        """A micro-batch is about to run: if it ends the process, the next process will know."""
        record = self._record(cost)
        free = self._before[cost.identity] = self._free() + cost.leaving
        if cost.need(micro_batch) >= _RISKY * free and micro_batch != record.allowed:
            _taking_back[id(self), cost.identity] = functools.partial(self.ended, cost)
            record.trying = {**dataclasses.asdict(micro_batch), "free": free, "process": _process()}
            self._save(cost, record)

    def has_room(self, cost: StageCost, micro_batch: MicroBatch) -> bool:
        """Whether a micro-batch that was started takes so little of what was free then that more may run beside it."""
        return cost.need(micro_batch) < _RISKY * self._before.get(cost.identity, 0)

    def ended(self, cost: StageCost) -> None:
        """The process survived it, whatever else happened."""
        _taking_back.pop((id(self), cost.identity), None)
        record = self._record(cost)
        trying = record.trying  # which another thread may end
        if trying is not None and trying["process"][0] == os.getpid():
            record.trying = None
            self._save(cost, record)

    def succeeded(self, cost: StageCost, micro_batch: MicroBatch) -> None:
        """A micro-batch went through."""
        self._worked[cost.identity] = max(self._worked.get(cost.identity, _NOTHING), micro_batch, key=_order)
        record = self._record(cost)
        if record.failed is not None and record.allowed is not None and micro_batch.order > record.allowed.order:
            record.allowed = micro_batch
            if micro_batch.order >= record.failed.order:
                record.failed = None
            self._save(cost, record)

    def failed(self, cost: StageCost, micro_batch: MicroBatch) -> MicroBatch | None:
        """Memory ran out; gives what to try next, or None if there is nothing smaller."""
        record = self._record(cost)
        record.trying = None
        self._worked.pop(cost.identity, None)
        smaller = micro_batch.smaller(cost.max_parts)
        record.failed, record.free = micro_batch, self._before.get(cost.identity, self._free())
        record.allowed = micro_batch if smaller is None else smaller
        self._save(cost, record)
        return smaller

    def _predicted(self, cost: StageCost, free: int) -> MicroBatch:
        room = SHARE * free
        fitting = [size for size in SIZES if size <= cost.max_batch and cost.need(MicroBatch(size)) <= room]
        if fitting:
            return MicroBatch(fitting[-1])
        parts = 1
        while cost.need(MicroBatch(1, parts)) > room and 2 * parts <= cost.max_parts:
            parts *= 2
        return MicroBatch(1, parts)

    def _record(self, cost: StageCost) -> _Record:
        stamp = self._cache.stamp(self._name(cost))
        if cost.identity not in self._known or stamp != self._stamps.get(cost.identity):
            self._stamps[cost.identity] = stamp  # before it is read: what comes in between is read again
            self._known[cost.identity] = self._read(cost)
        return self._known[cost.identity]

    def _read(self, cost: StageCost) -> _Record:
        payload = self._cache.read(self._name(cost))
        try:
            record = _Record() if payload is None else _Record.from_json(payload)
        except (ValueError, TypeError, KeyError, AttributeError):
            return _Record()
        tried = record.trying
        if tried is not None and not _lives(*tried["process"]):
            micro_batch = MicroBatch(tried["images"], tried["parts"])
            smaller = micro_batch.smaller(cost.max_parts) or micro_batch
            _LOG.warning(
                "an earlier process died while generating %s at once; limiting batches to %s", micro_batch, smaller
            )
            record = _Record(smaller, micro_batch, tried["free"])
            self._save(cost, record)
        return record

    def _save(self, cost: StageCost, record: _Record) -> None:
        self._known[cost.identity] = record
        self._cache.write(self._name(cost), json.dumps(dataclasses.asdict(record)).encode())
        self._stamps[cost.identity] = self._cache.stamp(self._name(cost))

    def _name(self, cost: StageCost) -> str:
        return cache_key(*self._identity, *cost.identity)


def take_back_notes() -> None:
    """Before somebody ends this process: what it is running has not failed."""
    for take_back in [*_taking_back.values()]:
        take_back()


_order = operator.attrgetter("order")
_NOTHING = MicroBatch(0)


def padded(images: int, max_batch: int) -> int:
    """How many images a batch of this many is filled up to, if it is the rest of a split into batches of `most`."""
    return min(max_batch, next((size for size in SIZES if size >= images), images))


def _process() -> tuple[int, float]:
    """This process: its number, and when it began after the machine did, which no clock changes."""
    process = psutil.Process()
    return process.pid, process.create_time() - psutil.boot_time()


def _lives(pid: int, started: float) -> bool:
    """Whether a process still runs; a later one may have its number."""
    try:
        return abs(psutil.Process(pid).create_time() - psutil.boot_time() - started) < 2
    except psutil.Error:
        return False
