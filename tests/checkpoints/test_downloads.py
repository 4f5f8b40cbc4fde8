"""Downloads that go wrong: each heals or is one line, and none hangs. Each run is a process of its own."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import shutil
import signal
import threading
import time

import checkpoints
import pytest
from fake_hub import COMMIT, GUARD, OPEN, line_of, serve, start, start_opening

OPENED = "org/name (32, 64) False"
UNET = "unet/diffusion_pytorch_model.safetensors"
# What happens to every request for weights -> what the line says of it; those that take longest begin first.
FAULTS = {
    "stall": "ReadTimeout",
    "429": "429 Too Many Requests",
    "short": "without sending complete message body",
    "close": "Server disconnected",
    "404": ".safetensors",
    "500": ".safetensors",
    "429 Retry-After: 3600": "asks to wait 3600 s",
    '429 RateLimit: "resolvers";r=0;t=3600': "asks to wait 3600 s",
}
FETCH = """
import hashlib, sys
from kerasdiff.errors import ModelError
from kerasdiff.checkpoints import hub
try:
    print(hashlib.sha256(hub.fetch_file("org/name", *sys.argv[1:]).read_bytes()).hexdigest())
except ModelError as error:
    print("ModelError", error)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("hub")
    return checkpoints.save(checkpoints.pipeline("v1", made / "vocabulary"), made / "model")


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """A repository with one file that the library reads in three pieces, and its hash."""
    made = tmp_path_factory.mktemp("single")
    content = os.urandom(1024) * 22_000
    (made / "net.h5").write_bytes(content)
    return made, hashlib.sha256(content).hexdigest()


@pytest.fixture(scope="module", autouse=True)
def outcomes(folder, tmp_path_factory):
    """Fault -> a future of the line with it, where it was looked for, and the line without it afterwards.

    Most of their time is waiting, which goes on while other tests run.
    """

    def outcome(fault):
        home = tmp_path_factory.mktemp("home")
        with serve(folder, fault) as (endpoint, _):
            line = line_of(start_opening(home, endpoint, "org/name"))
        with serve(folder) as (healthy, _):
            return line, endpoint, home, line_of(start_opening(home, healthy, "org/name"))

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        yield {fault: pool.submit(outcome, fault) for fault in FAULTS}


def test_a_hub_that_never_answers_is_given_up(folder, tmp_path):
    with serve(folder) as (endpoint, _):
        line = line_of(start_opening(tmp_path, endpoint, "org/silent", HF_HUB_ETAG_TIMEOUT="1"))
    assert line.startswith("ModelError org/silent is not complete in the cache")
    assert "ReadTimeout" in line


def test_a_hub_that_asks_to_wait_a_little_is_waited_for(folder, tmp_path):
    with serve(folder, "429 Retry-After: 1", times=1) as (endpoint, _):
        assert line_of(start_opening(tmp_path, endpoint, "org/name")) == OPENED


def test_a_hub_that_is_too_busy_does_not_matter_once_a_model_is_there(folder, single, tmp_path):
    files, sha256 = single
    busy = "429 Retry-After: 3600"
    for place, command, expected in (
        (folder, ("-c", OPEN, "org/name", "{}"), OPENED),
        (files, ("-c", FETCH, "net.h5", sha256), sha256),
    ):
        with serve(place) as (endpoint, _):
            assert line_of(start(tmp_path / expected, endpoint, *command)) == expected
        with serve(place, busy, closed=True) as (endpoint, _):
            assert line_of(start(tmp_path / expected, endpoint, *command)) == expected
            assert "asks to wait 3600 s" in line_of(start(tmp_path / "empty", endpoint, *command))


def test_a_file_that_breaks_off_goes_on_where_it_stopped(single, tmp_path):
    folder, sha256 = single
    with serve(folder, "short", times=1) as (endpoint, asked):
        assert line_of(start(tmp_path, endpoint, "-c", FETCH, "net.h5", sha256)) == sha256
    first, second = [line for line in asked if line.startswith("GET org/name/resolve")]
    assert "bytes=" not in first
    assert int(second.partition("bytes=")[2].removesuffix("-")) > 0


def test_a_file_that_always_breaks_off_and_cannot_go_on_is_given_up(single, tmp_path):
    folder, sha256 = single
    with serve(folder, "short", ranges=False) as (endpoint, asked):
        line = line_of(start(tmp_path, endpoint, "-c", FETCH, "net.h5", sha256))
    assert line.startswith("ModelError org/name/net.h5 is not complete in the cache")
    assert "broke off 6 times" in line
    assert len([line for line in asked if line.startswith("GET org/name/resolve")]) == 7


