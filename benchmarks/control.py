"""What a step costs with a ControlNet beside one without, at full size.

python benchmarks/control.py --work=FOLDER [--model=sd-v1-4] [--size=512] [--rounds=3] [--output=...json]

Runs in turns, in one process, with random weights; those of the ControlNet are written to --work before. Then runs with
another scale, start and end, after which nothing may have been compiled. Seconds of a processor's cores tell as much as
those of a clock, and more where other programs run.
"""

from __future__ import annotations

import os
import pathlib
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from absl import app, flags

import kerasdiff
from kerasdiff.bench.checkpoint_files import new_folder, random_controlnet
from kerasdiff.bench.flops import controlnet_macs, unet_macs
from kerasdiff.bench.machine import peak_memory_gb, results_folder, write_results
from kerasdiff.checkpoints.export import write_controlnet

_MODEL = flags.DEFINE_string("model", "sd-v1-4", "Whose U-Net.")
_SIZE = flags.DEFINE_integer("size", 512, "Height and width in pixels.")
_STEPS = flags.DEFINE_integer("steps", 4, "Steps of a run; the first one of each does not count.", lower_bound=2)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Runs of each.", lower_bound=1)
_WORK = flags.DEFINE_string("work", None, "Folder of the ControlNet, which is written once.", required=True)
_OUTPUT = flags.DEFINE_string("output", f"{results_folder()}/control.json", "Where the figures go.")
_AIM = 1.45


def main(_: list[str]) -> None:
    kerasdiff.inference_only()
    generator = kerasdiff.Generator(_MODEL.value, weights="random")
    config, half = generator.config, generator.execution.precision.removeprefix("mixed_")
    folder = pathlib.Path(_WORK.value) / f"controlnet-{_MODEL.value}-{half}"
    if not folder.exists():
        with new_folder(folder) as partial:
            write_controlnet(random_controlnet(config), config, partial, half)
    hint = np.random.default_rng(0).integers(0, 256, (_SIZE.value, _SIZE.value, 3), "uint8")
    steered = lambda **changed: {"controls": kerasdiff.Control(str(folder), hint, **changed)}  # noqa: E731
    found: dict[str, dict[str, list[float]]] = {}
    for turn in range(1 + _ROUNDS.value):
        for name, arguments in (("without", {}), ("with", steered())):
            taken = _steps(generator, arguments)
            for kind, seconds in taken.items() if turn else ():  # the first round compiles
                found.setdefault(name, {}).setdefault(kind, []).extend(seconds)
    ready = generator.programs, generator.traces
    for changed in ({"scale": 0.5}, {"start": 0.5}, {"end": 0.5}):
        _steps(generator, steered(**changed))
    middle = statistics.median
    side = _SIZE.value // config.latent_factor
    macs = unet_macs(config.unet, side, side).total, controlnet_macs(config.unet, side, side).total
    results = {
        "model": _MODEL.value,
        "size": _SIZE.value,
        "execution": str(generator.execution),
        "step_s": found,
        "ratio": {kind: middle(found["with"][kind]) / middle(found["without"][kind]) for kind in ("clock", "cores")},
        "aim": _AIM,
        "ratio_of_multiply_adds": 1 + macs[1] / macs[0],
        "compiled_for_another_scale_start_or_end": [generator.programs - ready[0], generator.traces - ready[1]],
        "peak_memory_gb": peak_memory_gb(),
    }
    write_results(pathlib.Path(_OUTPUT.value), results)
    print({name: results[name] for name in [*results][3:]})


def _steps(generator: kerasdiff.Generator, arguments: dict) -> dict[str, list[float]]:
    """Seconds of each step but the first, by the clock and of all cores."""
    times: list[tuple[float, float]] = []
    generator.generate(
        "a photograph of an astronaut riding a horse",
        height=_SIZE.value,
        width=_SIZE.value,
        num_steps=_STEPS.value,
        sampler="ddim",
        seed=0,
        progress=False,
        callback=lambda *_: times.append((time.perf_counter(), time.process_time())),
        **arguments,
    )
    clock, cores = (np.diff(each).tolist() for each in zip(*times, strict=True))
    return {"clock": clock, "cores": cores}


if __name__ == "__main__":
    app.run(main)
