"""Time per image and memory over batch size and over resolution, beside what the arithmetic alone would take.

python benchmarks/scaling.py [--model=sd-v1-4] [--batch_sizes=1,2,4] [--sizes=256,384,512] [--num_steps=2]

Each point is two processes of its own, the first of which fills the caches. The floor is the multiply-adds of a
request at the best rate that a large product or convolution reached beside any of them. Results go to `scaling.json`
and `scaling.png` in --output.
"""

from __future__ import annotations

import pathlib
import tempfile

from absl import app, flags

from kerasdiff.bench import Workload, our_subjects, run_benchmark
from kerasdiff.bench.machine import results_folder, write_results
from kerasdiff.checkpoints.resolve import open_model

_MODEL = flags.DEFINE_string("model", "sd-v1-4", "As in python -m kerasdiff; random weights.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["1", "2", "4"], "At the first of the sizes.")
_SIZES = flags.DEFINE_list("sizes", ["256", "384", "512"], "Pixels along both sides, one image each.")
_NUM_STEPS = flags.DEFINE_integer("num_steps", 2, "Steps of DDIM.", lower_bound=1)
_RUNS = flags.DEFINE_integer("runs", 2, "Warm runs of each point.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", f"{results_folder()}/scaling", "Folder of the results.")
_WORK = flags.DEFINE_string("work", None, "Folder of prepared weights; a temporary one if not given.")


def main(_: list[str]) -> None:
    sizes, batches = (sorted({int(value) for value in flag.value}) for flag in (_SIZES, _BATCH_SIZES))
    output = pathlib.Path(_OUTPUT.value)
    points: list[dict] = []
    rate = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        work = pathlib.Path(_WORK.value or temporary)
        for batch, size in dict.fromkeys([(batch, sizes[0]) for batch in batches] + [(1, size) for size in sizes]):
            results = _measured(batch, size, work)
            (row,) = results["rows"]
            if row["status"] != "ok":
                print(f"{batch} x {size}: {row['reason']}")
                continue
            point = {
                "batch_size": batch,
                "size": size,
                "s_per_image": row["warm_s"] / batch,
                "gmac_per_image": results["work"]["gmac"] / batch,
                "peak_memory_gb": row["peak_memory_gb"],
            }
            print(point)
            points.append(point)
            rate = max(rate, *results["ceilings"][row["precision"]]["gflops"].values())
            for each in points:
                each["floor_s_per_image"] = 2 * each["gmac_per_image"] / rate
            summary = {"model": _MODEL.value, "num_steps": _NUM_STEPS.value, "best_gflops": rate, "points": points}
            write_results(output / "scaling.json", summary)
    if points:
        of_one_size, of_one_image = (
            [one for one in points if one[key] == value] for key, value in (("size", sizes[0]), ("batch_size", 1))
        )
        batch_label = f"images of {sizes[0]} x {sizes[0]} in a batch"
        curves = [("batch_size", batch_label, of_one_size), ("size", "pixels along a side, one image", of_one_image)]
        _plot(curves, output / "scaling.png")


def _measured(batch: int, size: int, work: pathlib.Path) -> dict:
    """Results of one point, as `python -m kerasdiff.bench` writes them."""
    config = open_model(_MODEL.value, "random").config
    workload = Workload(
        model=_MODEL.value, runs=_RUNS.value, batch_size=batch, num_steps=_NUM_STEPS.value, height=size, width=size
    )
    subjects = our_subjects(["auto"], False, config.unet.large)
    return run_benchmark(subjects, workload, output=work / f"point_{batch}_{size}", work=work)


def _plot(curves: list[tuple[str, str, list[dict]]], path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, (curve, label, points) in zip(axes, curves, strict=True):
        points = sorted(points, key=lambda point: point[curve])
        x = [point[curve] for point in points]
        axis.plot(x, [point["s_per_image"] for point in points], "o-", color="tab:blue", label="seconds an image")
        axis.plot(x, [point["floor_s_per_image"] for point in points], "--", color="tab:blue", label="arithmetic alone")
        axis.set(xlabel=label, ylabel="seconds an image", xticks=x)
        memory = axis.twinx()
        memory.plot(x, [point["peak_memory_gb"] for point in points], "s:", color="tab:orange", label="peak memory, GB")
        memory.set(ylabel="GB")
        for each in (axis, memory):
            each.set_ylim(0, 1.15 * each.dataLim.ymax)
        lines = [*axis.get_lines(), *memory.get_lines()]
        axis.legend(lines, [line.get_label() for line in lines], loc="lower right")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    app.run(main)
