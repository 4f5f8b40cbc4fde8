"""Loads LoRAs of ranks 32 and 128 into Stable Diffusion 1.x at full size, switches and unloads them.

python benchmarks/lora.py [--runs=2] [--output=...json]

Each row is a process of its own: a backend, and diffusers with peft, in bfloat16 at 256 x 256, on random weights. The
LoRAs change all attention layers of the U-Net and of the text encoder. "load", "switch" and "unload" are the seconds
that the first image after it takes longer than the images around it; "image" is an image with a LoRA beside one
without.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from absl import app, flags

from kerasdiff.bench.machine import results_folder, write_results

_RUNS = flags.DEFINE_integer("runs", 2, "Of each row.", lower_bound=1)
_FOLDER = flags.DEFINE_string("folder", None, "The model; a temporary one with random weights if not given.")
_OUTPUT = flags.DEFINE_string("output", f"{results_folder()}/lora.json", "Where the figures go.")

_TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
_COMMON = """
import json, statistics, sys, time, warnings
warnings.simplefilter("ignore")
from kerasdiff.bench.machine import peak_memory_gb
folder, lora, backend = sys.argv[1:]
def seconds(draw):
    started = time.perf_counter()
    draw()
    return time.perf_counter() - started
"""
_OURS = (
    _COMMON
    + """
import kerasdiff
model = kerasdiff.Generator(folder, precision="bfloat16", backend=backend)
def draw(*loras):
    arguments = dict(height=256, width=256, num_steps=4, seed=1, sampler="euler", progress=False)
    return seconds(lambda: model.generate("a red circle", loras=list(loras), **arguments))
def load(scale):
    return draw((lora, scale))
again, unload = load, draw
"""
)
_THEIRS = (
    _COMMON
    + """
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
model = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16, safety_checker=None)
model.scheduler = EulerDiscreteScheduler.from_config(model.scheduler.config)
model.set_progress_bar_config(disable=True)
loaded = []
def draw():
    arguments = dict(height=256, width=256, num_inference_steps=4)
    return seconds(lambda: model("a red circle", **arguments))
def load(scale):
    started = time.perf_counter()
    if not loaded:
        model.load_lora_weights(lora, adapter_name="one")
        loaded.append(lora)
    model.set_adapters("one", scale)
    return time.perf_counter() - started + draw()
def unload():
    started = time.perf_counter()
    model.unload_lora_weights()
    loaded.clear()
    return time.perf_counter() - started + draw()
again = load
"""
)
_MEASURE = """
draw()
plain = statistics.median(draw() for _ in range(3))
memory = peak_memory_gb()
first = load(1.0)
with_it = statistics.median(again(1.0) for _ in range(3))
switched = statistics.median(load(scale) for scale in (0.5, 0.7, 0.9))
left = unload()
print(json.dumps([first - with_it, switched - with_it, left - plain, with_it / plain, memory, peak_memory_gb()]))
"""
_COLUMNS = ("load_s", "switch_s", "unload_s", "image", "memory_before_gb", "peak_memory_gb")


def write_lora(path: pathlib.Path, rank: int) -> None:
    """A LoRA of random numbers for all attention layers, as kohya's scripts write it, in float16."""
    from safetensors.numpy import save_file

    from kerasdiff.checkpoints.resolve import open_model

    model, rng = open_model("sd-v1-4", "random"), np.random.default_rng(rank)
    tensors: dict[str, np.ndarray] = {}
    for network in ("unet", "text_encoder"):
        for name, shape in model.shapes(network).items():
            *parts, leaf = name.split(".")[1:]
            if leaf != "kernel" or not ("attentions" in parts or parts[-1] in _TEXT):
                continue
            module = "lora_unet_" + "_".join(parts)
            if network == "text_encoder":
                inside = "mlp" if parts[-1].startswith("fc") else "self_attn"
                module = f"lora_te_text_model_encoder_layers_{parts[1]}_{inside}_{parts[-1]}"
            inputs, outputs = shape
            ones = (1, 1) if parts[-1] in ("proj_in", "proj_out") else ()  # convolutions, in such files
            for half, lengths in (("down", (rank, inputs, *ones)), ("up", (outputs, rank, *ones))):
                tensors[f"{module}.lora_{half}.weight"] = rng.normal(0, 0.01, lengths).astype("float16")
            tensors[f"{module}.alpha"] = np.array(rank, "float16")
    save_file(tensors, str(path))


def main(_: list[str]) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(_FOLDER.value or temporary) / "model"
        if not folder.exists():
            from kerasdiff.checkpoints.export import write_diffusers
            from kerasdiff.checkpoints.resolve import open_model

            write_diffusers(open_model("sd-v1-4", "random"), folder, "float16")
        measured: dict[str, list[list[float]]] = {}
        for rank in (32, 128):
            write_lora(pathlib.Path(temporary) / f"{rank}.safetensors", rank)
        for _run in range(_RUNS.value):
            for rank in (32, 128):
                for backend in ("openvino", "tensorflow", "diffusers"):
                    script = (_THEIRS if backend == "diffusers" else _OURS) + _MEASURE
                    lora = str(pathlib.Path(temporary) / f"{rank}.safetensors")
                    command = [sys.executable, "-W", "ignore", "-c", script, str(folder), lora, backend]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    values = json.loads(done.stdout.splitlines()[-1])
                    measured.setdefault(f"{backend} rank {rank}", []).append(values)
                    print(f"{backend:10} rank {rank:3}: " + ", ".join(f"{value:.2f}" for value in values), flush=True)
    rows = {
        name: {
            column: {"median": float(np.median(values[:, index])), "all": values[:, index].tolist()}
            for index, column in enumerate(_COLUMNS)
        }
        for name, values in ((name, np.array(runs)) for name, runs in measured.items())
    }
    write_results(pathlib.Path(_OUTPUT.value), {"model": "sd-v1-4, random weights, 256 x 256, 4 steps", "rows": rows})


if __name__ == "__main__":
    app.run(main)
