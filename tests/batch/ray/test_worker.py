"""What a worker does with batches of rows: in this process, without Ray.

Where only files and entries are tested, a stub draws.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import tarfile
import types

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from lora_files import write_lora
from PIL import Image
from stub_generator import StubGenerator

import kerasdiff
from kerasdiff import metadata
from kerasdiff.batch.job import make_job
from kerasdiff.batch.job_state import JOB
from kerasdiff.batch.manifest import Entry
from kerasdiff.batch.ray.actor import ActorSettings, Worker
from kerasdiff.batch.ray.arrow import ENTRIES, ParquetManifest, entries_table, records, rows_table
from kerasdiff.batch.ray.coordinator import Coordinator
from kerasdiff.batch.ray.driver import Driver, has_one_set
from kerasdiff.batch.rows import make_row
from kerasdiff.batch.storage import open_storage
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.runtime import cache_dir
from kerasdiff.runtime.backends import openvino_program

TINY = {"model": "tiny", "revision": None, "variant": None, "weights": "pretrained"}


def settings(batch_size: int = 1, format: str = "png", shards: bool = False, **arguments: object) -> ActorSettings:  # noqa: A002
    job = make_job([kerasdiff.batch.Row("any", "")], TINY, {"num_steps": 2, **arguments}, batch_size, format)
    return ActorSettings(job, precision="float32", shards=shards, max_batch=3)


SETTINGS = settings()
ROWS = [{"id": f"r{number}", "prompt": f"a red circle {number}", "seed": number} for number in range(5)]


@pytest.fixture(autouse=True)
def tensorflow_is_there(tiny, monkeypatch):
    """So that no worker takes this process for its own, and none leaves the cache read-only."""
    monkeypatch.setenv(cache_dir.READ_ONLY, "")


@pytest.fixture
def stub(monkeypatch):
    """Workers have a generator without TensorFlow."""
    monkeypatch.setattr("kerasdiff.generator.Generator", StubGenerator)


@pytest.fixture
def output(tmp_path):
    (tmp_path / JOB).write_text("{}")
    return tmp_path


def lines(table: pa.Table) -> list[dict]:
    assert table.schema.equals(ENTRIES)
    return table.to_pylist()


def pixels(path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_a_batch_becomes_files_and_lines(output):
    worker = Worker(SETTINGS, str(output), Coordinator())
    came = lines(worker(pa.Table.from_pylist(ROWS)))
    assert [line["id"] for line in came] == [row["id"] for row in ROWS]
    for line, row in zip(came, ROWS, strict=True):
        assert (line["file"], line["number"], line["seed"], line["error"]) == (f"{row['id']}.png", 1, row["seed"], None)
        assert line["seconds"] > 0
        assert line["worker"].endswith(f":{os.getpid()}")
        assert dict(line["versions"])["kerasdiff"] == kerasdiff.__version__
        assert metadata.read(output / line["file"]).request.num_steps == 2


def test_the_backend_of_a_job_draws_on_the_threads_of_a_worker(output, openvino, monkeypatch):
    monkeypatch.setattr(openvino_program, "_threads", None)
    Worker(dataclasses.replace(SETTINGS, backend="openvino", threads=1, max_batch=1), str(output), Coordinator())(
        pa.Table.from_pylist(ROWS[:1])
    )
    assert openvino_program._threads == 1
    assert metadata.read(output / "r0.png").backend == "openvino"
    alone = openvino.generate(ROWS[0]["prompt"], seed=0, num_steps=2, progress=False)[0]
    assert np.abs(pixels(output / "r0.png").astype(int) - alone).max() <= 1


def test_an_image_is_the_same_in_any_batch_and_nothing_is_compiled_for_the_rest(output, tmp_path, tiny):
    worker = Worker(SETTINGS, str(output), Coordinator())
    worker(pa.Table.from_pylist(ROWS[:3]))
    programs = worker._actor.generator.programs
    worker(pa.Table.from_pylist(ROWS[3:]))  # two, filled up to three
    other = tmp_path / "other"
    other.mkdir()
    (other / JOB).write_text("{}")
    again = Worker(SETTINGS, str(other), Coordinator())
    for rows in (ROWS[4:], ROWS[1::-1], ROWS[2:4]):
        again(pa.Table.from_pylist(rows))
    for row in ROWS:
        assert np.array_equal(pixels(output / f"{row['id']}.png"), pixels(other / f"{row['id']}.png"))
        alone = tiny.generate(row["prompt"], seed=row["seed"], num_steps=2, progress=False)[0]
        assert np.abs(pixels(output / f"{row['id']}.png").astype(int) - alone).max() <= 1
    assert worker._actor.generator.programs == programs


def test_rows_with_loras_are_drawn_as_alone(output, tiny, tmp_path):
    lora = write_lora(tmp_path / "a.safetensors", {"unet": open_model("tiny").shapes("unet")}, 1, networks=("unet",))
    shared = settings(lora_folder=str(tmp_path), height=64, width=64)
    rows = [
        {**ROWS[0], "loras": None},
        {**ROWS[1], "loras": [{"file": str(lora), "scale": 0.5, "text_scale": None}]},
        {**ROWS[2], "prompt": "a red circle <lora:a:2>", "loras": None},
        {**ROWS[3], "prompt": "a ring <lora:a:much>", "loras": None},
    ]
    came = lines(
        Worker(dataclasses.replace(shared, max_batch=1), str(output), Coordinator())(pa.Table.from_pylist(rows))
    )
    errors = {line["id"]: line["error"] for line in came}
    assert errors.pop("r3") == "<lora:a:much> in a prompt is not of the form <lora:name:0.8>"
    assert errors == dict.fromkeys(("r0", "r1", "r2"))
    quick = {"num_steps": 2, "height": 64, "width": 64, "progress": False}
    for row, prompt, loras in (
        (0, ROWS[0]["prompt"], []),
        (1, ROWS[1]["prompt"], [(lora, 0.5)]),
        (2, "a red circle", [(lora, 2)]),
    ):
        alone = tiny.generate(prompt, seed=row, loras=loras, **quick)
        assert np.abs(pixels(output / f"r{row}.png").astype(int) - alone[0]).max() <= 1


def test_adapters_of_rows_go_through_tables():
    row = kerasdiff.batch.Row("a", "x", loras=[("/a", 0.5), ("/b", 1, 2)], embeddings=["/w", ("/v", "toy")])
    others = [kerasdiff.batch.Row("b", "x", loras=[]), kerasdiff.batch.Row("c", "x")]
    assert [make_row(values) for values in records(rows_table([row, *others]))] == [row, *others]
    frame = pd.DataFrame({"id": ["a"], "prompt": ["x"], "loras": [np.array(["/a:0.5", "/b"], object)]})
    assert [lora.scale for lora in make_row(records(frame)[0]).loras] == [0.5, 1.0]


@pytest.mark.parametrize(
    ("columns", "arguments", "frozen"),
    [
        (["id", "prompt"], {}, True),
        (["id", "prompt", "loras"], {}, False),
        (["id", "prompt"], {"lora_folder": "x"}, False),
    ],
)
def test_weights_of_a_data_set_that_may_name_loras_are_free(columns, arguments, frozen):
    dataset = types.SimpleNamespace(schema=lambda: types.SimpleNamespace(names=columns))
    assert has_one_set(dataset, arguments) is frozen


def test_a_worker_warms_up_for_what_is_left_out(stub, output, monkeypatch):
    seen = []
    monkeypatch.setattr(StubGenerator, "warm_up", lambda _, *__, **more: seen.append(more))
    size = {"height": 64, "width": 64, "image": False}
    left_out = {"deep_cache_interval": 3, "token_merging_ratio": 0.5}
    changed = {"tile": "xy", "clip_skip": 1, "hires": "scale=2,strength=0.7,upscaler=latent"}
    Worker(dataclasses.replace(settings(**left_out), sizes=((64, 64),)), str(output), Coordinator())
    Worker(dataclasses.replace(settings(**changed, recipe="turbo"), sizes=((64, 64),)), str(output), Coordinator())
    Worker(dataclasses.replace(settings(recipe="none"), sizes=((64, 64),)), str(output), Coordinator())
    guided = {**size, "guidance": True}
    assert seen == [guided | left_out, {**size, "guidance": False, **changed}, guided]


def test_what_is_there_is_found_and_not_drawn(stub, output):
    coordinator = Coordinator()
    worker = Worker(SETTINGS, str(output), coordinator)
    worker(pa.Table.from_pylist(ROWS[:2]))
    times = {name: os.stat(output / name).st_mtime_ns for name in ("r0.png", "r1.png")}
    came = lines(worker(pa.Table.from_pylist(ROWS)))
    assert [(line["id"], line["seconds"] is None) for line in came] == [
        *(("r0", True), ("r1", True)),
        *((f"r{number}", False) for number in (2, 3, 4)),
    ]
    assert times == {name: os.stat(output / name).st_mtime_ns for name in times}
    (state,) = coordinator.state()["workers"].values()
    assert (state["drawn"], state["kept"], state["failed"], state["busy"]) == (5, 2, 0, False)


def test_what_was_done_before_has_no_second_line(stub, output):
    worker = Worker(SETTINGS, str(output), Coordinator(done=frozenset({("r0", 1), ("r3", 1)})))
    assert [line["id"] for line in lines(worker(pa.Table.from_pylist(ROWS)))] == ["r1", "r2", "r4"]
    assert not (output / "r0.png").exists()


def test_bad_rows_are_lines_with_an_error(stub, output, tmp_path):
    bad = [
        {"id": "no-prompt", "prompt": None},
        {"id": "sampler", "prompt": "a", "sampler": "eular"},
        {"id": "size", "prompt": "a", "height": 129},
        {"id": "r0", "prompt": "again"},
        {"id": "up/or/down", "prompt": "a"},
        {"id": None, "prompt": "a"},
        {"id": "picture", "prompt": "a", "image": str(tmp_path / "none.png")},
        {"id": "strength", "prompt": "a", "strength": 0.5},
        {"id": "odd", "prompt": "a", "colour": "red"},
    ]
    worker = Worker(SETTINGS, str(output), Coordinator())
    batch = {
        name: np.array([row.get(name) for row in [*ROWS, *bad]], object) for name in {**ROWS[0], **bad[1], **bad[2]}
    }
    batch |= {name: np.array([row.get(name) for row in [*ROWS, *bad]], object) for name in ("image", "strength")}
    came = lines(worker(batch))
    errors = {line["id"]: line["error"] for line in came if line["error"] is not None}
    assert "prompt is missing" in errors["no-prompt"]
    assert "did you mean 'euler'?" in errors["sampler"]
    assert "height=129" in errors["size"]
    assert "duplicate id" in errors["r0"]
    assert "'/'" in errors["up/or/down"]
    assert "id is missing" in errors["None"]
    assert "cannot be read" in errors["picture"]
    assert "strength needs image" in errors["strength"]
    assert sum(line["error"] is None for line in came) == 6  # "odd" lost its column here; see the next test
    assert all("\n" not in error for error in errors.values())
    assert "name='colour' is unknown" in lines(worker(pa.Table.from_pylist(bad[-1:])))[0]["error"]


def test_pictures_of_other_sizes_and_bad_ones_cost_no_block(output, tmp_path):
    rng = np.random.default_rng(0)
    for name, size in (("small", (128, 128)), ("wide", (128, 192)), ("odd", (130, 128))):
        Image.fromarray(rng.integers(0, 256, (*size, 3)).astype("uint8")).save(tmp_path / f"{name}.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "small.png").read_bytes()[:9000])
    names = ("small", "wide", "cut", "small", "odd", "wide", "small")
    rows = [
        {"id": f"p{place}", "prompt": "a red circle", "image": str(tmp_path / f"{name}.png"), "strength": 0.5}
        for place, name in enumerate(names)
    ]
    worker = Worker(dataclasses.replace(SETTINGS, has_images=True), str(output), Coordinator())
    stream, drawn = worker._actor.generator.stream, []

    def counting(**arguments):
        drawn.append(len(arguments["seed"]))
        return stream(**arguments)

    worker._actor.generator.stream = counting
    came = {line["id"]: line for line in lines(worker(pa.Table.from_pylist(rows)))}
    assert drawn == [3, 3]  # three small ones, and two wide ones that were filled up to three
    assert "is a corrupt or incomplete PNG file" in came["p2"]["error"]
    assert "is 130 pixels high" in came["p4"]["error"]
    assert [pixels(output / f"p{place}.png").shape for place in (0, 1, 3, 5, 6)] == [
        *((128, 128, 3), (128, 192, 3), (128, 128, 3)),
        *((128, 192, 3), (128, 128, 3)),
    ]


def test_somebody_elses_file_is_left_alone(stub, output, tiny):
    tiny.generate("somebody else's", seed=3, num_steps=2, progress=False).save(output / "r0.png")
    before = (output / "r0.png").read_bytes()
    worker = Worker(SETTINGS, str(output), Coordinator())
    came = lines(worker(pa.Table.from_pylist(ROWS[:2])))
    assert "r0.png was not created by this job" in came[0]["error"]
    assert came[1]["error"] is None
    assert (output / "r0.png").read_bytes() == before


def test_a_stopped_job_draws_no_further_batch(stub, output):
    coordinator = Coordinator()
    worker = Worker(dataclasses.replace(SETTINGS, max_batch=1), str(output), coordinator)
    report, reports = coordinator.report, []

    def report_and_stop(*arguments):
        reports.append(arguments)
        if len(reports) == 5:
            coordinator.stop()
        return report(*arguments)

    coordinator.report = report_and_stop
    came = lines(worker(pa.Table.from_pylist(ROWS)))
    assert 0 < len(came) < 5
    assert {line["file"] for line in came} == {path.name for path in output.glob("*.png")}
    assert lines(worker(pa.Table.from_pylist(ROWS))) == []


def test_exact_rows_are_drawn_by_themselves(stub, output):
    coordinator = Coordinator()
    exact = settings(exact=True)
    came = lines(Worker(exact, str(output), coordinator)(pa.Table.from_pylist(ROWS[:2])))
    assert [metadata.read(output / line["file"]).request.exact for line in came] == [True, True]
    assert coordinator.state()["settled"] == {"precision": "float32", "backend": "tensorflow", "together 128x128": 1}


def test_several_images_a_row(stub, output):
    worker = Worker(settings(batch_size=2, format="webp"), str(output), Coordinator())
    came = lines(worker(pa.Table.from_pylist(ROWS[3:])))
    assert [(line["file"], line["seed"]) for line in came] == [
        *(("r3_1.webp", 3), ("r3_2.webp", 4)),
        *(("r4_1.webp", 4), ("r4_2.webp", 5)),
    ]


def members(path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_shards_are_whole_and_webdatasets(stub, output):
    worker = Worker(settings(shards=True), str(output), Coordinator())
    came = lines(worker(pa.Table.from_pylist(ROWS)))
    (path,) = (output / "shards").iterdir()
    inside = members(path)
    assert list(inside) == [f"r{number}.{ending}" for number in range(5) for ending in ("png", "txt", "json")]
    assert inside["r2.txt"].decode() == "a red circle 2"
    assert came[2]["file"] == f"{path.name}/r2.png"
    told = json.loads(inside["r2.json"])
    assert {name: told[name] for name in ("id", "seed", "prompt")} == {
        "id": "r2",
        "seed": 2,
        "prompt": "a red circle 2",
    }
    assert metadata.read_bytes(inside["r2.png"]).request.prompts
    # The same rows again, as after a worker was killed: what is there is told of, and stays.
    time = path.stat().st_mtime_ns
    assert lines(worker(pa.Table.from_pylist(ROWS))) == [{**line, "seconds": line["seconds"]} for line in came]
    assert [one.stat().st_mtime_ns for one in (output / "shards").iterdir()] == [time]
    # The shard of a job that was stopped in the middle of it: the rest goes into one more.
    more = [*ROWS, {"id": "more", "prompt": "a"}]
    half = Worker(settings(shards=True), str(output), Coordinator(done=frozenset((row["id"], 1) for row in ROWS)))
    assert [line["id"] for line in lines(half(pa.Table.from_pylist(more)))] == ["more"]
    assert len(list((output / "shards").iterdir())) == 2


def test_an_id_with_a_dot_is_none_for_a_shard(stub, output):
    worker = Worker(settings(shards=True), str(output), Coordinator())
    (line,) = lines(worker(pa.Table.from_pylist([{"id": "a.b", "prompt": "a"}])))
    assert "contains a dot" in line["error"]
    with pytest.raises(kerasdiff.RequestError, match="contains a dot"):
        kerasdiff.bulk.run([{"id": "a.b", "prompt": "a"}], output / "new", shards=True)


def test_a_tar_file_that_nobody_told_of_is_taken_up(stub, output):
    worker = Worker(settings(shards=True), str(output), Coordinator())
    worker(pa.Table.from_pylist(ROWS))
    job = kerasdiff.batch.job.make_job([kerasdiff.batch.Row(**row) for row in ROWS], TINY, {"num_steps": 2})
    manifest = Driver(job, None, open_storage(output), settings(shards=True), 100).recover()
    assert manifest.done == {(row["id"], 1) for row in ROWS}
    again = ParquetManifest(open_storage(output))
    assert (again.done, len(again.shards)) == (manifest.done, 1)


def test_what_cannot_be_written_ends_the_job_with_one_line(stub, output, monkeypatch):
    coordinator = Coordinator()
    worker = Worker(SETTINGS, str(output), coordinator)

    def full(name, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(worker._storage, "write", full)
    with pytest.raises(kerasdiff.batch.CannotWriteError, match="the disk is full"):
        worker(pa.Table.from_pylist(ROWS))
    assert "the disk is full" in str(coordinator.state()["fatal"])


def test_a_machine_that_does_not_see_the_folder_says_so(stub, tmp_path):
    coordinator = Coordinator()
    with pytest.raises(kerasdiff.RequestError, match=r"does not see .*; give a folder that all machines share"):
        Worker(SETTINGS, str(tmp_path), coordinator)
    assert coordinator.state()["fatal"] is not None


def test_all_workers_draw_in_the_precision_of_the_job(stub, output):
    with pytest.raises(kerasdiff.RequestError, match="this job runs in bfloat16; give precision='bfloat16'"):
        Worker(SETTINGS, str(output), Coordinator({"precision": "bfloat16"}))


def test_the_first_worker_fills_the_cache_and_others_only_read_it(output, monkeypatch, tmp_path):
    monkeypatch.setenv("KERASDIFF_CACHE", str(tmp_path / "cache"))
    coordinator = Coordinator()
    Worker(SETTINGS, str(output), coordinator)

    def programs():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "programs").glob("*/*")}

    before = programs()
    assert before
    assert os.environ[cache_dir.READ_ONLY] == ""
    second = Worker(dataclasses.replace(SETTINGS, max_batch=2), str(output), coordinator)
    second(pa.Table.from_pylist([{"id": "wide", "prompt": "a", "size": "192x128"}]))
    assert os.environ[cache_dir.READ_ONLY] == "1"
    assert programs() == before


def test_the_manifest_keeps_what_was_drawn_and_forgets_what_failed(output):
    good = [Entry(f"g{n}", 1, 2**64 - 1, f"g{n}.png", None, 0.5, {"a": "1"}, None) for n in range(4)]
    bad = [Entry("bad", 1, 3, None, None, None, {}, "why")]
    manifest = ParquetManifest(open_storage(output))
    manifest.add(entries_table(good[:2]))
    manifest.add(entries_table(bad))
    manifest.flush()
    manifest.add(entries_table(bad))
    manifest.flush()
    manifest.flush()
    assert sorted(path.name for path in (output / "manifest").iterdir()) == [
        "part-000000.parquet",
        "part-000001.parquet",
    ]
    again = ParquetManifest(open_storage(output))
    assert again.done == {("g0", 1), ("g1", 1)}
    again.add(entries_table(good[2:3]))
    again.flush()
    once_more = ParquetManifest(open_storage(output))
    once_more.add(entries_table(good[3:]))
    once_more.flush()
    table = pd.read_parquet(output / "manifest")
    assert sorted(table["id"]) == ["g0", "g1", "g2", "g3"]
    assert table["seed"].tolist() == [2**64 - 1] * 4
    (output / "manifest" / "part-000000.parquet").write_bytes(b"PAR1 and nothing")
    with pytest.raises(kerasdiff.RequestError, match=r"part-000000.parquet is corrupt .*; move it elsewhere"):
        ParquetManifest(open_storage(output))


def test_what_is_missing_is_none_in_any_kind_of_batch():
    rows = [{"id": "a", "prompt": "x", "seed": 7, "strength": 0.5}, {"id": "b", "prompt": "y"}]
    expected = [
        {"id": "a", "prompt": "x", "seed": 7, "strength": 0.5},
        {"id": "b", "prompt": "y", "seed": None, "strength": None},
    ]
    table = pa.Table.from_pylist(rows)
    frame = table.to_pandas()
    assert records(table) == records(frame) == records({name: frame[name].to_numpy() for name in frame}) == expected
    assert type(records(frame)[0]["seed"]) is int


def test_a_data_set_has_no_order_for_seeds_to_count_up_in(tmp_path):
    dataset = types.SimpleNamespace(map_batches=None, schema=lambda: types.SimpleNamespace(names=["id", "prompt"]))
    for call in (kerasdiff.bulk.Generate, lambda **seed: kerasdiff.bulk.run(dataset, tmp_path / "out", **seed)):
        with pytest.raises(kerasdiff.RequestError, match="seed: rows of a data set have no order to count up in"):
            call(seed=3)


def test_generate_gives_files_or_arrays_and_passes_columns_through():
    generate = kerasdiff.bulk.Generate("tiny", num_steps=2, batch_size=2, images_at_once=2, precision="float32")
    batch = {
        "id": np.array(["a", "b"]),
        "prompt": np.array(["a red circle", "a blue star"]),
        "sampler": np.array(["euler", "no such"], object),
        "label": np.array([3, 4]),
    }
    came = generate(batch)
    assert came["id"].tolist() == ["a", "a", "b"]
    assert came["number"].tolist() == [1, 2, 1]
    assert came["label"].tolist() == [3, 3, 4]
    assert came["seed"].tolist() == [kerasdiff.batch.Row("a", "").first_seed + step for step in range(2)] + [None]
    assert "sampler='no such'" in came["error"][2]
    assert came["image"][2] is None
    with Image.open(io.BytesIO(came["image"][0])) as picture:
        assert picture.size == (128, 128)
    arrays = kerasdiff.bulk.Generate("tiny", num_steps=2, images_at_once=2, format="array", precision="float32")
    stacked = arrays({"id": np.array(["a", "b"]), "prompt": np.array(["x", "y"])})["image"]
    assert (stacked.shape, stacked.dtype) == ((2, 128, 128, 3), np.uint8)
