"""Jobs on Ray: two machines of a cluster on the loopback, data sets, tar files, a bucket."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pandas as pd
import psutil
import pytest
import ray
import ray.data
from lora_files import write_lora
from PIL import Image
from ray.cluster_utils import Cluster

import kerasdiff
from kerasdiff.batch.storage import open_storage
from kerasdiff.checkpoints.resolve import open_model

SAMPLERS = ("euler", "euler_a", "ddim", "dpmpp_2m", "lcm")
ARGUMENTS = {"precision": "float32", "progress": False}


def rows(count: int) -> list[kerasdiff.batch.Row]:
    return [
        kerasdiff.batch.Row(
            f"r{number:03}",
            f"a red circle {number}",
            sampler=SAMPLERS[number % 5],
            num_steps=2 + number % 2,
            height=192 if number % 9 == 0 else None,
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def cluster():
    """Two machines of one core each, to which this process is connected."""
    two = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 2**27})
    two.add_node(num_cpus=1, object_store_memory=2**27)
    ray.init(address=two.address, log_to_driver=False, logging_level="error")
    yield two
    ray.shutdown()
    two.shutdown()


@pytest.fixture(scope="module")
def single(tmp_path_factory, tiny):
    """Gives the folder of so many rows that one process drew."""

    @functools.cache
    def draw(count: int) -> pathlib.Path:
        folder = tmp_path_factory.mktemp("single") / "out"
        kerasdiff.batch.run(rows(count), folder, generator=tiny, progress=False)
        return folder

    return draw


def workers(address: str) -> list[psutil.Process]:
    """Processes of a cluster that draw: children of what each of its machines runs, which is told the address."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "MapWorker" in " ".join(process.info["cmdline"] or ()):
            with contextlib.suppress(psutil.Error):
                if address in " ".join(process.parent().cmdline()):
                    found.append(process)
    return found


def pictures(folder) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted(pathlib.Path(folder).glob("[!.]*.png")):
        with Image.open(path) as picture:
            found[path.name] = np.asarray(picture).astype(int)
    return found


def check_equal(folder, expected) -> None:
    found, wanted = pictures(folder), pictures(expected)
    assert list(found) == list(wanted)
    assert max(np.abs(found[name] - wanted[name]).max() for name in wanted) <= 1


def manifest(folder) -> pd.DataFrame:
    return pd.read_parquet(pathlib.Path(folder) / "manifest")


