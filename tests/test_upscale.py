"""Larger pictures: `kerasdiff.upscale`, `upscale=` of a request, its receipts, and the command."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from upscaler_files import compact, save

import kerasdiff
from kerasdiff import metadata
from kerasdiff.adapter_files import UpscalerFile, make_upscaler, split_upscaler, upscaler_of_column
from kerasdiff.batch.job import make_job
from kerasdiff.batch.rows import Row, make_row
from kerasdiff.cli.options import GENERATE, request_arguments
from kerasdiff.cli.upscale_command import PROGRAM, main
from kerasdiff.hires import make_hires
from kerasdiff.images.reader import scaled
from kerasdiff.models.config import TINY
from kerasdiff.request import make_request

QUICK = {"num_steps": 2, "seed": 3, "progress": False}
PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """An upscaler of scale 2."""
    return save(compact(features=4, blocks=1, scale=2), tmp_path_factory.mktemp("upscalers") / "x2.safetensors")


@pytest.fixture(scope="module")
def drawn(tiny):
    return tiny.generate([PROMPT] * 2, **QUICK)


def test_a_request_enlarges_finished_images(tiny, drawn, file, tmp_path):
    result = tiny.generate([PROMPT] * 2, upscale=file, **QUICK)
    assert result.images.shape == (2, 256, 256, 3)
    assert np.array_equal(result.latents, drawn.latents)
    assert (result.request.height, result.request.width) == (128, 128)
    alone = [one.images for one in tiny.stream([PROMPT] * 2, upscale=file, **QUICK)]
    assert np.array_equal(np.concatenate(alone), result.images)
    later = kerasdiff.upscale(drawn, file, progress=False)
    assert np.array_equal(later.images, result.images)
    assert [later.receipt(place) for place in (0, 1)] == [result.receipt(place) for place in (0, 1)]
    with pytest.raises(kerasdiff.RequestError, match="made larger already; give np"):
        kerasdiff.upscale(later, file)
    smaller = tiny.generate([PROMPT] * 2, upscale=(file, 1.5), **QUICK)
    assert np.array_equal(smaller[0], scaled(result[0], 192, 192, crop=False))


def test_a_saved_image_names_the_upscaler_and_is_drawn_again(tiny, file, tmp_path):
    result = tiny.generate(PROMPT, upscale=file, **QUICK)
    (path,) = result.save(tmp_path / "a.png")
    upscaler = metadata.read(path).request.upscale
    assert upscaler == dataclasses.replace(result.request.upscale, file="x2.safetensors")
    assert (upscaler.scale, len(upscaler.sha256)) == (2, 64)
    text = Image.open(path).text["parameters"]
    assert "Size: 128x128" in text
    assert "Postprocess upscale by: 2, Postprocess upscaler: x2" in text
    renamed = tmp_path / "upscalers" / "renamed.safetensors"
    renamed.parent.mkdir()
    renamed.write_bytes(file.read_bytes())
    for given in (file, renamed.parent):
        assert np.array_equal(kerasdiff.replay(path, upscale=given, progress=False).images, result.images)
    with pytest.raises(kerasdiff.RequestError, match=r"with the upscaler x2.safetensors .*; give its file as upscale"):
        kerasdiff.replay(path)
    with pytest.raises(kerasdiff.RequestError, match=r"says the scale of its upscale; give .* without"):
        kerasdiff.replay(path, upscale=(file, 2))
    (plain,) = tiny.generate(PROMPT, **QUICK).save(tmp_path / "plain.png")
    with pytest.raises(kerasdiff.RequestError, match="was made without upscale; leave them out"):
        kerasdiff.replay(plain, upscale=file)


def test_pictures_of_all_kinds(drawn, file, tmp_path):
    picture = drawn[0]
    Image.fromarray(picture).save(tmp_path / "a.png")
    expected = kerasdiff.upscale(picture, file, progress=False)
    assert expected[0].shape == (256, 256, 3)
    assert np.asarray(expected).shape == (1, 256, 256, 3)
    for given in (tmp_path / "a.png", Image.fromarray(picture), [picture], picture[None]):
        assert np.array_equal(kerasdiff.upscale(given, file, progress=False)[0], expected[0])
    several = kerasdiff.upscale([picture, picture[:64]], file, scale=1.5, progress=False)
    assert [image.shape for image in several] == [(192, 192, 3), (96, 192, 3)]
    assert repr(several) == f"<UpscaledImages: 2 of 192 x 192, 96 x 192 by {file}>"
    assert [path.name for path in several.save(tmp_path / "b.jpg")] == ["b_1.jpg", "b_2.jpg"]
    assert expected.grid().size == (256, 256)
    with pytest.raises(kerasdiff.RequestError, match="a grid needs one size"):
        several.grid()
    with pytest.raises(kerasdiff.RequestError, match=r"images\[1\] must be a path"):
        kerasdiff.upscale([picture, 3], file)
    with pytest.raises(kerasdiff.RequestError, match="there are no images"):
        kerasdiff.upscale([], file)


def test_files_keep_what_they_said(tiny, file, tmp_path):
    (path,) = tiny.generate(PROMPT, **QUICK).save(tmp_path / "ours.png")
    for name in ("large.png", "large.webp"):
        (large,) = kerasdiff.upscale(path, file, progress=False).save(tmp_path / name)
        receipt = metadata.read(large)
        assert receipt.request.upscale.scale == 2
        assert dataclasses.replace(receipt.request, upscale=None) == metadata.read(path).request
    chunks = PngInfo()
    chunks.add_text("parameters", "a dog\nSteps: 20, Seed: 5")
    Image.new("RGB", (40, 40)).save(tmp_path / "theirs.png", pnginfo=chunks)
    large = kerasdiff.upscale(tmp_path / "theirs.png", file, progress=False)
    texts = Image.open(*large.save(tmp_path / "a.png")).text
    note = "Postprocess upscale by: 2, Postprocess upscaler: x2"
    assert texts == {"parameters": "a dog\nSteps: 20, Seed: 5", "postprocessing": note}
    (jpeg,) = large.save(tmp_path / "a.jpg")
    assert f"a dog\nSteps: 20, Seed: 5, {note}".encode("utf-16-be") in jpeg.read_bytes()
    (without,) = large.save(tmp_path / "b.png", metadata=False)
    assert not Image.open(without).text


def test_what_an_upscaler_is_given_as(file, tmp_path):
    assert make_upscaler("upscale", ("a.pth", 2)) == UpscalerFile("a.pth", 2.0)
    assert split_upscaler("C:/a.pth:2.5") == ("C:/a.pth", 2.5)
    assert split_upscaler("org/name/a.pth") == ("org/name/a.pth",)
    assert upscaler_of_column("upscale", {"file": "a.pth", "scale": None}) == UpscalerFile("a.pth")
    GENERATE.parse(["kerasdiff", "a", "--upscale=a.pth:2"])
    assert request_arguments(GENERATE.values)["upscale"] == ("a.pth", 2)
    for value, line in (
        (3, "upscale must be the path of an upscaler or .path, scale., not int"),
        (("a", 2, 3), "upscale must be the path of an upscaler or .path, scale., not tuple"),
        (("a", 0.5), "upscale's scale=0.5 is out of range"),
    ):
        with pytest.raises(kerasdiff.RequestError, match=line):
            make_request(TINY, "a", upscale=value)
    for value, line in (
        ("none.pth", "there is no upscaler 'none.pth'; give a .safetensors or .pth file"),
        (tmp_path, "is a folder, and not an upscaler"),
        (file.parent, "give one of its files, x2.safetensors"),
        ((file, 3), "x2 makes pictures 2 times as large, not 3"),
    ):
        with pytest.raises(kerasdiff.KerasdiffError, match=line):
            kerasdiff.generate(PROMPT, upscale=value, **QUICK)


def test_what_the_safety_filter_blacked_out_stays_black(tiny, file):
    image = tiny._pipeline.upscale(UpscalerFile(str(file), 1.5), np.zeros((64, 48, 3), "uint8"))
    assert image.shape == (96, 72, 3)
    assert not image.any()


def test_rows_have_an_upscaler(file, tmp_path):
    row = make_row({"id": "a", "prompt": PROMPT, "upscale": f"{file.name}:1.5"}, file.parent)
    assert row.upscale == UpscalerFile(str(file), 1.5)
    rows = [row, Row("b", PROMPT), Row("c", PROMPT, upscale="org/name/x4.safetensors")]
    job = make_job(rows, {"model": "tiny"}, {"upscale": file})
    job.check(TINY)
    assert job.hashes[str(file)] == make_hash(file)
    blocks = job.blocks(TINY, {"128x128": 8})
    found = [job.request(block)["upscale"] for block in blocks]
    assert [(each.file, each.scale) for each in found] == [
        (str(file), 1.5),
        (str(file), None),
        ("org/name/x4.safetensors", None),
    ]
    assert found[0].sha256 == make_hash(file)
    assert json.loads(json.dumps(job.description))["arguments"] == {"upscale": [str(file)]}


def make_hash(file):
    from kerasdiff.adapters.file_search import sha256

    return sha256(file)


def run(capsys, *arguments):
    status = PROGRAM.call(main, ["kerasdiff upscale", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_the_command(file, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (50, 40)).save(pictures / name)
    (pictures / "c.png").write_bytes(b"no picture")
    assert run(capsys, pictures / "a.png", f"--upscaler={file}")[:2] == (0, "upscaled.png (100 x 80)\n")
    status, out, error = run(capsys, "pictures", f"--upscaler={file}:1.5", "--output=larger", "--format=webp", "--json")
    assert status == 1
    assert [json.loads(line)["width"] for line in out.splitlines()] == [75, 75]
    assert "c.png" in error
    assert sorted(path.name for path in (tmp_path / "larger").iterdir()) == ["a.webp", "b.webp"]
    Image.new("RGB", (9, 9)).save(tmp_path / "b.png")
    for arguments, line in (
        ([pictures], "--upscaler is missing"),
        ([f"--upscaler={file}"], "a picture or a folder is missing"),
        (["none.png", f"--upscaler={file}"], "there is no file none.png"),
        ([file.parent, f"--upscaler={file}"], "has no pictures"),
        ([pictures, f"--upscaler={file}", "--output=b.png"], "several pictures need a folder"),
        ([pictures, f"--upscaler={file}", f"--output={pictures}"], "would be overwritten"),
        ([pictures, "b.png", f"--upscaler={file}"], "would both become upscaled/b.png"),
        ([pictures / "a.png", "--upscaler=none.pth"], "there is no upscaler 'none.pth'"),
    ):
        status, _, error = run(capsys, *arguments)
        assert status == 2
        assert line in error
        assert len(error.splitlines()) == 1


def test_an_upscalers_file_enlarges_the_image(tiny, file, tmp_path):
    hires = {"scale": 1.5, "strength": 0.6, "steps": 3, "upscaler": file}
    result = tiny.generate(PROMPT, hires=hires, **QUICK)
    large = kerasdiff.upscale(tiny.generate(PROMPT, **QUICK).images, file, progress=False)[0]
    picture = np.asarray(Image.fromarray(large).resize((192, 192), Image.Resampling.LANCZOS))
    more = {**QUICK, "image": picture, "num_steps": 5, "strength": 0.7}
    assert np.array_equal(result.images, tiny.generate(PROMPT, **more).images)
    (path,) = result.save(tmp_path / "a.png")
    named = metadata.read(path).request.hires.upscaler
    assert named == dataclasses.replace(result.request.hires.upscaler, file="x2.safetensors")
    assert (named.scale, len(named.sha256)) == (None, 64)
    assert "Hires upscaler: x2, " in Image.open(path).text["parameters"]
    for place in (file, file.parent):
        assert np.array_equal(kerasdiff.replay(path, upscale=place, progress=False).images, result.images)
    with pytest.raises(kerasdiff.RequestError, match=r"with the upscaler x2.safetensors .*; give its file as upscale"):
        kerasdiff.replay(path)
    assert "upscale" in tiny.warm_up(hires=hires)
    plan = tiny.plan(hires=hires, upscale=(file, 1.5))
    assert (plan.upscaled, plan.second_pass.upscaled, "upscaled to 288 x 288" in str(plan)) == (None, (288, 288), True)
    assert plan.second_pass.memory["images"] == 288 * 288 * 3
    both = tiny.generate(PROMPT, hires=hires, upscale=(file, 1.5), **QUICK)
    assert both.images.shape == (1, 288, 288, 3)
    (path,) = both.save(tmp_path / "both.png")
    assert np.array_equal(kerasdiff.replay(path, upscale=file, progress=False).images, both.images)


def test_jobs_know_the_upscaler_of_a_second_pass(file, tmp_path, monkeypatch):
    monkeypatch.chdir(file.parent)
    own = f"scale=2,strength=0.7,upscaler={file}"
    assert make_row({"id": "a", "prompt": "x", "hires": "upscaler=x2.safetensors"}, file.parent).hires == own
    rows = [Row("a", "x", hires="upscaler=x2.safetensors"), Row("b", "x"), Row("c", "x", hires=1)]
    job = make_job(rows, {"model": "tiny"}, {"hires": {"upscaler": file.name}})
    job.check(TINY)
    assert [*job.hashes] == [str(file)]
    found = [job.request(block)["hires"] for block in job.blocks(TINY, {"128x128": 8})]
    assert [each.file and each.file.sha256 for each in found] == [job.hashes[str(file)], None]
    assert job.arguments["hires"] == own


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("x2.pth", UpscalerFile("x2.pth")),
        ("org/name/x2.pth", UpscalerFile("org/name/x2.pth")),
        (pathlib.Path("x2"), UpscalerFile("./x2")),
        ("Lanczos", "lanczos"),
    ],
)
def test_an_upscaler_is_a_name_or_a_file(value, expected):
    made = make_hires("hires", {"upscaler": value})
    assert made.upscaler == expected
    assert make_hires("hires", made.text) == made
