"""Drawing the images of a job, block by block: what fails together is tried one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from kerasdiff.batch.job import Job, Target
from kerasdiff.errors import KerasdiffError, OutOfMemoryError

if TYPE_CHECKING:
    from kerasdiff.generator import Generator
    from kerasdiff.result import Result


class Album(Protocol):
    """Where images of a job go."""

    def has(self, target: Target) -> bool:
        """Whether an image is there."""

    def take(self, target: Target, result: Result, seconds: float) -> None:
        """Puts an image there: a result of one, and its share of the time that those drawn with it took."""

    def fail(self, target: Target, error: KerasdiffError) -> None:
        """Notes why there is no image."""


class Drawing:
    """Draws blocks of a job into an album.

    Args:
        job: whose arguments hold.
        generator: draws.
        album: where images go.
        between: called after each step and each image; what it raises ends the job there.
        fill: how many images a block is filled up to with copies of its last one, so that all of a size run the same
            program; None fills nothing up.
    """

    def __init__(
        self,
        job: Job,
        generator: Generator,
        album: Album,
        *,
        between: Callable[[], None] | None = None,
        fill: int | None = None,
    ) -> None:
        self._job, self._generator, self._album = job, generator, album
        self._between, self._fill = between, fill

    def missing(self, block: Sequence[Target]) -> list[Target]:
        """The images of a block that the album does not have."""
        return [target for target in block if not self._album.has(target)]

    def block(self, block: Sequence[Target], together: Sequence[Target]) -> None:
        """Draws what is missing of a block.

        Args:
            block: images of one group, as `Job.blocks` gives them.
            together: those of them that are drawn at once; if that fails, what is missing is drawn one by one.

        Raises:
            OutOfMemoryError: not even a single image fits into memory.
        """
        missing = self.missing(block)
        if not missing:
            return
        error = self._draw(together)
        if error is None:
            return
        if len(together) == 1:
            self._album.fail(missing[0], error)
            return
        for target in self.missing(block):
            error = self._draw([target])
            if error is not None:
                self._album.fail(target, error)

    def _draw(self, targets: Sequence[Target]) -> KerasdiffError | None:
        """Draws images together and keeps those that are missing; gives what went wrong with drawing, if anything."""
        if self._fill is not None:
            targets = [*targets, *[targets[-1]] * (self._fill - len(targets))]
        results = self._results(targets)
        while True:
            started = time.perf_counter()
            try:
                result = next(results, None)
            except OutOfMemoryError:
                raise
            except KerasdiffError as error:
                return error
            if result is None:
                return None
            seconds = (time.perf_counter() - started) / len(result)
            places = range(len(targets)) if result.places is None else result.places
            for number, place in enumerate(places):
                if not self._album.has(targets[place]):
                    self._album.take(targets[place], result.only(number), seconds)
            if self._between is not None:
                self._between()

    def _results(self, targets: Sequence[Target]) -> Iterator[Result]:
        between = self._between
        callback = None if between is None else lambda *_: between()
        yield from self._generator.stream(**self._job.request(targets), callback=callback, progress=False)
