"""A process that draws for a long time."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

_DRAW = """
import gc, json
import psutil
import kerasdiff

generator = kerasdiff.Generator("tiny", precision="float32")
taken, traces, images = [], [], 0
for index in range(50):
    prompts = [f"a red circle, number {index}", "a white star"]
    drawn = generator.generate(prompts, 10, seed=1000 * index, num_steps=2, sampler=["ddim", "euler_a"][index % 2],
                               negative_prompt=str(index), progress=False)
    images += len(drawn)
    gc.collect()
    taken.append(psutil.Process().memory_info().rss)
    traces.append(generator.traces)
print(json.dumps({"images": images, "taken": taken, "traces": traces}))
"""


def test_a_thousand_images_leave_memory_as_it_was(tmp_path):
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _DRAW],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERASDIFF_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    said = json.loads(run.stdout.splitlines()[-1])
    assert said["images"] == 1000
    assert said["traces"][-1] == said["traces"][0]
    # After the first 100.
    grown = (max(said["taken"][5:]) - said["taken"][4]) / 1e6
    assert grown < 20, [round(taken / 1e6) for taken in said["taken"]]
