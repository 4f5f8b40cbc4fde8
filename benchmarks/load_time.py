"""Loads Stable Diffusion 1.x from a local folder of diffusers, here and with diffusers itself, in turns.

python benchmarks/load_time.py [--runs=3] [--folder=...] [--output=...json]

Each load is a process of its own, which looks at every value at the end. Ours loads twice: "first" reads the
checkpoint and keeps it in an empty cache, "again" finds it there. Memory is the process's peak. The folder is
made with random weights if it is not there.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags

from kerasdiff.bench.machine import results_folder, write_results

_RUNS = flags.DEFINE_integer("runs", 3, "Of each row.", lower_bound=1)
_FOLDER = flags.DEFINE_string("folder", None, "The model; a temporary one with random weights if not given.")
_OUTPUT = flags.DEFINE_string("output", f"{results_folder()}/load_time.json", "Where the figures go.")

_OURS = """
import json, sys, time
from kerasdiff.bench.machine import peak_memory_gb
began = time.perf_counter()
import kerasdiff
from kerasdiff.generator import Generator
base = peak_memory_gb()
started = time.perf_counter()
generator = Generator(sys.argv[1], precision=sys.argv[2], jit_compile=False)
# Values may still be in the file's map; touching them is part of having them.
import numpy, tensorflow
bits = {2: tensorflow.uint16, 4: tensorflow.uint32}
for name in ("text_encoder", "unet", "decoder", "encoder"):
    for weight in generator.networks[name].weights:
        value = weight.value.read_value()
        numpy.from_dlpack(tensorflow.bitcast(value, bits[value.dtype.size])).max()
ended = time.perf_counter()
peak = peak_memory_gb()
print(json.dumps([ended - started, ended - began, peak, base]))
"""
_THEIRS = """
import json, sys, time
from kerasdiff.bench.machine import peak_memory_gb
began = time.perf_counter()
import torch
from diffusers import StableDiffusionPipeline
import transformers.models.clip.modeling_clip
base = peak_memory_gb()
started = time.perf_counter()
pipeline = StableDiffusionPipeline.from_pretrained(
    sys.argv[1], torch_dtype=getattr(torch, sys.argv[2]), local_files_only=True, safety_checker=None
)
for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
    for parameter in module.parameters():
        parameter.detach().view(torch.uint8).max()
ended = time.perf_counter()
peak = peak_memory_gb()
print(json.dumps([ended - started, ended - began, peak, base]))
"""


def main(_: list[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(_FOLDER.value or temporary) / "model"
        if not folder.exists():
            from kerasdiff.checkpoints.export import write_diffusers
            from kerasdiff.checkpoints.resolve import open_model

            write_diffusers(open_model("sd-v1-4", "random"), folder, "float32")
        measured: dict[str, list[list[float]]] = {}
        for _run in range(_RUNS.value):
            for precision in ("float32", "bfloat16"):
                cache = pathlib.Path(temporary) / "cache"
                for name, script in (("first", _OURS), ("again", _OURS), ("diffusers", _THEIRS)):
                    command = [sys.executable, "-W", "ignore", "-c", script, str(folder), precision]
                    environment = {**os.environ, "KERASDIFF_CACHE": str(cache)}
                    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
                    row = name if script is _THEIRS else f"kerasdiff {name}"
                    measured.setdefault(f"{row} {precision}", []).append(json.loads(done.stdout.splitlines()[-1]))
                shutil.rmtree(cache)
    rows = {
        name: {
            "seconds": {"median": float(np.median(values[:, 0])), "all": values[:, 0].tolist()},
            "seconds_with_imports": {"median": float(np.median(values[:, 1])), "all": values[:, 1].tolist()},
            "peak_memory_gb": float(values[:, 2].max()),
            "memory_after_imports_gb": float(values[:, 3].max()),
        }
        for name, values in ((name, np.array(runs)) for name, runs in measured.items())
    }
    write_results(pathlib.Path(_OUTPUT.value), {"model": "sd-v1-4, random weights, float32 files", "rows": rows})
    for name, row in rows.items():
        whole = row["seconds_with_imports"]["median"]
        print(
            f"{name:26} {row['seconds']['median']:6.2f} s, {whole:6.2f} with imports, {row['peak_memory_gb']:5.2f} GB"
        )


if __name__ == "__main__":
    app.run(main)
