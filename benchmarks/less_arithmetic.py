"""What DeepCache and token merging save, and what they cost in quality.

python benchmarks/less_arithmetic.py [--num_prompts=200] [--output=...json]
python benchmarks/less_arithmetic.py --model=sd-v1-4 --size=256 --ratios= --num_prompts=0 --output=...json

Speed: whole images in turns, in one process, each setting beside the run without any of the same round. Weights of a
full-size model are random, and each ratio of token merging is a program of its own, which keeps weights in its own
order: leave ratios out (`--ratios=`) where memory is small. Quality, of the embedded model alone: the share of held-out
prompts that the images show, and how far the images are from those without.
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
from kerasdiff.bench.machine import results_folder, write_results
from kerasdiff.training import score

_MODEL = flags.DEFINE_string("model", "tiny", "tiny, or a full-size one, which gets random weights.")
_SIZE = flags.DEFINE_integer("size", 128, "Height and width of the images whose time is taken.", lower_bound=8)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1, "Images at once.", lower_bound=1)
_NUM_STEPS = flags.DEFINE_integer("num_steps", 25, "Steps.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds of all settings in turn.", lower_bound=1)
_INTERVALS = flags.DEFINE_list("intervals", ["2", "3", "4", "5"], "Intervals of DeepCache.")
_BRANCHES = flags.DEFINE_list("branches", ["0"], "Branches of DeepCache.")
_RATIOS = flags.DEFINE_list("ratios", ["0.25", "0.5", "0.75"], "Ratios of token merging.")
_NUM_PROMPTS = flags.DEFINE_integer("num_prompts", 200, "For quality; 0 leaves it out.", lower_bound=0)
_SEED = flags.DEFINE_integer("seed", 1, "Seed of prompts and images.", lower_bound=0)
_OUTPUT = flags.DEFINE_string("output", f"{results_folder()}/less_arithmetic.json", "Where the figures go.")
_PROMPT = "a red circle above a blue square on a yellow background"


def main(_: list[str]) -> None:
    kerasdiff.inference_only()
    generator = kerasdiff.Generator(_MODEL.value, weights="pretrained" if _MODEL.value == "tiny" else "random")
    settings: list[dict] = [{}]
    for branch in map(int, _BRANCHES.value):
        settings += [{"deep_cache_interval": int(one), "deep_cache_branch": branch} for one in _INTERVALS.value]
    settings += [{"token_merging_ratio": float(one)} for one in _RATIOS.value]
    speed = _speed(generator, settings)
    quality = _quality(generator, settings) if _NUM_PROMPTS.value else [{} for _ in settings]
    results = {
        "model": _MODEL.value,
        "execution": str(generator.execution),
        "size": _SIZE.value,
        "batch_size": _BATCH_SIZE.value,
        "num_steps": _NUM_STEPS.value,
        "rounds": _ROUNDS.value,
        "num_prompts": _NUM_PROMPTS.value,
        "rows": [row | fast | good for row, fast, good in zip(settings, speed, quality, strict=True)],
    }
    write_results(pathlib.Path(_OUTPUT.value), results)


def _speed(generator: kerasdiff.Generator, settings: list[dict]) -> list[dict]:
    """Seconds of whole images, and their ratio to those without, each the least, median and most."""
    arguments = {
        "batch_size": _BATCH_SIZE.value,
        "num_steps": _NUM_STEPS.value,
        "height": _SIZE.value,
        "width": _SIZE.value,
        "seed": 0,
        "progress": False,
    }
    seconds: list[list[float]] = [[] for _ in settings]
    for turn in range(1 + _ROUNDS.value):
        for setting, taken in zip(settings, seconds, strict=True):
            started = time.perf_counter()
            generator.generate(_PROMPT, **arguments, **setting)
            if turn:  # the first one traces and compiles
                taken.append(time.perf_counter() - started)
    rows = []
    for setting, taken in zip(settings, seconds, strict=True):
        ratios = [one / without for one, without in zip(taken, seconds[0], strict=True)]
        rows.append({"seconds": _spread(taken), "ratio": _spread(ratios)})
        _tell(setting, f"{statistics.median(taken):8.3f} s  {statistics.median(ratios):.2f}")
    return rows


def _spread(values: list[float]) -> dict[str, float]:
    named = {"least": min(values), "median": statistics.median(values), "most": max(values)}
    return {name: round(value, 4) for name, value in named.items()}


def _quality(generator: kerasdiff.Generator, settings: list[dict]) -> list[dict]:
    """How much of their prompts images show, and the grey levels by which they differ from those without."""
    asked = score.held_out_scenes(_NUM_PROMPTS.value, _SEED.value)
    prompts = score.prompts_of(asked)
    rows, without = [], None
    for setting in settings:
        images, _ = score.draw(generator, prompts, _SEED.value, num_steps=_NUM_STEPS.value, **setting)
        without = images if without is None else without
        judged = [score.judge(image, scene) for image, scene in zip(images, asked, strict=True)]
        distance = float(np.abs(images.astype("float32") - without).mean())
        rows.append({"right": score.summary(judged, asked), "mean_difference": round(distance, 3)})
        _tell(setting, f"{100 * rows[-1]['right']['all']:5.1f} % right  {distance:.2f}")
    return rows


def _tell(setting: dict, figures: str) -> None:
    print(f"{', '.join(f'{name}={value}' for name, value in setting.items()) or 'without':48} {figures}", flush=True)


if __name__ == "__main__":
    app.run(main)