@pytest.mark.parametrize(("count", "kills"), [(20, 1), pytest.param(60, 5, marks=pytest.mark.slow)])
def test_two_machines_whose_workers_are_killed_draw_what_one_process_draws(
    cluster, single, tmp_path, count, kills, tiny
):
    folder, killed, moments = tmp_path / "out", [], random.Random(5)
    write_lora(tmp_path / "a.safetensors", {"unet": open_model("tiny").shapes("unet")}, 1, networks=("unet",))
    tagged = kerasdiff.batch.Row("tagged", "a red circle <lora:a:0.5>", num_steps=2, seed=1)
    shared = ARGUMENTS | {"lora_folder": tmp_path}

    def kill() -> None:
        for there in sorted(moments.sample(range(1, count * 2 // 3), kills)):
            while len(list(folder.glob("[!.]*.png"))) < there or not workers(cluster.address):
                time.sleep(0.01)
            victim = moments.choice(workers(cluster.address))
            victim.kill()
            killed.append(victim.pid)
            while victim.is_running() and victim.status() != psutil.STATUS_ZOMBIE:
                time.sleep(0.01)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    summary = kerasdiff.bulk.run([*rows(count), tagged], folder, workers=2, **shared)
    killer.join(5)
    assert len(killed) == kills
    assert (summary.drawn + summary.kept, summary.failed) == (count + 1, 0)  # what a killed worker told of counts once
    alone = tiny.generate(tagged.prompt, seed=1, num_steps=2, lora_folder=tmp_path, progress=False)[0]
    assert np.abs(pictures(folder)["tagged.png"] - alone).max() <= 1
    shutil.copy(folder / "tagged.png", single(count))
    check_equal(folder, single(count))
    (single(count) / "tagged.png").unlink()
    table = manifest(folder)
    assert sorted(table["id"]) == [*(row.id for row in rows(count)), "tagged"]
    assert table["error"].isna().all()
    assert {path.name for path in folder.iterdir()} - {*pictures(folder)} == {"job.json", "manifest", ".lock"}
    # Once more: nothing is missing.
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    again = kerasdiff.bulk.run([*rows(count), tagged], folder, **shared)
    assert (again.drawn, again.kept, again.failed, again.workers) == (0, count + 1, 0, 0)
    assert times == {path: path.stat().st_mtime_ns for path in times}
    with pytest.raises(kerasdiff.RequestError, match="holds another job, which differs in rows"):
        kerasdiff.bulk.run(rows(count - 1), folder, **shared)


@pytest.mark.slow
def test_a_process_that_names_no_cluster_starts_its_own(cluster):
    code = (
        "from kerasdiff.batch.ray import cluster\nwith cluster.connected(None) as ray: print(len(cluster.nodes(ray)))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


@pytest.mark.slow
def test_a_data_set_goes_into_tar_files_that_webdataset_reads(cluster, single, tmp_path):
    table = pd.DataFrame([vars(row) for row in rows(12)])
    table.loc[len(table)] = {"id": "bad", "prompt": "a", "sampler": "eular"}
    table.to_parquet(tmp_path / "rows.parquet")
    dataset = ray.data.read_parquet(str(tmp_path / "rows.parquet"))
    folder = tmp_path / "out"
    summary = kerasdiff.bulk.run(dataset, folder, workers=2, shards=True, shard_images=5, **ARGUMENTS)
    assert (summary.drawn, summary.failed, summary.first_image_s > 0) == (12, 1, True)
    lines = manifest(folder).set_index("id")
    assert "did you mean 'euler'?" in lines["error"]["bad"]
    assert lines["worker"].drop("bad").notna().all()
    samples = ray.data.read_webdataset(str(folder / "shards"), suffixes=["png", "txt", "json"], decoder=None).take_all()
    wanted = pictures(single(20))
    assert len(samples) == 12
    for sample in samples:
        told = json.loads(sample["json"])
        assert sample["txt"].decode() == told["prompt"]
        with Image.open(io.BytesIO(sample["png"])) as picture:
            assert np.abs(np.asarray(picture).astype(int) - wanted[f"{told['id']}.png"]).max() <= 1
    # What failed is tried again; the rest is known from the manifest.
    again = kerasdiff.bulk.run(dataset, folder, workers=1, shards=True, shard_images=5, **ARGUMENTS)
    assert (again.drawn, again.kept, again.failed) == (0, 12, 1)
    assert len(manifest(folder)) == 13
    with pytest.raises(kerasdiff.RequestError, match="dataset: column 'prompt' is missing"):
        kerasdiff.bulk.run(ray.data.from_items([{"id": "a"}]), tmp_path / "other", **ARGUMENTS)


@pytest.mark.slow
def test_generate_is_a_step_of_anybodys_pipeline(cluster, single):
    asked = [{name: value for name, value in vars(row).items() if value is not None} for row in rows(9)[1:]]
    dataset = ray.data.from_items([{**row, "label": number} for number, row in enumerate(asked)])
    drawn = dataset.map_batches(
        kerasdiff.bulk.Generate,
        fn_constructor_kwargs={"model": "tiny", "precision": "float32", "images_at_once": 2, "threads": 1},
        batch_size=4,
        concurrency=1,
        num_cpus=0.5,
    ).take_all()
    wanted = pictures(single(20))
    assert sorted(row["label"] for row in drawn) == list(range(8))
    for row in drawn:
        with Image.open(io.BytesIO(row["image"])) as picture:
            assert np.abs(np.asarray(picture).astype(int) - wanted[f"{row['id']}.png"]).max() <= 1


@pytest.mark.slow
def test_a_model_that_workers_cannot_have_is_one_line(cluster, tmp_path, monkeypatch):
    # It is found out here before a worker is begun; a machine that lacks it says so all the same.
    with pytest.raises(kerasdiff.ModelError, match="no-such-model"):
        kerasdiff.bulk.run(rows(2), tmp_path / "out", model="no-such-model", **ARGUMENTS)
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    monkeypatch.setattr("kerasdiff.batch.ray.driver.Driver._write_state", lambda driver: None)
    with pytest.raises(kerasdiff.RequestError, match="does not see"):
        kerasdiff.bulk.run(rows(2), tmp_path / "out", **ARGUMENTS)


@pytest.mark.slow
@pytest.mark.parametrize("shards", [False, True])
def test_a_bucket_is_an_output(cluster, single, bucket, shards):
    url = bucket % f"run-{shards}"
    layout = {"shards": shards, "shard_images": 4}
    summary = kerasdiff.bulk.run(rows(10), url, workers=2, **layout, **ARGUMENTS)
    assert (summary.drawn, summary.failed) == (10, 0)
    output = open_storage(url)
    assert output.where == f"s3://pictures/run-{shards}"
    assert len(output.names("shards")) == (3 if shards else 0)
    if not shards:
        wanted = pictures(single(20))
        for row in rows(10):
            with Image.open(io.BytesIO(output.read(f"{row.id}.png"))) as picture:
                assert np.abs(np.asarray(picture).astype(int) - wanted[f"{row.id}.png"]).max() <= 1
    assert kerasdiff.bulk.run(rows(10), url, **layout, **ARGUMENTS).kept == 10
    with pytest.raises(kerasdiff.RequestError, match=f"s3://pictures/run-{shards} holds another job"):
        kerasdiff.bulk.run(rows(11), url, **layout, **ARGUMENTS)
    with pytest.raises(kerasdiff.RequestError, match=r"cannot (read|write)"):
        kerasdiff.bulk.run(rows(2), bucket.replace("pictures", "nobodys") % "run", **ARGUMENTS)


def test_an_address_of_no_kind_of_bucket_is_refused():
    with pytest.raises(kerasdiff.RequestError, match="output=what://is/this"):
        open_storage("what://is/this")
    assert open_storage(os.curdir).where == os.getcwd()
