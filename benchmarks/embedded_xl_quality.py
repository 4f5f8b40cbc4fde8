"""Scores the embedded model in SDXL's shape: prompts, and what sizes, crops and negative prompts do.

python benchmarks/embedded_xl_quality.py [--num_prompts=200] [--output=benchmarks/results/embedded_xl_quality.json]
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from absl import app, flags

import kerasdiff
from kerasdiff.bench.machine import write_results
from kerasdiff.training import framing, scenes, score

_NUM_PROMPTS = flags.DEFINE_integer("num_prompts", 200, "Half of them with two things.", lower_bound=2)
_NUM_FRAMED = flags.DEFINE_integer("num_framed", 24, "Prompts of one thing for each crop and size.", lower_bound=2)
_SEED = flags.DEFINE_integer("seed", 1, "Seed of prompts and pictures.", lower_bound=0)
_OUTPUT = flags.DEFINE_string("output", "benchmarks/results/embedded_xl_quality.json", "Where the score goes.")
_SHEET = flags.DEFINE_string("sheet", None, "Where to save the pictures on one sheet, if anywhere.")

CROPS = (16, 32, 48)
ORIGINAL_SIDES = (256, 96, 64, 48, 32)
AXES = ("top", "left")


def main(_: list[str]) -> None:
    generator = kerasdiff.Generator("tiny-xl")
    asked = score.held_out_scenes(_NUM_PROMPTS.value, _SEED.value)
    pictures, request = score.draw(generator, score.prompts_of(asked), _SEED.value)
    single = score.held_out_scenes(_NUM_FRAMED.value, _SEED.value + 1, 1)
    prompts = score.prompts_of(single)

    def framed(**arguments: Any) -> np.ndarray:
        return score.draw(generator, prompts, _SEED.value, **arguments)[0]

    whole, crops = framed(), {}
    for axis, name in enumerate(AXES):
        drawn = {0: whole, **{crop: framed(crop=((crop, 0), (0, crop))[axis]) for crop in CROPS}}
        centres = {crop: np.array([framing.centre(one)[axis] for one in some]) for crop, some in drawn.items()}
        slope, correlation = framing.shift(centres)
        crops[name] = {
            "pixels_per_pixel": round(slope, 3),
            "correlation": round(correlation, 3),
            "mean_centres": {crop: round(float(np.nanmean(found)), 1) for crop, found in centres.items()},
        }
    details = {128: whole, **{side: framed(original_size=(side, side)) for side in ORIGINAL_SIDES}}
    empty = framed(negative_prompt="")
    results = {
        "model": "tiny-xl",
        "num_prompts": len(asked),
        "num_framed": len(single),
        "seed": _SEED.value,
        "sampler": request.sampler,
        "num_steps": request.num_steps,
        "guidance_scale": request.guidance_scale.plain(),
        "precision": generator.execution.precision,
        "right": _right(pictures, asked),
        "crops": crops,
        "detail_by_original_side": {
            side: round(float(np.mean([framing.detail(one) for one in some])), 4) for side, some in details.items()
        },
        "negative": {
            "none_right": _right(whole, single)["all"],
            "empty_right": _right(empty, single)["all"],
            "mean_difference": round(float(np.abs(whole.astype(int) - empty).mean()), 2),
        },
    }
    write_results(pathlib.Path(_OUTPUT.value), results)
    for name in ("right", "crops", "detail_by_original_side", "negative"):
        print(name, results[name])
    if _SHEET.value:
        scenes.contact_sheet(np.concatenate([pictures, whole, *details.values(), empty]), 20).save(_SHEET.value)


def _right(pictures: np.ndarray, asked: list[scenes.Scene]) -> dict[str, float]:
    judged = [score.judge(picture, scene) for picture, scene in zip(pictures, asked, strict=True)]
    return score.summary(judged, asked)


if __name__ == "__main__":
    app.run(main)
