"""Resizing, outpainting, saving, sheets and galleries, without a model."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from kerasdiff import RequestError, Result, images
from kerasdiff.models.config import TINY
from kerasdiff.request import make_request

SHAPES = [(1, 1), (37, 101), (100, 100), (2000, 3), (3, 2000)]


def noise(*shape):
    return np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 3), dtype="uint8")


def result_of(count):
    request = make_request(TINY, "a", batch_size=count, seed=3)
    return Result(noise(count, 12, 10), np.zeros((count, 4, 2, 4), "float32"), request, "tiny")


def test_every_name_is_here():
    assert sorted(name for name in images.__all__ if callable(getattr(images, name))) == [
        "fill",
        "fit_size",
        "grid",
        "outpaint",
        "paste_back",
        "plot_gallery",
        "prepare",
        "read",
        "read_mask",
        "resize",
        "save_images",
    ]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("multiple", [1, 8, 64])
def test_one_side_makes_the_other(shape, multiple):
    height, width = shape
    by_width = images.resize(noise(*shape), width=64, multiple=multiple)
    by_height = images.resize(noise(*shape), height=64, multiple=multiple)
    for side, other, ideal in [(*by_width.size, 64 * height / width), (*by_height.size[::-1], 64 * width / height)]:
        assert side == 64
        assert other % multiple == 0
        assert other >= multiple
        assert abs(other - ideal) <= multiple / 2 or other == multiple > ideal


@pytest.mark.parametrize("shape", SHAPES)
def test_two_sides_are_exact(shape):
    resized = images.resize(noise(*shape), 128, 64)
    assert resized.size == (128, 64)
    assert resized.mode == "RGB"
    assert np.array_equal(np.asarray(resized), images.prepare(noise(*shape), 64, 128, "cover", 64, "image"))


def test_nothing_changes_where_the_size_is_right():
    pixels = noise(64, 128)
    for sides in [{"width": 128}, {"height": 64}, {"width": 128, "height": 64}]:
        assert np.array_equal(np.asarray(images.resize(pixels, **sides)), pixels)


def test_shrinking_is_antialiased():
    """Stripes of one pixel become their mean, not black or white."""
    stripes = np.zeros((256, 256, 3), "uint8")
    stripes[:, ::2] = 255
    small = np.asarray(images.resize(stripes, width=64)).astype(int)
    assert np.abs(small[:, 3:-3] - 127.5).max() < 6


def test_a_resized_file(tmp_path):
    Image.fromarray(noise(30, 60)).save(tmp_path / "a.png")
    assert images.resize(tmp_path / "a.png", width=128).size == (128, 64)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "resize needs a width, a height or both"),
        ({"width": 100}, "width=100 is not a multiple of 8; the nearest valid size is 96 or 104"),
        ({"height": 7}, "height=7 is not a multiple of 8; the nearest valid size is 8"),
        ({"width": 64, "height": 65}, "height=65 .* is 64"),
        ({"width": 0}, "width=0 is out of range"),
        ({"width": 64.0}, "width must be an integer"),
        ({"width": 64, "multiple": 0}, "multiple=0"),
        ({"width": 10**400}, r"width=10+\.\.\.0+ is out of range"),
        ({"height": 64, "multiple": 10**5000}, "multiple=<int> is out of range"),
        ({"width": 2**16 - 64}, "the resized image is 65472 pixels high and 65472 wide; it may have at most"),
    ],
)
def test_wrong_sizes_are_refused(arguments, words):
    with pytest.raises(RequestError, match=words):
        images.resize(noise(5, 5), **arguments)


@pytest.mark.parametrize("shape", [(1, 1), (9, 14), (40, 3)])
@pytest.mark.parametrize("margins", [(3, 0, 0, 0), (0, 1, 0, 0), (0, 0, 5, 0), (0, 0, 0, 2), (7, 1, 30, 12)])
def test_outpaint_adds_what_the_mask_covers(shape, margins):
    left, right, top, bottom = margins
    pixels = noise(*shape)
    image, mask = images.outpaint(pixels, left, right, top, bottom)
    assert image.size == mask.size == (shape[1] + left + right, shape[0] + top + bottom)
    assert (image.mode, mask.mode) == ("RGB", "L")
    inside = np.s_[top : top + shape[0], left : left + shape[1]]
    assert np.array_equal(np.asarray(image)[inside], pixels)
    expected = np.full(mask.size[::-1], 255)
    expected[inside] = 0
    assert np.array_equal(np.asarray(mask), expected)
    assert np.array_equal(images.read_mask(mask), expected / 255)
    assert np.array_equal(images.fill(np.asarray(image), expected / 255), np.asarray(image))


def test_outpaint_continues_the_sides_by_themselves():
    halves = np.zeros((32, 32, 3), "uint8")
    halves[:, 16:] = 200
    image, _ = images.outpaint(halves, left=8, right=8)
    assert np.asarray(image)[:, :8].max() < 60
    assert np.asarray(image)[:, -8:].min() > 140


@pytest.mark.parametrize(
    ("margins", "words"),
    [
        ({}, "outpaint adds nothing"),
        ({"left": -1, "right": 9}, "left=-1 is out of range; it must be between 0 and 65500"),
        ({"top": 1.5}, "top must be an integer"),
        ({"bottom": 10**5000}, "bottom=<int> is out of range"),
        ({"bottom": 65500}, "the outpainted image is 65505 pixels high"),
    ],
)
def test_wrong_margins_are_refused(margins, words):
    with pytest.raises(RequestError, match=words):
        images.outpaint(noise(5, 5), **margins)


def test_saved_images_are_numbered_from_one(tmp_path):
    pixels = noise(11, 4, 6)
    for source in (pixels, list(pixels), [Image.fromarray(one) for one in pixels]):
        paths = images.save_images(source, str(tmp_path / "name_"))
        assert [path.name for path in paths] == [f"name_{number}.png" for number in range(1, 12)]
        assert all(np.array_equal(images.read(path), one) for path, one in zip(paths, pixels, strict=True))
    assert len(list(tmp_path.iterdir())) == 11


def test_a_result_is_saved(tmp_path):
    result = result_of(2)
    paths = images.save_images(result, tmp_path / "a")
    assert [path.name for path in paths] == ["a1.png", "a2.png"]
    assert np.array_equal(images.read(paths[1]), result[1])


def test_sizes_may_differ_and_a_folder_may_be_the_prefix(tmp_path):
    paths = images.save_images([noise(3, 4), Image.new("L", (9, 2))], f"{tmp_path}/")
    assert [path.name for path in paths] == ["1.png", "2.png"]
    assert [images.read(path).shape for path in paths] == [(3, 4, 3), (2, 9, 3)]


@pytest.mark.parametrize(("ending", "kind"), [("jpg", "JPEG"), ("jpeg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_formats(tmp_path, ending, kind):
    (path,) = images.save_images([noise(8, 8)], tmp_path / "a", ending)
    assert path.name == f"a1.{ending}"
    with Image.open(path) as saved:
        assert saved.format == kind


@pytest.mark.parametrize(
    ("source", "prefix", "ending", "words"),
    [
        (noise(1, 2, 2), "a", ".png", "did you mean 'png'"),
        (noise(1, 2, 2), "a", "gif", "known: jpeg, jpg, png, webp"),
        (noise(1, 2, 2), "nowhere/a", "png", "prefix='nowhere/a': there is no folder 'nowhere'; make it first"),
        (noise(1, 2, 2), None, "png", "prefix must be a path, not None"),
        (noise(1, 2, 2), "a\0", "png", "prefix='a.x00' is not a path: it has a zero character"),
        (noise(1, 2, 2), "\ud800", "png", "prefix cannot be read: .* surrogates not allowed"),
        (noise(2, 2), "a", "png", r"must be a Result, an array \(N, height, width, 3\), or a list"),
        (Image.new("RGB", (2, 2)), "a", "png", "must be a Result"),
        ("picture.png", "a", "png", "must be a Result"),
        (None, "a", "png", "must be a Result"),
        ([], "a", "png", "no images"),
        (noise(0, 2, 2), "a", "png", "no images"),
        ([noise(2, 2), None], "a", "png", r"images\[1\] must be a path, a PIL image or a NumPy array"),
        (noise(2, 2, 2).astype("int32"), "a", "png", r"images\[0\] has dtype int32"),
        ([noise(2, 2), noise(1, 16384)], "a", "webp", "image 2 has a side of more than 16383 pixels"),
    ],
)
def test_what_cannot_be_saved_writes_nothing(tmp_path, monkeypatch, source, prefix, ending, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=words):
        images.save_images(source, prefix, ending)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_no_part(tmp_path):
    (tmp_path / "a2.png").mkdir()
    with pytest.raises(RequestError, match=r"cannot save to .*a2\.png"):
        images.save_images(noise(3, 2, 2), tmp_path / "a")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a1.png", "a2.png"]


@pytest.mark.parametrize(
    ("count", "rows", "cols", "expected"),
    [
        (1, None, None, (1, 1)),
        (3, None, None, (2, 2)),
        (5, None, None, (2, 3)),
        (5, None, 2, (3, 2)),
        (5, 2, None, (2, 3)),
        (5, 1, None, (1, 5)),
        (5, None, 9, (1, 5)),
        (5, 9, None, (5, 1)),
        (5, 3, 4, (3, 4)),
    ],
)
def test_the_grid_holds_every_image_in_order(count, rows, cols, expected):
    pixels = noise(count, 6, 4)
    sheet = images.grid(pixels, rows, cols)
    assert sheet.size == (expected[1] * 4, expected[0] * 6)
    for y in range(sheet.height):
        for x in range(sheet.width):
            index = y // 6 * expected[1] + x // 4
            colour = pixels[index, y % 6, x % 4] if index < count else (255, 255, 255)
            assert sheet.getpixel((x, y)) == tuple(colour)


def test_a_grid_of_a_result_is_its_own():
    result = result_of(5)
    assert np.array_equal(np.asarray(images.grid(result)), np.asarray(result.grid()))


@pytest.mark.parametrize(
    ("source", "arguments", "words"),
    [
        (noise(5, 2, 2), {"rows": 2, "cols": 2}, "rows=2 times cols=2 is too small for 5 images"),
        (noise(5, 2, 2), {"cols": 0}, "cols=0"),
        (noise(5, 2, 2), {"rows": 1.5}, "rows must be an integer"),
        (noise(5, 2, 2), {"rows": 10**5000}, "rows=<int> is out of range"),
        (noise(5, 2, 2), {"rows": 10**9}, "rows=1000000000 is out of range; it must be between 1 and 65500"),
        (noise(5, 2, 2), {"rows": 10**4, "cols": 10**4}, "the grid is 20000 pixels high and 20000 wide"),
        ([noise(2, 3), noise(2, 3), noise(4, 5)], {}, "image 1 is 2 pixels high and 3 wide, image 3 is 4 high and 5"),
        ([], {}, "no images"),
    ],
)
def test_wrong_grids_are_refused(source, arguments, words):
    with pytest.raises(RequestError, match=words):
        images.grid(source, **arguments)


def test_a_gallery_shows_every_image_with_its_title():
    sources = [noise(4, 6), noise(9, 3), Image.new("L", (5, 5))]
    long = "costs $5 \\frac or $6 " * 10
    figure = images.plot_gallery(sources, titles=[long, "", "c"], cols=2, scale=2.0)
    assert figure.get_size_inches().tolist() == [4, 4]
    assert len(figure.axes) == 4
    assert not any(axes.axison for axes in figure.axes)
    for axes, source in zip(figure.axes, sources, strict=False):
        assert np.array_equal(axes.images[0].get_array(), images.read(source))
    assert not figure.axes[3].images
    lines = figure.axes[0].get_title().split("\n")
    assert " ".join(lines).split() == long.split()
    assert 1 < max(map(len, lines)) <= 24
    with Image.open(io.BytesIO(figure._repr_png_())) as shown:
        assert shown.size == (400, 400)


def test_titles_of_a_gallery_stay_apart():
    figure = images.plot_gallery(noise(4, 8, 8), titles=["a photograph of an astronaut riding a horse" * 2] * 4)
    figure.draw_without_rendering()
    boxes = [axes.title.get_window_extent() for axes in figure.axes]
    assert not any(one.overlaps(other) for place, one in enumerate(boxes) for other in boxes[:place])
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.width for box in boxes)


def test_a_gallery_leaves_pyplot_alone():
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    images.plot_gallery(result_of(3))
    assert pyplot.get_fignums() == before


def test_a_gallery_without_titles_is_nearly_square():
    assert len(images.plot_gallery(noise(7, 2, 2)).axes) == 9
    assert len(images.plot_gallery(noise(2, 2, 2), cols=5).axes) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"titles": ["a"]}, "titles has 1 entries for 2 images; give one per image"),
        ({"titles": "ab"}, "titles must be a list of strings"),
        ({"titles": ["a", 3]}, "titles must be a list of strings"),
        ({"cols": 0}, "cols=0"),
        ({"scale": 0}, "scale=0 is out of range"),
        ({"scale": float("nan")}, "not finite"),
    ],
)
def test_wrong_galleries_are_refused(arguments, words):
    with pytest.raises(RequestError, match=words):
        images.plot_gallery(noise(2, 3, 3), **arguments)
