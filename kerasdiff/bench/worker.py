"""One process of a benchmark: python -m kerasdiff.bench.worker JOB STARTED, where STARTED is when it was spawned.

A subject is a module with

- `folder(job)`: where what `prepare` writes is; cheap;
- `prepare(job)`: writes the files that it reads; neither timed nor repeated;
- `start(job, clock)`: imports and builds, tells `clock` after each part, and returns a `Session`.

Only what cannot be avoided is imported before the subject's own imports, which are part of what is timed.
"""

from __future__ import annotations

import importlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from kerasdiff.bench.case import Job

ANSWER, IMAGES, LATENTS = "answer.json", "images.npz", "latents.npy"


class Session(Protocol):
    """A subject that is ready to draw.

    Attributes:
        precision: that it computes in: "float32", "bfloat16" or "float16".
        device_memory_gb: the most that it held on the accelerator so far, or None.
        times: seconds of "load", "trace" and "compile" so far, as far as it can tell; they only grow.
    """

    precision: str

    def run(self, latents: np.ndarray, num_steps: int) -> np.ndarray:
        """Images uint8 (N, height, width, 3) from noise (N, h, w, 4)."""

    @property
    def device_memory_gb(self) -> float | None: ...

    @property
    def times(self) -> Mapping[str, float]: ...


class Clock:
    """Cuts the time since the process was spawned into parts."""

    def __init__(self, started: float) -> None:
        self.parts: dict[str, float] = {}
        self._last = started

    def done(self, part: str, within: Mapping[str, float] | None = None) -> None:
        """All since the last call was this part, except what `within` says were others."""
        now = time.time()
        inner = within or {}
        for name, seconds in (*inner.items(), (part, now - self._last - sum(inner.values()))):
            self.parts[name] = self.parts.get(name, 0.0) + seconds
        self._last = now

    @property
    def total(self) -> float:
        """Seconds from the start to the last call."""
        return sum(self.parts.values())


def measure(job: Job, started: float) -> dict[str, Any]:
    """First image and warm runs; the images of the first are written."""
    assert job.row is not None
    subject = importlib.import_module(job.row.module)
    clock = Clock(started)
    session: Session = subject.start(job, clock)
    latents = np.load(pathlib.Path(job.output) / LATENTS)
    before = dict(session.times)
    images = session.run(latents, job.settings.num_steps)
    clock.done("run", {name: value - before.get(name, 0.0) for name, value in session.times.items()})
    np.savez(pathlib.Path(job.output) / IMAGES, images=images)
    one = _timed(session, latents, 1, min(2, job.runs)) if job.settings.num_steps > 1 else []
    runs = _timed(session, latents, job.settings.num_steps, job.runs)

    from kerasdiff.bench.machine import peak_memory_gb

    return {
        "cold_s": clock.total,
        "cold_parts": clock.parts,
        "runs_s": runs,
        "one_step_s": one,
        "precision": session.precision,
        "peak_memory_gb": peak_memory_gb(),
        "device_memory_gb": session.device_memory_gb,
    }


def _timed(session: Session, latents: np.ndarray, num_steps: int, runs: int) -> list[float]:
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        session.run(latents, num_steps)
        seconds.append(time.perf_counter() - began)
    return seconds


def prepare(job: Job, _: float) -> dict[str, Any]:
    """Writes the files that a row reads."""
    assert job.row is not None
    importlib.import_module(job.row.module).prepare(job)
    return {}


def probe(job: Job, _: float) -> dict[str, Any]:
    """What the device is and what it can do."""
    from kerasdiff.bench.machine import facts
    from kerasdiff.bench.roofline import ceilings

    machine = facts()
    precisions = ("float32", "float16") if machine["gpu"] else ("float32", "bfloat16")
    return {"machine": machine, "ceilings": ceilings(precisions)}


TASKS = {"measure": measure, "prepare": prepare, "probe": probe}


def main(arguments: list[str]) -> int:
    """Does what the job says and writes the answer; 1 if it fails, with the reason in the answer."""
    job = Job.from_json(arguments[1])
    try:
        answer, code = {"status": "ok", **TASKS[job.task](job, float(arguments[2]))}, 0
    except MemoryError:
        answer, code = {"status": "failed", "reason": "out of memory"}, 1
    except Exception as error:
        import traceback

        traceback.print_exc()
        lines = str(error).strip().splitlines()
        answer = {"status": "failed", "reason": f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]}
        code = 1
    path = pathlib.Path(job.output) / ANSWER
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(answer))
    draft.rename(path)
    return code


if __name__ == "__main__":
    exit_code = main(sys.argv)
    sys.stdout.flush()
    sys.stderr.flush()
    # Libraries may take seconds to tear down, or crash while they do; the answer is written.
    os._exit(exit_code)
