"""benchmarks/gpu.py: a rehearsal with tiny sizes, and going on where it ended."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import pathlib
import signal
import subprocess
import sys
import threading
from collections import Counter

import fake_subject
import numpy as np
import psutil
import pytest

from kerasdiff.bench import checkpoint_files, report
from kerasdiff.bench.jax_roofline import at_rates
from kerasdiff.bench.parts import Part
from kerasdiff.bench.task import Subject, Task, Workload

SCRIPT = pathlib.Path(__file__).parents[2] / "benchmarks" / "gpu.py"


RATES = {"gflops": {"convolution": 100.0, "product": 50.0}, "bandwidth_gb_s": 10.0}


@pytest.fixture(scope="module")
def gpu():
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_benchmark"] = module
    spec.loader.exec_module(module)
    return module


def command(folder, *flags):
    line = [sys.executable, "-W", "ignore", str(SCRIPT), "--rehearse", f"--output={folder}", *flags]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_rehearsal(tmp_path):
    # Which it would write itself, in one process more.
    task = Task("prepare", Workload(model="tiny", weights="pretrained"), Subject("any"), str(tmp_path / "work"))
    checkpoint_files.write_diffusers_folder(task, "float32")
    done = command(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads((tmp_path / "results.json").read_text())
    rows = results["rows"]
    reference, ours, peer = rows
    assert [row["name"] for row in rows] == [
        "kerasdiff CPU f32, tiny x 1",
        "kerasdiff f32, tiny x 1",
        "diffusers f32, tiny x 1",
    ]
    for row in rows:
        assert (row["status"], row["precision"]) == ("ok", "float32"), row["reason"]
        # The same work, and the same images, from the same noise; in processes that never saw TensorFlow.
        assert row["max_difference"] <= 1
        for answer in row["rounds"]:
            assert ("torch" if row is peer else "jax") in answer["libraries"]
            assert "tensorflow" not in answer["libraries"]
    assert [answer["kind"] for answer in ours["rounds"]] == ["first", "primed"]
    assert ours["cold_first_s"] > ours["cold_s"] > ours["warm_s"] > 0
    assert ours["equal"]
    for row in (ours, peer):
        assert row["s_per_image"] == row["warm_s"]
        assert row["tflops"] > 0
        assert row["peak_memory_gb"] > 0
    assert peer["ratio_warm"]["median"] == pytest.approx(peer["warm_s"] / ours["warm_s"])
    assert results["batches"]["best"] == 1
    assert results["left_out"] == []
    assert not (tmp_path / "prepare").exists()
    assert results["machine"]["versions"]["jax"]
    assert "f32, tiny x 1: equal to the CPU's float32: at most 0 grey levels" in done.stdout
    assert "| diffusers f32 |" in (tmp_path / "table.md").read_text()

    # A row is lost and another one failed before: neither is started without time, nor tried again without being told.
    ours |= {"status": "failed", "reason": "a reason"}
    (tmp_path / "results.json").write_text(json.dumps({**results, "rows": [reference, ours]}))
    done = command(tmp_path, "--minutes=0")
    assert (done.returncode, done.stderr) == (0, "")
    assert "diffusers f32, tiny x 1: left out, 0 s are left" in done.stdout
    assert "kerasdiff f32: failed: a reason" in done.stdout
    after = json.loads((tmp_path / "results.json").read_text())
    assert [row["name"] for row in after["rows"]] == [reference["name"], ours["name"]]
    assert after["left_out"] == [peer["name"]]
    done = command(tmp_path, "--minutes=0", "--retry")
    assert "kerasdiff f32, tiny x 1: left out, 0 s are left" in done.stdout
    assert [row["name"] for row in json.loads((tmp_path / "results.json").read_text())["rows"]] == [reference["name"]]


@pytest.fixture
def measurement(gpu, tmp_path):
    def made(*rows, minutes=1.0):
        found = gpu.Measurement(tmp_path, minutes, {"num_steps": 2}, rows)
        if "machine" not in found.results:
            machine = {"gpu": ["NVIDIA H200"], "processor": gpu.processor()}
            found.results |= {"machine": machine, "ceilings": {"float32": RATES}}
        return found

    return made


def row(gpu, name, do=None, **options):
    workload = dataclasses.replace(gpu.REHEARSAL, runs=1)
    return gpu.Row(fake_subject.subject(name, do), workload, 0, **options)


def test_rows_that_are_there_stay(gpu, measurement, tmp_path):
    rows = [row(gpu, "kerasdiff CPU f32", timed=False), row(gpu, "good"), row(gpu, "bad", "crash")]
    before = measurement(*rows)
    before.side_by_side(rows[:1])
    before.one_by_one([rows[2]])
    first = json.loads((tmp_path / "results.json").read_text())
    assert [known["status"] for known in first["rows"]] == ["ok", "failed"]
    assert first["rows"][1]["reason"] == "ZeroDivisionError: division by zero"
    assert first["data_sheet_tflops"] == 989.5

    mended = [*rows[:2], row(gpu, "bad")]
    later = measurement(*mended)
    later.one_by_one(mended)
    names = [known["label"] for known in later.results["rows"]]
    assert names == ["kerasdiff CPU f32", "good", "bad"]
    assert [later.results["rows"][index]["status"] for index in (0, 1, 2)] == ["ok", "ok", "failed"]
    assert later.results["rows"][0] == first["rows"][0]
    assert later.results["rows"][1]["max_difference"] == 0
    later.retry()
    later.one_by_one(mended)
    assert [known["status"] for known in later.results["rows"]] == ["ok", "ok", "ok"]
    with pytest.raises(SystemExit, match="other settings or on another machine"):
        gpu.Measurement(tmp_path, 1, {"num_steps": 3}, rows)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"status": "ok", "machine": {"gpu": []}}, "JAX sees no GPU here"),
        ({"status": "failed", "reason": "no driver"}, "JAX does not compute here: no driver"),
    ],
)
def test_without_a_gpu_nothing_is_measured(gpu, tmp_path, monkeypatch, answer, said):
    monkeypatch.setattr(gpu, "run_task", lambda task, environment: answer)
    with pytest.raises(SystemExit, match=said):
        gpu.Measurement(tmp_path, 1, {}, []).prepare([], needs_gpu=True)
    assert not (tmp_path / "results.json").exists()


def test_an_interruption_ends_what_runs_side_by_side(gpu, measurement):
    rows = [row(gpu, name, "sleep") for name in ("one", "two")]
    run = measurement(*rows)
    threading.Timer(0.8, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        run.side_by_side(rows)
    assert run.results["rows"] == []
    assert not [child for child in psutil.Process().children() if "kerasdiff.bench.worker" in child.cmdline()]


def test_what_no_time_is_left_for_is_named_and_not_kept(gpu, measurement):
    # The first needs more than there is; the second is ended when time is up.
    rows = [dataclasses.replace(row(gpu, "long"), seconds=60), row(gpu, "slow", "sleep")]
    run = measurement(*rows, minutes=0.03)
    run.one_by_one(rows)
    assert run.left_out == ["long, tiny x 1", "slow, tiny x 1"]
    assert run.results["rows"] == []


def test_batches_grow_as_long_as_it_pays(gpu, measurement):
    run = measurement()
    larger = dataclasses.replace(row(gpu, "kerasdiff f16", larger=True))
    larger = dataclasses.replace(larger, workload=dataclasses.replace(larger.workload, batch_size=16))
    for times, pays, best in (
        ({1: 1.0}, False, 1),
        ({1: 1.0, 8: 0.5}, True, 8),
        ({1: 1.0, 2: 0.52, 4: 0.51, 8: 0.5}, False, 4),
        ({1: 1.0, 8: 1.1}, False, 1),
    ):
        run.results["rows"] = [
            {"label": "kerasdiff f16", "timed": True, "batch_size": size, "s_per_image": seconds}
            for size, seconds in times.items()
        ]
        assert run.pays(larger) is pays
        assert run.best_batch() == best


def test_the_least_time_of_a_step_is_that_of_its_parts_at_the_devices_rates():
    parts = Counter({Part("convolution", (2, 8, 8, 5, 7, 3, 1)): 2, Part("linear", (9, 5, 4)): 1})
    found = at_rates(parts, "float32", RATES["gflops"], 10.0)
    arithmetic = 2e-9 * (2 * 2 * 8 * 8 * 5 * 7 * 9 / 100.0 + 9 * 5 * 4 / 50.0)
    assert found == {"step_s": pytest.approx(arithmetic), **RATES}
    # 2.4 GB of weights through memory take longer than the little that is done with them.
    large = Counter({Part("linear", (1, 30_000, 20_000)): 1})
    assert at_rates(large, "float32", RATES["gflops"], 10.0)["step_s"] == pytest.approx(0.24)


def test_a_table_names_the_least_time(gpu, measurement):
    one = row(gpu, "kerasdiff f32")
    run = measurement(one)
    run.one_by_one([one])
    table = run.tables(report.table)
    assert "least time of a step in float32" in table
    assert "(convolutions 100, products 50 GFLOP/s, memory 10 GB/s)" in table
    assert "through TensorFlow" not in table


def test_images_beside_the_cpus(gpu, measurement, tmp_path):
    run = measurement()
    for slug, level in (("cpu", 100), ("near", 101), ("far", 102)):
        folder = tmp_path / "rows" / slug / "processes" / "one"
        folder.mkdir(parents=True)
        np.savez(folder / gpu.IMAGES, images=np.full((1, 8, 8, 3), level, "uint8"))
        label = "kerasdiff CPU f32" if slug == "cpu" else f"kerasdiff GPU {slug}"
        known = {"label": label, "model": "tiny", "slug": slug, "status": "ok", "timed": False, "precision": "float32"}
        run.results["rows"].append({**known, "name": slug, "max_difference": None})
    run.write()
    assert [(one["max_difference"], one["equal"]) for one in run.results["rows"]] == [(0, True), (1, False), (2, False)]


def test_everything_that_was_asked_for_is_measured(gpu):
    untimed, timed = gpu.rows_of(rehearse=False)
    names = [one.name for one in (*untimed, *timed)]
    assert len(set(names)) == len(names)
    assert len({one.slug for one in (*untimed, *timed)}) == len(names)
    for precision in ("f16", "bf16"):
        for batch in (1, 8):
            for subject in ("kerasdiff", "diffusers", "diffusers compile"):
                assert f"{subject} {precision}, sd-v1-4 x {batch}" in names
        assert f"kerasdiff GPU {precision}, tiny x 4" in names
    assert {"kerasdiff GPU f32, sd-v1-4 x 1", "kerasdiff CPU f32, sd-v1-4 x 1", "kerasdiff CPU f32, tiny x 4"} < {
        *names
    }
    assert [one.workload.batch_size for one in timed if one.larger] == [16, 32, 64]
    # kerasdiff's float32 is not TF32 where it is compared, and leaves room for the processes beside it.
    exact = next(one for one in untimed if one.name == "kerasdiff GPU f32, sd-v1-4 x 1").subject.environment
    assert exact["JAX_DEFAULT_MATMUL_PRECISION"] == "highest"
    assert exact["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    for one in timed:
        assert (one.workload.height, one.workload.width, one.workload.num_steps) == (512, 512, 20)
        assert one.subject.options.get("at_once", one.workload.batch_size) == one.workload.batch_size
