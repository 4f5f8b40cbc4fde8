"""Rows that fail in every way, caches, resuming: with a subject that costs nothing."""

from __future__ import annotations

import json
import pathlib

import fake_subject
import numpy as np
import pytest

from kerasdiff.bench import run
from kerasdiff.bench.run import RESULTS, Benchmark, turns
from kerasdiff.bench.task import Task, Workload
from kerasdiff.errors import RequestError

WORKLOAD = Workload(model="tiny", height=64, width=64, num_steps=3, runs=2, batch_size=2, timeout=20)
PROBED = {
    "machine": {"gpu": [], "processor": "a processor", "cores": 2},
    "ceilings": {"float32": {"step_s": 1e-4}},
}


@pytest.fixture
def measure(tmp_path):
    def measured(*rows, workload=WORKLOAD, rounds=1, **arguments):
        benchmark = Benchmark(workload, tmp_path)
        benchmark.probed = PROBED
        benchmark.run(rows, rounds, progress=False, **arguments)
        results = json.loads((tmp_path / RESULTS).read_text())
        assert results == json.loads(json.dumps(benchmark.results))
        return {row["name"]: row for row in results["rows"]}

    return measured


@pytest.mark.parametrize(
    ("do", "status", "reason"),
    [
        ("crash", "failed", "ZeroDivisionError: division by zero"),
        ("kill", "killed", "SIGKILL"),
        ("abort", "failed", "died of SIGABRT"),
        ("leave", "failed", "ended with exit code 3"),
        ("sleep", "timed out", "no answer within 2 s"),
    ],
)
def test_a_row_that_fails_says_how_and_the_others_go_on(measure, do, status, reason):
    workload = Workload(**{**vars(WORKLOAD), "timeout": 2.0 if do == "sleep" else 20.0})
    rows = measure(fake_subject.subject("bad", do), fake_subject.subject("good"), workload=workload, rounds=2)
    assert rows["bad"]["status"] == status
    assert reason in rows["bad"]["reason"]
    assert "\n" not in rows["bad"]["reason"]
    assert rows["bad"]["warm_s"] is None
    # It is not tried again.
    assert len(rows["bad"]["rounds"]) == 1
    assert rows["good"]["status"] == "ok"
    assert len(rows["good"]["rounds"]) == 2


def test_files_that_cannot_be_prepared(measure):
    row = measure(fake_subject.subject("bad", prepare="crash"))["bad"]
    assert row["status"] == "failed"
    assert row["reason"] == "its files could not be prepared: ZeroDivisionError: division by zero"


def test_what_is_in_a_row(measure):
    rows = measure(
        fake_subject.subject("kerasdiff standard"), fake_subject.subject("other", level=103, caches=True), rounds=2
    )
    other = rows["other"]
    assert [(told["round"], told["kind"]) for told in other["rounds"]] == [(1, "first"), (1, "primed"), (2, "primed")]
    assert (other["max_difference"], other["mean_difference"]) == (3, 3.0)
    assert rows["kerasdiff standard"]["max_difference"] == 0
    # The first process met an empty folder, the others what it left.
    assert ["found" in told["cold_parts"] for told in other["rounds"]] == [False, True, True]
    for told in other["rounds"]:
        parts = told["cold_parts"]
        assert sum(parts.values()) == pytest.approx(told["cold_s"])
        # What was traced while building is no part of the first run.
        assert parts["compile"] == 0.001
        assert parts["trace"] == 0.0
    assert [len(told["runs_s"]) for told in other["rounds"]] == [0, 2, 2]
    assert other["warm_spread_s"][0] <= other["warm_s"] <= other["warm_spread_s"][1]
    assert other["images_per_s"] == pytest.approx(2 / other["warm_s"])
    assert other["cold_first_s"] == other["rounds"][0]["cold_s"]
    assert 0 < other["peak_memory_gb"] < 2
    assert rows["kerasdiff standard"]["cold_first_s"] is None


