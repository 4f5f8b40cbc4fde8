"""Carrying a job out, as often as it takes."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from kerasdiff import validation
from kerasdiff.batch.job import Job, Target, make_job
from kerasdiff.batch.job_state import Begun, begin, hold
from kerasdiff.batch.manifest import Manifest, drawn, failure
from kerasdiff.batch.resume import take_up
from kerasdiff.batch.rows import Row, read_rows
from kerasdiff.batch.runner import Drawing
from kerasdiff.errors import KerasdiffError, RequestError
from kerasdiff.request import MAX_IMAGES

if TYPE_CHECKING:
    from kerasdiff.generator import Generator
    from kerasdiff.result import Result

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MODEL = ("model", "revision", "variant", "weights")
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"


class CannotWriteError(RequestError):
    """A job's folder cannot be written to; what is there is kept, and the same job goes on once it can.

    Example:
        ```python
        generator = kerasdiff.Generator("tiny")
        rows = kerasdiff.batch.number_prompts(["a red circle", "a blue star"])
        try:
            kerasdiff.batch.run(rows, "pictures", generator=generator)
        except kerasdiff.batch.CannotWriteError as error:
            print(error)  # make room, then run the same again
        ```
    """


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a job came to.

    Attributes:
        drawn: images that were drawn now.
        kept: images that were there before.
        failed: images that could not be drawn; the manifest says why, and the same job tries them again.
        seconds: that it took, without loading the model.

    Example:
        ```python
        rows = kerasdiff.batch.number_prompts(["a red circle", "a blue star"])
        summary = kerasdiff.batch.run(rows, "pictures", generator=kerasdiff.Generator("tiny"))
        summary.drawn, summary.kept, summary.failed, summary.images_per_second
        ```
    """

    drawn: int
    kept: int
    failed: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Of those that were drawn now; 0 if none was."""
        return self.drawn / self.seconds if self.drawn else 0.0


def run(
    rows: Sequence[Row] | str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    generator: Generator,
    batch_size: int = 1,
    format: str = "png",  # noqa: A002
    progress: bool = True,
    **arguments: Any,
) -> Summary:
    """Draws rows into a folder, each picture into a file of its own, and goes on where it was interrupted.

    A picture is written once it is finished, under its final name only when it is whole, and then gets a line in
    `manifest.jsonl`. Called again with the same rows, arguments and folder, it draws what is missing; images are drawn
    together in the same groups then, so that they are those of a run that was not interrupted.

    Args:
        rows: what to draw, or the path of a file, see `read_rows`.
        output_dir: a new or an empty folder, or that of this job.
        generator: draws.
        batch_size: images for each row; their seeds follow one another.
        format: "png", "jpg" or "webp".
        progress: whether to show a progress bar on stderr.
        **arguments: of `Generator.generate`, but for `seed` and arrays, for rows that do not say otherwise; `image`
            and `mask` are paths. With `exact=True` only missing images are drawn again, and not those they were
            drawn with.

    Returns:
        How many images were drawn, were there before, or failed.

    Raises:
        RequestError: an argument is wrong, or the folder is another job's or in use.
        CannotWriteError: a file cannot be written: the disk is full.
        OutOfMemoryError: not even a single image fits into memory.

    Example:
        ```python
        generator = kerasdiff.Generator("tiny")
        kerasdiff.batch.run("prompts.csv", "pictures", generator=generator, num_steps=20).drawn
        ```
    """
    if isinstance(rows, str | os.PathLike):
        rows = read_rows(rows)
    if not isinstance(rows, list | tuple):
        raise RequestError(f"rows must be a list of Row, or the path of a file, not {validation.kind(rows)}")
    model = {name: getattr(generator.origin, name) for name in _MODEL}
    job = make_job(rows, model, arguments, batch_size, format)
    job.check(generator.config)
    return carry_out(job, output_dir, lambda: generator, progress=progress)


def carry_out(
    job: Job,
    output_dir: str | os.PathLike[str],
    load: Callable[[], Generator],
    *,
    progress: bool = True,
    between: Callable[[], None] | None = None,
) -> Summary:
    """Draws what is missing of a job that was checked.

    Args:
        job: from `make_job`.
        output_dir: as in `run`.
        load: gives the model, of which `Job.check` has seen the configuration; called if anything is missing.
        progress: as in `run`.
        between: called after each step and each image; what it raises ends the job there.

    Raises:
        RequestError: as in `run`, as for the others.
    """
    folder = pathlib.Path(validation.path("output_dir", output_dir))
    generator = functools.cache(load)
    with hold(folder, job.description) as begun:
        if begun is None:
            begun = _begin(job, folder, generator())
        with contextlib.ExitStack() as stack:
            with writing(folder):
                manifest = stack.enter_context(Manifest(folder))
                files = take_up(folder, job.targets, manifest)
            if len(files) == len(job.targets):
                return Summary(0, len(files), 0, 0.0)
            _check_begun(job, folder, begun, generator())
            bar = stack.enter_context(
                tqdm(
                    total=len(job.targets),
                    initial=len(files),
                    disable=not progress,
                    unit="image",
                    bar_format=_BAR,
                )
            )
            return _Work(job, generator(), folder, manifest, files, bar, between).all(begun)


@contextlib.contextmanager
def writing(folder: str | os.PathLike[str]) -> Iterator[None]:
    """What cannot be written stops a job with one line.

    Args:
        folder: of the job.

    Raises:
        CannotWriteError: for an `OSError`, and for a `RequestError` that has one as its cause.
    """
    try:
        yield
    except (RequestError, OSError) as error:
        cause = error.__cause__ if isinstance(error, RequestError) else error
        if not isinstance(cause, OSError):
            raise
        reason = "the disk is full" if cause.errno in _FULL else cause.strerror or cause
        raise CannotWriteError(f"cannot write to {folder}: {reason}") from cause


def _begin(job: Job, folder: pathlib.Path, generator: Generator) -> Begun:
    together = {
        size: generator.plan(batch_size=min(count, MAX_IMAGES), height=height, width=width).chunk
        for size, (height, width, count) in job.sizes(generator.config).items()
    }
    begun = Begun(generator.execution.precision, together)
    with writing(folder):
        begin(folder, job.description, len(job.targets), begun)
    return begun


def _check_begun(job: Job, folder: pathlib.Path, begun: Begun, generator: Generator) -> None:
    """Refuses to go on otherwise than a job was begun."""
    now = generator.execution.precision
    if now != begun.precision:
        raise RequestError(f"{folder} was begun in {begun.precision}, not in {now}; give precision={begun.precision!r}")
    for size in job.sizes(generator.config):
        if size not in begun.together:
            raise RequestError(
                f"{folder} was begun without images of {size}, the model's size now; choose another folder"
            )


class _Work:
    """The part of a job that draws.

    Args:
        job: what.
        generator: draws.
        folder: where to.
        manifest: of the folder.
        files: those that are there.
        bar: shows how far it is.
        between: as in `carry_out`.
    """

    def __init__(
        self,
        job: Job,
        generator: Generator,
        folder: pathlib.Path,
        manifest: Manifest,
        files: set[str],
        bar: tqdm,
        between: Callable[[], None] | None,
    ) -> None:
        self._job, self._generator, self._folder, self._manifest = job, generator, folder, manifest
        self._files, self._bar = files, bar
        self._drawing = Drawing(job, generator, self, between=between)
        self._kept, self._failed = len(files), 0

    def all(self, begun: Begun) -> Summary:
        """Draws everything that is missing: blocks as a whole, unless images do not depend on one another."""
        started = time.perf_counter()
        for block in self._job.blocks(self._generator.config, begun.together):
            self._drawing.block(block, self._drawing.missing(block) if self._job.exact else block)
        drawn = len(self._files) - self._kept
        return Summary(drawn, self._kept, self._failed, time.perf_counter() - started)

    def has(self, target: Target) -> bool:
        """Whether its file is there."""
        return target.file in self._files

    def take(self, target: Target, result: Result, seconds: float) -> None:
        """Saves it, then says so in the manifest."""
        with writing(self._folder):
            result.save(self._folder / target.file)
            self._files.add(target.file)
            self._manifest.append(drawn(target, result, target.file, seconds))
        self._bar.update()

    def fail(self, target: Target, error: KerasdiffError) -> None:
        """Says why in the manifest."""
        with writing(self._folder):
            self._manifest.append(failure(target, error, self._generator.origin))
        self._failed += 1
        self._bar.update()
