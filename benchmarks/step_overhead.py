"""What a step costs around the U-Net: loop, call, contraction and noise, beside the full-size U-Net itself.

python benchmarks/step_overhead.py [--height=512] [--batch_size=1] [--rows=200] [--output=...json]

The loop is run with a network that does next to nothing, then a few steps with the real one
(random weights), in the same process and at the same shapes.
"""

from __future__ import annotations

import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from absl import app, flags
from keras import ops

import kerasdiff
from kerasdiff.bench.machine import results_folder, write_results
from kerasdiff.diffusion import sampling_loop
from kerasdiff.diffusion.conditioning import Conditioning, ContextTable
from kerasdiff.diffusion.denoise_step import DenoiseStage
from kerasdiff.diffusion.initial_state import from_noise
from kerasdiff.request import make_request
from kerasdiff.runtime.compiled import LayerNetwork

_MODEL = flags.DEFINE_string("model", "sd-v1-4", "Whose U-Net, with random weights.")
_HEIGHT = flags.DEFINE_integer("height", 512, "Pixels, of the width too.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Pictures.")
_PRECISION = flags.DEFINE_string("precision", "auto", "As in kerasdiff.Generator.")
_ROWS = flags.DEFINE_integer("rows", 200, "Rows of the loop with the empty network.", lower_bound=10)
_STEPS = flags.DEFINE_integer("steps", 5, "Steps of the real one.", lower_bound=2)
_OUTPUT = flags.DEFINE_string("output", f"{results_folder()}/step_overhead.json", "Where the figures go.")
_GPU_STEP = 0.030
_AIM = 0.01


def main(_: list[str]) -> None:
    generator = kerasdiff.Generator(_MODEL.value, weights="random", precision=_PRECISION.value)
    size = {"height": _HEIGHT.value, "width": _HEIGHT.value, "batch_size": _BATCH_SIZE.value, "seed": 0}
    jit = generator.execution.jit_compile
    context = np.zeros((2 * _BATCH_SIZE.value, 77, generator.config.unet.context_width), "float32")
    empty = DenoiseStage(LayerNetwork(lambda latents, timesteps, context: latents), jit)
    seconds = {
        "row with noise": _per_row(generator, empty, context, size, "euler_a", _ROWS.value),
        "row without noise": _per_row(generator, empty, context, size, "dpmpp_2m", _ROWS.value),
        "step of the U-Net": _per_row(generator, generator._pipeline.denoise, context, size, "dpmpp_2m", _STEPS.value),
    }
    step = seconds["step of the U-Net"]["median"]
    shares = {name: seconds[name]["median"] / step for name in ("row with noise", "row without noise")}
    row = seconds["row without noise"]["median"]
    results = {
        "model": _MODEL.value,
        "height": _HEIGHT.value,
        "batch_size": _BATCH_SIZE.value,
        "execution": str(generator.execution),
        "seconds": seconds,
        "share_of_a_step": shares,
        "beside_a_step_of_30_ms": {
            "share": row / _GPU_STEP,
            "rows_in_a_block_for_1_percent": int(np.ceil(row / (_AIM * _GPU_STEP))),
        },
    }
    write_results(pathlib.Path(_OUTPUT.value), results)
    for name, value in seconds.items():
        print(f"{name:18} {1000 * value['median']:10.3f} ms")
    for name, share in shares.items():
        print(f"{name:18} {100 * share:10.4f} % of a step")
    print(results["beside_a_step_of_30_ms"])


def _per_row(generator, denoise, context, size, sampler, rows):
    """Seconds of a row: the median, least and most of single rows after the first two."""
    request = make_request(generator.config, "", sampler=sampler, num_steps=rows + 2, guidance_scale=7.5, **size)
    source = sampling_loop.noise_of(generator.config, request)
    run = generator.schedule(request)
    start = from_noise(source.initial(), run)
    times, last = [], None
    for state in denoise(start, Conditioning(ContextTable.same(context, len(start.x))), request.guidance, run, source):
        ops.convert_to_numpy(state.x[0, 0, 0, 0])  # wait for the device
        now = time.perf_counter()
        if last is not None:
            times.append(now - last)
        last = now
    times = np.array(times[1:])
    return {"median": float(np.median(times)), "min": float(times.min()), "max": float(times.max())}


if __name__ == "__main__":
    app.run(main)
