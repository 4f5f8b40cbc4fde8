"""python -m kerasdiff.bench, the whole of it, on the embedded model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import kerasdiff.bench.__main__ as bench
from kerasdiff.bench import report, subjects
from kerasdiff.bench.task import Workload
from kerasdiff.models.config import SD_V1, TINY

WORK = ("--model=tiny", "--weights=pretrained", "--num_steps=2", "--guidance_scale=3", "--runs=1", "--noprogress")
ONCE = ("--peer_precisions=float32", "--rounds=1", "--first_rounds=0")


def command(*arguments, **options):
    line = [sys.executable, "-W", "ignore", "-m", "kerasdiff.bench", *arguments]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def call(*arguments):
    process = command(*arguments)
    out, err = process.communicate()
    return process.returncode, out, err


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    arguments = (*WORK, *ONCE, "--configs=standard", "--peers=keras_cv,diffusers,onnxruntime", f"--output={folder}")
    code, out, err = call(*arguments)
    assert (code, err) == (0, "")
    return folder, out, json.loads((folder / "results.json").read_text()), arguments


def test_results(finished):
    folder, _, results, _ = finished
    found = {row["name"]: row for row in results["rows"]}
    assert list(found) == ["kerasdiff standard", "diffusers f32", "onnxruntime f32", "keras_cv"]
    absent = found.pop("keras_cv")
    assert (absent["status"], absent["reason"]) == (
        "absent",
        "KerasCV builds Stable Diffusion 1.x and 2.x at full size only",
    )
    assert results["absent"] == [{"name": "keras_cv", "reason": absent["reason"]}]
    for row in found.values():
        assert row["status"] == "ok", row["reason"]
        # The same work: that is what makes the times comparable.
        assert row["max_difference"] < 2
        # A single process of ours had nothing in its cache.
        kind = "_first" if row["name"].startswith("kerasdiff") else ""
        for key in (f"cold{kind}_s", "warm_s", "images_per_s", "peak_memory_gb"):
            assert row[key] > 0, key
        assert row["device_memory_gb"] is None or row["device_memory_gb"] > 0
        assert sum(row[f"cold{kind}_parts"].values()) == pytest.approx(row[f"cold{kind}_s"])
        assert row[f"cold{kind}_parts"]["import"] > 0
        assert row["ratio_warm"] is None  # there is no kerasdiff auto
        assert len(row["rounds"]) == 1
    with np.load(folder / "processes" / "kerasdiff_standard-1-primed" / "images.npz") as file:
        assert file["images"].std() > 10
    assert results["settings"]["num_steps"] == 2
    assert results["machine"]["versions"]["torch"]
    assert results["machine"]["cores"] >= 1
    assert results["work"]["gmac"] > 1
    least = results["ceilings"]["float32"]
    # As far as the bounds go, nothing takes less than its least time.
    assert 0 < least["step_s"] <= least["alone_s"]
    assert {part["kind"] for part in least["parts"]} == {"convolution", "linear", "attention"}
    assert set(least["gflops"]) == {"convolution", "product"}
    assert least["bandwidth_gb_s"] > 0


def test_table_and_plot(finished):
    folder, out, *_ = finished
    assert "tiny, pretrained weights, 1 x 128 x 128, 2 steps, guidance 3" in out
    for name in ("kerasdiff standard", "diffusers f32", "onnxruntime f32", "keras_cv: absent: KerasCV builds"):
        assert any(line.startswith(name) for line in out.splitlines()), name
    assert "| diffusers f32 |" in (folder / "table.md").read_text()
    with Image.open(folder / "plot.png") as picture:
        assert picture.size[0] > 1000
        assert np.asarray(picture.convert("L")).std() > 10


def test_json_has_the_results(finished):
    folder, _, results, arguments = finished
    code, out, err = call(*arguments, "--resume", "--json")
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert json.loads(out) == json.loads((folder / "results.json").read_text())
    assert [row["rounds"] for row in json.loads(out)["rows"]] == [row["rounds"] for row in results["rows"]]


def test_ctrl_c_keeps_what_is_finished_and_leaves_no_process(finished):
    folder, _, before, _ = finished
    process = command(
        *WORK,
        "--rows=kerasdiff standard,kerasdiff xla",
        "--rounds=1",
        "--first_rounds=0",
        "--resume",
        f"--output={folder}",
    )
    started = folder / "processes" / "kerasdiff_xla-1-primed" / "log.txt"
    while not started.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    while not (children := workers_of(process.pid)):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    assert len(children) == 1
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == f"kerasdiff.bench: interrupted; rerun with --resume to continue in {folder}\n"
    assert any(line.startswith("diffusers f32") for line in out.splitlines())
    after = json.loads((folder / "results.json").read_text())
    names = [row["name"] for row in after["rows"]]
    assert names == ["kerasdiff standard", "diffusers f32", "onnxruntime f32"]
    assert [row["rounds"] for row in after["rows"]] == [row["rounds"] for row in before["rows"][:3]]
    ends = time.monotonic() + 10
    while any(os.path.exists(f"/proc/{child}") for child in children):
        assert time.monotonic() < ends, "a process is left"
        time.sleep(0.05)


def workers_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return file.read().split()


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--configs=fastest", "configs=fastest: 'fastest' is unknown; known: standard, mixed, xla, xla_mixed, auto"),
        ("--configs=xla,xla", "configs=xla,xla has a duplicate name"),
        ("--peers=torch", "peers=torch: 'torch' is unknown"),
        ("--peer_precisions=int8", "peer_precisions=int8: 'int8' is unknown; known: float32, bfloat16, float16"),
        ("--rows=keras_cv", "rows=keras_cv: 'keras_cv' is unknown; known: kerasdiff standard, "),
        ("--model=sd-v1-5", "model='sd-v1-5' is unknown; did you mean 'sd-v1-4'?"),
        ("--weights=some", "weights='some' is unknown; choose 'pretrained' or 'random'"),
        ("--height=100", "height=100 is not a multiple of"),
        ("--num_steps=0", "num_steps=0 is out of range"),
        ("--batch_size=x", "flag --batch_size=x"),
        ("--runs=0", "runs=0 is out of range"),
        ("--rounds=0", "rounds=0 is out of range"),
        ("--timeout=0", "timeout=0 leaves no time for anything"),
        ("--guidance_scale=nan", "guidance_scale=nan is not finite"),
        ("--output=/proc/bench", "output=/proc/bench: No such file or directory"),
        ("--nosuchflag", "Unknown command line flag 'nosuchflag'"),
        ("more", "'more' is not a flag; usage: python -m kerasdiff.bench"),
    ],
)
def test_what_is_wrong_is_one_line(flag, said, tmp_path, capsys):
    assert bench.PROGRAM.call(bench.main, ["bench", f"--output={tmp_path}", flag]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.startswith("kerasdiff.bench: ")
    assert len(err.splitlines()) == 1


def test_nothing_at_all_to_measure(capsys):
    assert bench.PROGRAM.call(bench.main, ["bench", "--configs=", "--peers="]) == 2
    expected = "kerasdiff.bench: no row is left of configs, peers and rows: there is nothing to measure\n"
    assert capsys.readouterr() == ("", expected)


def test_checks_come_before_anything_heavy(tmp_path):
    script = (
        "import sys, kerasdiff.bench.__main__ as bench\n"
        "code = bench.PROGRAM.call(bench.main, ['bench', '--batch_size=0'])\n"
        "print(code, {'tensorflow', 'keras', 'torch', 'diffusers', 'openvino'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "2 set()\n"


def test_a_peer_that_is_not_installed_is_named(monkeypatch):
    here = subjects.importlib.util.find_spec
    monkeypatch.setattr(subjects.importlib.util, "find_spec", lambda name: None if name == "openvino" else here(name))
    found, absent = subjects.peer_subjects(list(subjects.PEERS), TINY, Workload(model="tiny"), gpu=False)
    assert absent["openvino"] == "openvino is not installed: pip install openvino"
    assert {"keras_cv", "openvino", "stable_diffusion_cpp"} == set(absent)
    assert all(row.name.startswith(("diffusers", "onnxruntime")) for row in found)


def test_rows_of_the_peers_at_full_size(monkeypatch):
    found, absent = subjects.peer_subjects(["keras_cv", "diffusers", "openvino"], SD_V1, Workload(), gpu=False)
    assert not absent
    assert [row.name for row in found] == [
        *("keras_cv standard", "keras_cv mixed", "keras_cv xla", "keras_cv xla_mixed"),
        *("diffusers f32", "diffusers bf16", "openvino f32", "openvino bf16"),
    ]
    monkeypatch.setattr(subjects.importlib.util, "find_spec", lambda name: name)
    found, _ = subjects.peer_subjects(["stable_diffusion_cpp"], SD_V1, Workload(), gpu=False)
    assert [row.name.split()[1] for row in found] == ["f32", "f16", "q8_0"]
    found, _ = subjects.peer_subjects(["stable_diffusion_cpp"], SD_V1, Workload(), gpu=False, precisions=["float32"])
    assert [row.name.split()[1] for row in found] == ["f32"]
    monkeypatch.setattr(subjects.importlib.util, "find_spec", lambda name: None)
    _, absent = subjects.peer_subjects(["stable_diffusion_cpp"], SD_V1, Workload(), gpu=False)
    assert absent["stable_diffusion_cpp"].endswith("not installed: pip install stable-diffusion-cpp-python")
    monkeypatch.undo()
    _, absent = subjects.peer_subjects(["keras_cv"], SD_V1, Workload(height=192), gpu=False)
    assert absent == {"keras_cv": "KerasCV draws multiples of 128 pixels only"}
    assert [row.name for row in subjects.peer_subjects(["diffusers"], SD_V1, Workload(), gpu=True)[0]] == [
        "diffusers f32",
        "diffusers f16",
    ]


def test_a_table_of_what_was_interrupted_early_can_be_written():
    results = {"rows": [], "settings": {**vars(Workload())}, "machine": {}}
    assert "sd-v1-4" in report.table(results)
