"""kerasdiff on JAX beside diffusers on a GPU: 8 minutes, no network, no TensorFlow.

python benchmarks/gpu.py [--minutes=8] [--output=out/gpu] [--retry] [--rehearse]

It wants jax, flatbuffers, keras, torch, diffusers and transformers. Its rows come in the order of their importance:

1. The GPU's images beside the CPU's, which are drawn here too: the embedded model, and Stable Diffusion 1.x with random
   weights at the size that is measured. These processes run side by side; nothing is timed.
2. One image and eight of 512 x 512 in 20 steps, in float16, cold and warm, beside diffusers with and without
   `torch.compile` in its default mode, one process at a time. Every row's first image is compared with the CPU's, too.
3. Larger batches, as long as the time per image falls; then the second step in bfloat16, then smaller batches.

`results.json` in the output folder is written after each row. What no time was left for is named, and the same command
goes on with it; a row that failed is kept with its reason and tried again with --retry only. To publish results, copy
`results.json` and `table.md` to a folder of benchmarks/results. --rehearse does all of it with the embedded model at
64 x 64 on whatever there is, but for `torch.compile`.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import psutil

from kerasdiff.atomic_write import atomic_write
from kerasdiff.bench import report, worker
from kerasdiff.bench.flops import request_macs
from kerasdiff.bench.jax_roofline import at_rates
from kerasdiff.bench.ours import our_subjects
from kerasdiff.bench.parts import step_parts
from kerasdiff.bench.peers import diffusers
from kerasdiff.bench.process import run_task
from kerasdiff.bench.run import RESULTS, Benchmark
from kerasdiff.bench.task import Subject, Task, Workload
from kerasdiff.bench.worker import IMAGES, session_class
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.runtime.platform_info import processor

FULL = Workload(num_steps=20, runs=5)
TINY = Workload(model="tiny", weights="pretrained", batch_size=4, num_steps=20, height=128, width=128, runs=0)
REHEARSAL = dataclasses.replace(TINY, batch_size=1, num_steps=2, height=64, width=64, guidance_scale=3, runs=1)
# The most that an image may differ from the CPU's float32 one, in grey levels: of any pixel, and in the mean.
LIMITS = {"float32": (1, 0.1), "float16": (16, 1.0), "bfloat16": (64, 4.0)}
# A batch is worth it if it saves more than this share of the time per image.
WORTH = 0.03
# Seconds after which a process hangs.
HANGS = 300.0
# TFLOP/s in half precision without sparsity, by the data sheets.
DATA_SHEET = {"H200": 989.5, "H100 80GB": 989.5, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "V100": 125.0, "T4": 65.0}


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the results; it takes about `seconds` on an H200, which is a guess."""

    subject: Subject
    workload: Workload
    seconds: float
    # Measured alone; from an empty cache too; with a cold start that means something.
    timed: bool = True
    first: bool = False
    cold: bool = True
    # One of the batches that are tried as long as they pay.
    larger: bool = False

    @property
    def name(self) -> str:
        return f"{self.subject.name}, {self.workload.model} x {self.workload.batch_size}"

    @property
    def slug(self) -> str:
        return f"{self.subject.slug}-{self.workload.model}-{self.workload.batch_size}"


def ours(precision: str, label: str, files: str, batch: int, **environment: str) -> Subject:
    """kerasdiff on JAX, which draws a batch at once."""
    (subject,) = our_subjects(["auto"], gpu=True)
    options = {**subject.options, "precision": precision, "files": files, "at_once": batch}
    return dataclasses.replace(
        subject, name=f"kerasdiff {label}", options=options, environment={**subject.environment, **environment}
    )


def untimed_rows(workload: Workload, precisions: Iterable[str], files: str) -> list[Row]:
    """Images of a workload on the CPU, the reference, and on the GPU; float32 without TF32."""
    shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    variants = [("float32", "CPU", {"JAX_PLATFORMS": "cpu"})]
    for precision in precisions:
        exact = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"} if precision == "float32" else {}
        variants.append((precision, "GPU", shared | exact))
    workload = dataclasses.replace(workload, runs=0)
    return [
        Row(
            ours(precision, f"{device} {diffusers.SHORT[precision]}", files, workload.batch_size, **environment),
            workload,
            60,
            timed=False,
        )
        for precision, device, environment in variants
    ]


