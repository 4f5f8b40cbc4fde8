"""Saving, numbering, grids and array behaviour, without a model."""

from __future__ import annotations

import io
import os
import pathlib
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import kerasdiff
from kerasdiff.images.writer import check_output, try_output
from kerasdiff.models.config import TINY
from kerasdiff.request import make_request


def result_of(count):
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 16, 3)).astype("uint8")
    return kerasdiff.Result(
        images, np.zeros((count, 4, 2, 4), "float32"), make_request(TINY, "a", batch_size=count, seed=3), "tiny"
    )


def test_it_acts_like_its_images():
    result = result_of(3)
    assert len(result) == 3
    assert np.array_equal(np.asarray(result), result.images)
    assert np.array_equal(result[1], result.images[1])
    assert [image.shape for image in result] == [(32, 16, 3)] * 3
    assert np.asarray(result, "float32").dtype == np.float32
    assert result.seeds == (3, 4, 5)


def test_it_is_told_in_one_line():
    assert repr(result_of(2)) == "<Result: 2 images of 32 x 16 by tiny, seeds 3, 4>"
    assert repr(result_of(2).only(1)) == "<Result: 1 image of 32 x 16 by tiny, seeds 4>"


def test_one_image_keeps_its_name_and_several_are_numbered(tmp_path):
    assert [path.name for path in result_of(1).save(tmp_path / "one.png")] == ["one.png"]
    result = result_of(3)
    paths = result.save(str(tmp_path / "many.png"))
    assert [path.name for path in paths] == ["many_1.png", "many_2.png", "many_3.png"]
    for path, image in zip(paths, result, strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), image)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["many_1.png", "many_2.png", "many_3.png", "one.png"]


def test_a_result_can_be_sent_to_another_process(tmp_path, tiny):
    result = tiny.generate("a ring", num_steps=1, seed=1, height=64, width=64, progress=False)
    (result.save(tmp_path / "a.png"), pickle.loads(pickle.dumps(result)).save(tmp_path / "b.png"))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_bytes_are_those_of_files(tmp_path, tiny, ending):
    result = tiny.generate("a red circle", batch_size=2, seed=3, num_steps=2, progress=False)
    for metadata in (True, False):
        paths = result.save(tmp_path / f"a.{ending}", metadata=metadata)
        assert result.encode(ending, metadata=metadata) == [path.read_bytes() for path in paths]
    for place, encoded in enumerate(result.encode(ending)):
        receipt = kerasdiff.metadata.read_bytes(encoded)
        assert receipt.request.seeds[receipt.index] == 3 + place
    with pytest.raises(kerasdiff.RequestError, match="format='gif' is unknown"):
        result.encode("gif")
    with pytest.raises(kerasdiff.RequestError, match="letter has no embedded metadata"):
        kerasdiff.metadata.read_bytes(result.encode(ending, metadata=False)[0], "letter")
    with pytest.raises(kerasdiff.RequestError, match="the image is not a PNG, JPEG or WebP"):
        kerasdiff.metadata.read_bytes(b"no picture")


@pytest.mark.parametrize(("name", "kind"), [("a.jpg", "JPEG"), ("a.JPEG", "JPEG"), ("a.webp", "WEBP")])
def test_other_formats(tmp_path, name, kind):
    (path,) = result_of(1).save(tmp_path / name)
    with Image.open(path) as saved:
        assert saved.format == kind


@pytest.mark.parametrize("name", ["a.gif", "a", "a.txt"])
def test_unknown_endings_are_refused(tmp_path, name):
    with pytest.raises(kerasdiff.RequestError, match=r"must end in one of \.png"):
        result_of(1).save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(kerasdiff.RequestError, match=r"there is no folder .*nowhere; make it first"):
        check_output(tmp_path / "nowhere" / "a.png")
    with pytest.raises(kerasdiff.RequestError, match="there is no folder"):
        result_of(2).save(tmp_path / "nowhere" / "a.png")


def test_threads_save_to_one_name(tmp_path, tiny):
    result = tiny.generate("a red circle", seed=3, num_steps=1, progress=False)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: result.save(tmp_path / "latest.png"), range(40)))
    assert (tmp_path / "latest.png").read_bytes() == result.encode("png")[0]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    result = result_of(1)
    assert result.save("~/a.png") == [tmp_path / "a.png"]
    assert result.save_grid("~/b.png") == tmp_path / "b.png"
    assert kerasdiff.images.save_images(result, "~/c") == [tmp_path / "c1.png"]
    assert np.array_equal(kerasdiff.images.read("~/a.png"), result[0])
    with pytest.raises(kerasdiff.RequestError, match=r"a\.png has no embedded metadata"):
        kerasdiff.metadata.read("~/a.png")


