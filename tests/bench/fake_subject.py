"""A subject that draws at once, or does what its options say; found through PYTHONPATH by the processes."""

from __future__ import annotations

import os
import pathlib
import signal
import time

import numpy as np

from kerasdiff.bench.case import Row

DO = {
    "crash": lambda: 1 / 0,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "abort": os.abort,
    "sleep": lambda: time.sleep(600),
    "leave": lambda: os._exit(3),
}


def row(name: str, do: str | None = None, caches: bool = False, **options) -> Row:
    environment = {"PYTHONPATH": str(pathlib.Path(__file__).parent)}
    return Row(name, "fake_subject", {"do": do, **options}, caches, environment)


def folder(job):
    there = pathlib.Path(job.work)
    return there / "missing" if "prepare" in job.options else there


def prepare(job):
    DO[job.options["prepare"]]()


class Session:
    precision = "float32"
    device_memory_gb = None

    def __init__(self, job):
        self._settings, self._options = job.settings, job.options
        self.times = {"trace": 0.25}

    def run(self, latents, num_steps):
        if self._options["do"]:
            DO[self._options["do"]]()
        assert latents.std() > 0.5
        self.times = {"trace": 0.25, "compile": 0.001}
        time.sleep(0.001 * num_steps)
        shape = (self._settings.batch_size, self._settings.height, self._settings.width, 3)
        return np.full(shape, self._options.get("level", 100), "uint8")


def start(job, clock):
    clock.done("import")
    if job.row.caches:
        marker = pathlib.Path(job.cache) / "kept"
        if marker.exists():
            clock.done("found")
        marker.touch()
    session = Session(job)
    clock.done("build")
    return session
