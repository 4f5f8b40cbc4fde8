"""A job's folder: torn lines, other jobs, other processes, full disks."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

import kerasdiff
from kerasdiff.atomic_write import final_name
from kerasdiff.batch.job_state import JOB, JobState, lock, write_state
from kerasdiff.batch.manifest import MANIFEST, Entry, Manifest
from kerasdiff.batch.storage import Folder
from kerasdiff.images.writer import write_whole

DESCRIPTION = {
    "rows": "0" * 64,
    "batch_size": 1,
    "format": "png",
    "model": {"model": "tiny", "revision": None},
    "arguments": {"num_steps": 3},
}
STATE = JobState("float32", {"128x128": 4})


def entry(number: int, error: str | None = None) -> Entry:
    file = None if error else f"ä_{number}.png"
    return Entry("ä", number, 2**64 - number, file, None, 0.25, {"kerasdiff": "0.1.0"}, error)


def test_what_is_written_is_read_and_the_last_line_holds(tmp_path):
    with Manifest(tmp_path) as manifest:
        assert manifest.entries == {}
        for one in (entry(1), entry(2, "why"), entry(2)):
            manifest.append(one)
    with Manifest(tmp_path) as manifest:
        assert manifest.entries == {("ä", 1): entry(1), ("ä", 2): entry(2)}
    assert [json.loads(line)["error"] for line in (tmp_path / MANIFEST).read_text().splitlines()] == [None, "why", None]


def test_a_torn_last_line_is_cut_off_wherever_it_is_torn(tmp_path):
    path = tmp_path / MANIFEST
    with Manifest(tmp_path) as manifest:
        for number in (1, 2, 3):
            manifest.append(entry(number))
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for length in range(len(lines[0]), len(whole)):
        path.write_bytes(whole[:length])
        left = [number for number in (1, 2, 3) if sum(map(len, lines[:number])) <= length]
        with Manifest(tmp_path) as manifest:
            assert [number for _, number in manifest.entries] == left
            assert path.read_bytes() == b"".join(lines[: len(left)])
            manifest.append(entry(9))
        assert path.read_bytes().splitlines()[-1] == json.dumps(vars(entry(9))).encode()
    path.write_bytes(whole + b"\0" * 40 + b"\n")  # as after a loss of power
    with Manifest(tmp_path) as manifest:
        assert len(manifest.entries) == 3
    assert path.read_bytes() == whole


@pytest.mark.parametrize("damaged", [b"{}", b"not JSON", b"3", b"", b'{"id": "a"}'])
def test_another_damaged_line_is_named(tmp_path, damaged):
    with Manifest(tmp_path) as manifest:
        manifest.append(entry(1))
    path = tmp_path / MANIFEST
    path.write_bytes(path.read_bytes() + damaged + b"\n" + path.read_bytes())
    before = path.read_bytes()
    with pytest.raises(kerasdiff.RequestError, match=r"manifest\.jsonl is corrupt in line 2; delete that line"):
        Manifest(tmp_path)
    assert path.read_bytes() == before


def test_a_line_that_does_not_fit_is_not_there_at_all(tmp_path, monkeypatch):
    with Manifest(tmp_path) as manifest:
        manifest.append(entry(1))
        before = manifest.path.read_bytes()
        write = os.write
        with monkeypatch.context() as full:
            full.setattr(os, "write", lambda file, data: write(file, data[:10]))
            with pytest.raises(OSError, match="No space left"):
                manifest.append(entry(2))
        assert manifest.path.read_bytes() == before
        assert list(manifest.entries) == [("ä", 1)]
        manifest.append(entry(2))
    with Manifest(tmp_path) as manifest:
        assert len(manifest.entries) == 2


def test_a_folder_is_made_and_belongs_to_its_job(tmp_path):
    folder = tmp_path / "out"
    with lock(Folder(str(folder)), DESCRIPTION) as state:
        assert state is None
        write_state(Folder(str(folder)), DESCRIPTION, 7, STATE)
    for _ in range(2):
        with lock(Folder(str(folder)), DESCRIPTION) as state:
            assert state == STATE
    said = json.loads((folder / JOB).read_text())
    assert (said["kerasdiff"], said["images"], said["model"]["model"]) == (kerasdiff.__version__, 7, "tiny")
    others = {
        "rows": DESCRIPTION | {"rows": "1" * 64},
        "num_steps": DESCRIPTION | {"arguments": {"num_steps": 4}},
        "batch_size, revision, exact": DESCRIPTION
        | {"batch_size": 2, "model": {"model": "tiny", "revision": "a"}, "arguments": {"num_steps": 3, "exact": True}},
    }
    for names, description in others.items():
        with (
            pytest.raises(kerasdiff.RequestError, match=f"out holds another job, which differs in {names}; choose"),
            lock(Folder(str(folder)), description),
        ):
            pass
    assert json.loads((folder / JOB).read_text()) == said


def test_a_folder_with_something_else_in_it_is_left_as_it_is(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with (
        pytest.raises(kerasdiff.RequestError, match=r"is not a job folder \(it contains 'letter\.txt'\)"),
        lock(Folder(str(tmp_path)), DESCRIPTION),
    ):
        pass
    assert os.listdir(tmp_path) == ["letter.txt"]


def test_a_folder_that_a_killed_process_only_began_is_empty(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / f".{JOB}.123.part").write_text("{")
    with lock(Folder(str(tmp_path)), DESCRIPTION) as state:
        assert state is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        json.dumps({"version": 9}),
        json.dumps({"version": 1, **DESCRIPTION}),
        json.dumps({"version": 1, **DESCRIPTION, "begun": {"precision": "float32", "together": {"128x128": 0}}}),
        json.dumps({"version": 1, **DESCRIPTION, "begun": {"precision": "float32", "together": [4]}}),
    ],
)
def test_a_damaged_job_is_one_line(tmp_path, text):
    (tmp_path / JOB).write_text(text)
    with pytest.raises(kerasdiff.RequestError, match=r"job\.json is corrupt"), lock(Folder(str(tmp_path)), DESCRIPTION):
        pass
    assert os.listdir(tmp_path) == [JOB]


def test_a_folder_that_cannot_be_one_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    for name, message in (
        ("file", "cannot read .*file: Not a directory"),
        ("no/out", "cannot write to .*out: there is no folder .*no; create it first"),
        ("x" * 300, "cannot read .*: File name too long"),
    ):
        with pytest.raises(kerasdiff.RequestError, match=message), lock(Folder(str(tmp_path / name)), DESCRIPTION):
            pass
    assert os.listdir(tmp_path) == ["file"]


def test_only_one_process_works_in_a_folder_and_death_frees_it(tmp_path):
    folder = tmp_path / "out"
    script = (
        "import sys\n"
        "from kerasdiff.batch.job_state import lock\n"
        "from kerasdiff.batch.storage import Folder\n"
        f"with lock(Folder({str(folder)!r}), {DESCRIPTION!r}):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(kerasdiff.RequestError, match="out is locked by another process"),
            lock(Folder(str(folder)), DESCRIPTION),
        ):
            pass
        other.kill()
    with lock(Folder(str(folder)), DESCRIPTION) as state:
        assert state is None


def test_a_file_is_written_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "a.b.json"
    assert write_whole(path, b"one").read_bytes() == b"one"

    def replace(self: pathlib.Path, target: pathlib.Path) -> None:
        assert final_name(self.name) == "a.b.json"
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "replace", replace)
    with pytest.raises(kerasdiff.RequestError, match=r"cannot save to .*a\.b\.json: No space left") as found:
        write_whole(path, b"two")
    assert found.value.__cause__.errno == 28
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["a.b.json"]


def test_a_name_that_is_too_long_is_one_line(tmp_path):
    assert write_whole(tmp_path / ("x" * 255), b"one").read_bytes() == b"one"
    with pytest.raises(kerasdiff.RequestError, match=r"cannot save to .*: File name too long; choose another name"):
        write_whole(tmp_path / ("x" * 256), b"one")


@pytest.mark.parametrize("name", ["a.png", ".a.png", "a.png.1.part", ".a.png.part", ".1.part", ".a.png.x.part"])
def test_other_files_are_no_drafts(name):
    assert final_name(name) is None
