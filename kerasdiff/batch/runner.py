"""Generates the images of a job block by block; the images of a block that fails are tried one by one."""

from __future__ import annotations

import time
from collections.abc import Generator as Yields
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from kerasdiff.batch.job import Job, Target
from kerasdiff.batch.manifest import Entry
from kerasdiff.batch.progress import Monitor
from kerasdiff.batch.sinks import Sink
from kerasdiff.errors import KerasdiffError, OutOfMemoryError

if TYPE_CHECKING:
    from kerasdiff.generator import Generator


class Runner:
    """Generates blocks of a job into a sink; `monitor` is checked after each step and each image.

    Blocks are filled up to `padded_size` with copies of their last image, so that all of a size run the same program;
    None fills nothing up.
    """

    def __init__(
        self, job: Job, generator: Generator, sink: Sink, monitor: Monitor | None = None, padded_size: int | None = None
    ) -> None:
        self._job, self._generator, self._sink = job, generator, sink
        self._monitor, self._padded_size = monitor, padded_size

    def missing(self, block: Sequence[Target]) -> list[Target]:
        """The images of a block that the sink does not know."""
        return [target for target in block if target.key not in self._sink.known]

    def run(self, block: Sequence[Target], batch: Sequence[Target]) -> Iterator[tuple[Target, Entry]]:
        """Generates what is missing of a block, and yields each image that is finished or has failed.

        Those in `batch` are generated together; if that fails, what is missing is tried one by one.

        Raises:
            OutOfMemoryError: not even a single image fits into memory.
        """
        if not self.missing(block):
            return
        error = yield from self._generate(batch)
        if error is None:
            return
        for target in self.missing(block):
            if len(batch) > 1:
                error = yield from self._generate([target])
            if error is not None:
                yield target, self._sink.fail(target, error)

    def _generate(self, targets: Sequence[Target]) -> Yields[tuple[Target, Entry], None, KerasdiffError | None]:
        """Generates images together and keeps those that are missing; returns what went wrong, if anything."""
        if self._padded_size is not None:
            targets = [*targets, *[targets[-1]] * (self._padded_size - len(targets))]
        callback = None if self._monitor is None else self._check
        arguments, results = self._job.request(targets), None
        while True:
            started = time.perf_counter()
            try:
                if results is None:  # here, as an image of a row may be missing
                    results = self._generator.stream(**arguments, callback=callback, progress=False)
                result = next(results, None)
            except OutOfMemoryError:
                raise
            except KerasdiffError as error:
                return error
            if result is None:
                return None
            seconds = (time.perf_counter() - started) / len(result)
            indices = range(len(targets)) if result.places is None else result.places
            for number, index in enumerate(indices):
                target = targets[index]
                if target.key not in self._sink.known:
                    yield target, self._sink.add(target, result.only(number), seconds)
            self._check()

    def _check(self, *_: object) -> None:
        if self._monitor is not None:
            self._monitor.check()
