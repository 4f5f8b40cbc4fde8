"""Batch jobs on the command line: what is printed, and the exit status."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from kerasdiff import metadata
from kerasdiff.batch.job import Job, Target
from kerasdiff.batch.local import run_job
from kerasdiff.batch.manifest import MANIFEST, Entry
from kerasdiff.batch.progress import Monitor, Summary
from kerasdiff.batch.row_files import read_rows
from kerasdiff.batch.rows import Row, number_prompts
from kerasdiff.batch.storage import CannotWriteError, Folder
from kerasdiff.cli.console import print_error, print_json, print_line
from kerasdiff.cli.output import image_fields
from kerasdiff.cli.program import Program
from kerasdiff.errors import OutOfMemoryError, RequestError

if TYPE_CHECKING:
    from kerasdiff.generator import Generator

# What is printed of a row whose image does not exist.
_ROW_FIELDS = ("prompt", "negative_prompt", "width", "height", "num_steps", "sampler", "guidance_scale")


def rows_of(prompts: list[str], path: str | None, usage: str) -> tuple[Row, ...]:
    """The rows of a file, or of prompts on the command line: one of them."""
    if path is None:
        if not prompts:
            raise RequestError(f"give a prompt, or --prompts with a file of them; usage: {usage}")
        return number_prompts(prompts)
    if prompts:
        raise RequestError("--prompts is a file of prompts; leave those on the command line out")
    return read_rows(path)


def run_batch(job: Job, output_dir: str, load: Callable[[Program], Generator], program: Program) -> int:
    """Runs a job that was checked, and returns the exit status: 0 if all images exist then, 130 or 143 after a signal.

    While `load` gives the model, a signal ends the program at once.
    """
    check = program.signals.check
    monitor = JsonMonitor(job, output_dir, check) if program.json else Monitor(check)

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


class JsonMonitor(Monitor):
    """Prints what becomes of each image of a job, and a summary."""

    def __init__(self, job: Job, output_dir: str, check: Callable[[], None]) -> None:
        super().__init__(check)
        self._job, self._folder = job, pathlib.Path(output_dir)
        self._counts = {"drawn": 0, "kept": 0, "failed": 0}

    def resumed(self, finished: Collection[tuple[str, int]]) -> None:
        for target in self._job.targets:
            if target.key in finished:
                self._print("kept", target)

    def recorded(self, target: Target, entry: Entry) -> None:
        self._print("drawn" if entry.error is None else "failed", target, entry)

    def end(self, seconds: float | None) -> None:
        """Prints the summary; `seconds` is None if the job was stopped."""
        missing = len(self._job.targets) - existing_images(self._job, self._folder)
        summary = {"output_dir": str(self._folder), **self._counts, "missing": missing}
        print_json({"type": "summary", **summary, "seconds": seconds})

    def _print(self, status: str, target: Target, entry: Entry | None = None) -> None:
        self._counts[status] += 1
        image = {"id": target.row.id, "number": target.number}
        outcome = {"seconds": entry and entry.seconds, "error": entry and entry.error}
        path = None if status == "failed" else self._folder / target.file
        print_json({"type": "image", "status": status, **image, **_fields(target, path), **outcome})


def existing_images(job: Job, folder: pathlib.Path) -> int:
    return len(Folder(str(folder)).existing(target.file for target in job.targets))


def _fields(target: Target, path: pathlib.Path | None) -> dict[str, Any]:
    """What the metadata of an image says; what its row says if there is none."""
    row_values = {name: getattr(target.row, name) for name in _ROW_FIELDS}
    fields = {"path": None if path is None else str(path), "seed": target.seed, **row_values, "nsfw": None}
    if path is None:
        return fields
    try:
        receipt = metadata.read(path)
    except RequestError:
        return fields
    return {**fields, **image_fields(receipt.request, receipt.index), "nsfw": receipt.nsfw}
