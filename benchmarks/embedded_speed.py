"""How long pictures of the embedded model take: cold from process start, and warm.

python benchmarks/embedded_speed.py [--batch_size=8] [--num_steps=20] [--runs=5]
"""

from __future__ import annotations

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

from absl import app, flags

from kerasdiff.bench.machine import results_folder, write_results

_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Pictures in a batch.", lower_bound=1)
_NUM_STEPS = flags.DEFINE_integer("num_steps", 20, "Steps of the sampler.", lower_bound=1)
_RUNS = flags.DEFINE_integer("runs", 5, "Warm runs.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", f"{results_folder()}/embedded_speed.json", "Where the figures go.")

WORKER = """
import json, sys, time
started = time.time()
import kerasdiff
batch_size, num_steps, runs, mode = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
generator = kerasdiff.Generator("tiny", **mode)
built = time.time()
warm_up = generator.warm_up(batch_size)
arguments = dict(batch_size=batch_size, num_steps=num_steps, progress=False)
first = generator.generate("a red circle above a blue square on a yellow background", seed=0, **arguments)
first_done = time.time()
seconds = []
for run in range(runs):
    start = time.perf_counter()
    generator.generate("a red circle above a blue square on a yellow background", seed=run, **arguments)
    seconds.append(time.perf_counter() - start)
print(json.dumps({"execution": vars(generator.execution), "built": built, "first_done": first_done,
                  "warm_up_s": warm_up, "runs_s": seconds}))
"""
MODES = {
    "auto": {},
    "float32, XLA": {"precision": "float32", "jit_compile": True},
    "float32, graph": {"precision": "float32", "jit_compile": False},
    "bfloat16, graph": {"precision": "bfloat16", "jit_compile": False},
}


def main(_: list[str]) -> None:
    rows = []
    for name, mode in MODES.items():
        arguments = [str(_BATCH_SIZE.value), str(_NUM_STEPS.value), str(_RUNS.value), json.dumps(mode)]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
        started = time.time()
        run = subprocess.run(
            [sys.executable, "-c", WORKER, *arguments], capture_output=True, text=True, check=True, env=environment
        )
        told = json.loads(run.stdout.splitlines()[-1])
        warm = statistics.median(told["runs_s"])
        rows.append(
            {
                "name": name,
                **told["execution"],
                "cold_s": round(told["first_done"] - started, 2),
                "import_and_build_s": round(told["built"] - started, 2),
                "warm_up_s": {stage: round(seconds, 2) for stage, seconds in told["warm_up_s"].items()},
                "warm_batch_s": round(warm, 3),
                "warm_batch_spread_s": [round(min(told["runs_s"]), 3), round(max(told["runs_s"]), 3)],
                "s_per_picture": round(warm / _BATCH_SIZE.value, 4),
            }
        )
        print(f"{name:16} cold {rows[-1]['cold_s']:6.1f} s   warm {rows[-1]['s_per_picture']:.3f} s a picture")
    results = {"model": "tiny", "batch_size": _BATCH_SIZE.value, "num_steps": _NUM_STEPS.value, "rows": rows}
    write_results(pathlib.Path(_OUTPUT.value), results)


if __name__ == "__main__":
    app.run(main)
