"""Prints a line of JSON for each image of a job, for programs that read stdout."""

from __future__ import annotations

import pathlib
from collections.abc import Collection
from typing import Any

from kerasdiff import metadata
from kerasdiff.batch.job import Job, Target
from kerasdiff.batch.manifest import Entry
from kerasdiff.batch.progress import Monitor
from kerasdiff.batch.storage import Folder
from kerasdiff.cli.console import print_json
from kerasdiff.cli.output import image_fields
from kerasdiff.cli.signals import SignalHandler
from kerasdiff.errors import RequestError


class SignalMonitor(Monitor):
    """Ends a job cleanly after a signal."""

    def __init__(self, signals: SignalHandler) -> None:
        self._signals = signals

    def check(self) -> None:
        """Ends the job if a signal came."""
        self._signals.check()


class JsonMonitor(SignalMonitor):
    """Prints what becomes of each image of a job, and a summary."""

    def __init__(self, job: Job, output_dir: str, signals: SignalHandler) -> None:
        super().__init__(signals)
        self._job, self._folder = job, pathlib.Path(output_dir)
        self._counts = {"drawn": 0, "kept": 0, "failed": 0}

    def resumed(self, finished: Collection[tuple[str, int]]) -> None:
        """Prints the images that exist before any is generated."""
        for target in self._job.targets:
            if target.key in finished:
                self._print("kept", target)

    def recorded(self, target: Target, entry: Entry) -> None:
        """Prints an image that is finished or has failed."""
        self._print("drawn" if entry.error is None else "failed", target, entry)

    def end(self, seconds: float | None) -> None:
        """Prints the summary; `seconds` is None if the job was stopped."""
        existing = existing_images(self._job, self._folder)
        summary = {"output_dir": str(self._folder), **self._counts, "missing": len(self._job.targets) - existing}
        print_json({"type": "summary", **summary, "seconds": seconds})

    def _print(self, status: str, target: Target, entry: Entry | None = None) -> None:
        self._counts[status] += 1
        image = {"id": target.row.id, "number": target.number}
        outcome = {"seconds": entry and entry.seconds, "error": entry and entry.error}
        path = None if status == "failed" else self._folder / target.file
        print_json({"type": "image", "status": status, **image, **_fields(target, path), **outcome})


def existing_images(job: Job, folder: pathlib.Path) -> int:
    """How many images of a job exist in its folder."""
    return len(Folder(str(folder)).existing(target.file for target in job.targets))


def _fields(target: Target, path: pathlib.Path | None) -> dict[str, Any]:
    """What the metadata of an image says; what its row says if there is none."""
    row = target.row
    fields = {
        "path": None if path is None else str(path),
        "seed": target.seed,
        "prompt": row.prompt,
        "negative_prompt": row.negative_prompt,
        "width": row.width,
        "height": row.height,
        "num_steps": row.num_steps,
        "sampler": row.sampler,
        "guidance_scale": row.guidance_scale,
        "nsfw": None,
    }
    if path is None:
        return fields
    try:
        receipt = metadata.read(path)
    except RequestError:
        return fields
    return {**fields, **image_fields(receipt.request, receipt.index), "nsfw": receipt.nsfw}
