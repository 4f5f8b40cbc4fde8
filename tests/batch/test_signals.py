"""Jobs and ordinary runs as processes: ended by Ctrl-C, SIGTERM, kill -9, a full disk; and two at once.

Most of these jobs are drawn by a stub that starts without TensorFlow, as what is tested is files and signals.
"""

from __future__ import annotations

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import stub_generator
from PIL import Image

from kerasdiff import metadata
from kerasdiff.batch import read_rows
from kerasdiff.batch.manifest import MANIFEST

PROMPT = "a red circle on a blue background"
QUICK = ("--precision=float32", "--noprogress")
# In groups that are no larger than what is drawn together wherever the tests run.
SAMPLERS = ("euler", "euler_a", "ddim", "dpmpp_2m", "lcm")


# Of the stub's steps, so that a signal finds it in the middle of a job.
SECONDS = 0.02


def process(*line: object, env: dict[str, str] | None = None) -> subprocess.Popen:
    command = [sys.executable, "-W", "ignore", *map(str, line)]
    environment = {**os.environ, **(env or {})}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def start(*arguments: object, env: dict[str, str] | None = None) -> subprocess.Popen:
    return process("-m", "kerasdiff", *arguments, *QUICK, env=env)


def start_real(rows: pathlib.Path, folder: pathlib.Path) -> subprocess.Popen:
    return start(f"--prompts={rows}", f"--output_dir={folder}")


def start_stub(rows: pathlib.Path, folder: pathlib.Path, *more: object) -> subprocess.Popen:
    return process(stub_generator.__file__, rows, folder, *(more or (SECONDS,)), "--noprogress")


