"""Attempts at work that may run out of memory: each one that fails is followed by a smaller one."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from types import TracebackType
from typing import TypeVar

from kerasdiff.errors import OutOfMemoryError
from kerasdiff.runtime import loaded_models, memory
from kerasdiff.runtime.batch_sizer import BatchSizer, MicroBatch, StageCost, padded
from kerasdiff.runtime.oom import first_line, is_out_of_memory

_LOG = logging.getLogger("kerasdiff")
Result = TypeVar("Result")


class Attempt:
    """One try of a piece of work, as a context manager that swallows the end of memory, and nothing else.

    The error is dropped where it is caught: its traceback would keep the frames of what failed, and these its tensors.
    Only its text stays, as `failure`.
    """

    def __init__(self, sizer: BatchSizer, cost: StageCost, micro_batch: MicroBatch) -> None:
        self._sizer, self._cost, self.micro_batch = sizer, cost, micro_batch
        self.failure: str | None = None

    def __enter__(self) -> MicroBatch:
        self._sizer.started(self._cost, self.micro_batch)
        return self.micro_batch

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        self._sizer.ended(self._cost)
        if error is None:
            self._sizer.succeeded(self._cost, self.micro_batch)
        elif is_out_of_memory(error):
            self.failure = first_line(error)
        return self.failure is not None


class Retries:
    """Repeats work that runs out of memory.

    The first time that a single image does not fit, other models of the process make room; then the micro-batch is
    halved, then an image is cut into parts, and at last the model's own other networks are unloaded.
    """

    def __init__(self, sizer: BatchSizer, model: loaded_models.Releasable) -> None:
        self.sizer, self._model = sizer, model

    def attempts(self, cost: StageCost, micro_batch: MicroBatch | None = None) -> Iterator[Attempt]:
        """Attempts until one is not out of memory; `with attempt as micro_batch:` gives what to run.

        OutOfMemoryError if nothing fits.
        """
        micro_batch = self.sizer.largest(cost) if micro_batch is None else micro_batch
        others_released = False
        while True:
            attempt = Attempt(self.sizer, cost, micro_batch)
            yield attempt
            if attempt.failure is None:
                return
            gc.collect()
            if micro_batch.images == 1 and not others_released:
                others_released = True
                room = " without the other models of this process" if loaded_models.make_room(self._model) else ""
                _LOG.warning("out of memory in the %s (%s); retrying%s", cost.stage, attempt.failure, room)
            else:
                micro_batch = self._smaller(cost, micro_batch, attempt.failure)

    def batches(self, cost: StageCost, count: int, exact: bool = False, warn: bool = True) -> Iterator[Batch]:
        """A number of images in order, as many at a time as fit."""
        done, split = 0, exact or not warn
        while done < count:
            left = count - done
            micro_batch = self._next(cost, count, left, exact)
            if not split and micro_batch.images < min(left, cost.max_batch):
                split = True
                _LOG.warning(
                    "%d images of %d x %d are generated %d at a time: more may not fit into memory (%.1f GB are free)",
                    *(count, cost.width, cost.height, micro_batch.images, memory.free() / 1e9),
                )
            batch = Batch(self, cost, micro_batch, done, left)
            yield batch
            split = split or len(batch.indices) < min(left, micro_batch.images)
            done += len(batch.indices)

    def _next(self, cost: StageCost, count: int, left: int, exact: bool) -> MicroBatch:
        fits = self.sizer.largest(cost)
        if exact:
            return MicroBatch(1, fits.parts)
        if left > fits.images:
            return fits
        # The rest of a split is padded, so that not every number of images is a program of its own.
        return MicroBatch(left if left == count else padded(left, fits.images), fits.parts)

    def _smaller(self, cost: StageCost, micro_batch: MicroBatch, failure: str) -> MicroBatch:
        """What to try when a micro-batch did not fit."""
        smaller = self.sizer.failed(cost, micro_batch)
        if smaller is not None:
            _LOG.warning(
                "out of memory in the %s with %s at once (%s); continuing with %s",
                *(cost.stage, micro_batch, failure, smaller),
            )
            return smaller
        if self._model.release(but=cost.network):
            _LOG.warning(
                "out of memory in the %s (%s); unloaded the model's other networks and retrying", cost.stage, failure
            )
            return micro_batch
        raise OutOfMemoryError(
            f"the {cost.stage} does not fit into memory for one image of {cost.width} x {cost.height}, even in "
            f"{micro_batch.parts} parts ({failure}); {memory.free() / 1e9:.1f} GB are free: a smaller size, "
            "precision='float16' or 'bfloat16', or fewer other programs would help"
        )


class Batch:
    """The images of a request that are next; `left` counts them and those after them."""

    def __init__(self, retries: Retries, cost: StageCost, micro_batch: MicroBatch, first: int, left: int) -> None:
        self._retries, self._cost, self._first = retries, cost, first
        self.micro_batch, self.left = micro_batch, left

    @property
    def indices(self) -> list[int]:
        """Which images of the request they are."""
        return list(range(self._first, self._first + min(self.micro_batch.images, self.left)))

    @property
    def rows(self) -> list[int]:
        """The same, padded with the last one to the size of the micro-batch."""
        return [*self.indices, *self.indices[-1:] * (self.micro_batch.images - len(self.indices))]

    def attempts(self) -> Iterator[Attempt]:
        """As `Retries.attempts`; the batch becomes smaller with each attempt that runs out of memory."""
        for attempt in self._retries.attempts(self._cost, self.micro_batch):
            self.micro_batch = attempt.micro_batch
            yield attempt
