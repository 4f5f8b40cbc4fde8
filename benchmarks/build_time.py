"""How long Stable Diffusion 1.x takes to build with random weights: ours against KerasCV's, in turns.

python benchmarks/build_time.py [--runs=3]
Each build is a fresh process; imports are not counted.
"""

from __future__ import annotations

import os
import pathlib
import statistics
import subprocess
import sys

from absl import app, flags

from kerasdiff.bench.machine import results_folder, write_results

_RUNS = flags.DEFINE_integer("runs", 3, "Builds of each.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", f"{results_folder()}/build_time.json", "Where the figures go.")

OURS = """
import time, sys
from kerasdiff.bench.machine import peak_memory_gb
import kerasdiff
kerasdiff.Generator, __import__("tensorflow")
start = time.perf_counter()
kerasdiff.Generator("sd-v1-4", weights="random", precision=sys.argv[1])
print(time.perf_counter() - start, peak_memory_gb())
"""
KERAS_CV = """
import time, sys, keras
from kerasdiff.bench.machine import peak_memory_gb
from keras_cv.models.stable_diffusion import Decoder, DiffusionModel, TextEncoder
keras.config.set_dtype_policy(sys.argv[1])
start = time.perf_counter()
kept = (TextEncoder(77, download_weights=False), DiffusionModel(512, 512, 77, download_weights=False),
        Decoder(512, 512, download_weights=False))
print(time.perf_counter() - start, peak_memory_gb())
"""


def main(_: list[str]) -> None:
    rows = []
    for precision in ("float32", "bfloat16"):
        seconds: dict[str, list[float]] = {"kerasdiff": [], "keras_cv": []}
        peaks: dict[str, list[float]] = {"kerasdiff": [], "keras_cv": []}
        for _turn in range(_RUNS.value):
            for name, script in (("kerasdiff", OURS), ("keras_cv", KERAS_CV)):
                run = subprocess.run(
                    [sys.executable, "-c", script, precision],
                    capture_output=True,
                    text=True,
                    check=True,
                    env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
                )
                took, peak = map(float, run.stdout.splitlines()[-1].split())
                seconds[name].append(took)
                peaks[name].append(peak)
                print(f"{precision:9} {name:10} {took:6.1f} s, peak {peak:.1f} GB", flush=True)
        ratios = [theirs / ours for ours, theirs in zip(seconds["kerasdiff"], seconds["keras_cv"], strict=True)]
        for name in seconds:
            rows.append(
                {
                    "name": name,
                    "precision": precision,
                    "build_s": round(statistics.median(seconds[name]), 2),
                    "spread_s": [round(min(seconds[name]), 2), round(max(seconds[name]), 2)],
                    "peak_memory_gb": round(max(peaks[name]), 2),
                }
            )
        rows[-1]["times_ours"] = [round(ratio, 1) for ratio in ratios]
    write_results(pathlib.Path(_OUTPUT.value), {"model": "Stable Diffusion 1.x, random weights", "rows": rows})


if __name__ == "__main__":
    app.run(main)