def finished(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def rows_file(folder: pathlib.Path, count: int) -> pathlib.Path:
    path = folder / "rows.jsonl"
    rows = [
        {
            "id": f"r{number:02}",
            "prompt": f"{PROMPT} {number}",
            "sampler": SAMPLERS[number % 5],
            "num_steps": 2 + number % 2,
        }
        for number in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def pictures(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.glob("[!.]*.png"))


def wait_for(done, process: subprocess.Popen) -> None:
    while not done() and process.poll() is None:
        time.sleep(0.002)


def wait_for_more(folder: pathlib.Path, count: int, process: subprocess.Popen) -> None:
    """Until a process has drawn so many pictures more, or has ended."""
    before = len(pictures(folder))
    wait_for(lambda: len(pictures(folder)) >= before + count, process)


def check_whole(folder: pathlib.Path, rows: pathlib.Path) -> None:
    """Every row has its picture, one line, and nothing else is there."""
    wanted = {f"{row.id}.png": row for row in read_rows(rows)}
    assert sorted(os.listdir(folder)) == sorted([".lock", "job.json", MANIFEST, *wanted])
    lines = [json.loads(line) for line in (folder / MANIFEST).read_text().splitlines()]
    assert sorted(line["file"] for line in lines) == sorted(wanted)
    for name, row in wanted.items():
        request = metadata.read(folder / name).request
        index = request.prompts.index(row.prompt)
        assert request.seeds[index] == row.first_seed
        with Image.open(folder / name) as picture:
            assert np.asarray(picture).shape == (128, 128, 3)


def same_pixels(folder: pathlib.Path, other: pathlib.Path) -> bool:
    return all(
        np.array_equal(np.asarray(Image.open(folder / name)), np.asarray(Image.open(other / name)))
        for name in pictures(other)
    )


@pytest.fixture(scope="module", params=[(start_stub, 50, 17), (start_real, 12, 3)], ids=["stub", "real"])
def job(request, tmp_path_factory):
    """How a job is started, its rows, how often to kill it, and the folder of a run that nothing interrupted."""
    begin, count, kills = request.param
    folder = tmp_path_factory.mktemp("whole")
    rows = rows_file(folder, count)
    code, out, err = finished(begin(rows, folder / "out"))
    assert (code, err) == (0, "")
    assert out.startswith(f"{folder / 'out'}: {count} generated, 0 already there, 0 failed (")
    check_whole(folder / "out", rows)
    return begin, rows, kills, folder / "out"


@pytest.fixture
def rows(tmp_path):
    return rows_file(tmp_path, 50)


def test_kill_9_at_any_moment_loses_nothing(job, tmp_path):
    begin, rows, kills, expected = job
    folder, moments, count = tmp_path / "out", random.Random(3), len(pictures(expected))
    for kill in range(kills):
        process = begin(rows, folder)
        if kill % 5 == 0:  # while it starts
            time.sleep(moments.uniform(0, 0.5))
        else:
            wait_for_more(folder, moments.randrange(1, 3), process)
            time.sleep(moments.uniform(0, 0.05))
        assert process.poll() is None, "it ended by itself"
        process.kill()
        finished(process)
    assert kills - 1 - kills // 5 <= len(pictures(folder)) < count
    code, out, _ = finished(begin(rows, folder))
    assert (code, out.split()[1]) == (0, str(count - int(out.split()[3])))
    check_whole(folder, rows)
    assert same_pixels(folder, expected)


def test_a_job_ends_in_order_and_resumes(rows, tmp_path):
    folder = tmp_path / "out"
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
        before = len(pictures(folder))
        process = start_stub(rows, folder)
        wait_for_more(folder, 3, process)
        process.send_signal(number)
        ended, out, err = finished(process)
        count = len(pictures(folder))
        assert (ended, out) == (code, "")
        assert (
            err == f"kerasdiff: interrupted; {count} of 50 images are in {folder}; rerun the same command to resume\n"
        )
        assert before + 3 <= count < 50
        assert len((folder / MANIFEST).read_text().splitlines()) == count
        assert not list(folder.glob(".*.part"))
    assert finished(start_stub(rows, folder))[0] == 0
    check_whole(folder, rows)
    finished(start_stub(rows, tmp_path / "whole"))
    assert same_pixels(folder, tmp_path / "whole")


def test_a_job_ends_at_once_while_it_loads(rows, tmp_path):
    folder = tmp_path / "out"
    process = start_real(rows, folder)
    mapped = pathlib.Path(f"/proc/{process.pid}/maps")
    wait_for(lambda: "libtensorflow" in mapped.read_text(), process)
    process.send_signal(signal.SIGINT)
    code, out, err = finished(process)
    assert (code, out) == (130, "")
    assert err == f"kerasdiff: interrupted; 0 of 50 images are in {folder}; rerun the same command to resume\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_second_signal_ends_a_process_in_which_a_library_hangs(number, code):
    script = (
        "import ctypes\n"
        "from kerasdiff.cli.signals import SignalHandler\n"
        "handler = SignalHandler()\n"
        "handler.install()\n"
        "handler.defer()\n"
        "mutex, lock = ctypes.create_string_buffer(256), ctypes.CDLL(None).pthread_mutex_lock\n"
        "lock(mutex)\n"
        "print('hangs', flush=True)\n"
        "lock(mutex)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "hangs\n"
        process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.send_signal(number)
        assert process.wait(20) == code


HANGS = """
import ctypes, pathlib, sys
from kerasdiff.atomic_write import atomic_write
from kerasdiff.cli import signals
signals.GRACE = 0.5
handler = signals.SignalHandler()
handler.install("p")
handler.before_exit(lambda: pathlib.Path(sys.argv[2], "note").unlink())
pathlib.Path(sys.argv[2], "note").touch()
if sys.argv[1] == "deferred":
    handler.defer()
mutex, lock = ctypes.create_string_buffer(256), ctypes.CDLL(None).pthread_mutex_lock
lock(mutex)
with atomic_write(pathlib.Path(sys.argv[2]) / "half.png") as file:
    print("hangs", flush=True)
    lock(mutex)
"""


@pytest.mark.parametrize(("number", "mode"), [(signal.SIGINT, "deferred"), (signal.SIGTERM, "at once")])
def test_one_signal_ends_a_process_in_which_a_library_hangs_and_leaves_nothing_half_written(tmp_path, number, mode):
    with process("-c", HANGS, mode, tmp_path) as hanging:
        assert hanging.stdout.readline() == "hangs\n"
        assert len(os.listdir(tmp_path)) == 2
        time.sleep(0.3)  # until it does
        hanging.send_signal(number)
        assert hanging.wait(20) == 128 + number
        told = "p: interrupted in the middle of a step; what was finished before is kept\n"
        assert hanging.stderr.read() == told
    assert os.listdir(tmp_path) == []


def test_who_hears_a_signal_in_time_may_take_longer_to_end():
    script = """
import os, signal, time
from kerasdiff.cli import signals
signals.GRACE = 0.3
for patient in (False, True):
    handler = signals.SignalHandler()
    handler.install()
    handler.defer(patient)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.7 if patient else 0.1)
    try:
        handler.check()
    except KeyboardInterrupt:
        time.sleep(0.7)
print("ended")
"""
    assert finished(process("-c", script)) == (0, "ended\n", "")


def test_importing_leaves_signals_alone():
    script = (
        "import signal\n"
        "before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]\n"
        "import kerasdiff.__main__, kerasdiff.batch, kerasdiff.cli.program\n"
        "print([signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "True\n"


def test_ctrl_c_keeps_the_finished_images_of_an_ordinary_run(tmp_path):
    target = tmp_path / "out.png"
    process = start(PROMPT, "--batch_size=300", "--num_steps=1", "--exact", "--seed=7", f"--output={target}")
    wait_for(lambda: (tmp_path / "out_2.png").exists(), process)
    process.send_signal(signal.SIGINT)
    code, out, err = finished(process)
    count = len(pictures(tmp_path))
    assert (code, err) == (130, "kerasdiff: interrupted\n")
    assert 2 <= count < 300
    assert out.splitlines() == [f"{tmp_path / f'out_{n}.png'} (seed {6 + n})" for n in range(1, count + 1)]
    assert metadata.read(tmp_path / f"out_{count}.png").request.seeds[count - 1] == 6 + count
    assert len(os.listdir(tmp_path)) == count


def test_a_disk_that_is_really_full(tmp_path):
    rows, folder, limit = tmp_path / "rows.csv", tmp_path / "out", 12_000
    small = [f"s{number},{PROMPT},32,32\n" for number in range(3)]
    rows.write_text("id,prompt,height,width\n" + "".join(small) + f"large,{PROMPT},,\n")
    assert finished(start_stub(rows, folder, 0, limit)) == (
        1,
        "",
        f"kerasdiff: cannot write to {folder}: the disk is full; 3 of 4 images are in {folder}; fix this and rerun the "
        "same command to resume\n",
    )
    assert pictures(folder) == ["s0.png", "s1.png", "s2.png"]
    assert not list(folder.glob(".*.part"))
    code, out, err = finished(start_stub(rows, folder))
    assert (code, err) == (0, "")
    assert out.startswith(f"{folder}: 1 generated, 3 already there, 0 failed")
    assert (folder / "large.png").stat().st_size > limit


def test_two_processes_do_not_draw_into_one_folder(rows, tmp_path):
    folder = tmp_path / "out"
    first = start_stub(rows, folder)
    wait_for_more(folder, 1, first)
    first.send_signal(signal.SIGSTOP)  # or it might be done before the other one has started
    refused = f"kerasdiff: {folder} is locked by another process; wait for it to finish\n"
    assert finished(start_stub(rows, folder)) == (2, "", refused)
    first.send_signal(signal.SIGCONT)
    assert finished(first)[0] == 0
    check_whole(folder, rows)


@pytest.mark.slow
def test_two_processes_share_an_empty_cache(tmp_path):
    cache = {"KERASDIFF_CACHE": str(tmp_path / "cache")}
    folders = [tmp_path / "one", tmp_path / "two"]
    both = [start(PROMPT, f"--output_dir={folder}", "--batch_size=2", "--num_steps=2", env=cache) for folder in folders]
    assert [finished(process)[::2] for process in both] == [(0, ""), (0, "")]
    assert same_pixels(*folders)
    assert pictures(folders[0]) == ["1_1.png", "1_2.png"]