def test_a_process_that_finds_an_empty_cache_is_a_first_one(measure):
    row = measure(fake_subject.subject("other", caches=True), rounds=2, first_rounds=0)["other"]
    assert [(told["turn"], told["kind"]) for told in row["rounds"]] == [("primed", "first"), ("primed", "primed")]
    assert [len(told["runs_s"]) for told in row["rounds"]] == [2, 2]
    assert row["cold_first_s"] == row["rounds"][0]["cold_s"]
    assert row["cold_s"] == row["rounds"][1]["cold_s"]
    assert row["max_difference"] == 0


def test_finished_processes_are_taken_over(measure, tmp_path):
    before = measure(fake_subject.subject("one"), fake_subject.subject("bad", "crash"))
    benchmark = Benchmark(WORKLOAD, tmp_path)
    benchmark.resume()
    benchmark.run([fake_subject.subject("one"), fake_subject.subject("bad")], 2, progress=False)
    rows = {row["name"]: row for row in benchmark.results["rows"]}
    assert rows["one"]["rounds"][0] == before["one"]["rounds"][0]
    assert len(rows["one"]["rounds"]) == 2
    assert rows["bad"]["status"] == "ok"

    # A row that this run does not have stays.
    benchmark = Benchmark(WORKLOAD, tmp_path)
    benchmark.resume()
    benchmark.run([fake_subject.subject("two")], progress=False)
    assert [row["name"] for row in benchmark.results["rows"]] == ["two", "one", "bad"]

    with pytest.raises(RequestError, match="measured with num_steps=3, not 4"):
        Benchmark(Workload(**{**vars(WORKLOAD), "num_steps": 4}), tmp_path).resume()


def test_weights_are_laid_out_once_where_parts_are_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "run_task", lambda task, environment: {"status": "ok", task.action: environment})
    assert Benchmark(WORKLOAD, tmp_path).probed["probe"] == {"TF_ONEDNN_ASSUME_FROZEN_WEIGHTS": "1"}


def test_rows_take_turns():
    rows = [fake_subject.subject("a", caches=True), fake_subject.subject("b")]
    order = [(turn.subject.name, turn.round, turn.kind) for turn in turns(rows, 2)]
    assert order == [("a", 1, "first"), ("a", 1, "primed"), ("b", 1, "only"), ("a", 2, "primed"), ("b", 2, "only")]


def test_a_task_travels_as_text():
    task = Task("measure", WORKLOAD, fake_subject.subject("a row", "crash", level=3), "work", runs=4)
    assert Task.from_json(task.to_json()) == task


def test_everybody_starts_from_the_same_noise(measure, tmp_path):
    measure(fake_subject.subject("one"), fake_subject.subject("two"))
    one, two = (np.load(tmp_path / "processes" / f"{name}-1-only" / "latents.npy") for name in ("one", "two"))
    assert np.array_equal(one, two)
    assert one.shape == (2, 8, 8, 4)


def test_each_process_starts_with_a_quiet_disk_and_its_files_in_memory(measure, monkeypatch, tmp_path):
    events = []
    real_run, real_open = run.run_task, pathlib.Path.open

    def run_task(task, environment):
        if task.action == "measure":
            events.append("process")
        return real_run(task, environment)

    def opened(path, mode="r", *arguments, **options):
        if mode == "rb" and path.name in ("weights", "kept"):
            events.append(path.name)
        return real_open(path, mode, *arguments, **options)

    monkeypatch.setattr(run, "run_task", run_task)
    monkeypatch.setattr(pathlib.Path, "open", opened)
    monkeypatch.setattr(run.os, "sync", lambda: events.append("sync"))
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "weights").write_bytes(b"as prepared")
    measure(fake_subject.subject("good", caches=True), first_rounds=1)
    first = events.index("process")
    before = [events[:first], events[first + 1 : -1]]
    assert events[-1] == "process"
    assert [some[0] for some in before] == ["sync", "sync"]
    assert [set(some[1:]) for some in before] == [{"weights"}, {"weights", "kept"}]
