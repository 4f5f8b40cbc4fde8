"""Jobs and ordinary runs as processes: ended by Ctrl-C, SIGTERM, kill -9, a full disk; and two at once."""

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
from PIL import Image

from kerasdiff import metadata
from kerasdiff.batch import read_rows
from kerasdiff.batch.manifest import MANIFEST

PROMPT = "a red circle on a blue background"
QUICK = ("--precision=float32", "--noprogress")
# In groups that are no larger than what is drawn together wherever the tests run.
SAMPLERS = ("euler", "euler_a", "ddim", "dpmpp_2m", "lcm")


def start(*arguments: object, env: dict[str, str] | None = None) -> subprocess.Popen:
    line = [sys.executable, "-W", "ignore", "-m", "kerasdiff", *map(str, arguments), *QUICK]
    environment = {**os.environ, **(env or {})}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finished(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def command(*arguments: object) -> tuple[int, str, str]:
    return finished(start(*arguments))


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Rows, and the folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    rows = rows_file(folder, 50)
    code, out, err = command(f"--prompts={rows}", f"--output_dir={folder / 'out'}")
    assert (code, err) == (0, "")
    assert out.startswith(f"{folder / 'out'}: 50 drawn, 0 were there, 0 failed (")
    check_whole(folder / "out", rows)
    return rows, folder / "out"


def test_kill_9_at_any_moment_loses_nothing(whole, tmp_path):
    rows, expected = whole
    folder = tmp_path / "out"
    moments = random.Random(3)
    for kill in range(20):
        process = start(f"--prompts={rows}", f"--output_dir={folder}")
        if kill % 5 < 2:
            time.sleep(moments.uniform(0, 3))  # while it starts
        else:
            before, new = len(pictures(folder)), moments.randrange(1, 4)
            wait_for(lambda before=before, new=new: len(pictures(folder)) >= before + new, process)
            time.sleep(moments.uniform(0, 0.05))
        assert process.poll() is None, "it ended by itself"
        process.kill()
        finished(process)
    assert 12 <= len(pictures(folder)) < 50
    code, out, _ = command(f"--prompts={rows}", f"--output_dir={folder}")
    assert (code, out.split()[1]) == (0, str(50 - int(out.split()[3])))
    check_whole(folder, rows)
    assert same_pixels(folder, expected)


def test_a_job_ends_in_order_and_goes_on(whole, tmp_path):
    rows, expected = whole
    folder = tmp_path / "out"
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        before = len(pictures(folder))
        process = start(f"--prompts={rows}", f"--output_dir={folder}")
        wait_for(lambda before=before: len(pictures(folder)) >= before + 3, process)
        process.send_signal(number)
        ended, out, err = finished(process)
        count = len(pictures(folder))
        assert (ended, out) == (code, "")
        assert err == f"kerasdiff: interrupted; {count} of 50 images are in {folder}, and the same command goes on\n"
        assert before + 3 <= count < 50
        assert len((folder / MANIFEST).read_text().splitlines()) == count
        assert not list(folder.glob(".*.part"))
    assert command(f"--prompts={rows}", f"--output_dir={folder}")[0] == 0
    check_whole(folder, rows)
    assert same_pixels(folder, expected)


def test_a_job_ends_at_once_while_it_loads(whole, tmp_path):
    rows, _ = whole
    folder = tmp_path / "out"
    process = start(f"--prompts={rows}", f"--output_dir={folder}")
    wait_for(lambda: (folder / ".lock").exists(), process)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    code, out, err = finished(process)
    assert (code, out) == (130, "")
    assert err == f"kerasdiff: interrupted; 0 of 50 images are in {folder}, and the same command goes on\n"


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
    arguments = [f"--prompts={rows}", f"--output_dir={folder}", "--num_steps=1", *QUICK]
    script = (
        "import resource, sys\n"
        "import kerasdiff.__main__ as program\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        f"sys.argv = ['kerasdiff', *{arguments!r}]\n"
        "program.run()\n"
    )
    full = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True)
    assert (full.returncode, full.stdout) == (1, "")
    assert full.stderr == (
        f"kerasdiff: cannot write to {folder}: the disk is full; 3 of 4 images are in {folder}, and the same command "
        "goes on when that is mended\n"
    )
    assert pictures(folder) == ["s0.png", "s1.png", "s2.png"]
    assert not list(folder.glob(".*.part"))
    code, out, err = command(*arguments[:3])
    assert (code, err) == (0, "")
    assert out.startswith(f"{folder}: 1 drawn, 3 were there, 0 failed")
    assert (folder / "large.png").stat().st_size > limit


def test_two_processes_do_not_draw_into_one_folder(whole, tmp_path):
    arguments = [f"--prompts={whole[0]}", f"--output_dir={tmp_path / 'out'}"]
    both = [finished(process) for process in [start(*arguments), start(*arguments)]]
    (first, second) = sorted(both)
    assert first[0] == 0
    assert second == (
        2,
        "",
        f"kerasdiff: {tmp_path / 'out'} is in use: another process draws into it; wait until it has ended\n",
    )
    check_whole(tmp_path / "out", whole[0])


def test_two_processes_share_an_empty_cache(tmp_path):
    cache = {"KERASDIFF_CACHE": str(tmp_path / "cache")}
    folders = [tmp_path / "one", tmp_path / "two"]
    both = [start(PROMPT, f"--output_dir={folder}", "--batch_size=2", "--num_steps=2", env=cache) for folder in folders]
    assert [finished(process)[::2] for process in both] == [(0, ""), (0, "")]
    assert same_pixels(*folders)
    assert pictures(folders[0]) == ["1_1.png", "1_2.png"]
