"""Jobs with the embedded model, in this process: what is drawn, what is drawn again, and what cannot be drawn."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import shutil
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from lora_files import write_lora
from PIL import Image
from safetensors.numpy import save_file

import kerasdiff
from kerasdiff import metadata
from kerasdiff.adapter_files import EmbeddingFile, Lora
from kerasdiff.batch import CannotWriteError, Row, run
from kerasdiff.batch.job import make_job
from kerasdiff.batch.manifest import MANIFEST
from kerasdiff.batch.storage import Folder
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.models.config import TINY
from kerasdiff.plan import Plan
from kerasdiff.request import make_request
from kerasdiff.samplers.noise import MAX_SEED

QUIET = {"progress": False}
# Three groups: by default, of another size, with another sampler and number of steps.
ROWS = [
    Row("a", "a red circle on a blue background"),
    Row("b", "a white star on a black background", seed=7, negative_prompt="a ring"),
    Row("c", "a green ring on a pink background", height=32),
    Row("d", "a pink heart on a green background", guidance_scale=4.0),
    Row("e", "a black cross on a red background", sampler="euler_a", num_steps=2),
    Row("f", "a blue square on a white background"),
    Row("g", "a yellow diamond on a black background", height=32),
    Row("h", "an orange ring on a purple background"),
]
SHARED = {"num_steps": 3, "guidance_scale": 2.0, "height": 64, "width": 64}


class Watched:
    """A generator that draws two images at once, remembers what it was asked for, and fails where it should."""

    def __init__(self, generator, fails=(), error=kerasdiff.NonFiniteError, ends_after=None):
        self._generator, self._fails, self._error, self._left = generator, fails, error, ends_after
        self.asked: list[list[str]] = []

    def __getattr__(self, name):
        return getattr(self._generator, name)

    def plan(self, batch_size, height, width):
        return Plan(batch_size, height, width, (2,), 1, 1, {}, 0, {})

    def stream(self, prompt, **arguments):
        results = self._generator.stream(prompt, **arguments)
        self.asked.append(prompt)
        for result in results:
            if any(text in self._fails for text in prompt):
                raise self._error("there is\na reason")
            if self._left == 0:
                raise KeyboardInterrupt
            if self._left is not None:
                self._left -= 1
            yield result


def pixels(path: pathlib.Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def lines(folder: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in (folder / MANIFEST).read_text().splitlines()]


def pictures(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.glob("[!.]*.*") if path.suffix not in (".json", ".jsonl"))


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    summary = run(ROWS, folder, generator=Watched(tiny), **SHARED, **QUIET)
    assert (summary.drawn, summary.kept, summary.failed) == (8, 0, 0)
    assert summary.images_per_second == pytest.approx(8 / summary.seconds)
    return folder


def same(folder: pathlib.Path, other: pathlib.Path) -> bool:
    files = [f"{row.id}.png" for row in ROWS]
    return all(np.array_equal(pixels(folder / file), pixels(other / file)) for file in files)


def test_every_row_has_its_picture_receipt_and_line(tiny, whole):
    assert pictures(whole) == [f"{row.id}.png" for row in ROWS]
    assert sorted(os.listdir(whole)) == [".lock", *pictures(whole), "job.json", MANIFEST]
    entries = {line["id"]: line for line in lines(whole)}
    assert len(lines(whole)) == len(entries) == 8
    for row in ROWS:
        receipt = metadata.read(whole / f"{row.id}.png")
        request, index = receipt.request, receipt.index
        assert (request.prompts[index], request.seeds[index]) == (row.prompt, row.first_seed)
        assert request.negative_prompts[index] == (row.negative_prompt or "")
        assert (request.height, request.width) == (row.height or 64, 64)
        assert (request.sampler, request.num_steps) == (row.sampler or TINY.defaults.sampler, row.num_steps or 3)
        assert request.guidance[0, index] == (2.0 if row.guidance_scale is None else row.guidance_scale)
        line = entries[row.id]
        assert (line["number"], line["seed"], line["file"]) == (1, row.first_seed, f"{row.id}.png")
        assert (line["nsfw"], line["error"]) == (None, None)
        assert line["seconds"] > 0
        assert line["versions"] == receipt.versions
        alone = tiny.generate(
            row.prompt,
            seed=row.first_seed,
            negative_prompt=row.negative_prompt,
            height=row.height or 64,
            width=64,
            sampler=row.sampler,
            num_steps=row.num_steps or 3,
            guidance_scale=2.0 if row.guidance_scale is None else row.guidance_scale,
            progress=False,
        )
        assert np.abs(pixels(whole / f"{row.id}.png").astype(int) - alone[0]).max() <= 1


def test_rows_that_one_request_can_hold_are_drawn_together_in_order(tiny, tmp_path):
    watched = Watched(tiny)
    run(ROWS, tmp_path, generator=watched, **SHARED, **QUIET)
    prompts = {row.prompt: row.id for row in ROWS}
    assert [[prompts[prompt] for prompt in asked] for asked in watched.asked] == [
        ["a", "b"],
        ["d", "f"],
        ["h"],
        ["c", "g"],
        ["e"],
    ]


def test_a_finished_job_draws_nothing(tiny, whole):
    before = {path.name: path.stat().st_mtime_ns for path in whole.iterdir() if path.suffix}
    watched = Watched(tiny)
    summary = run(ROWS, whole, generator=watched, **SHARED, **QUIET)
    assert (summary.drawn, summary.kept, summary.failed, watched.asked) == (0, 8, 0, [])
    assert {path.name: path.stat().st_mtime_ns for path in whole.iterdir() if path.suffix} == before


@pytest.mark.parametrize("ends_after", [0, 1, 3, 4, 7])
def test_an_interrupted_job_goes_on_to_the_same_pictures(tiny, whole, tmp_path, ends_after):
    with pytest.raises(KeyboardInterrupt):
        run(ROWS, tmp_path / "out", generator=Watched(tiny, ends_after=ends_after), **SHARED, **QUIET)
    written = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in pictures(tmp_path / "out")}
    assert len(written) == len(lines(tmp_path / "out")) == ends_after
    summary = run(ROWS, tmp_path / "out", generator=Watched(tiny), **SHARED, **QUIET)
    assert (summary.drawn, summary.kept) == (8 - ends_after, ends_after)
    assert same(tmp_path / "out", whole)
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == changed for name, changed in written.items())
    assert sorted(line["id"] for line in lines(tmp_path / "out")) == [row.id for row in ROWS]


def test_a_missing_picture_is_drawn_with_those_it_was_drawn_with(tiny, whole, tmp_path):
    run(ROWS, tmp_path, generator=Watched(tiny), **SHARED, **QUIET)
    (tmp_path / "f.png").unlink()
    kept = (tmp_path / "d.png").stat().st_mtime_ns
    watched = Watched(tiny)
    assert run(ROWS, tmp_path, generator=watched, **SHARED, **QUIET).drawn == 1
    assert watched.asked == [[ROWS[3].prompt, ROWS[5].prompt]]
    assert same(tmp_path, whole)
    assert (tmp_path / "d.png").stat().st_mtime_ns == kept


def test_exact_draws_only_what_is_missing_and_the_same_alone(tiny, tmp_path):
    run(ROWS, tmp_path, generator=Watched(tiny), exact=True, **SHARED, **QUIET)
    before = pixels(tmp_path / "f.png")
    (tmp_path / "f.png").unlink()
    watched = Watched(tiny)
    assert run(ROWS, tmp_path, generator=watched, exact=True, **SHARED, **QUIET).drawn == 1
    assert watched.asked == [[ROWS[5].prompt]]
    alone = tiny.generate(ROWS[5].prompt, seed=ROWS[5].first_seed, **SHARED, exact=True, **QUIET)
    assert np.array_equal(pixels(tmp_path / "f.png"), before)
    assert np.array_equal(before, alone[0])


def test_several_images_a_row(tiny, tmp_path):
    rows = [Row("x", "a ring", seed=5), Row("y", "a star")]
    summary = run(rows, tmp_path, generator=Watched(tiny), batch_size=3, format="webp", **SHARED, **QUIET)
    assert summary.drawn == 6
    assert pictures(tmp_path) == [f"{row}_{number}.webp" for row in "xy" for number in (1, 2, 3)]
    assert [(line["id"], line["number"]) for line in lines(tmp_path)] == [(row, n) for row in "xy" for n in (1, 2, 3)]
    assert [line["seed"] for line in lines(tmp_path)] == [5, 6, 7, *range(rows[1].first_seed, rows[1].first_seed + 3)]


def test_lines_that_were_lost_are_made_again_from_receipts(tiny, tmp_path):
    run(ROWS[:2], tmp_path, generator=Watched(tiny), **SHARED, **QUIET)
    complete = lines(tmp_path)
    text = (tmp_path / MANIFEST).read_text()
    (tmp_path / MANIFEST).write_text(text[: text.index("\n") + 30])
    watched = Watched(tiny)
    assert run(ROWS[:2], tmp_path, generator=watched, **SHARED, **QUIET).kept == 2
    assert watched.asked == []
    assert lines(tmp_path) == [complete[0], {**complete[1], "seconds": None}]


def test_drafts_are_removed_and_nothing_else(tiny, tmp_path):
    run(ROWS[:1], tmp_path, generator=Watched(tiny), **SHARED, **QUIET)
    drafts = [".a.png.12.part", ".job.json.3.part"]
    others = [".b.png.12.part", "notes.txt", "z.png"]
    for name in [*drafts, *others]:
        (tmp_path / name).write_text("x")
    run(ROWS[:1], tmp_path, generator=Watched(tiny), **SHARED, **QUIET)
    assert sorted(os.listdir(tmp_path)) == sorted([".lock", "a.png", "job.json", MANIFEST, *others])


def test_somebody_elses_picture_is_left_alone(tiny, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(ROWS, tmp_path, generator=Watched(tiny, ends_after=0), **SHARED, **QUIET)
    other = tmp_path / "b.png"
    for save, message in (
        (
            lambda: Image.new("RGB", (8, 8)).save(other),
            "has no embedded metadata: .*; row 'b' needs this file name, so move it elsewhere",
        ),
        (lambda: other.write_bytes(b"no"), r"b\.png is not a PNG, JPEG or WebP image.*move it elsewhere"),
        (
            lambda: tiny.generate(ROWS[1].prompt, seed=8, **SHARED, **QUIET).save(other),
            r"b.png was not created by this job \(prompt or seed differ from row 'b'\); move it elsewhere",
        ),
        (
            lambda: tiny.generate("a ring", seed=7, **SHARED, **QUIET).save(other),
            "b.png was not created by this job",
        ),
    ):
        save()
        before = other.read_bytes()
        with pytest.raises(kerasdiff.RequestError, match=message):
            run(ROWS, tmp_path, generator=Watched(tiny), **SHARED, **QUIET)
        assert other.read_bytes() == before
    other.unlink()
    assert run(ROWS, tmp_path, generator=Watched(tiny), **SHARED, **QUIET).drawn == 8


def test_a_picture_that_is_missing_costs_its_row_alone(tiny, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "there.png")
    (tmp_path / "rows.csv").write_text("id,prompt,image\na,a ring,there.png\nb,a star,not_yet.png\nc,a cross,\n")
    folder, shared = tmp_path / "out", {**SHARED, "strength": 0.5}
    summary = run(tmp_path / "rows.csv", folder, generator=Watched(tiny), **shared, **QUIET)
    assert (summary.drawn, summary.failed) == (2, 1)
    (failed,) = [line for line in lines(folder) if line["id"] == "b"]
    assert failed["file"] is None
    assert "cannot be read: No such file or directory" in failed["error"]
    assert metadata.read(folder / "a.png").pictures is not None
    assert metadata.read(folder / "c.png").pictures is None
    Image.new("RGB", (64, 64), "blue").save(tmp_path / "not_yet.png")
    summary = run(tmp_path / "rows.csv", folder, generator=Watched(tiny), **shared, **QUIET)
    assert (summary.drawn, summary.kept, summary.failed) == (1, 2, 0)
    assert [line["error"] for line in lines(folder) if line["id"] == "b"] == [failed["error"], None]


@pytest.fixture(scope="module")
def styles(tmp_path_factory):
    """A folder of two LoRAs for the embedded model, a and b."""
    folder, model = tmp_path_factory.mktemp("styles"), open_model("tiny")
    for seed, name in enumerate("ab"):
        shapes = {"unet": model.shapes("unet")}
        write_lora(folder / f"{name}.safetensors", shapes, seed, networks=("unet",))
    return folder


def test_rows_with_the_same_loras_follow_one_another(styles, tmp_path):
    b, a = str(styles / "b.safetensors"), Lora(str(styles / "a"), 0.5, 0.5)
    rows = [
        Row("1", "x"),
        Row("2", "x <lora:a:0.5>"),
        Row("3", "x", loras=[(b, 2)]),
        Row("4", "x <lora:a:0.5>", height=32),
        Row("5", "x", loras=[]),
        Row("6", "<lora:a:0.5> x"),
        Row("7", "x", embeddings="words"),
        Row("8", "x"),
        Row("9", "x <lora:a:0.5>", loras=b),
    ]
    shared = {"height": 64, "width": 64, "lora_folder": styles}
    job = make_job(rows, {"model": "tiny"}, shared)
    blocks = job.blocks(TINY, {"64x64": 2, "32x64": 2})
    assert [[target.row.id for target in block] for block in blocks] == [
        *(["1", "8"], ["7"], ["2", "6"], ["4"], ["3"], ["5"], ["9"]),
    ]
    asked = job.request(blocks[2])
    digest = hashlib.sha256((styles / "a.safetensors").read_bytes()).hexdigest()
    assert (asked["prompt"], asked["loras"]) == (["x", "x"], [dataclasses.replace(a, sha256=digest)])
    assert "lora_folder" not in asked
    assert "loras" not in job.request(blocks[0])
    assert job.request(blocks[5])["loras"] == []
    assert [lora.file for lora in job.loras(job.rows[8])] == [b, a.file]
    assert job.request(blocks[1])["embeddings"] == (EmbeddingFile(os.path.abspath("words")),)
    assert job.changes_weights
    assert not make_job(rows[1:2] + rows[5:6], {}, shared).changes_weights
    shared["loras"] = [(b, 0.25)]
    job = make_job(rows, {}, shared)
    assert job.arguments["loras"] == [[b, 0.25, 0.25]]
    assert [[lora.scale for lora in job.loras(row)] for row in job.rows[:5]] == [
        [0.25],
        [0.25, 0.5],
        [2],
        [0.25, 0.5],
        [],
    ]
    for values, message in (
        ({"loras": "none.safetensors"}, "there is no LoRA .*none.safetensors"),
        ({"loras": [(b, 0.5, "x")]}, r"loras\[0\] must be a number"),
        ({"lora_folder": styles}, "row '1': <lora:a:much> in a prompt is not of the form"),
    ):
        with pytest.raises(kerasdiff.KerasdiffError, match=message):
            make_job([Row("1", "<lora:a:much>")], {"model": "tiny"}, values).check(TINY)


def test_a_lora_that_is_missing_costs_its_row_and_one_that_changes_is_noticed(tiny, styles, tmp_path):
    for name in "ab":
        shutil.copy(styles / f"{name}.safetensors", tmp_path)
    prompt = ROWS[0].prompt
    width = TINY.text_encoder.width
    save_file({"word": np.ones((2, width), "float32")}, tmp_path / "toy.safetensors")
    (tmp_path / "rows.csv").write_text(
        f"id,prompt,seed,loras,embeddings\np,{prompt},1,,\na,{prompt},2,a.safetensors:0.5,\n"
        f"m,{prompt},3,none.safetensors,\nq,{prompt},4,,\nt,{prompt} <lora:b:2>,5,,\ne,a toy,6,,toy.safetensors:toy\n"
    )
    job = (tmp_path / "rows.csv", tmp_path / "out")
    shared = {**SHARED, **QUIET, "lora_folder": tmp_path}
    watched = Watched(tiny)
    summary = run(*job, generator=watched, **shared)
    assert (summary.drawn, summary.failed, [len(one) for one in watched.asked]) == (5, 1, [2, 1, 1, 1])
    (failed,) = [line["error"] for line in lines(job[1]) if line["id"] == "m"]
    assert failed.startswith("there is no LoRA ")
    for name, seed, loras in (
        ("a", 2, [(tmp_path / "a.safetensors", 0.5)]),
        ("t", 5, [(tmp_path / "b", 2.0)]),
        ("q", 4, []),
    ):
        alone = tiny.generate(prompt, seed=seed, loras=loras, **SHARED, **QUIET)
        assert np.abs(pixels(job[1] / f"{name}.png").astype(int) - alone[0]).max() <= 1
    assert metadata.read(job[1] / "t.png").request.loras[0].scale == 2
    assert [each.trigger for each in metadata.read(job[1] / "e.png").request.embeddings] == ["toy"]
    shutil.copy(styles / "b.safetensors", tmp_path / "none.safetensors")
    assert run(*job, generator=Watched(tiny), **shared).drawn == 1
    for name in ("none", "a"):
        kept = (tmp_path / f"{name}.safetensors").read_bytes()
        (tmp_path / f"{name}.safetensors").write_bytes(kept + b" ")
        with pytest.raises(kerasdiff.RequestError, match=f"holds another job, which differs in .*{name}.safetensors"):
            run(*job, generator=Watched(tiny), **shared)
        (tmp_path / f"{name}.safetensors").write_bytes(kept)
    assert run(*job, generator=Watched(tiny), **shared).kept == 6
    # A generator's own LoRAs are the job's.
    own = Watched(tiny)
    own.config = dataclasses.replace(
        TINY, defaults=dataclasses.replace(TINY.defaults, loras=(Lora(str(tmp_path / "a.safetensors"), 0.5, 0.5),))
    )
    run([Row("a", prompt, seed=2)], tmp_path / "own", generator=own, **SHARED, **QUIET)
    assert np.abs(pixels(tmp_path / "own" / "a.png").astype(int) - pixels(job[1] / "a.png")).max() <= 1
    assert "a.safetensors" in (tmp_path / "own" / "job.json").read_text()


def test_pictures_of_several_sizes_give_images_of_these(tiny, tmp_path):
    rows = []
    for name, width in (("x", 64), ("y", 32), ("z", 64)):
        Image.new("RGB", (width, width), "red").save(tmp_path / f"{name}.png")
        rows.append(Row(name, "a ring", image=str(tmp_path / f"{name}.png")))
    assert run(rows, tmp_path / "out", generator=Watched(tiny), num_steps=2, **QUIET).failed == 0
    assert [pixels(tmp_path / "out" / f"{row.id}.png").shape[1] for row in rows] == [64, 32, 64]


@pytest.mark.parametrize("error", [kerasdiff.NonFiniteError, kerasdiff.RequestError])
def test_an_image_that_fails_costs_only_itself(tiny, tmp_path, error):
    fails = [ROWS[0].prompt]
    watched = Watched(tiny, fails, error)
    summary = run(ROWS, tmp_path, generator=watched, **SHARED, **QUIET)
    assert (summary.drawn, summary.failed) == (7, 1)
    assert [len(asked) for asked in watched.asked] == [2, 1, 1, 2, 1, 2, 1]
    (line,) = [line for line in lines(tmp_path) if line["id"] == "a"]
    assert (line["error"], line["file"], line["seconds"]) == ("there is a reason", None, None)
    watched = Watched(tiny, fails, error)
    assert run(ROWS, tmp_path, generator=watched, **SHARED, **QUIET).failed == 1
    assert [len(asked) for asked in watched.asked] == [2, 1]
    assert run(ROWS, tmp_path, generator=Watched(tiny), **SHARED, **QUIET).drawn == 1


def test_out_of_memory_ends_the_job_and_keeps_what_there_is(tiny, tmp_path):
    watched = Watched(tiny, [ROWS[3].prompt], kerasdiff.OutOfMemoryError)
    with pytest.raises(kerasdiff.OutOfMemoryError):
        run(ROWS, tmp_path, generator=watched, **SHARED, **QUIET)
    assert pictures(tmp_path) == ["a.png", "b.png"]
    assert run(ROWS, tmp_path, generator=Watched(tiny), **SHARED, **QUIET).drawn == 6


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_ends_the_job_and_keeps_what_there_is(tiny, whole, tmp_path, monkeypatch, number):
    left = [3]

    def fsync(file):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, os.strerror(number))

    with monkeypatch.context() as full:  # job.json, a picture, its line, and no more
        full.setattr(os, "fsync", fsync)
        with pytest.raises(CannotWriteError, match=f"cannot write to {tmp_path}: the disk is full"):
            run(ROWS, tmp_path, generator=Watched(tiny), **SHARED, **QUIET)
    assert pictures(tmp_path) == ["a.png"]
    assert run(ROWS, tmp_path, generator=Watched(tiny), **SHARED, **QUIET).drawn == 7
    assert same(tmp_path, whole)


def test_a_folder_that_fails_otherwise_says_how(tiny, tmp_path, monkeypatch):
    write = Folder.write

    def fail(folder, name, data):
        if name == "job.json":
            return write(folder, name, data)
        raise kerasdiff.RequestError("cannot save") from OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Folder, "write", fail)
    with pytest.raises(CannotWriteError, match=f"cannot write to {tmp_path}: Input/output error"):
        run(ROWS, tmp_path, generator=Watched(tiny), **SHARED, **QUIET)


def test_no_clock_matters(tiny, whole, tmp_path, monkeypatch):
    clock = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    with pytest.raises(KeyboardInterrupt):
        run(ROWS, tmp_path, generator=Watched(tiny, ends_after=3), **SHARED)
    run(ROWS, tmp_path, generator=Watched(tiny), **SHARED)
    assert same(tmp_path, whole)
    assert all(line["seconds"] > 0 for line in lines(tmp_path))


def test_a_job_goes_on_only_as_it_was_begun(tiny, tmp_path):
    run(ROWS[:1], tmp_path, generator=Watched(tiny), **SHARED, **QUIET)
    (tmp_path / "a.png").unlink()
    before = (tmp_path / "job.json").read_bytes()
    for rows, changed, message in (
        (ROWS[:2], {}, "rows"),
        ([Row("a", "a ring")], {}, "rows"),
        (ROWS[:1], {"num_steps": 4}, "num_steps"),
        (ROWS[:1], {"exact": True, "batch_size": 2}, "batch_size, exact"),
    ):
        with pytest.raises(kerasdiff.RequestError, match=f"holds another job, which differs in {message};"):
            run(rows, tmp_path, generator=Watched(tiny), **{**SHARED, **changed}, **QUIET)
    said = json.loads(before)
    said["begun"]["precision"] = "float16"
    (tmp_path / "job.json").write_text(json.dumps(said))
    with pytest.raises(kerasdiff.RequestError, match="started in float16, not in float32; give precision='float16'"):
        run(ROWS[:1], tmp_path, generator=Watched(tiny), **SHARED, **QUIET)
    said = json.loads(before)
    said["begun"]["together"] = {"512x512": 4}
    (tmp_path / "job.json").write_text(json.dumps(said))
    with pytest.raises(kerasdiff.RequestError, match="started without images of size 64x64, now the model's default"):
        run(ROWS[:1], tmp_path, generator=Watched(tiny), **SHARED, **QUIET)
    (tmp_path / "job.json").write_bytes(before)
    # Defaults are no difference.
    again = {**SHARED, "exact": False, "image": None, "guidance_interval": [0, 1]}
    assert run(ROWS[:1], tmp_path, generator=Watched(tiny), **again, **QUIET).drawn == 1


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ([], {}, "there are no rows"),
        ("no.csv", {}, "cannot read rows from no.csv"),
        (3, {}, "rows must be a list of Row, or the path of a file, not int"),
        (["a ring"], {}, "rows must be a list of Row, or the path of a file; it contains str"),
        ([ROWS[0], Row("A", "x")], {}, "ids 'A' and 'a' name the same file"),
        ([Row("a", "x", height=100)], {}, "row 'a': height=100 is not a multiple of 8; the nearest valid size is 96"),
        ([Row("a", "x", num_steps=2000)], {}, "row 'a': num_steps=2000 is out of range"),
        ([Row("a", "x", num_steps=3)], {"sigmas": [5.0, 0.0]}, "row 'a': "),
        ([Row("a", "x", strength=0.5)], {}, "row 'a': strength needs image"),
        (
            [Row("a", "x", seed=MAX_SEED)],
            {"batch_size": 2},
            "row 'a': the seeds of 2 images from 18446744073709551615",
        ),
        (ROWS, {"num_steps": 0}, "num_steps=0 is out of range"),
        (ROWS, {"batch_size": 0}, "batch_size=0 is out of range"),
        (ROWS, {"format": "gif"}, "format='gif' is unknown"),
        (ROWS, {"sampler": "eular"}, "sampler='eular' is unknown; did you mean 'euler'?"),
        (ROWS, {"stength": 0.5}, "argument='stength' is unknown; did you mean 'strength'?"),
        (ROWS, {"latents": np.zeros(3)}, "argument='latents' is unknown"),
        (
            ROWS,
            {"seed": -1},
            "seed=-1 is out of range; it must be between 0 and 18446744073709551615; leave it out for",
        ),
        (ROWS, {"seed": [3, 4]}, "seed must be an integer, not list ([3, 4])"),
        (ROWS, {"num_inference_steps": 9}, "num_inference_steps is called num_steps here: num_steps=9"),
        ([Row("a", "x", sampler="DPM++ 2M Karras")], {"spacing": "beta"}, "means spacing='karras', but spacing='beta'"),
        (ROWS, {"image": np.zeros((8, 8, 3))}, "image of a job must be a path"),
        (ROWS, {"image": ["a.png", "b.png"]}, "image of a job must be a path"),
        (ROWS, {"image": "no.png"}, "no.png' cannot be read: No such file"),
        (ROWS, {"mask": "no.png"}, "no.png' cannot be read: No such file"),
        (ROWS, {"strength": 0.0}, "strength needs image"),
        (ROWS, {"resize": "cover", "feather": 3}, "resize, feather need image"),
        (ROWS, {"negative_prompt": ["a", "b"]}, "negative_prompt of a job must be a single value"),
        (ROWS, {"guidance_scale": [[1.0], [2.0]]}, "guidance_scale of a job must be one number, or one per step"),
        (ROWS, {"guidance_scale": object()}, "guidance_scale of a job must be plain numbers and strings"),
        (ROWS, {"exact": "yes"}, "exact must be True or False"),
    ],
)
def test_wrong_arguments_are_found_before_a_folder_is_made(tiny, tmp_path, rows, arguments, message):
    with pytest.raises(kerasdiff.RequestError) as found:
        run(rows, tmp_path / "out", generator=tiny, **arguments)
    assert message in str(found.value)
    assert "\n" not in str(found.value)
    assert os.listdir(tmp_path) == []


def test_seeds_count_up_over_rows_without_their_own():
    rows = [Row("a", "x"), Row("b", "y", seed=70), Row("c", "z")]
    job = make_job(rows, {}, {"seed": np.int64(3)}, batch_size=2)
    assert [target.seed for target in job.targets] == [3, 4, 70, 71, 7, 8]
    assert "seed" not in job.arguments
    given = [Row("a", "x", seed=3), Row("b", "y", seed=70), Row("c", "z", seed=7)]
    assert job.description == make_job(given, {}, {}, batch_size=2).description


def test_a_row_may_name_a_sampler_with_its_spacing():
    rows = [Row("a", "x", sampler="DPM++ 2M Karras"), Row("b", "y")]
    job = make_job(rows, {}, {"num_steps": 3, "sampler": "Euler a"})
    job.check(TINY)
    requests = [make_request(TINY, **job.request([target])) for target in job.targets]
    assert [(one.sampler, one.spacing) for one in requests] == [("dpmpp_2m", "karras"), ("euler_a", "trailing")]


def test_guidance_one_a_step_and_a_rows_own_go_together():
    rows = [Row("a", "x"), Row("b", "y", guidance_scale=5)]
    job = make_job(rows, {}, {"guidance_scale": (3.0, 2.0, 1.0), "num_steps": 3})
    job.check(TINY)
    ((first, second),) = job.blocks(TINY, {"128x128": 8})
    assert job.request([first, second])["guidance_scale"] == [[3.0, 2.0, 1.0], [5, 5, 5]]


def test_a_mask_that_covers_nothing_ends_a_job_before_it_begins(tmp_path):
    for name, value in (("picture", 90), ("mask", 0), ("white", 255)):
        Image.new("L", (64, 64), value).save(tmp_path / f"{name}.png")
    arguments = {"image": tmp_path / "picture.png", "mask": tmp_path / "mask.png"}
    for more, words in [
        ({}, "mask covers nothing: what is white is redrawn"),
        ({"invert_mask": True}, "mask covers everything: what is black is redrawn"),
        ({"mask": tmp_path / "white.png", "invert_mask": True}, "mask covers nothing: what is black is redrawn"),
    ]:
        with pytest.raises(kerasdiff.RequestError, match=words):
            make_job(ROWS[:2], {}, {**arguments, **more}).check(TINY)


def test_checking_jobs_in_threads_leaves_the_filters_of_warnings_alone(tmp_path):
    mask = np.zeros((64, 64), "uint8")
    mask[:20] = 1
    for name, values in (("picture", mask), ("mask", mask)):
        Image.fromarray(values).save(tmp_path / f"{name}.png")
    job = make_job(ROWS[:1], {}, {"image": tmp_path / "picture.png", "mask": tmp_path / "mask.png"})
    filters, switches = list(warnings.filters), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: job.check(TINY), range(100)))
    finally:
        sys.setswitchinterval(switches)
    assert warnings.filters == filters


def test_one_picture_and_mask_for_all_rows(tiny, tmp_path):
    picture = np.tile(np.linspace(0, 255, 64, dtype="uint8")[:, None, None], (1, 64, 3))
    mask = np.zeros((64, 64), "uint8")
    mask[20:50, 10:40] = 255
    for name, array in (("picture", picture), ("mask", mask)):
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    arguments = {"image": tmp_path / "picture.png", "mask": tmp_path / "mask.png", "feather": 2, **SHARED}
    run(ROWS[:2], tmp_path / "out", generator=Watched(tiny), **arguments, **QUIET)
    for name in "ab":
        drawn = pixels(tmp_path / "out" / f"{name}.png")
        assert np.array_equal(drawn[:15], picture[:15])
        assert np.any(drawn[25:45, 15:35] != picture[25:45, 15:35])


def test_rows_may_be_seamless_each_in_its_own_way():
    rows = [Row("a", "a ring", tile="xy"), Row("b", "a star"), Row("c", "a circle", tile="xy")]
    job = make_job(rows, {}, {"tile": "x"})
    asked = [job.request(block) for block in job.blocks(TINY, {"128x128": 4})]
    assert [(len(request["prompt"]), request["tile"]) for request in asked] == [(2, "xy"), (1, "x")]
    # As it was before rows could be: a folder of then can be completed.
    plain = make_job([Row("b", "a star")], {}, {}).description["rows"]
    assert plain == "00990929f9d96cb4c501323a9cc363a4bb004388e518092502b3be54f8576485"
    with pytest.raises(kerasdiff.RequestError, match="tile='z' is unknown"):
        Row("a", "a ring", tile="z")
