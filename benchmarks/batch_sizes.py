"""Time per image and memory over the batch size, whole and split: the source of MAX_BATCH in diffusion/memory_model.py.

python benchmarks/batch_sizes.py [--model=tiny] [--batch_sizes=1,2,4,8] [--chunks=1,2,4] [--num_steps=20] [--height=...]

Two tables, each point a process of its own: batches of the sizes given, split as `generate` does it by itself, and one
batch of the largest size split into chunks that are set. Results go to `batch_sizes_MODEL.json`, `.md` and `.png`.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

from absl import app, flags

from kerasdiff.bench.machine import results_folder, write_results

_MODEL = flags.DEFINE_string(
    "model", "tiny", "As in python -m kerasdiff; random weights if it is not the embedded one."
)
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1", "2", "4", "8", "16", "32", "64", "128", "256"], "Images.")
_CHUNKS = flags.DEFINE_list("chunks", ["1", "2", "4", "8", "16", "32", "64"], "Images at once.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", 20, "Steps.", lower_bound=1)
_HEIGHT = flags.DEFINE_integer("height", None, "Pixels along both sides; the model's own if not given.")
_RUNS = flags.DEFINE_integer("runs", 3, "Timed runs of each point; the fastest counts.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", str(results_folder()), "Folder of the results.")

_POINT = """
import json, sys, time
import kerasdiff
kerasdiff.inference_only()
from kerasdiff.bench.machine import peak_memory_gb
from kerasdiff.diffusion import memory_model
model, batch_size, chunk, num_steps, height, runs = json.loads(sys.argv[1])
if chunk:
    memory_model.MAX_BATCH = dict.fromkeys(memory_model.MAX_BATCH, chunk)
generator = kerasdiff.Generator(model, weights="pretrained" if model == "tiny" else "random")
size = {"height": height, "width": height}
plan = generator.plan(batch_size, **size)
generator.warm_up(batch_size, **size)
seconds = []
for run in range(runs):
    started = time.perf_counter()
    generator.generate("a red circle", batch_size, num_steps=num_steps, seed=run, progress=False, **size)
    seconds.append(time.perf_counter() - started)
print(json.dumps({
    "batch_size": batch_size, "chunks": sorted(set(plan.chunks), reverse=True),
    "s_per_image": min(seconds) / batch_size,
    "seconds": seconds, "peak_memory_gb": peak_memory_gb(), "weights_gb": plan.memory["weights"] / 1e9,
    "expected_gb": plan.memory["U-Net"] / 1e9, "execution": str(generator.execution),
}))
"""


def main(_: list[str]) -> None:
    batches, chunks = (sorted({int(value) for value in flag.value}) for flag in (_BATCH_SIZES, _CHUNKS))
    results: dict = {"model": _MODEL.value, "num_steps": _NUM_STEPS.value, "batches": [], "chunks": []}
    path = pathlib.Path(_OUTPUT.value) / f"batch_sizes_{_MODEL.value}.json"
    whole, split = [(batch, None) for batch in batches], [(batches[-1], one) for one in chunks]
    for kind, points in (("batches", whole), ("chunks", split)):
        for batch_size, chunk in points:
            arguments = [_MODEL.value, batch_size, chunk, _NUM_STEPS.value, _HEIGHT.value, _RUNS.value]
            command = [sys.executable, "-W", "ignore", "-c", _POINT, json.dumps(arguments)]
            environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
            point = json.loads(done.stdout.splitlines()[-1])
            results[kind].append(point)
            print(kind, point)
            write_results(path, results)
    path.with_suffix(".md").write_text(_table(results))
    _plot(results, path.with_suffix(".png"))


def _table(results: dict) -> str:
    lines = [f"{results['model']}, {results['num_steps']} steps, {results['batches'][0]['execution']}", ""]
    for kind, title in (("batches", "images"), ("chunks", f"{results['chunks'][0]['batch_size']} images, at once")):
        lines += [f"| {title} | at once | ms an image | peak GB |", "| ---: | ---: | ---: | ---: |"]
        for point in results[kind]:
            first = point["batch_size"] if kind == "batches" else point["chunks"][0]
            split = ", ".join(map(str, point["chunks"]))
            lines.append(f"| {first} | {split} | {1000 * point['s_per_image']:.0f} | {point['peak_memory_gb']:.2f} |")
        lines.append("")
    return "\n".join(lines)


def _plot(results: dict, path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, (kind, label) in zip(axes, (("batches", "images asked for"), ("chunks", "images at once")), strict=True):
        points = results[kind]
        x = [point["batch_size"] if kind == "batches" else point["chunks"][0] for point in points]
        axis.plot(x, [1000 * point["s_per_image"] for point in points], "o-", color="tab:blue", label="ms an image")
        axis.set(xlabel=label, ylabel="ms an image", ylim=(0, None), xscale="log", xticks=x)
        axis.set_xticks(x, [str(one) for one in x])
        axis.minorticks_off()
        memory = axis.twinx()
        memory.plot(x, [point["peak_memory_gb"] for point in points], "s:", color="tab:orange", label="peak memory, GB")
        memory.set(ylabel="GB", ylim=(0, None))
        lines = [*axis.get_lines(), *memory.get_lines()]
        axis.legend(lines, [line.get_label() for line in lines], loc="lower left")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    app.run(main)
