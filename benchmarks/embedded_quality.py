"""Scores the embedded model on 200 prompts whose combinations training never saw.

python benchmarks/embedded_quality.py [--num_prompts=200] [--output=benchmarks/results/embedded_quality.json]
"""

from __future__ import annotations

import collections
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from absl import app, flags

import kerasdiff
from kerasdiff.bench.machine import write_results
from kerasdiff.training import scenes, score

_NUM_PROMPTS = flags.DEFINE_integer("num_prompts", 200, "Half of them with two things.", lower_bound=2)
_SEED = flags.DEFINE_integer("seed", 1, "Seed of prompts and pictures.", lower_bound=0)
_SAMPLER = flags.DEFINE_string("sampler", None, "The model's own if not given.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", None, "The model's own if not given.")
_GUIDANCE_SCALE = flags.DEFINE_float("guidance_scale", None, "The model's own if not given.")
_RECIPE = flags.DEFINE_string("recipe", None, "Such as lcm; sets what is not given.")
_LORA = flags.DEFINE_string("lora", None, "A file of the package's adapters to use, such as lcm.")
_OUTPUT = flags.DEFINE_string("output", "benchmarks/results/embedded_quality.json", "Where the score goes.")
_SHEET = flags.DEFINE_string("sheet", None, "Where to save the pictures on one sheet, if anywhere.")

ADAPTERS = pathlib.Path(kerasdiff.__file__).parent / "presets" / "adapters"


def main(_: list[str]) -> None:
    generator = kerasdiff.Generator("tiny")
    asked = score.held_out_scenes(_NUM_PROMPTS.value, _SEED.value)
    prompts = score.prompts_of(asked)
    pictures, request = score.draw(
        generator,
        prompts,
        _SEED.value,
        sampler=_SAMPLER.value,
        num_steps=_NUM_STEPS.value,
        guidance_scale=_GUIDANCE_SCALE.value,
        recipe=_RECIPE.value,
        loras=[ADAPTERS / f"{_LORA.value}.safetensors"] if _LORA.value else None,
    )
    judged = [score.judge(picture, scene) for picture, scene in zip(pictures, asked, strict=True)]
    results = {
        "model": "tiny",
        "num_prompts": len(prompts),
        "seed": _SEED.value,
        "sampler": request.sampler,
        "spacing": request.spacing,
        "num_steps": request.num_steps,
        "guidance_scale": request.guidance_scale.plain(),
        **({"lora": _LORA.value} if _LORA.value else {}),
        "precision": generator.execution.precision,
        "right": score.summary(judged, asked),
        "wrong_shapes": _wrong_shapes(judged, asked),
        "examples": dict(zip(prompts[:8], (row.all for row in judged[:8]), strict=True)),
    }
    write_results(pathlib.Path(_OUTPUT.value), results)
    for kind, share in results["right"].items():
        print(f"{kind:16} {100 * share:5.1f} %")
    if _SHEET.value:
        scenes.contact_sheet(pictures, 20).save(_SHEET.value)


def _wrong_shapes(judged: list[score.Judgement], asked: list[scenes.Scene]) -> dict[str, int]:
    """In how many of the pictures with a wrong shape each shape was asked for."""
    counts = collections.Counter(
        thing.shape for row, scene in zip(judged, asked, strict=True) if not row.shapes for thing in scene.things
    )
    return dict(counts.most_common())


if __name__ == "__main__":
    app.run(main)
