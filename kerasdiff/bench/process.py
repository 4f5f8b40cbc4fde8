"""Runs one task in a process of its own and says how it ended."""

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

from kerasdiff.bench.task import Task
from kerasdiff.bench.worker import ANSWER, SIGNALS


def run_task(task: Task, environment: Mapping[str, str]) -> dict[str, Any]:
    """The task's answer: "status" is "ok", "failed", "killed" or "timed out", with a "reason" unless it is "ok".

    The process and all that it started are killed if this one is interrupted.
    """
    output = pathlib.Path(task.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / ANSWER).unlink(missing_ok=True)
    log = output / "log.txt"
    process = None
    # Ctrl-C waits until the process can be killed.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "kerasdiff.bench.worker", task.to_json(), repr(time.time())],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONWARNINGS": "ignore", **environment},
                start_new_session=True,  # so that Ctrl-C reaches this process only, which ends that one and its own
            )
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        code = process.wait(task.workload.timeout)
    except subprocess.TimeoutExpired:
        return {"status": "timed out", "reason": f"no answer within {task.workload.timeout:g} s (--timeout)"}
    finally:
        if process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if (output / ANSWER).exists():
        return json.loads((output / ANSWER).read_text())
    if code == -signal.SIGKILL:
        return {"status": "killed", "reason": "killed from outside (SIGKILL), as the system does when out of memory"}
    lines = log.read_text("utf-8", "replace").strip().splitlines()
    last = f": {lines[-1]}" if lines else ""
    how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return {"status": "failed", "reason": f"{how}{last}"[:200]}
