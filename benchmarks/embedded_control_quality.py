"""Scores the ControlNet of the embedded model: whether shapes lie where outlines are, in their prompts' colours.

python benchmarks/embedded_control_quality.py [--num_prompts=200] [--seed=43]
"""

from __future__ import annotations

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
from absl import app, flags

import kerasdiff
from kerasdiff.bench.machine import write_results
from kerasdiff.training import scenes, score

_NUM_PROMPTS = flags.DEFINE_integer("num_prompts", 200, "Half of them with two things.", lower_bound=2)
_SEED = flags.DEFINE_integer("seed", 43, "Seed of prompts and pictures.", lower_bound=0)
_OUTPUT = flags.DEFINE_string("output", "benchmarks/results/embedded_control_quality.json", "Where the score goes.")
_SHEET = flags.DEFINE_string("sheet", None, "Where to save hints and pictures on one sheet, if anywhere.")

MODEL = pathlib.Path(__file__).parents[1] / "tests" / "data" / "outlines"


def main(_: list[str]) -> None:
    generator = kerasdiff.Generator("tiny")
    asked, seed = score.held_out_scenes(_NUM_PROMPTS.value, _SEED.value), _SEED.value
    true = [scenes.render(scene) for scene in asked]
    # What the autoencoder alone makes of the true pictures.
    encoded = [generator.generate("", image=picture, strength=0, progress=False)[0] for picture in true]
    without, request = score.draw(generator, score.prompts_of(asked), seed)
    hints = {
        "outlines": [scenes.outlines(scene) for scene in asked],
        "canny": [kerasdiff.hints.make_hint("canny", picture) for picture in true],
    }
    drawn = {name: score.draw_steered(generator, MODEL, asked, given, seed) for name, given in hints.items()}
    judged = {name: [*map(score.judge, pictures, asked)] for name, pictures in drawn.items()}
    results = {
        "model": "tiny",
        "num_prompts": len(asked),
        "seed": seed,
        "sampler": request.sampler,
        "num_steps": request.num_steps,
        "guidance_scale": request.guidance_scale.plain(),
        "precision": generator.execution.precision,
        "megabytes": round(sum(path.stat().st_size for path in MODEL.iterdir()) / 1e6, 2),
        "placement": {
            name: score.placement(pictures, asked)
            for name, pictures in {**drawn, "without": without, "encoded": encoded}.items()
        },
        "right": {name: score.summary(found, asked) for name, found in judged.items()},
    }
    write_results(pathlib.Path(_OUTPUT.value), results)
    for name in ("placement", "right"):
        print(name, results[name])
    if _SHEET.value:
        pairs = [picture for pair in zip(hints["outlines"], drawn["outlines"], strict=True) for picture in pair]
        scenes.contact_sheet(np.stack(pairs), 20).save(_SHEET.value)


if __name__ == "__main__":
    app.run(main)
