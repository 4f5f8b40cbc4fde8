"""Hints from pictures: what they show of known shapes, as ControlNets were trained with them."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from kerasdiff import hints
from kerasdiff.errors import RequestError

STROKES = ("canny", "softedge", "lineart", "scribble")


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """A red and a blue thing on white, a black line, and a faint ramp below."""
    image = Image.new("RGB", (160, 128), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((20, 20, 59, 59), fill=(200, 40, 40))
    draw.ellipse((90, 20, 130, 60), fill=(40, 60, 200))
    draw.line((20, 80, 140, 80), fill="black", width=3)
    pixels = np.array(image)
    pixels[100:] = np.linspace(215, 255, 28).astype("uint8")[:, None, None]
    return pixels


def step(height: float, side: int = 64) -> np.ndarray:
    """Dark on the left, lighter by `height` on the right."""
    pixels = np.full((side, side, 3), 0.2)
    pixels[:, side // 2 :] += height
    return np.rint(pixels * 255).astype("uint8")


@pytest.mark.parametrize("name", hints.HINTS)
def test_a_hint_has_the_pictures_size_whatever_is_given_and_is_the_same_again(name, scene, tmp_path):
    made = hints.make_hint(name, scene)
    assert made.shape == scene.shape
    assert made.dtype == np.uint8
    Image.fromarray(scene).save(tmp_path / "scene.png")
    for other in (tmp_path / "scene.png", Image.fromarray(scene), scene.copy()):
        np.testing.assert_array_equal(getattr(hints, name)(other), made)
    assert hints.make_hint(name, scene[:1, :1]).shape == (1, 1, 3)


@pytest.mark.parametrize("name", STROKES)
def test_strokes_are_white_on_black_and_where_something_ends(name, scene):
    made = hints.make_hint(name, scene)
    assert (made == made[..., :1]).all()
    assert made[22:58, 15:26, 0].max(1).min() > 100  # all along the red thing's left side
    assert made[76:85, 24:136, 0].max(0).min() > 100  # and the line
    for inside in (made[:10], made[32:48, 32:48], made[67:72], made[108:120, 8:-8]):
        assert inside.max() < 16
    assert not hints.make_hint(name, np.full((40, 40, 3), 90, "uint8")).any()


def test_canny_is_opencvs_and_its_thresholds_are_levels(scene):
    np.testing.assert_array_equal(hints.canny(scene)[..., 0], cv2.Canny(scene, 100, 200))
    np.testing.assert_array_equal(hints.canny(scene, 20, 900)[..., 0], cv2.Canny(scene, 20, 900))
    faint = step(0.1)
    assert not hints.canny(faint).any()
    assert hints.canny(faint, 20, 50).any()
    assert set(np.unique(hints.canny(scene))) == {0, 255}


def test_soft_edges_are_brighter_the_more_contrast_there_is_and_dim_for_texture():
    heights = [hints.softedge(step(height))[32].max() for height in (0.05, 0.1, 0.2, 0.4, 0.8)]
    assert heights == sorted(set(heights))
    assert heights[-1] > 240
    np.testing.assert_allclose(
        np.array(heights) / 255, np.tanh(3 * (np.array([0.05, 0.1, 0.2, 0.4, 0.8]) - 0.02)), atol=0.06
    )
    profile = hints.softedge(step(0.4))[32, :, 0]
    assert len(np.unique(profile)) >= 5
    assert (profile > profile.max() // 2).sum() in range(3, 8)
    texture = np.indices((64, 64)).sum(0) % 2 * 100 + 78
    assert hints.softedge(texture.astype("uint8"))[16:48, 16:48].max() < 30


def test_line_art_is_the_dark_line_itself(scene):
    made = hints.lineart(scene)[..., 0] > 128
    dark = (scene == 0).all(2)
    columns = slice(24, 136)
    np.testing.assert_array_equal(made[70:90, columns], dark[70:90, columns])
    light = 255 - scene[70:90]
    assert not (hints.lineart(light)[8:13, columns, 0] > 128).any()


def test_a_scribble_is_one_thick_stroke_for_a_line(scene):
    column = hints.scribble(scene)[68:92, 80, 0] > 0
    assert np.diff(column.astype(int)).tolist().count(1) == 1
    assert column.sum() >= 5
    assert set(np.unique(hints.scribble(scene))) == {0, 255}


def test_areas_have_one_colour_each_and_no_more_than_asked_for(scene):
    noisy = np.clip(scene + np.random.default_rng(7).normal(0, 4, scene.shape), 0, 255).astype("uint8")
    for colours in (2, 3, 8):
        assert len(np.unique(hints.segmentation(noisy, colours).reshape(-1, 3), axis=0)) <= colours
    made = hints.segmentation(noisy)
    for area, colour in ((made[26:54, 26:54], (200, 40, 40)), (made[30:50, 100:120], (40, 60, 200))):
        assert (area == area[0, 0]).all()
        assert np.abs(area[0, 0] - np.array(colour)).max() < 12


def test_blur_and_tile_keep_colours_and_lose_details(scene):
    for made in (hints.blur(scene), hints.tile(scene)):
        np.testing.assert_allclose(made.mean((0, 1)), scene.mean((0, 1)), atol=2)
        assert np.abs(np.diff(made.astype(int), axis=0)).max() < np.abs(np.diff(scene.astype(int), axis=0)).max() - 50
    np.testing.assert_array_equal(hints.tile(scene, factor=1), scene)
    assert hints.tile(scene, factor=16).astype(int).var() < hints.tile(scene).astype(int).var()


def test_a_negative_and_the_luminance(scene):
    np.testing.assert_array_equal(hints.invert(scene), 255 - scene)
    luminance = np.rint(scene @ [0.299, 0.587, 0.114])[..., None]
    assert np.abs(hints.gray(scene) - luminance).max() <= 1


def depth_network(path, scale: float, channels: int = 1) -> None:
    """An ONNX file of one convolution: `scale` times what the red channel has."""
    from onnx import TensorProto, checker, helper

    weights = np.zeros((channels, 3, 1, 1), "float32")
    weights[:, 0] = scale
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weights"], ["depth"])],
        "depth",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("depth", TensorProto.FLOAT, [1, channels, 32, 32])],
        [helper.make_tensor("weights", TensorProto.FLOAT, weights.shape, weights.ravel())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def test_depth_is_what_the_network_says_near_is_white(tmp_path):
    ramp = np.zeros((48, 64, 3), "uint8")
    ramp[..., 0] = np.linspace(10, 200, 64)
    depth_network(tmp_path / "depth.onnx", 2)
    made = hints.depth(ramp, tmp_path / "depth.onnx", size=32)
    assert made.shape == ramp.shape
    assert made.min() == 0
    assert made.max() == 255
    np.testing.assert_allclose(made[20, :, 1], np.linspace(0, 255, 64), atol=6)
    depth_network(tmp_path / "far.onnx", -2)
    np.testing.assert_allclose(hints.depth(ramp, str(tmp_path / "far.onnx"), size=32), 255 - made.astype(int), atol=1)


def test_what_is_wrong_is_one_line(scene, tmp_path, monkeypatch):
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    depth_network(tmp_path / "two.onnx", 1, channels=2)
    for message, call in {
        "did you mean 'canny'": lambda: hints.make_hint("cany", scene),
        "image must be a path": lambda: hints.canny(7),
        "low=-1": lambda: hints.canny(scene, low=-1),
        "colours=1 ": lambda: hints.segmentation(scene, 1),
        "sigma=0 ": lambda: hints.blur(scene, 0),
        "factor=0.5": lambda: hints.tile(scene, 0.5),
        "is not a file": lambda: hints.depth(scene, tmp_path / "none.onnx"),
        "broken.onnx.* does not map pictures": lambda: hints.depth(scene, tmp_path / "broken.onnx"),
        "two.onnx.* it must give one map": lambda: hints.depth(scene, tmp_path / "two.onnx", size=32),
    }.items():
        with pytest.raises(RequestError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    hints._cv2.cache_clear()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(RequestError, match=r"OpenCV, .*pip install 'kerasdiff\[hints\]'"):
        hints.canny(scene)
    assert hints.HINTS["canny"].help
    assert hints.invert(scene).any()
