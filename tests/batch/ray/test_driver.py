"""A whole job with the driver, a worker and the collector in this process: stopped, killed, resumed; and a bucket."""

from __future__ import annotations

import functools
import io
import json
import signal
import tarfile

import pandas as pd
import pytest
from stub_generator import MODEL, StubGenerator

import kerasdiff
from kerasdiff.batch.job import make_job
from kerasdiff.batch.progress import progress_bar
from kerasdiff.batch.ray import driver
from kerasdiff.batch.ray.actor import ActorSettings, Worker
from kerasdiff.batch.ray.arrow import rows_table
from kerasdiff.batch.ray.coordinator import Coordinator
from kerasdiff.batch.ray.driver import Driver
from kerasdiff.batch.storage import open_storage
from kerasdiff.runtime import cache_dir

IDS = [f"r{number}" for number in range(10)]
ROWS = [kerasdiff.batch.Row(name, f"a red circle {name}", num_steps=1) for name in IDS]


class Killed(BaseException):
    """What nothing in a process can do anything about."""


@pytest.fixture(autouse=True)
def stub(monkeypatch, tiny):
    """Workers have a generator without TensorFlow that takes its time, and the collector looks often."""
    monkeypatch.setattr("kerasdiff.generator.Generator", functools.partial(StubGenerator, 0.02))
    monkeypatch.setattr(driver, "_POLL_S", 0.01)
    monkeypatch.setenv(cache_dir.READ_ONLY, "")


class Job:
    """A job of `ROWS` into an output, run in this process as often as need be; each worker's call draws two rows."""

    def __init__(self, output, shards: bool = False) -> None:
        self.storage, self.shards = open_storage(output), shards
        self.job = make_job(ROWS, MODEL, {})

    def run(self, killed_after: int | None = None, between=None):
        """Gives what is counted, or None if nothing was missing."""
        settings = ActorSettings(self.job, precision="float32", shards=self.shards, max_batch=2)
        self.driver = Driver(self.job, None, self.storage, settings, 2)
        with self.driver.locked():
            manifest = self.driver.recover()
            if self.driver.is_done(manifest):
                return None
            kept = len(manifest.done)
            self.coordinator = Coordinator()
            worker = Worker(settings, self.storage.url, self.coordinator)
            units = self.driver._units(manifest, 1)

            def tables():
                for number, unit in enumerate(units):
                    if number == killed_after:
                        raise Killed
                    yield worker(rows_table(unit))

            counts = driver.Collector(self.coordinator, tables(), manifest)
            if killed_after is not None:  # nobody writes the manifest then
                manifest.flush = lambda: None
            with progress_bar(len(ROWS), kept, False) as bar:
                counts.run(lambda state: self.driver._show(bar, kept, state), between)
            return counts.drawn, kept + counts.kept, counts.failed

    def in_manifest(self) -> list[str]:
        parts = [self.storage.read(f"manifest/{name}") for name in self.storage.names("manifest")]
        return sorted(name for part in parts for name in pd.read_parquet(io.BytesIO(part))["id"])

    def images(self) -> list[str]:
        names = [name for name in self.storage.names() if name.endswith(".png")]
        for shard in self.storage.names("shards"):
            with tarfile.open(fileobj=io.BytesIO(self.storage.read(f"shards/{shard}"))) as tar:
                names += [name for name in tar.getnames() if name.endswith(".png")]
        return sorted(name.removesuffix(".png") for name in names)


@pytest.mark.parametrize("shards", [False, True])
def test_a_killed_job_resumes_and_has_every_image_once(tmp_path, shards):
    job = Job(tmp_path / "out", shards)
    with pytest.raises(Killed):
        job.run(killed_after=2)
    assert job.in_manifest() == []
    there = len(job.images())
    assert 0 < there < 10
    assert job.run() == (10 - there, there, 0)
    assert job.images() == job.in_manifest() == IDS
    assert job.run() is None


def test_what_is_decided_is_kept_for_the_next_run(tmp_path):
    job = Job(tmp_path / "out")
    job.run()
    said = json.loads((tmp_path / "out" / "job.json").read_text())
    assert said["begun"] == {"precision": "float32", "together": {"128x128": 2}}
    assert (said["images"], said["layout"]) == (10, "files")
    (tmp_path / "out" / "r3.png").unlink()
    (tmp_path / "out" / "manifest" / "part-000000.parquet").unlink()
    assert job.run() == (1, 9, 0)


@pytest.mark.parametrize("source", ["between", "Ctrl-C"])
def test_an_interrupt_stops_workers_after_their_batch(tmp_path, source):
    """Nobody draws any more then, and what was drawn is in the manifest."""
    job = Job(tmp_path / "out")

    def between():
        if job.images():
            if source == "Ctrl-C":
                signal.raise_signal(signal.SIGINT)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job.run(between=between)
    there = job.images()
    assert 0 < len(there) < 10
    assert job.in_manifest() == there
    (worker,) = job.coordinator.state()["workers"].values()
    assert not worker["busy"]
    assert job.run()[1] == len(there)
    assert job.images() == job.in_manifest() == IDS


def test_another_job_is_refused(tmp_path):
    Job(tmp_path / "out").run()
    other = Job(tmp_path / "out", shards=True)
    with pytest.raises(kerasdiff.RequestError, match="out holds another job, which differs in layout"):
        other.run()
    other.job, other.shards = make_job(ROWS[:9], MODEL, {}), False
    with pytest.raises(kerasdiff.RequestError, match="out holds another job, which differs in rows"):
        other.run()


def test_temporary_files_of_killed_workers_are_removed(tmp_path):
    job = Job(tmp_path / "out")
    with pytest.raises(Killed):
        job.run(killed_after=1)
    for name in (".r9.png.1.part", ".job.json.2.part", "manifest/.part-000000.parquet.3.part"):
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text("half")
    job.run()
    assert not list((tmp_path / "out").rglob(".*.part"))


def test_a_worker_that_cannot_continue_ends_the_job_with_its_error(tmp_path):
    job = Job(tmp_path / "out")

    def between():
        job.coordinator.fail(kerasdiff.ModelError("no such model here"))

    with pytest.raises(kerasdiff.ModelError, match="no such model here"):
        job.run(between=between)


@pytest.mark.parametrize("shards", [False, True])
def test_a_bucket_is_an_output(bucket, shards):
    job = Job(bucket % f"run-{shards}", shards)
    with pytest.raises(Killed):
        job.run(killed_after=3)
    there = len(job.images())
    assert job.run() == (10 - there, there, 0)
    assert job.images() == job.in_manifest() == IDS
    assert job.run() is None
    assert job.storage.where == f"s3://pictures/run-{shards}"
    other = Job(bucket % f"run-{shards}", not shards)
    with pytest.raises(kerasdiff.RequestError, match=f"s3://pictures/run-{shards} holds another job"):
        other.run()
    with pytest.raises(kerasdiff.RequestError, match=r"cannot (read|write)"):
        Job(bucket.replace("pictures", "nobodys") % "run").run()
