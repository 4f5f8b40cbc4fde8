"""One process of a benchmark: python -m kerasdiff.bench.worker TASK STARTED, where STARTED is when it was spawned.

Only what cannot be avoided is imported before the subject's own imports, which are part of what is timed.
"""

from __future__ import annotations

import abc
import json
import os
import pathlib
import pkgutil
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from kerasdiff.atomic_write import atomic_write
from kerasdiff.bench.checkpoint_files import (
    diffusers_folder,
    open_checkpoint,
    write_control_folder,
    write_diffusers_folder,
)
from kerasdiff.bench.task import Subject, Task

LIBRARIES = ("tensorflow", "keras", "jax", "torch", "openvino", "onnxruntime")
SIGNALS = (signal.SIGINT, signal.SIGTERM)  # blocked while a worker is started
ANSWER, IMAGES, LATENTS = "answer.json", "images.npz", "latents.npy"


class Session(abc.ABC):
    """The implementation of a subject; it reads the model in diffusers' layout, unless a subclass says otherwise.

    Making one imports and builds, and tells `clock` after each part. It is then ready to draw in `precision`:
    "float32", "bfloat16" or "float16".
    """

    precision: str

    def __init__(self, task: Task, clock: Clock) -> None:
        self.task, self.workload = task, task.workload

    @classmethod
    def folder(cls, task: Task) -> pathlib.Path:
        """Where what `prepare` writes is; cheap."""
        return diffusers_folder(task, task.subject.options["files"])

    @classmethod
    def prepare(cls, task: Task) -> None:
        """Writes the files that are read; neither timed nor repeated."""
        write_diffusers_folder(task, task.subject.options["files"])

    @abc.abstractmethod
    def run(self, latents: np.ndarray, num_steps: int) -> np.ndarray:
        """Images uint8 (N, height, width, 3) from noise (N, h, w, 4)."""

    @property
    def device_memory_gb(self) -> float | None:
        """The most that it held on the accelerator so far, if it can tell."""
        return None

    @property
    def times(self) -> Mapping[str, float]:
        """Seconds of "load", "trace" and "compile" so far, as far as it can tell; they only grow."""
        return {}


def session_class(subject: Subject) -> type[Session]:
    """The class that a subject names."""
    return pkgutil.resolve_name(subject.session)


class Clock:
    """Cuts the time since the process was spawned into parts."""

    def __init__(self, started: float) -> None:
        self.parts: dict[str, float] = {}
        self._last = started

    def done(self, part: str, within: Mapping[str, float] | None = None) -> None:
        """Everything since the last call was this part, except for the parts `within` it."""
        now = time.time()
        within = within or {}
        for name, seconds in (*within.items(), (part, now - self._last - sum(within.values()))):
            self.parts[name] = self.parts.get(name, 0.0) + seconds
        self._last = now


def measure(task: Task, started: float) -> dict[str, Any]:
    """First image and warm runs; the images of the first are written."""
    output, num_steps = pathlib.Path(task.output), task.workload.num_steps
    clock = Clock(started)
    session = session_class(task.subject)(task, clock)
    latents = np.load(output / LATENTS)
    before = dict(session.times)
    images = session.run(latents, num_steps)
    clock.done("run", {name: seconds - before.get(name, 0.0) for name, seconds in session.times.items()})
    np.savez(output / IMAGES, images=images)
    one_step = _timed(session, latents, 1, min(2, task.runs)) if num_steps > 1 else []
    runs = _timed(session, latents, num_steps, task.runs)

    from kerasdiff.bench.machine import peak_memory_gb

    return {
        "cold_s": sum(clock.parts.values()),
        "cold_parts": clock.parts,
        "runs_s": runs,
        "one_step_s": one_step,
        "precision": session.precision,
        "peak_memory_gb": peak_memory_gb(),
        "device_memory_gb": session.device_memory_gb,
        "libraries": [name for name in LIBRARIES if name in sys.modules],
    }


def _timed(session: Session, latents: np.ndarray, num_steps: int, runs: int) -> list[float]:
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        session.run(latents, num_steps)
        seconds.append(time.perf_counter() - began)
    return seconds


def prepare(task: Task, _: float) -> dict[str, Any]:
    """Writes the files that a subject reads."""
    session_class(task.subject).prepare(task)
    if "control" in task.subject.options:
        write_control_folder(task, task.subject.options["files"])
    return {}


def probe(task: Task, _: float) -> dict[str, Any]:
    """What the device is, and the least time of a step on it."""
    from kerasdiff.bench.machine import facts
    from kerasdiff.bench.parts import step_parts
    from kerasdiff.runtime.backend import of_keras

    ceilings = pkgutil.resolve_name(f"kerasdiff.bench.{ROOFLINES[of_keras()]}:ceilings")
    machine = facts()
    parts = step_parts(open_checkpoint(task.workload, "random").config, task.workload)
    return {"machine": machine, "ceilings": ceilings(parts, ["float32", *HALVES[bool(machine["gpu"])]])}


# Of Keras's backend, and of whether there is a GPU.
ROOFLINES = {"tensorflow": "roofline", "jax": "jax_roofline"}
HALVES = {False: ("bfloat16",), True: ("float16", "bfloat16")}
ACTIONS = {"measure": measure, "prepare": prepare, "probe": probe}


def main(arguments: list[str]) -> int:
    """Does what the task says and writes the answer; 1 if it fails, with the reason in the answer."""
    task = Task.from_json(arguments[1])
    try:
        answer = {"status": "ok", **ACTIONS[task.action](task, float(arguments[2]))}
    except MemoryError:
        answer = {"status": "failed", "reason": "out of memory"}
    except Exception as error:
        import traceback

        traceback.print_exc()
        lines = str(error).strip().splitlines()
        answer = {"status": "failed", "reason": f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]}
    with atomic_write(pathlib.Path(task.output) / ANSWER, sync=False) as file:
        file.write(json.dumps(answer).encode())
    return 0 if answer["status"] == "ok" else 1


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    exit_code = main(sys.argv)
    sys.stdout.flush()
    sys.stderr.flush()
    # Libraries may take seconds to tear down, or crash while they do; the answer is written.
    os._exit(exit_code)
