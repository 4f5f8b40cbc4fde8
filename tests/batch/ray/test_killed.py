"""python -m kerasdiff.bulk as a process: killed, ended in order, begun again; and what it refuses."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import random
import shlex
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml
from filelock import FileLock
from PIL import Image

import kerasdiff
from kerasdiff.batch import read_rows
from kerasdiff.cli.bulk_command import PROGRAM, main

COUNT = 70


def start(*arguments: object) -> subprocess.Popen[str]:
    """In a group of its own, as a terminal's Ctrl-C goes to a whole group."""
    line = [sys.executable, "-W", "ignore", "-m", "kerasdiff.bulk", *map(str, arguments), "--precision=float32"]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finished(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def command(*arguments: object) -> tuple[int, str, str]:
    return finished(start(*arguments))


def call(*arguments: object) -> int:
    """In this process."""
    return PROGRAM.call(main, ["bulk", *map(str, arguments)])


def rows_file(folder: pathlib.Path, count: int) -> pathlib.Path:
    path = folder / "rows.csv"
    lines = [f"r{number:02},a red circle {number},{2 + number % 2}" for number in range(count)]
    path.write_text("\n".join(["id,prompt,num_steps", *lines]))
    return path


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return rows_file(tmp_path_factory.mktemp("rows"), COUNT)


def pictures(folder: pathlib.Path) -> dict[str, np.ndarray]:
    found = {}
    for path in folder.glob("[!.]*.png"):
        with Image.open(path) as picture:
            found[path.name] = np.asarray(picture).astype(int)
    return found


def workers() -> list[psutil.Process]:
    """Processes that draw for a job of these tests, whose cluster has their cache in its environment."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "MapWorker" in " ".join(process.info["cmdline"] or ()):
            with contextlib.suppress(psutil.Error):
                if process.parent().environ().get("KERASDIFF_CACHE") == os.environ["KERASDIFF_CACHE"]:
                    found.append(process)
    return found


def wait_for_end_of_workers() -> None:
    """Workers of a killed driver draw on until they find out."""
    until = time.monotonic() + 60
    while workers() and time.monotonic() < until:
        time.sleep(0.05)
    assert not workers(), "somebody still draws"


@pytest.mark.parametrize(
    ("count_of_rows", "workers_used", "ends"),
    [
        (24, 1, ("kill",)),
        pytest.param(COUNT, 2, ("kill at the start", "kill", "Ctrl-C", "kill", "terminate"), marks=pytest.mark.slow),
    ],
    ids=["once", "five times"],
)
def test_killed_and_ended_at_random_moments_all_images_are_there_once(
    tmp_path, tiny, count_of_rows, workers_used, ends
):
    rows, folder, moments = rows_file(tmp_path, count_of_rows), tmp_path / "out", random.Random(4)
    arguments = (f"--prompts={rows}", f"--output={folder}", f"--workers={workers_used}")

    def count() -> int:
        return len(list(folder.glob("[!.]*.png")))

    for end in ends:
        if not end.startswith("kill"):
            wait_for_end_of_workers()
        process = start(*arguments)
        before, new = count(), moments.randrange(1, 8)
        if end == "kill at the start":
            time.sleep(moments.uniform(1, 6))
        while end != "kill at the start" and count() < before + new and process.poll() is None:
            time.sleep(0.01)
        assert process.poll() is None, finished(process)
        if end == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)
        elif end == "terminate":
            process.terminate()
        else:
            process.kill()
        code, out, err = finished(process)
        if end in ("Ctrl-C", "terminate"):
            said = f"kerasdiff.bulk: interrupted; finished images are in {folder}; rerun the same command to resume\n"
            assert (code, out, err) == (130 if end == "Ctrl-C" else 143, "", said)
            wait_for_end_of_workers()
    code, out, err = command(*arguments, "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert (told["type"], told["drawn"] + told["kept"], told["failed"]) == ("summary", count_of_rows, 0)
    assert told["kept"] >= len(ends)
    table = pd.read_parquet(folder / "manifest")
    assert sorted(table["file"]) == sorted(f"{row.id}.png" for row in read_rows(rows))
    found = pictures(folder)
    assert len(found) == count_of_rows
    for row in read_rows(rows):
        alone = tiny.generate(row.prompt, seed=row.first_seed, num_steps=row.num_steps, progress=False)[0]
        assert np.abs(found[f"{row.id}.png"] - alone).max() <= 1


@pytest.mark.slow
def test_a_killed_job_of_tar_files_has_every_image_once(rows, tmp_path):
    folder = tmp_path / "out"
    layout = ("--shards", "--shard_images=6", "--workers=1")
    process = start(f"--prompts={rows}", f"--output={folder}", *layout)
    while len(list((folder / "shards").glob("[!.]*.tar"))) < 2 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    finished(process)
    code, out, err = command(f"--prompts={rows}", f"--output={folder}", *layout)
    assert (code, err) == (0, "")
    assert out.startswith(f"{folder}: ")
    names = []
    for path in (folder / "shards").iterdir():
        with tarfile.open(path) as tar:
            names += [name for name in tar.getnames() if name.endswith(".png")]
    assert sorted(names) == [f"r{number:02}.png" for number in range(COUNT)]
    table = pd.read_parquet(folder / "manifest")
    assert sorted(file.partition("/")[2] for file in table["file"]) == sorted(names)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("rows.csv", "id,text\na,b", "column='text' is unknown"),
        ("rows.csv", "id,seed\na,1", "column 'prompt' is missing"),
        ("rows.csv", "id,prompt\na,b\na,c", "line 3: duplicate id 'a'"),
        (
            "rows.jsonl",
            '{"prompt": "a"}\n' * 4710 + '{"prompt": "a", "sampler": "eular"}',
            "line 4711: sampler=",
        ),
        ("rows.csv", "id,prompt,size\na,b,512", "line 2: size='512' is not of the form WIDTHxHEIGHT"),
        ("rows.csv", "id,prompt,size,width\na,b,128x128,128", "line 2: give either size or height and width, not both"),
        ("rows.csv", "id,prompt,size\na,b,129x128", "row 'a': width=129"),
        ("rows.parquet", "no such thing", "is not Parquet, or corrupt"),
        ("rows.xlsx", "", "the name must end in one of"),
    ],
)
def test_bad_rows_are_one_line_before_anything_is_begun(name, text, said, tmp_path, capfd):
    (tmp_path / name).write_text(text)
    code = call(f"--prompts={tmp_path / name}", f"--output={tmp_path / 'out'}")
    out, err = capfd.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert not (tmp_path / "out").exists()


def test_what_is_wrong_with_flags_and_folders_is_one_line(rows, tmp_path, capfd):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    for arguments, said in (
        (["a prompt"], "prompts come from the file of --prompts"),
        ([f"--output={tmp_path}"], "--prompts is missing; usage: "),
        ([f"--prompts={rows}"], "--output is missing; usage: "),
        ([f"--prompts={tmp_path / 'none.csv'}", f"--output={tmp_path / 'a'}"], "cannot read rows from"),
        ([f"--prompts={rows}", f"--output={tmp_path / 'full'}"], "is not empty and is not a job folder"),
        ([f"--prompts={rows}", f"--output={tmp_path / 'no' / 'a'}"], "there is no folder"),
        ([f"--prompts={rows}", f"--output={tmp_path / 'a'}", "--workers=0"], "workers=0 is out of range"),
        ([f"--prompts={rows}", f"--output={tmp_path / 'a'}", "--model=nothing"], "model='nothing' is unknown"),
        ([f"--prompts={rows}", f"--output={tmp_path / 'a'}", "--seed=-1"], "seed=-1 is out of range"),
        ([f"--prompts={rows}", f"--output={tmp_path / 'a'}", "--shard_images=0"], "shard_images=0 is out of range"),
    ):
        assert call(*arguments) == 2
        out, err = capfd.readouterr()
        assert (out, err.count("\n")) == ("", 1), err
        assert said in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_a_folder_in_use_is_refused(rows, tmp_path, capfd):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"):
        assert call(f"--prompts={rows}", f"--output={tmp_path / 'out'}") == 2
    assert "is locked by another process" in capfd.readouterr().err


def test_parquet_is_read_as_csv_is(tmp_path, monkeypatch):
    rows = [{"id": "a", "prompt": "x", "seed": 2**63, "size": "192x128"}, {"id": "b", "prompt": "y"}]
    pd.DataFrame(rows).astype({"seed": "UInt64"}).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "rows.csv").write_text(f"id,prompt,seed,size\na,x,{2**63},192x128\nb,y,,\n")
    first, second = read_rows(tmp_path / "rows.parquet")
    assert (first, second) == read_rows(tmp_path / "rows.csv")
    assert (first.seed, first.width, first.height, second.seed) == (2**63, 192, 128, None)
    pd.DataFrame([{"id": "a", "prompt": "x", "num_steps": 0}]).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(kerasdiff.RequestError, match=r"rows.parquet row 1: num_steps=0"):
        read_rows(tmp_path / "rows.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        kerasdiff.RequestError, match=r"needs pyarrow, which is not installed: pip install 'kerasdiff\[ray"
    ):
        read_rows(tmp_path / "rows.parquet")


def test_the_job_for_kubernetes_is_one_of_ours():
    """It was held against KubeRay's own schema once; what is ours in it is held here."""
    job = yaml.safe_load((pathlib.Path(__file__).parents[3] / "docs" / "kuberay.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert {"headGroupSpec", "workerGroupSpecs", "rayVersion"} == set(cluster)
    line = shlex.split(job["spec"]["entrypoint"])
    assert line[:3] == ["python", "-m", "kerasdiff.bulk"]
    PROGRAM.parse(line[2:])
    (workers,) = cluster["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    (head,) = cluster["headGroupSpec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    mounts = {one["mountPath"] for one in (*container["volumeMounts"], *head["volumeMounts"])}
    assert {str(pathlib.PurePath(flag.partition("=")[2]).parent) for flag in line[3:5:2]} <= mounts
