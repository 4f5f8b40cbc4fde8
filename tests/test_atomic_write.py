"""A file or folder that is written is there as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys

import pytest

from kerasdiff.atomic_write import (
    atomic_path,
    atomic_write,
    beginning,
    check_folder,
    check_name,
    final_name,
    remove_unfinished,
)


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"one")
    with atomic_write(path) as file:
        file.write(b"two")
        file.flush()
        assert path.read_bytes() == b"one"
        (partial,) = set(os.listdir(tmp_path)) - {"a.json"}
        assert final_name(partial) == "a.json"
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_is_left_of_what_failed(tmp_path, error):
    def write_half():
        with atomic_write(tmp_path / "a.json") as file:
            file.write(b"half")
            raise error

    def make_half():
        with atomic_path(tmp_path / "folder") as partial:
            partial.mkdir()
            (partial / "half").write_bytes(b"half")
            raise error

    for fails in (write_half, make_half):
        with pytest.raises(type(error)):
            fails()
        assert os.listdir(tmp_path) == []


def test_two_writers_at_once_do_not_share_a_file(tmp_path):
    path = tmp_path / "a.json"
    with atomic_write(path, sync=False) as one, atomic_write(path, sync=False) as other:
        one.write(b"one")
        other.write(b"another")
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["a.json"]


def test_the_disk_is_waited_for_before_the_file_gets_its_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append(os.listdir(tmp_path)))
    with atomic_write(tmp_path / "cached", sync=False):
        pass
    assert synced == []
    (tmp_path / "cached").unlink()
    with atomic_write(tmp_path / "image"):
        pass
    ((name,),) = synced
    assert final_name(name) == "image"


def test_permissions_are_those_asked_for_less_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        for name, mode in (("all", 0o666), ("own", 0o600)):
            with atomic_write(tmp_path / name, mode=mode):
                pass
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("all", "own")]
    assert modes == [0o644, 0o600]


def test_a_folder_appears_with_all_its_files(tmp_path):
    with atomic_path(tmp_path / "model") as partial:
        partial.mkdir()
        (partial / "config.json").write_text("{}")
        assert not (tmp_path / "model").exists()
    assert os.listdir(tmp_path) == ["model"]
    assert os.listdir(tmp_path / "model") == ["config.json"]


@pytest.mark.parametrize("name", ["x" * 255, "x" * 251 + ".png", "\u00e9" * 127, "\U0001f600" * 63, "a.b.json"])
def test_any_name_that_the_system_takes_can_be_written(tmp_path, name):
    with atomic_write(tmp_path / name) as file:
        file.write(b"one")
        (partial,) = os.listdir(tmp_path)
        assert final_name(partial) == beginning(name)
        assert name.startswith(beginning(name))
    assert os.listdir(tmp_path) == [name]
    check_name(tmp_path / name)


def test_a_name_that_is_too_long_is_an_error_of_the_system(tmp_path):
    with pytest.raises(OSError, match="File name too long"):
        check_name(tmp_path / ("x" * 256))
    with pytest.raises(OSError, match="File name too long"), atomic_write(tmp_path / ("x" * 256)):
        pass
    with pytest.raises(IsADirectoryError, match="there is a folder of this name"):
        check_name(tmp_path)
    with pytest.raises(FileNotFoundError):
        check_folder(tmp_path / "nowhere")
    check_folder(tmp_path)
    assert os.listdir(tmp_path) == []


def test_what_is_unfinished_can_be_removed_at_any_moment(tmp_path):
    with contextlib.suppress(FileNotFoundError), atomic_write(tmp_path / "a") as file:
        file.write(b"half")
        with atomic_path(tmp_path / "b") as folder:
            folder.mkdir()
            remove_unfinished()
            assert os.listdir(tmp_path) == []
    remove_unfinished()


WRITES = """
import sys
from concurrent.futures import ThreadPoolExecutor
from kerasdiff.atomic_write import atomic_write
def write(number):
    with atomic_write(sys.argv[1], sync=False) as file:
        for _ in range(20):
            file.write(bytes([65 + number % 26]) * 1000)
with ThreadPoolExecutor(8) as pool:
    list(pool.map(write, range(300)))
"""


def test_threads_and_processes_that_write_one_name_never_fail_and_never_tear_it(tmp_path):
    path = tmp_path / "latest.png"
    writers = [subprocess.Popen([sys.executable, "-c", WRITES, path], stderr=subprocess.PIPE) for _ in range(2)]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            content = path.read_bytes()
            assert len(content) == 20_000
            assert len(set(content)) == 1
            seen.add(content[0])
    assert [writer.communicate()[1] for writer in writers] == [b"", b""]
    assert len(seen) > 1
    assert os.listdir(tmp_path) == ["latest.png"]
