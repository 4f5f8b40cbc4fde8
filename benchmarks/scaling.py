"""Time per image and memory over batch size and over resolution, beside what the arithmetic alone would take.

python benchmarks/scaling.py [--model=sd-v1-4] [--batch_sizes=1,2,4] [--sizes=256,384,512] [--num_steps=2]

Each point is a process of its own. The floor is the multiply-adds of a request at the measured rate of the best large
product or convolution. Results go to `scaling.json` and `scaling.png` in --output.
"""

from __future__ import annotations

import pathlib
import tempfile

from absl import app, flags

from kerasdiff.bench import Settings, our_rows, run_rows
from kerasdiff.bench.machine import write_results
from kerasdiff.weights.presets import open_model

_MODEL = flags.DEFINE_string("model", "sd-v1-4", "As in python -m kerasdiff; random weights.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1", "2", "4"], "At the first of the sizes.")
_SIZES = flags.DEFINE_list("sizes", ["256", "384", "512"], "Pixels along both sides, one image each.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", 2, "Steps of DDIM.", lower_bound=1)
_RUNS = flags.DEFINE_integer("runs", 2, "Warm runs of each point.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "benchmarks/results/scaling", "Folder of the results.")
_WORK = flags.DEFINE_string("work", None, "Folder of prepared weights; a temporary one if not given.")


def main(_: list[str]) -> None:
    sizes, batches = (sorted({int(value) for value in flag.value}) for flag in (_SIZES, _BATCH_SIZES))
    config = open_model(_MODEL.value, "random").config
    output = pathlib.Path(_OUTPUT.value)
    points = [("batch_size", batch, sizes[0]) for batch in batches] + [("size", 1, size) for size in sizes]
    results: dict = {"model": _MODEL.value, "num_steps": _NUM_STEPS.value, "points": []}
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(_WORK.value or temporary)
        for curve, batch, size in points:
            work_of = {"batch_size": batch, "num_steps": _NUM_STEPS.value, "height": size, "width": size}
            settings = Settings(model=_MODEL.value, runs=_RUNS.value, **work_of)
            folder = work / f"point_{batch}_{size}"
            told = run_rows(our_rows(["auto"], False, config.unet.large), settings, output=folder, work=work)
            (row,) = told["rows"]
            if row["status"] != "ok":
                print(f"{batch} x {size}: {row['reason']}")
                continue
            point = {
                "curve": curve,
                "batch_size": batch,
                "size": size,
                "s_per_image": row["warm_s"] / batch,
                "floor_s_per_image": row["utilisation"] * row["warm_s"] / batch,
                "peak_memory_gb": row["peak_memory_gb"],
            }
            results["points"].append(point)
            print(point)
            write_results(output / "scaling.json", results)
    _plot(results["points"], output / "scaling.png")


def _plot(points: list[dict], path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    curves = (("batch_size", "images in a batch"), ("size", "pixels along a side"))
    for axis, (curve, label) in zip(axes, curves, strict=True):
        chosen = [point for point in points if point["curve"] == curve]
        x = [point[curve] for point in chosen]
        axis.plot(x, [point["s_per_image"] for point in chosen], "o-", color="tab:blue", label="seconds an image")
        axis.plot(x, [point["floor_s_per_image"] for point in chosen], "--", color="tab:blue", label="arithmetic alone")
        axis.set(xlabel=label, ylabel="seconds an image", ylim=(0, None), xticks=x)
        memory = axis.twinx()
        memory.plot(x, [point["peak_memory_gb"] for point in chosen], "s:", color="tab:orange", label="peak memory, GB")
        memory.set(ylabel="GB", ylim=(0, None))
        lines = [*axis.get_lines(), *memory.get_lines()]
        axis.legend(lines, [line.get_label() for line in lines], loc="lower right")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    app.run(main)