def timed_rows(
    full: Workload, precisions: Iterable[str], batches: Iterable[int], larger: Iterable[int], smaller: Iterable[int]
) -> list[Row]:
    """What is measured, most important first; the first precision from empty caches as well."""
    main, *others = precisions

    def row(precision: str, batch: int, seconds: float, **options: Any) -> Row:
        subject = ours(precision, diffusers.SHORT[precision], precision, batch)
        return Row(subject, dataclasses.replace(full, batch_size=batch), seconds, **options)

    def group(precision: str) -> list[Row]:
        first = precision == main
        sizes = [dataclasses.replace(full, batch_size=batch) for batch in batches]
        rows = []
        for index, size in enumerate(sizes):
            # Without an empty cache, another batch finds half of what it needs in it.
            rows.append(row(precision, size.batch_size, 100 if first else 80, first=first, cold=first or index == 0))
            rows += [Row(subject, size, 30) for subject in diffusers.subjects([precision], gpu=True)]
        for index, size in enumerate(sizes if full.model != "tiny" else []):
            (subject,) = diffusers.subjects([precision], gpu=True, compiled=True)
            rows.append(Row(subject, size, 110 if first else 90, first=first, cold=first or index == 0))
        return rows

    rows = group(main)
    rows += [row(main, batch, 80, cold=False, larger=True) for batch in larger]
    rows += [each for precision in others for each in group(precision)]
    return rows + [row(main, batch, 70, cold=False) for batch in smaller]


