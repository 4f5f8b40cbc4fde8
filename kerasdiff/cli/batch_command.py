"""Batch jobs on the command line: what is printed, and the exit status."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kerasdiff.batch.job import Job
from kerasdiff.batch.local import run_job
from kerasdiff.batch.manifest import MANIFEST
from kerasdiff.batch.progress import Summary
from kerasdiff.batch.rows import Row, number_prompts, read_rows
from kerasdiff.batch.storage import CannotWriteError
from kerasdiff.cli.console import print_error, print_line
from kerasdiff.cli.job_monitor import JsonMonitor, SignalMonitor, existing_images
from kerasdiff.cli.program import Program
from kerasdiff.errors import OutOfMemoryError, RequestError

if TYPE_CHECKING:
    from kerasdiff.generator import Generator


def rows_of(prompts: list[str], path: str | None, seed: Any, batch_size: int, usage: str) -> tuple[Row, ...]:
    """The rows of a file, or of prompts on the command line.

    Raises:
        RequestError: both or neither are given, or a seed with a file.
    """
    if path is None:
        if not prompts:
            raise RequestError(f"give a prompt, or --prompts with a file of them; usage: {usage}")
        if isinstance(seed, list):
            raise RequestError("--output_dir takes one --seed, of the first image; a file of --prompts has one per row")
        return number_prompts(prompts, batch_size, seed)
    if prompts:
        raise RequestError("--prompts is a file of prompts; leave those on the command line out")
    if seed is not None:
        raise RequestError("a file of --prompts may have a seed per row; leave --seed out")
    return read_rows(path)


def run_batch(job: Job, output_dir: str, load: Callable[[Program], Generator], program: Program) -> int:
    """Runs a job, and returns the exit status: 0 if all images exist then, 1 if not, 130 or 143 after a signal.

    While the model is loaded, a signal ends the program at once.
    """
    monitor = JsonMonitor(job, output_dir, program.signals) if program.json else SignalMonitor(program.signals)

    def loaded() -> Generator:
        generator = load(program)
        program.signals.defer()
        return generator

    try:
        summary = run_job(job, output_dir, loaded, progress=program.progress, monitor=monitor)
    except (CannotWriteError, OutOfMemoryError, KeyboardInterrupt) as error:
        if isinstance(monitor, JsonMonitor):
            monitor.end(None)
        count = existing_images(job, pathlib.Path(output_dir))
        return report_stop(program, error, f"{count} of {len(job.targets)} images are in {output_dir}")
    if isinstance(monitor, JsonMonitor):
        monitor.end(summary.seconds)
    else:
        tell_summary(output_dir, summary)
    return report_failed(program, summary, str(pathlib.Path(output_dir) / MANIFEST), f" of {len(job.targets)}")


def tell_summary(output: str, summary: Summary, workers: str = "") -> None:
    """Prints what a job came to, for people; `workers` goes before the time."""
    line = f"{output}: {summary.drawn} generated, {summary.kept} already there, {summary.failed} failed"
    if summary.drawn:
        line += f" ({workers}{summary.seconds:.1f} s, {summary.images_per_second:.2f} images/s)"
    print_line(line)


def report_stop(program: Program, error: BaseException, finished: str) -> int:
    """Says on stderr why a job stopped, what is finished and how to resume, and returns the exit status."""
    if isinstance(error, KeyboardInterrupt):
        print_error(f"{program.name}: interrupted; {finished}; rerun the same command to resume")
        return program.signals.exit_code
    print_error(f"{program.name}: {error}; {finished}; fix this and rerun the same command to resume")
    return 1


def report_failed(program: Program, summary: Summary, manifest: str, total: str = "") -> int:
    """Says on stderr how many images failed, if any, and returns the exit status."""
    if not summary.failed:
        return 0
    print_error(
        f"{program.name}: {summary.failed}{total} images failed; {manifest} says why; rerun the same command to retry "
        "them"
    )
    return 1