def test_an_output_is_tried_and_left_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "a_2.png").mkdir()
    (tmp_path / "b.png").write_bytes(b"before")
    for name in ("b.png", "x" * 251 + ".png", "a.png"):
        try_output(tmp_path / name)
    for name, count, words in [
        ("a_2.png", 1, "a_2.png: there is a folder of this name; choose another name"),
        ("a.png", 2, "a_2.png: there is a folder of this name"),
        ("x" * 252 + ".png", 1, "File name too long; choose another name"),
        ("x" * 248 + ".png", 100, "File name too long"),
    ]:
        with pytest.raises(kerasdiff.RequestError, match=words):
            try_output(tmp_path / name, count)
    assert (tmp_path / "b.png").read_bytes() == b"before"
    assert sorted(os.listdir(tmp_path)) == ["a_2.png", "b.png"]
    monkeypatch.setattr(pathlib.Path, "touch", raises(PermissionError(13, "Permission denied")))
    with pytest.raises(kerasdiff.RequestError, match=r"cannot save to .*b\.png: Permission denied; choose another"):
        try_output(tmp_path / "b.png")


def raises(error):
    def call(*_, **__):
        raise error

    return call


def test_a_failed_write_leaves_no_part(tmp_path):
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(kerasdiff.RequestError, match=r"cannot save to .*taken\.png"):
        result_of(1).save(tmp_path / "taken.png")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.png"]


def test_the_grid_holds_every_image_in_order():
    result = result_of(5)
    grid = np.asarray(result.grid(columns=2))
    assert grid.shape == (96, 32, 3)
    for index, image in enumerate(result):
        row, column = divmod(index, 2)
        assert np.array_equal(grid[row * 32 : row * 32 + 32, column * 16 : column * 16 + 16], image)
    assert np.all(grid[64:, 16:] == 255)
    assert result.grid().size == (48, 64)
    assert result_of(1).grid(columns=9).size == (16, 32)


@pytest.mark.parametrize("columns", [0, -1, 1.5, True, "2"])
def test_wrong_columns_are_refused(columns):
    with pytest.raises(kerasdiff.RequestError, match="columns"):
        result_of(2).grid(columns=columns)


@pytest.mark.parametrize("how", ["save", "save_grid"])
@pytest.mark.parametrize(
    ("path", "words"),
    [
        (None, "path must be a path, not None"),
        (b"a.png", "path must be a path, not bytes"),
        (["a.png"], "path must be a path, not list"),
        ("a\0.png", "path='a.x00.png' is not a path: it has a zero character"),
        ("\ud800.png", "path cannot be read: .* surrogates not allowed"),
    ],
)
def test_what_is_no_path_is_refused(how, path, words):
    with pytest.raises(kerasdiff.RequestError, match=words) as caught:
        getattr(result_of(2), how)(path)
    assert str(caught.value).isprintable()


def test_metadata_is_yes_or_no(tmp_path):
    with pytest.raises(kerasdiff.RequestError, match=r"metadata must be True or False, not str \('off'\)"):
        result_of(1).save(tmp_path / "a.png", metadata="off")


def test_what_is_too_large_for_webp_is_refused(tmp_path):
    result = kerasdiff.Result(
        np.zeros((2, 1, 8192, 3), "uint8"),
        np.zeros((2, 1, 1024, 4), "float32"),
        make_request(TINY, "a", batch_size=2, seed=3),
        "tiny",
    )
    with pytest.raises(kerasdiff.RequestError, match="the grid has a side of more than 16383 pixels, WebP's limit"):
        result.save_grid(tmp_path / "a.webp", columns=2)
    assert list(tmp_path.iterdir()) == []
    assert result.save_grid(tmp_path / "a.png", columns=10**400).is_file()
    assert len(result.save(tmp_path / "b.webp")) == 2


def test_a_notebook_shows_the_grid():
    result = result_of(4)
    shown = Image.open(io.BytesIO(result._repr_png_()))
    assert np.array_equal(np.asarray(shown), np.asarray(result.grid()))
