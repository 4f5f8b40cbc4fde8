"""Scores every sampler on the embedded model: the same prompts and seeds, the same number of steps.

python benchmarks/sampler_quality.py [--num_prompts=200] [--num_steps=25] [--output=...json]

A row that the output already has is not made again.
"""

from __future__ import annotations

import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags

import kerasdiff
from kerasdiff.bench.machine import write_results
from kerasdiff.training import score

_NUM_PROMPTS = flags.DEFINE_integer("num_prompts", 200, "Half of them with two things.", lower_bound=2)
_NUM_STEPS = flags.DEFINE_integer("num_steps", 25, "Of each sampler.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 1, "Seed of prompts and pictures.", lower_bound=0)
_OUTPUT = flags.DEFINE_string("output", "benchmarks/results/sampler_quality.json", "Where the scores go.")

VARIANTS = [
    ("ddim", {"eta": 1.0}),
    ("pndm", {"skip_prk_steps": False}),
    ("dpmpp_2m", {"solver_order": 3}),
    ("unipc", {"solver_type": "bh1"}),
    ("dpmpp_3m_sde", {"third_order": "exact"}),
    ("tcd", {"eta": 0.0}),
]


def main(_: list[str]) -> None:
    path = pathlib.Path(_OUTPUT.value)
    rows = json.loads(path.read_text())["rows"] if path.exists() else {}
    generator = kerasdiff.Generator("tiny")
    asked = score.held_out_scenes(_NUM_PROMPTS.value, _SEED.value)
    prompts = score.prompts_of(asked)
    for sampler, options in [*((name, {}) for name in kerasdiff.SAMPLERS), *VARIANTS]:
        name = " ".join([sampler, *(f"{key}={value}" for key, value in options.items())])
        if name in rows:
            continue
        pictures, request = score.draw(
            generator, prompts, _SEED.value, sampler=sampler, sampler_options=options, num_steps=_NUM_STEPS.value
        )
        judged = [score.judge(picture, scene) for picture, scene in zip(pictures, asked, strict=True)]
        rows[name] = {"evaluations": len(generator.table(request)), "right": score.summary(judged, asked)}
        print(f"{name:36} {100 * rows[name]['right']['all']:5.1f} %", flush=True)
        write_results(
            path,
            {
                "model": "tiny",
                "num_prompts": len(prompts),
                "seed": _SEED.value,
                "num_steps": _NUM_STEPS.value,
                "spacing": request.spacing,
                "guidance_scale": request.guidance_scale.plain(),
                "precision": generator.execution.precision,
                "rows": rows,
            },
        )


if __name__ == "__main__":
    app.run(main)
