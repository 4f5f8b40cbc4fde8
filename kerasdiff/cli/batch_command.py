"""Jobs on the command line: what is printed, and what the exit status is."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kerasdiff.batch.job import Job
from kerasdiff.batch.local import CannotWriteError, Summary, carry_out
from kerasdiff.batch.manifest import MANIFEST
from kerasdiff.batch.resume import there
from kerasdiff.batch.rows import Row, number_prompts, read_rows
from kerasdiff.cli.job_monitor import Following
from kerasdiff.cli.program import Program, complain, tell
from kerasdiff.errors import OutOfMemoryError, RequestError

if TYPE_CHECKING:
    from kerasdiff.generator import Generator


def rows_of(prompts: list[str], path: str | None, seed: Any, batch_size: int, usage: str) -> tuple[Row, ...]:
    """The rows that are asked for: of a file, or of prompts on the command line.

    Raises:
        RequestError: both or none are given, or a seed with a file.
    """
    if path is None:
        if not prompts:
            raise RequestError(f"there is no prompt, and no --prompts with a file of them; usage: {usage}")
        if isinstance(seed, list):
            raise RequestError(
                "--output_dir takes one --seed, that of the first image; a file of --prompts has one a row"
            )
        return number_prompts(prompts, batch_size, seed)
    if prompts:
        raise RequestError("--prompts is a file of prompts; leave those on the command line out")
    if seed is not None:
        raise RequestError("--prompts is a file that may have a seed for each row; leave --seed out")
    return read_rows(path)


def carry_out_and_tell(job: Job, output_dir: str, load: Callable[[], Generator], program: Program) -> int:
    """Carries a job out: 0 if all images are there then, 1 if not, 130 or 143 if it was ended.

    Args:
        job: that was checked.
        output_dir: where to.
        load: gives the model.
        program: tells how to print, and when to end; while the model is loaded it ends by itself.
    """
    following = Following(job, pathlib.Path(output_dir)) if program.json else None

    def loaded() -> Generator:
        if following is not None:
            following.begin()
        generator = load()
        program.ending.wait()
        return generator

    def between() -> None:
        if following is not None:
            following.go_on()
        program.ending.check()

    try:
        summary = carry_out(job, output_dir, loaded, progress=program.progress, between=between)
    except (CannotWriteError, OutOfMemoryError) as error:
        _told(following, None, output_dir)
        complain(f"{program.name}: {error}; {_so_far(job, output_dir)} when that is mended")
        return 1
    except KeyboardInterrupt:
        _told(following, None, output_dir)
        complain(f"{program.name}: interrupted; {_so_far(job, output_dir)}")
        return program.ending.exit_code
    _told(following, summary, output_dir)
    if summary.failed:
        manifest = pathlib.Path(output_dir) / MANIFEST
        complain(
            f"{program.name}: {summary.failed} of {len(job.targets)} images failed; {manifest} says why, and the same "
            "command tries them again"
        )
        return 1
    return 0


def _told(following: Following | None, summary: Summary | None, output_dir: str) -> None:
    """Tells what it came to; for people only if it came to its end, as what else there is to say is on stderr."""
    if following is not None:
        following.end(None if summary is None else summary.seconds)
    elif summary is not None:
        tell_summary(output_dir, summary)


def tell_summary(where: str, summary: Summary, workers: str = "") -> None:
    """Tells people what a job came to.

    Args:
        where: its pictures are.
        summary: what it came to.
        workers: how many drew, if that is worth telling.
    """
    line = f"{where}: {summary.drawn} drawn, {summary.kept} were there, {summary.failed} failed"
    if summary.drawn:
        line += f" ({workers}{summary.seconds:.1f} s, {summary.images_per_second:.2f} images/s)"
    tell(line)


def _so_far(job: Job, output_dir: str) -> str:
    try:
        done = len(there(pathlib.Path(output_dir), job.targets))
    except OSError:  # no such folder yet, or none any more
        done = 0
    return f"{done} of {len(job.targets)} images are in {output_dir}, and the same command goes on"