def test_a_flipped_byte_is_downloaded_again(single, tmp_path):
    folder, sha256 = single
    command = ("-c", FETCH, "net.h5", sha256)
    with serve(folder, "flip", times=1) as (endpoint, asked):
        assert line_of(start(tmp_path / "once", endpoint, *command)) == sha256
        assert len([line for line in asked if line.startswith("GET org/name/resolve")]) == 2
    with serve(folder, "flip") as (endpoint, _):
        line = line_of(start(tmp_path, endpoint, *command))
        assert f"is not the published org/name/net.h5, even after a second download from {endpoint}" in line
        assert line.endswith("model='tiny' needs no download")
    # The damaged file stays in the cache and is refused there, too.
    line = line_of(start(tmp_path, endpoint, *command, HF_HUB_OFFLINE="1"))
    assert line.startswith("ModelError org/name/net.h5 is not complete in the cache")
    with serve(folder) as (endpoint, asked):
        assert line_of(start(tmp_path, endpoint, *command)) == sha256
        # One that is damaged after it was found right is found out as well.
        (blob,) = (path for path in (tmp_path / "cache").rglob("blobs/*") if path.is_file())
        blob.write_bytes(b"\0" * blob.stat().st_size)
        asked.clear()
        assert line_of(start(tmp_path, endpoint, *command)) == sha256
        assert len([line for line in asked if line.startswith("GET org/name/resolve")]) == 1
    assert line_of(start(tmp_path, endpoint, *command, HF_HUB_OFFLINE="1")) == sha256


def test_two_processes_download_a_model_once(folder, tmp_path):
    gate = threading.Event()
    with serve(folder, gate=gate) as (endpoint, asked):
        processes = [
            start_opening(tmp_path, endpoint, "org/name", HF_HUB_DOWNLOAD_TIMEOUT=str(GUARD)) for _ in range(2)
        ]
        # No weights are given out before both have begun.
        wait_for(lambda: asked.count("GET api/models/org/name/revision/main") >= 2)
        gate.set()
        assert [line_of(process) for process in processes] == [OPENED, OPENED]
    fetched = [line for line in asked if line.startswith("GET org/name/resolve")]
    assert sorted(fetched) == sorted(set(fetched))
    assert_complete(folder, tmp_path)


def test_a_process_that_was_killed_leaves_nothing_that_counts_as_complete(folder, tmp_path):
    weights, settings = (names(folder, end) for end in ("*.safetensors", "*.json"))
    with serve(folder, "stall") as (endpoint, asked):
        process = start_opening(tmp_path, endpoint, "org/name")
        wait_for(lambda: {line.split("/", 4)[-1] for line in asked if line.startswith("GET")} >= set(weights))
        wait_for(lambda: all((snapshot(tmp_path) / name).is_file() for name in settings))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=GUARD)
    offline = start_opening(tmp_path, endpoint, "org/name", HF_HUB_OFFLINE="1")
    unreachable = start_opening(tmp_path, endpoint, "org/name")
    for line in (line_of(offline), line_of(unreachable)):
        assert line.startswith("ModelError org/name is not complete in the cache")
        assert all(name in line for name in weights)
    with serve(folder) as (endpoint, _):
        assert line_of(start_opening(tmp_path, endpoint, "org/name")) == OPENED
    assert_complete(folder, tmp_path)


def test_an_incomplete_folder_is_refused_where_the_library_gives_it_out(folder, tmp_path):
    with serve(folder) as (endpoint, _):
        assert line_of(start_opening(tmp_path, endpoint, "org/name")) == OPENED
    # As older versions of it leave the cache: without the list of what belongs to the repository.
    shutil.rmtree(snapshot(tmp_path).parents[1] / "trees", ignore_errors=True)
    (snapshot(tmp_path) / UNET).unlink()
    line = line_of(start_opening(tmp_path, endpoint, "org/name", HF_HUB_OFFLINE="1"))
    assert line.startswith("ModelError org/name is not complete in the cache: ")
    assert "/unet has no diffusion_pytorch_model.safetensors" in line
    assert "its download was not finished" in line


def test_a_cache_that_cannot_be_written_is_one_line(folder, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with serve(folder) as (endpoint, _):
        line = line_of(start_opening(tmp_path / "file", endpoint, "org/name"))
    assert line.startswith(f"ModelError org/name is not complete in the cache ({tmp_path}/file/cache/hub)")
    assert "NotADirectoryError" in line


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_stays_is_one_line_and_the_next_run_heals_it(fault, outcomes):
    line, endpoint, home, after = outcomes[fault].result(GUARD)
    assert line.startswith(f"ModelError org/name is not complete in the cache ({home}/cache/hub)")
    assert f"cannot be downloaded from {endpoint}" in line
    assert FAULTS[fault] in line
    assert line.endswith("; model='tiny' needs no download")
    assert after == OPENED


def wait_for(condition):
    end = time.monotonic() + GUARD
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def snapshot(home):
    return home / "cache" / "hub" / "models--org--name" / "snapshots" / COMMIT


def names(folder, pattern):
    found = [str(path.relative_to(folder)) for path in folder.rglob(pattern)]
    assert len(found) > 2
    return found


def assert_complete(folder, home):
    for name in names(folder, "*.safetensors"):
        assert (snapshot(home) / name).read_bytes() == (folder / name).read_bytes()
