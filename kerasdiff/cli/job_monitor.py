"""Following a job by what it adds to its manifest, for whoever reads stdout by program."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from kerasdiff import metadata
from kerasdiff.batch.job import Job, Target
from kerasdiff.batch.manifest import MANIFEST, Entry
from kerasdiff.batch.resume import there
from kerasdiff.cli.output import image_fields
from kerasdiff.cli.program import tell_json
from kerasdiff.errors import RequestError


class Following:
    """Tells of each image of a job: a line of JSON, once it is known what became of it.

    Args:
        job: that is carried out, by this process.
        folder: of the job.
    """

    def __init__(self, job: Job, folder: pathlib.Path) -> None:
        self._targets, self._folder = {target.key: target for target in job.targets}, folder
        self._counts = {"drawn": 0, "kept": 0, "failed": 0}
        self._begun, self._read = False, 0

    def begin(self) -> None:
        """Tells of the images that are there before any is drawn."""
        if self._begun:
            return
        self._begun = True
        manifest = self._folder / MANIFEST
        self._read = manifest.stat().st_size if manifest.exists() else 0
        files = there(self._folder, self._targets.values())
        for target in self._targets.values():
            if target.file in files:
                self._tell("kept", target)

    def go_on(self) -> None:
        """Tells of the images that the manifest has a new line of."""
        with (self._folder / MANIFEST).open("rb") as manifest:
            manifest.seek(self._read)
            new = manifest.read()
        self._read += len(new)
        for line in new.splitlines():
            entry = Entry(**json.loads(line))
            self._tell("drawn" if entry.error is None else "failed", self._targets[entry.key], entry)

    def end(self, seconds: float | None) -> None:
        """Tells what the job came to.

        Args:
            seconds: that it took; None if it was ended.
        """
        if (self._folder / MANIFEST).exists():
            self.begin()
            self.go_on()
        done = len(there(self._folder, self._targets.values())) if self._folder.is_dir() else 0
        told = {"output_dir": str(self._folder), **self._counts, "missing": len(self._targets) - done}
        tell_json({"type": "summary", **told, "seconds": seconds})

    def _tell(self, status: str, target: Target, entry: Entry | None = None) -> None:
        self._counts[status] += 1
        place = {"id": target.row.id, "number": target.number}
        of_entry = {"seconds": entry and entry.seconds, "error": entry and entry.error}
        path = None if status == "failed" else self._folder / target.file
        tell_json({"type": "image", "status": status, **place, **_fields(target, path), **of_entry})


def _fields(target: Target, path: pathlib.Path | None) -> dict[str, Any]:
    """What a picture says of itself; of one that is not there, or does not say, what its row does."""
    row = target.row
    known = {
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
        return known
    try:
        receipt = metadata.read(path)
    except RequestError:
        return known
    return {**known, **image_fields(receipt.request, receipt.index), "nsfw": receipt.nsfw}
