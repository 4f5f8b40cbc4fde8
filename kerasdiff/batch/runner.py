"""Generates the images of a job block by block; the images of a block that fails are tried one by one."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Generator as Yields
from typing import TYPE_CHECKING

from kerasdiff.batch.job import Job, Target
from kerasdiff.batch.manifest import Entry
from kerasdiff.batch.sinks import Sink
from kerasdiff.errors import KerasdiffError, OutOfMemoryError

if TYPE_CHECKING:
    from kerasdiff.generator import Generator


@dataclasses.dataclass(frozen=True)
class Runner:
    """Generates blocks of a job into a sink; `check` is called after each step and image, and may end the job.

    Blocks are filled up to `padded_size` with copies of their last image, so that all of a size run the same program;
    None fills nothing up.
    """

    job: Job
    generator: Generator
    sink: Sink
    check: Callable[[], None] | None = None
    padded_size: int | None = None

    def run(self, block: Sequence[Target]) -> Iterator[tuple[Target, Entry]]:
        """Generates what is missing of a block, and yields each image that is finished or has failed.

        The whole block is generated together, unless images do not depend on one another. If that fails, what is
        missing is tried one by one.
        """
        missing = self._missing(block)
        if not missing:
            return
        batch = missing if self.job.exact else block
        error = yield from self._generate(batch)
        if error is None:
            return
        for target in self._missing(block):
            if len(batch) > 1:
                error = yield from self._generate([target])
            if error is not None:
                yield target, self.sink.fail(target, error)

    def _missing(self, block: Sequence[Target]) -> list[Target]:
        return [target for target in block if target.key not in self.sink.known]

    def _generate(self, targets: Sequence[Target]) -> Yields[tuple[Target, Entry], None, KerasdiffError | None]:
        """Generates images together and keeps those that are missing; returns what went wrong, if anything."""
        if self.padded_size is not None:
            targets = [*targets, *[targets[-1]] * (self.padded_size - len(targets))]
        check = self.check
        callback = None if check is None else lambda *_: check()
        arguments, results = self.job.request(targets), None
        while True:
            started = time.perf_counter()
            try:
                if results is None:  # here, as an image of a row may be missing
                    results = self.generator.stream(**arguments, callback=callback, progress=False)
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
                if target.key not in self.sink.known:
                    yield target, self.sink.add(target, result.only(number), seconds)
            if check is not None:
                check()
