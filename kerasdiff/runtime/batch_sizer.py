"""How many images go through a stage at once: predicted from memory, halved when it runs out, and remembered."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable
from typing import Any

import psutil

from kerasdiff.runtime.cache_dir import cache_key
from kerasdiff.runtime.program_cache import ProgramCache

_LOG = logging.getLogger("kerasdiff")
# Batches are padded to one of these, so that the rest of a split does not compile anew for every number.
SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
MOST_PARTS = 16
# Of what is free, the share that a batch is planned to take.
_SHARE = 0.8
# How much more must be free than when a batch failed before it is tried again.
_MORE = 1.5
# From this share of what is free on, a batch may end the process, which the next one should know.
_RISKY = 0.4


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """What goes through a stage at once.

    Attributes:
        images: how many.
        parts: in how many parts each of them, if even one is too much: slices of attention, or tiles along each side.
    """

    images: int = 1
    parts: int = 1

    def smaller(self, most_parts: int) -> MicroBatch | None:
        """What to try when this did not fit; None if there is nothing smaller."""
        if self.images > 1:
            return MicroBatch(max(size for size in SIZES if size <= self.images // 2))
        return MicroBatch(1, 2 * self.parts) if 2 * self.parts <= most_parts else None

    def larger(self) -> MicroBatch:
        """The next step up."""
        if self.parts > 1:
            return MicroBatch(1, self.parts // 2)
        return MicroBatch(next((size for size in SIZES if size > self.images), self.images))

    @property
    def order(self) -> tuple[int, int]:
        """Sorts portions by the memory that they take."""
        return self.images, -self.parts

    def __str__(self) -> str:
        if self.parts > 1:
            return f"1 image in {self.parts} parts"
        return f"{self.images} image{'s' if self.images > 1 else ''}"


@dataclasses.dataclass(frozen=True)
class StageCost:
    """A stage at one size.

    Attributes:
        stage: its name.
        height, width: of the images in pixels.
        need: bytes that a portion takes besides weights.
        most: images beyond which a batch is not faster.
        most_parts: into how many parts one image may be cut; 1 if it may not.
        network: whose weights it needs.
    """

    stage: str
    height: int
    width: int
    need: Callable[[MicroBatch], int]
    most: int = 1
    most_parts: int = 1
    network: str = ""

    @property
    def identity(self) -> tuple[str, int, int]:
        """What is remembered under the same name."""
        return self.stage, self.height, self.width


@dataclasses.dataclass
class _Record:
    """What is known of a work.

    Attributes:
        portion: the largest that may be used, once one failed.
        failed: the smallest that failed.
        free: bytes that were free when it did.
        trying: a portion that was begun and may end the process, with the process and when that began.
    """

    portion: MicroBatch | None = None
    failed: MicroBatch | None = None
    free: int = 0
    trying: dict[str, Any] | None = None

    def to_json(self) -> bytes:
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, payload: bytes) -> _Record:
        values = json.loads(payload)
        portions = {name: MicroBatch(**values[name]) if values[name] else None for name in ("portion", "failed")}
        return cls(**{**values, **portions})


class BatchSizer:
    """What fits, by work; shared with other processes through files.

    Args:
        store: where it is remembered.
        identity: what it depends on besides the work: device, memory, model, precision.
        free: bytes that are free now.
    """

    def __init__(self, store: ProgramCache, identity: tuple[Any, ...], free: Callable[[], int]) -> None:
        self._store, self._identity, self._free = store, identity, free
        self._known: dict[tuple[str, int, int], _Record] = {}
        self._stamps: dict[tuple[str, int, int], int | None] = {}
        self._before: dict[tuple[str, int, int], int] = {}
        # Libraries keep memory that was used once, which then does not look free: what worked will work again.
        self._worked: dict[tuple[str, int, int], MicroBatch] = {}

    def portion(self, work: StageCost) -> MicroBatch:
        """The largest portion that is expected to fit now."""
        record, free = self._record(work), self._free()
        worked = self._worked.get(work.identity, _NOTHING)
        predicted = self._predicted(work, free)
        if worked.images <= work.most:
            predicted = max(predicted, worked, key=_order)
        if record.portion is None or record.failed is None:
            return predicted
        allowed = record.portion
        # More than this failed: it is tried, a step at a time, only where there is clearly more room than there was.
        if free >= _MORE * record.free:
            allowed = allowed.larger()
        return min(predicted, allowed, key=_order)

    def begun(self, work: StageCost, portion: MicroBatch) -> None:
        """A portion is about to be run: if it ends the process, the next one will know."""
        record = self._record(work)
        free = self._before[work.identity] = self._free()
        if work.need(portion) >= _RISKY * free and portion != record.portion:
            record.trying = {**dataclasses.asdict(portion), "free": free, "process": _process()}
            self._keep(work, record)

    def ended(self, work: StageCost) -> None:
        """It did not end the process, whatever else came of it."""
        record = self._record(work)
        if record.trying is not None and record.trying["process"][0] == os.getpid():
            record.trying = None
            self._keep(work, record)

    def worked(self, work: StageCost, portion: MicroBatch) -> None:
        """A portion went through."""
        self._worked[work.identity] = max(self._worked.get(work.identity, _NOTHING), portion, key=_order)
        record = self._record(work)
        if record.failed is not None and record.portion is not None and portion.order > record.portion.order:
            record.portion = portion
            if portion.order >= record.failed.order:
                record.failed = None
            self._keep(work, record)

    def failed(self, work: StageCost, portion: MicroBatch) -> MicroBatch | None:
        """Memory ran out; gives what to try next, or None if there is nothing smaller."""
        record = self._record(work)
        record.trying = None
        self._worked.pop(work.identity, None)
        following = portion.smaller(work.most_parts)
        record.failed, record.free = portion, self._before.get(work.identity, self._free())
        record.portion = portion if following is None else following
        self._keep(work, record)
        return following

    def _predicted(self, work: StageCost, free: int) -> MicroBatch:
        room = _SHARE * free
        fitting = [size for size in SIZES if size <= work.most and work.need(MicroBatch(size)) <= room]
        if fitting:
            return MicroBatch(fitting[-1])
        parts = 1
        while work.need(MicroBatch(1, parts)) > room and 2 * parts <= work.most_parts:
            parts *= 2
        return MicroBatch(1, parts)

    def _record(self, work: StageCost) -> _Record:
        stamp = self._store.stamp(self._name(work))
        if work.identity not in self._known or stamp != self._stamps.get(work.identity):
            self._stamps[work.identity] = stamp  # before it is read: what comes in between is read again
            self._known[work.identity] = self._read(work)
        return self._known[work.identity]

    def _read(self, work: StageCost) -> _Record:
        payload = self._store.read(self._name(work))
        try:
            record = _Record() if payload is None else _Record.from_json(payload)
        except (ValueError, TypeError, KeyError, AttributeError):
            return _Record()
        tried = record.trying
        if tried is not None and not _lives(*tried["process"]):
            portion = MicroBatch(tried["images"], tried["parts"])
            following = portion.smaller(work.most_parts) or portion
            _LOG.warning("a process ended while it drew %s at once; it is %s from now on", portion, following)
            record = _Record(following, portion, tried["free"])
            self._keep(work, record)
        return record

    def _keep(self, work: StageCost, record: _Record) -> None:
        self._known[work.identity] = record
        self._store.write(self._name(work), record.to_json())
        self._stamps[work.identity] = self._store.stamp(self._name(work))

    def _name(self, work: StageCost) -> str:
        return cache_key(*self._identity, *work.identity)


def _order(portion: MicroBatch) -> tuple[int, int]:
    return portion.order


_NOTHING = MicroBatch(0)


def padded(images: int, most: int) -> int:
    """How many images a batch of this many is filled up to, if it is the rest of a split into batches of `most`."""
    return min(most, next((size for size in SIZES if size >= images), images))


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
