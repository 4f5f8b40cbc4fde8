"""Runs a job in this process, into a folder."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Unpack

from kerasdiff import validation
from kerasdiff.batch.job import Job, make_job
from kerasdiff.batch.job_state import JobState, lock, recover, write_state
from kerasdiff.batch.manifest import Manifest
from kerasdiff.batch.progress import Monitor, Summary, progress_bar
from kerasdiff.batch.row_files import read_rows
from kerasdiff.batch.rows import Row
from kerasdiff.batch.runner import Runner
from kerasdiff.batch.sinks import FileSink
from kerasdiff.batch.storage import Folder, write_errors
from kerasdiff.errors import RequestError
from kerasdiff.request import MAX_IMAGES
from kerasdiff.request_arguments import RequestArguments

if TYPE_CHECKING:
    from kerasdiff.generator import Generator

_MODEL = ("model", "revision", "variant", "weights")


def run(
    rows: Sequence[Row] | str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    generator: Generator,
    batch_size: int = 1,
    format: str = "png",  # noqa: A002
    progress: bool | None = None,
    **arguments: Unpack[RequestArguments],
) -> Summary:
    """Generates the images of rows into a folder, one file each; called again, it resumes.

    An image is written once it is finished, gets its final name only when it is whole, and then an entry in
    `manifest.jsonl`. Called again with the same rows, arguments and folder, it generates what is missing, in the same
    groups, so that the images are those of an uninterrupted run.

    Args:
        rows: what to generate, or the path of a file, see `read_rows`.
        output_dir: a new or empty folder, or that of this job.
        batch_size: images per row, with consecutive seeds.
        format: "png", "jpg" or "webp".
        progress: whether to show a progress bar on stderr; None: if that is a terminal or a notebook.
        **arguments: of `Generator.generate`, without arrays, for rows without their own; `image` and `mask` are paths,
            and `seed` is that of the very first image: row i, from 0, has seed + i * batch_size. With `exact=True`
            only missing images are generated again, not those of the same group.

    Raises:
        RequestError: an argument is wrong, or the folder is another job's or locked.
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
    model |= {name: value for name in ("vae", "refiner") if (value := getattr(generator.origin, name)) is not None}
    own = {name: getattr(generator.config.defaults, name) for name in ("loras", "embeddings", "recipe")}
    own = {name: value for name, value in own.items() if value and arguments.get(name) is None}
    job = make_job(rows, model, {**arguments, **own}, batch_size, format)
    job.check(generator.config)
    return run_job(job, output_dir, lambda: generator, progress=progress)


def run_job(
    job: Job,
    output_dir: str | os.PathLike[str],
    load: Callable[[], Generator],
    *,
    progress: bool | None = None,
    monitor: Monitor | None = None,
) -> Summary:
    """Generates what is missing of a job that `Job.check` has accepted; `load` is called if anything is. See `run`."""
    storage = Folder(validation.path("output_dir", output_dir))
    monitor = Monitor() if monitor is None else monitor
    generator = functools.cache(load)
    with lock(storage, job.description) as state, contextlib.ExitStack() as stack:
        if state is None:
            state = _start(job, storage, generator())
        elif job.hashes:  # of which there may be more by now
            _write(job, storage, state)
        with write_errors(storage.where):
            manifest = stack.enter_context(Manifest(storage.where))
            finished = recover(storage, job.targets, manifest)
        monitor.resumed(finished)
        if len(finished) == len(job.targets):
            return Summary(0, len(finished), 0, 0.0)
        _check_state(job, storage, state, generator())
        sink = FileSink(storage, manifest, generator().origin)
        sink.known |= finished
        runner = Runner(job, generator(), sink, monitor.check)
        bar = stack.enter_context(progress_bar(len(job.targets), len(finished), progress))
        started, drawn, failed = time.perf_counter(), 0, 0
        for block in job.blocks(generator().config, state.batch_sizes):
            for target, entry in runner.run(block):
                drawn += entry.error is None
                failed += entry.error is not None
                bar.update()
                monitor.recorded(target, entry)
        return Summary(drawn, len(finished), failed, time.perf_counter() - started)


def _start(job: Job, storage: Folder, generator: Generator) -> JobState:
    known = job.approximations | job.steering
    batch_sizes = {
        size: generator.plan(min(count, MAX_IMAGES), height=height, width=width, **known).chunk
        for size, (height, width, count) in job.sizes(generator.config).items()
    }
    state = JobState(generator.execution.precision, batch_sizes, job.hashes)
    _write(job, storage, state)
    return state


def _write(job: Job, storage: Folder, state: JobState) -> None:
    with write_errors(storage.where):
        write_state(storage, job.description, len(job.targets), state)


def _check_state(job: Job, storage: Folder, state: JobState, generator: Generator) -> None:
    """Refuses to resume a job differently from how it started."""
    precision, folder = generator.execution.precision, storage.where
    if precision != state.precision:
        raise RequestError(
            f"{folder} was started in {state.precision}, not in {precision}; give precision={state.precision!r}"
        )
    for size in job.sizes(generator.config):
        if size not in state.batch_sizes:
            raise RequestError(
                f"{folder} was started without images of size {size}, now the model's default; choose another folder"
            )
