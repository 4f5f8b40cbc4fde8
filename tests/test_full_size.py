"""Stable Diffusion 1.x at full size with random weights: it draws, and it stays below 10 GB."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.full_size

SCRIPT = """
import json, sys, time
from kerasdiff.bench.machine import peak_memory_gb
started = time.perf_counter()
import numpy as np
import kerasdiff
imported = time.perf_counter()
generator = kerasdiff.Generator("sd-v1-4", weights="random", precision=sys.argv[1])
built = time.perf_counter()
result = generator.generate("an astronaut", height=256, width=256, num_steps=2, seed=1, progress=False)
done = time.perf_counter()
print(json.dumps({
    "shape": result.images.shape, "finite": bool(np.isfinite(result.latents).all()), "std": float(result.images.std()),
    "peak_gb": peak_memory_gb(), "parameters": generator.num_parameters,
    "import_s": imported - started, "build_s": built - imported, "generate_s": done - built,
}))
"""


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_full_size(precision):
    run = subprocess.run([sys.executable, "-c", SCRIPT, precision], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    told = json.loads(run.stdout.splitlines()[-1])
    print(precision, told)
    assert told["shape"] == [1, 256, 256, 3]
    assert told["finite"]
    assert told["std"] > 1
    assert told["parameters"] == 859_520_964 + 123_060_480 + 49_490_199
    assert told["peak_gb"] < 10
