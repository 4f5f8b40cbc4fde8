"""A subject that draws immediately, or does what its options say; found through PYTHONPATH by the processes."""

from __future__ import annotations

import os
import pathlib
import signal
import time

import numpy as np

from kerasdiff.bench.task import Subject

DO = {
    "crash": lambda: 1 / 0,
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "abort": os.abort,
    "sleep": lambda: time.sleep(600),
    "leave": lambda: os._exit(3),
}


def subject(name: str, do: str | None = None, caches: bool = False, **options) -> Subject:
    environment = {"PYTHONPATH": str(pathlib.Path(__file__).parent)}
    return Subject(name, "fake_subject:FakeSession", {"do": do, **options}, caches, environment)


class FakeSession:
    precision = "float32"
    device_memory_gb = None

    @staticmethod
    def folder(task):
        there = pathlib.Path(task.work)
        return there / "missing" if "prepare" in task.subject.options else there

    @staticmethod
    def prepare(task):
        DO[task.subject.options["prepare"]]()

    def __init__(self, task, clock):
        clock.done("import")
        if task.subject.caches:
            marker = pathlib.Path(task.cache) / "kept"
            if marker.exists():
                clock.done("found")
            marker.touch()
        self._workload, self._options = task.workload, task.subject.options
        self.times = {"trace": 0.25}
        clock.done("build")

    def run(self, latents, num_steps):
        if self._options["do"]:
            DO[self._options["do"]]()
        assert latents.std() > 0.5
        self.times = {"trace": 0.25, "compile": 0.001}
        time.sleep(0.001 * num_steps)
        shape = (self._workload.batch_size, self._workload.height, self._workload.width, 3)
        return np.full(shape, self._options.get("level", 100), "uint8")