class Measurement:
    """The rows of `results.json`, which is whole at any moment, and the time that is left."""

    def __init__(self, output: pathlib.Path, minutes: float, settings: dict[str, Any], rows: Iterable[Row]) -> None:
        self.output, self.work = output, output / "work"
        self._order = {row.name: index for index, row in enumerate(rows)}
        self._ends = time.monotonic() + 60 * minutes
        self._workload = Workload(**{name: value for name, value in settings.items() if name != "rehearsal"})
        self.results: dict[str, Any] = {"settings": settings, "rows": []}
        self.left_out: list[str] = []
        path = output / RESULTS
        if path.exists():
            self.results = json.loads(path.read_text())
            if self.results["settings"] != settings or self.results["machine"]["processor"] != processor():
                sys.exit(f"{path} was measured with other settings or on another machine; give another --output")
        self.output.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        """Seconds."""
        return self._ends - time.monotonic()

    def retry(self) -> None:
        """Forgets the rows that failed."""
        self.results["rows"] = [row for row in self.results["rows"] if row["status"] == "ok"]

    def has(self, row: Row) -> bool:
        return any(known["name"] == row.name for known in self.results["rows"])

    def prepare(self, rows: Iterable[Row], needs_gpu: bool) -> None:
        """Finds out what the device can do and writes the files that rows read, side by side."""
        tasks = {}
        for row in rows:
            task = Task("prepare", row.workload, row.subject, str(self.work))
            folder = session_class(row.subject).folder(task)
            if not folder.exists():
                tasks[folder] = task
        with self._pool() as pool:
            writing = [pool.submit(self._prepare, folder.name, task) for folder, task in tasks.items()]
            if "machine" not in self.results:
                workload = dataclasses.replace(self._workload, timeout=HANGS)
                probe = Task("probe", workload, Subject("probe"), str(self.work), output=str(self.output / "probe"))
                answer = run_task(probe, {})
                if answer["status"] != "ok":
                    sys.exit(f"JAX does not compute here: {answer['reason']}")
                if needs_gpu and not answer["machine"]["gpu"]:
                    sys.exit("JAX sees no GPU here: install jax[cuda12] or jax[cuda13]; --rehearse does without one")
                self.results |= {"machine": answer["machine"], "ceilings": answer["ceilings"]}
            concurrent.futures.wait(writing)
        self.write()

    def _prepare(self, name: str, task: Task) -> None:
        # A row whose files are missing prepares them itself, and says what is wrong.
        workload = dataclasses.replace(task.workload, timeout=max(1.0, self.left))
        output = self.output / "prepare" / f"{workload.model}-{name}"
        run_task(dataclasses.replace(task, workload=workload, output=str(output)), {"JAX_PLATFORMS": "cpu"})

    def side_by_side(self, rows: Iterable[Row]) -> None:
        """Carries out what is not timed."""
        with self._pool() as pool:
            started = {pool.submit(self._measured, row): row for row in rows if not self.has(row)}
            for done in concurrent.futures.as_completed(started):
                self._keep(started[done], done.result())

    @staticmethod
    def _pool() -> concurrent.futures.ThreadPoolExecutor:
        return _Pool(max(2, (os.cpu_count() or 1) // 3))

    def one_by_one(self, rows: Iterable[Row]) -> None:
        """Carries out what is timed."""
        for row in rows:
            if not self.has(row) and not (row.larger and not self.pays(row)):
                self._keep(row, self._measured(row))

    def _measured(self, row: Row) -> dict[str, Any] | None:
        """A row, or None if there is no time for it."""
        if self.left < row.seconds:
            return None
        # Two processes may take half of what is left each.
        timeout = min(HANGS, self.left / (2 if row.first else 1))
        workload, probed = dataclasses.replace(row.workload, timeout=timeout), self._probed(row.workload)
        benchmark = Benchmark(workload, self.output / "rows" / row.slug, self.work, probed)
        benchmark.resume()
        benchmark.run([row.subject], 1, int(row.first), progress=False)
        (found,) = benchmark.write()["rows"]
        if found["status"] == "timed out" and timeout < HANGS:
            return None
        return self._told(row, found)

    def _probed(self, workload: Workload) -> dict[str, Any]:
        """What is known of the device, with the least time of a step of this workload."""
        parts = step_parts(open_model(workload.model, "random").config, workload)
        ceilings = {
            name: at_rates(parts, name, known["gflops"], known["bandwidth_gb_s"])
            for name, known in self.results["ceilings"].items()
        }
        return {**self.results, "ceilings": ceilings}

    def _told(self, row: Row, found: dict[str, Any]) -> dict[str, Any]:
        """A row as it is kept."""
        answers = [answer for answer in found["rounds"] if answer["status"] == "ok"]
        if any("tensorflow" in answer["libraries"] for answer in answers):
            found |= {"status": "failed", "reason": "it imported TensorFlow"}
        precision = found["precision"] or row.subject.options.get("precision")
        if not (row.cold and row.timed):
            found |= {key: None for key in found if key.startswith("cold_")}
        # What XLA takes to choose among kernels, in a process that compiles, does not count.
        memory = [answer["device_memory_gb"] for answer in answers if answer["device_memory_gb"]]
        work = 2 * request_macs(open_model(row.workload.model, "random").config, row.workload).total
        warm = found["warm_s"]
        return {
            **found,
            "name": row.name,
            "label": row.subject.name,
            "model": row.workload.model,
            "batch_size": row.workload.batch_size,
            "timed": row.timed,
            "precision": precision,
            "device_memory_gb": min(memory, default=None),
            "s_per_image": warm / row.workload.batch_size if warm else None,
            "tflops": work / warm / 1e12 if warm else None,
            "max_difference": None,
            "mean_difference": None,
            "slug": row.slug,
        }

    def _keep(self, row: Row, found: dict[str, Any] | None) -> None:
        if found is None:
            self.left_out.append(row.name)
            print(f"{row.name}: left out, {max(0, self.left):.0f} s are left", flush=True)
            return
        self.results["rows"].append(found)
        self.results["rows"].sort(key=lambda known: self._order.get(known["name"], len(self._order)))
        self.write()
        what = f"{found['warm_s']:.3g} s" if found["warm_s"] else "drawn"
        print(f"{row.name}: {what if found['status'] == 'ok' else found['reason']}", flush=True)

    def pays(self, row: Row) -> bool:
        """Whether the largest batch so far was worth it; if none is known, a larger one is not."""
        times = self._times_per_image()
        sizes = sorted(size for size in times if size < row.workload.batch_size)
        return len(sizes) > 1 and times[sizes[-1]] < (1 - WORTH) * times[sizes[-2]]

    def best_batch(self) -> int | None:
        """The smallest batch than which no other is worth it."""
        times = self._times_per_image()
        fastest = min(times.values(), default=0)
        return next((size for size, seconds in times.items() if seconds * (1 - WORTH) <= fastest), None)

    def _times_per_image(self) -> dict[int, float]:
        """Seconds of kerasdiff by batch, in its first precision."""
        found: dict[str, dict[int, float]] = {}
        for row in self.results["rows"]:
            if row["timed"] and row["label"].startswith("kerasdiff") and row["s_per_image"]:
                found.setdefault(row["label"], {})[row["batch_size"]] = row["s_per_image"]
        return dict(sorted(next(iter(found.values()), {}).items()))

    def write(self) -> None:
        """Writes what is finished."""
        rows = self.results["rows"]
        for row in rows:
            self._compare(row)
            self._add_ratio(row)
        times = self._times_per_image()
        gpus = self.results["machine"]["gpu"]
        self.results |= {
            "data_sheet_tflops": next((rate for name, rate in DATA_SHEET.items() if gpus and name in gpus[0]), None),
            "batches": {"s_per_image": times, "best": self.best_batch(), "largest": max(times, default=None)},
            "left_out": self.left_out,
        }
        with atomic_write(self.output / RESULTS, sync=False) as file:
            file.write(json.dumps(self.results, indent=2).encode() + b"\n")

    def _compare(self, row: dict[str, Any]) -> None:
        """The first image beside the CPU's, once both are there."""
        reference = next((other for other in self.results["rows"] if is_reference(other, row["model"])), None)
        if reference is None or row["max_difference"] is not None:
            return
        images = [self._images(one) for one in (row, reference)]
        if images[0] is None or images[1] is None:
            return
        count = min(map(len, images))
        difference = np.abs(images[0][:count].astype(int) - images[1][:count])
        row |= {"max_difference": int(difference.max()), "mean_difference": float(difference.mean())}
        if row["label"].startswith("kerasdiff"):
            limits = LIMITS[row["precision"]]
            row |= {
                "limits": limits,
                "equal": row["max_difference"] <= limits[0] and row["mean_difference"] <= limits[1],
            }

    def _images(self, row: dict[str, Any]) -> np.ndarray | None:
        for path in sorted((self.output / "rows" / row["slug"] / "processes").glob(f"*/{IMAGES}")):
            with np.load(path) as file:
                return file["images"]
        return None

    def _add_ratio(self, row: dict[str, Any]) -> None:
        """Seconds over those of kerasdiff in the same precision with as many images."""
        same = ("timed", "precision", "batch_size", "model")
        for other in self.results["rows"] if row["timed"] else []:
            if other["label"].startswith("kerasdiff") and all(other[key] == row[key] for key in same):
                for ratio, key in (("ratio_warm", "warm_s"), ("ratio_cold", "cold_s")):
                    if row[key] and other[key]:
                        row[ratio] = dict.fromkeys(("median", "min", "max"), row[key] / other[key])

    def tables(self, write: Callable[[dict[str, Any]], str]) -> str:
        """Images that were compared, and a table of each batch, as `write` writes one."""
        rows = self.results["rows"]
        compared = [row for row in rows if "equal" in row and not is_reference(row, row["model"])]
        lines = [
            f"{row['name']}: {'equal' if row['equal'] else 'DIFFERENT'} to the CPU's float32: at most "
            f"{row['max_difference']} grey levels, {row['mean_difference']:.3f} in the mean "
            f"(limits {row['limits'][0]}, {row['limits'][1]:g})"
            for row in compared
        ]
        for size in sorted({row["batch_size"] for row in rows if row["timed"]}):
            shown = [{**row, "name": row["label"]} for row in rows if row["timed"] and row["batch_size"] == size]
            workload = dataclasses.replace(self._workload, batch_size=size)
            told = {**self._probed(workload), "rows": shown, "settings": dataclasses.asdict(workload)}
            lines += ["", write(told).rstrip()]
        failed = [f"{row['name']}: {row['reason']}" for row in rows if not row["timed"] and row["status"] != "ok"]
        lines += ["", *failed, "x and diff here: beside kerasdiff in the same precision, and the CPU's float32 image."]
        rates = [f"{row['label']} x {row['batch_size']} {row['tflops']:.3g}" for row in rows if row["tflops"]]
        sheet = self.results["data_sheet_tflops"]
        lines.append(f"TFLOP/s: {', '.join(rates)}" + (f"; by the data sheet at most {sheet:g}" if sheet else ""))
        batches = self.results["batches"]
        lines.append(
            f"Time per image stops falling at a batch of {batches['best']}; the largest was {batches['largest']}."
        )
        if self.left_out:
            lines.append(f"Left out, as time was up: {'; '.join(self.left_out)}. The same command goes on with them.")
        return "\n".join(lines)


class _Pool(concurrent.futures.ThreadPoolExecutor):
    """Threads that wait for processes, which end with it if it is interrupted."""

    def __exit__(self, kind: type[BaseException] | None, *details: Any) -> None:
        if kind is not None:
            self.shutdown(wait=False, cancel_futures=True)
            for process in psutil.Process().children():
                if worker.__name__ in process.cmdline():
                    process.kill()
        self.shutdown()


def is_reference(row: dict[str, Any], model: str) -> bool:
    return row["model"] == model and row["label"] == "kerasdiff CPU f32" and row["status"] == "ok"


def rows_of(rehearse: bool) -> tuple[list[Row], list[Row]]:
    """What is not timed and what is."""
    if rehearse:
        rows = untimed_rows(REHEARSAL, [], "float32"), timed_rows(REHEARSAL, ["float32"], [1], [], [])
        return tuple([dataclasses.replace(row, seconds=1) for row in some] for some in rows)
    precisions = ["float16", "bfloat16"]
    untimed = untimed_rows(FULL, ["float32"], precisions[0])
    untimed += untimed_rows(TINY, ["float32", *precisions], "float32")
    return untimed, timed_rows(FULL, precisions, [1, 8], [16, 32, 64], [4, 2])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8, help="how long it may take (%(default)s)")
    parser.add_argument("--output", type=pathlib.Path, default="out/gpu", help="of results and gigabytes (%(default)s)")
    parser.add_argument("--retry", action="store_true", help="try rows again that failed")
    parser.add_argument("--rehearse", action="store_true", help="with tiny sizes, on a CPU too")
    flags = parser.parse_args()
    os.environ["KERAS_BACKEND"] = "jax"  # of all processes that are started here
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    untimed, timed = rows_of(flags.rehearse)
    settings = {"rehearsal": flags.rehearse, **dataclasses.asdict(timed[0].workload)}
    measurement = Measurement(flags.output.absolute(), flags.minutes, settings, [*untimed, *timed])
    if flags.retry:
        measurement.retry()
    try:
        waiting = [row for row in [*untimed, timed[0]] if not measurement.has(row)]
        measurement.prepare(waiting, needs_gpu=not flags.rehearse)
        measurement.side_by_side(untimed)
        measurement.one_by_one(timed)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on")
        return 130
    measurement.write()
    table = measurement.tables(report.markdown)
    (measurement.output / report.TABLE).write_text(table + "\n")
    print(measurement.tables(report.table))
    assert not {"tensorflow", "jax", "torch"} & set(sys.modules), "this process must leave the GPU alone"
    return int(not all(row.get("equal", True) for row in measurement.results["rows"]))


if __name__ == "__main__":
    sys.exit(main())
