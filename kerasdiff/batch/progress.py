"""How far a job is, and what it came to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from tqdm import tqdm

from kerasdiff.runtime.terminal import bar, shows_progress

if TYPE_CHECKING:
    from kerasdiff.batch.job import Target
    from kerasdiff.batch.manifest import Entry


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a job came to. The last three attributes are those of a bulk run.

    Attributes:
        drawn: images that were generated now.
        kept: images that existed before.
        failed: images that could not be generated; the manifest says why, and the same job retries them.
        seconds: the time it took, without loading the model or, in a bulk run, without starting Ray.
        workers: processes that generated images.
        first_image_s: seconds from the call to the first image; None if none was generated.
        peak_worker_gb: the most memory that a worker reported after its batches; None without a worker.
    """

    drawn: int
    kept: int
    failed: int
    seconds: float
    workers: int = 1
    first_image_s: float | None = None
    peak_worker_gb: float | None = None

    @property
    def images_per_second(self) -> float:
        """Images generated per second; 0 if none was."""
        return self.drawn / self.seconds if self.drawn else 0.0


class Monitor:
    """Is told what happens in a job; `check` is called after each step and image, and what it raises ends the job."""

    def __init__(self, check: Callable[[], None] = lambda: None) -> None:
        self.check = check

    def resumed(self, finished: Collection[tuple[str, int]]) -> None:
        """The job goes on; the images with these keys exist."""

    def recorded(self, target: Target, entry: Entry) -> None:
        """An image is finished or has failed, and the manifest says so."""


def progress_bar(total: int | None, finished: int, show: bool | None, suffix: str = "") -> tqdm:
    """A bar of images on stderr; `suffix` is the end of its format."""
    shape = f"{{l_bar}}{{bar}}| {{n_fmt}}/{{total_fmt}} [{{elapsed}}<{{remaining}}, {{rate_noinv_fmt}}{suffix}]"
    return bar(shows_progress(show), total=total, initial=finished, unit="image", bar_format=shape)
