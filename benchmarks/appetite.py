"""What a stage takes of memory beside what `kerasdiff/runtime/memory.py` expects, each point in a process of its own.

python benchmarks/appetite.py [--model=tiny] [--precision=float32] [--points=unet:128:32:1] [--small=128]

A point is a stage, pixels along both sides, images and parts. What is told is the most memory during it above what
the process had after it had drawn a smaller image. Results go to `appetite_MODEL.json` in --output. Linux only.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

from absl import app, flags

from kerasdiff.bench.machine import results_folder, write_results

_MODEL = flags.DEFINE_string("model", "tiny", "As in python -m kerasdiff.")
_PRECISION = flags.DEFINE_string("precision", "float32", "As in python -m kerasdiff.")
_WEIGHTS = flags.DEFINE_string("weights", "pretrained", "pretrained, or random.")
_SMALL = flags.DEFINE_integer("small", 128, "Pixels along both sides of what is drawn before.")
_POINTS = flags.DEFINE_list(
    "points", ["unet:128:32:1", "unet:128:128:1", "unet:512:1:1", "decoder:1024:1:1", "decoder:1024:1:4"], "See above."
)
_OUTPUT = flags.DEFINE_string("output", str(results_folder()), "Folder of the results.")

_POINT = """
import json, pathlib, re, sys
import kerasdiff
from kerasdiff.runtime.batch_sizer import MicroBatch
model, weights, precision, small, stage, size, images, parts = json.loads(sys.argv[1])

def status(name):
    return int(re.search(rf"{name}:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text()).group(1)) * 1024

generator = kerasdiff.Generator(model, weights=weights, precision=precision, jit_compile=False)
generator.warm_up(1, height=small, width=small)
context = generator.encode_text([""] * images)
latents = generator.initial_latents(images, height=size, width=size, seed=1)
pipeline, micro_batch = generator._pipeline, MicroBatch(images, parts)
pipeline.retries.sizer.largest = lambda cost: micro_batch
if stage == "unet":
    request = kerasdiff.request.make_request(generator.config, "", batch_size=images, height=size, width=size, seed=1)
    cost = pipeline._denoise_cost(request, 77)
else:
    cost = pipeline.costs.decode(*latents.shape[1:3])
expected = cost.need(micro_batch)
before = status("VmRSS")
pathlib.Path("/proc/self/clear_refs").write_text("5")
if stage == "unet":
    generator.denoise(latents, context, num_steps=2, guidance_scale=3.0, progress=False)
else:
    generator.decode(latents[:1])
print(json.dumps({
    "stage": stage, "size": size, "images": images, "parts": parts,
    "taken_mb": (status("VmHWM") - before) / 1e6, "expected_mb": expected / 1e6,
}))
"""


def main(_: list[str]) -> None:
    results: dict = {"model": _MODEL.value, "precision": _PRECISION.value, "points": []}
    name = pathlib.Path(_MODEL.value).name
    for point in _POINTS.value:
        stage, *numbers = point.split(":")
        arguments = [_MODEL.value, _WEIGHTS.value, _PRECISION.value, _SMALL.value, stage, *map(int, numbers)]
        command = [sys.executable, "-W", "ignore", "-c", _POINT, json.dumps(arguments)]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        results["points"].append(json.loads(done.stdout.splitlines()[-1]))
        print(results["points"][-1])
        write_results(pathlib.Path(_OUTPUT.value) / f"appetite_{name}.json", results)


if __name__ == "__main__":
    app.run(main)
