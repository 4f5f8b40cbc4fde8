"""Bulk runs on this machine: equality, throughput, kills, memory, and the time to the first image.

    python benchmarks/bulk.py

It takes ten minutes, keeps nothing but `bulk.json` of the processor's results, and needs `kerasdiff[ray]`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import psutil
from PIL import Image

import kerasdiff
from kerasdiff.bench.machine import results_folder, write_results
from kerasdiff.runtime.platform_info import versions

RESULTS = pathlib.Path(__file__).parents[1] / results_folder() / "bulk.json"
STEPS = 5


def rows(count: int) -> list[kerasdiff.batch.Row]:
    return list(
        kerasdiff.batch.number_prompts([f"a red circle on a blue background, {number}" for number in range(count)])
    )


def table_of(work: pathlib.Path) -> pathlib.Path:
    """500 rows as a file."""
    table = work / "rows.jsonl"
    table.write_text("\n".join(json.dumps({"id": row.id, "prompt": row.prompt}) for row in rows(500)))
    return table


def run(folder: pathlib.Path, count: int, **arguments: Any) -> kerasdiff.bulk.Summary:
    return kerasdiff.bulk.run(rows(count), folder, num_steps=STEPS, precision="float32", progress=False, **arguments)


def workers() -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if "MapWorker" in " ".join(process.info["cmdline"] or ()) and process.status() != psutil.STATUS_ZOMBIE
    ]


def steady_rate(folder: pathlib.Path) -> float:
    """Images a second while all workers were drawing, from the times of their files."""
    table = pd.read_parquet(folder / "manifest")
    table["time"] = [(folder / file).stat().st_mtime for file in table["file"]]
    spans = table.groupby("worker")["time"].agg(["min", "max"])
    begin, end = spans["min"].max(), spans["max"].min()
    return float(((table["time"] > begin) & (table["time"] <= end)).sum() / (end - begin))


def furthest(folder: pathlib.Path, other: pathlib.Path) -> int:
    """Grey levels by which the pictures of two folders differ at most."""

    def pixels(path: pathlib.Path) -> np.ndarray:
        with Image.open(path) as picture:
            return np.asarray(picture).astype(int)

    names = sorted(path.name for path in other.glob("[!.]*.png"))
    assert names == sorted(path.name for path in folder.glob("[!.]*.png"))
    return max(int(np.abs(pixels(folder / name) - pixels(other / name)).max()) for name in names)


def check_manifest(folder: pathlib.Path, count: int) -> None:
    table = pd.read_parquet(folder / "manifest")
    assert sorted(table["file"]) == sorted(f"{row.id}.png" for row in rows(count))
    assert table["error"].isna().all()


def throughput(work: pathlib.Path) -> dict[str, Any]:
    """Cold and warm starts, one worker and two of a thread each, and one process without Ray."""
    os.environ["KERASDIFF_CACHE"] = str(work / "cache")
    found: dict[str, Any] = {}
    for name, count in (("cold", 1), ("one", 1), ("two", 2), ("two again", 2), ("one again", 1)):
        folder = work / name
        summary = run(folder, 500, workers=count, threads=1)
        check_manifest(folder, 500)
        found[name] = {**dataclasses.asdict(summary), "steady_images_per_second": steady_rate(folder)}
        print(name, found[name], flush=True)
    rate = {name: found[name]["steady_images_per_second"] for name in found}
    found["ratio"] = [rate["two"] / rate["one"], rate["two again"] / rate["one again"]]
    # In a process of its own, as what it holds is not to count as this one's.
    line = [sys.executable, "-W", "ignore", "-m", "kerasdiff", f"--prompts={table_of(work)}", "--precision=float32"]
    started = time.perf_counter()
    subprocess.run([*line, f"--output_dir={work / 'single'}", f"--num_steps={STEPS}"], check=True)
    found["one_process_without_ray_s"] = time.perf_counter() - started
    found["grey_levels"] = {name: furthest(work / name, work / "single") for name in ("one", "two")}
    size = sum(path.stat().st_size for path in (work / "two").glob("*.png"))
    manifest = sum(path.stat().st_size for path in (work / "two" / "manifest").iterdir())
    found["bytes_an_image"] = {"png": size / 500, "manifest": manifest / 500}
    return found


def worker_kills(work: pathlib.Path) -> dict[str, Any]:
    """Five workers killed at random moments of a job of 500."""
    moments, folder, killed = random.Random(1), work / "worker kills", []
    counts = sorted(moments.sample(range(20, 480), 5))

    def kill() -> None:
        if counts and len(list(folder.glob("[!.]*.png"))) >= counts[0] and workers():
            counts.pop(0)
            victim = moments.choice(workers())
            victim.kill()
            killed.append(victim.pid)

    summary = run(folder, 500, workers=2, threads=1, between=kill)
    check_manifest(folder, 500)
    return {**dataclasses.asdict(summary), "killed": len(killed), "grey_levels": furthest(folder, work / "single")}


def driver_kills(work: pathlib.Path) -> dict[str, Any]:
    """Five processes that began a job of 500 killed at random moments."""
    moments, folder, lost = random.Random(2), work / "driver kills", 0
    line = [sys.executable, "-W", "ignore", "-m", "kerasdiff.bulk", f"--prompts={table_of(work)}", f"--output={folder}"]
    line += ["--workers=2", "--threads=1", f"--num_steps={STEPS}", "--precision=float32", "--json"]
    for _ in range(5):
        before, new = len(list(folder.glob("[!.]*.png"))), moments.randrange(5, 80)
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL)
        while len(list(folder.glob("[!.]*.png"))) < before + new:
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        lost += 1
    summary = json.loads(subprocess.run(line, stdout=subprocess.PIPE, check=True).stdout)
    check_manifest(folder, 500)
    return {**summary, "output": None, "killed": lost, "grey_levels": furthest(folder, work / "single")}


def memory(work: pathlib.Path) -> dict[str, Any]:
    """What two workers and the driver hold over 2,000 images."""
    folder, held = work / "memory", []

    def look() -> None:
        count = len(os.listdir(folder)) if folder.exists() else 0
        if not held or count >= held[-1]["images"] + 50:
            found = workers()
            held.append(
                {
                    "images": count,
                    "workers_mb": sorted(round(one.memory_info().rss / 1e6) for one in found),
                    "driver_mb": round(psutil.Process().memory_info().rss / 1e6),
                }
            )

    summary = run(folder, 2000, workers=2, threads=1, between=look)
    check_manifest(folder, 2000)
    both = [point for point in held if len(point["workers_mb"]) == 2]
    early = next(point for point in both if point["images"] >= 200)
    return {
        **dataclasses.asdict(summary),
        "early": early,
        "last": both[-1],
        "worker_growth_mb": max(b - a for a, b in zip(early["workers_mb"], both[-1]["workers_mb"], strict=True)),
        "driver_growth_mb": both[-1]["driver_mb"] - early["driver_mb"],
        "points": held,
    }


def main() -> None:
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    work = pathlib.Path(tempfile.mkdtemp(prefix="bulk-"))
    parts: dict[str, Callable[[pathlib.Path], dict[str, Any]]] = {
        "throughput": throughput,
        "worker_kills": worker_kills,
        "driver_kills": driver_kills,
        "memory": memory,
    }
    found |= {"num_steps": STEPS, "packages": versions("ray", "pyarrow")}
    try:
        for name, part in parts.items():
            found[name] = part(work)
            print(name, json.dumps(found[name])[:500], flush=True)
            write_results(RESULTS, found)
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
