"""Traceable one job in a process of its own and says how it ended."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from kerasdiff.bench.case import Job
from kerasdiff.bench.worker import ANSWER

_LONGEST_REASON = 200


def run_job(job: Job, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The job's answer: "status" is "ok", "failed", "killed" or "timed out", with a "reason" unless it is "ok".

    The process and all that it started are killed if this one is interrupted.
    """
    output = pathlib.Path(job.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / ANSWER).unlink(missing_ok=True)
    log = output / "log.txt"
    variables = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore", **(environment or {})}
    with log.open("wb") as lines:
        command = [sys.executable, "-m", "kerasdiff.bench.worker", job.to_json()]
        started = time.time()
        process = subprocess.Popen(
            [*command, repr(started)],
            stdin=subprocess.DEVNULL,
            stdout=lines,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,  # so that Ctrl-C reaches this process only, which ends that one and its children
        )
        try:
            code = process.wait(job.settings.timeout)
        except subprocess.TimeoutExpired:
            return {"status": "timed out", "reason": f"no answer within {job.settings.timeout:g} s (--timeout)"}
        finally:
            _end(process)
    if (output / ANSWER).exists():
        return json.loads((output / ANSWER).read_text())
    return _without_answer(code, log)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _without_answer(code: int, log: pathlib.Path) -> dict[str, Any]:
    if code == -signal.SIGKILL:
        return {"status": "killed", "reason": "killed from outside (SIGKILL), as the system does when memory runs out"}
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    last = f": {lines[-1]}" if lines else ""
    how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return {"status": "failed", "reason": f"{how}{last}"[:_LONGEST_REASON]}
