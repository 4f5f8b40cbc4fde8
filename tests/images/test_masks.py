"""Filling what a mask covers and pasting back what it leaves out, by what must hold for any picture and mask."""

from __future__ import annotations

import numpy as np
import pytest

from kerasdiff import RequestError
from kerasdiff.images.masks import fill, paste_back

SIZES = [(1, 1), (1, 2), (2, 1), (1, 9), (7, 5), (16, 16), (33, 50), (301, 3)]


def random_case(shape, seed):
    """A picture, and a mask with some pixels of both kinds where there is room."""
    rng = np.random.default_rng(seed)
    mask = (rng.random(shape) < rng.uniform(0.1, 0.95)).astype("float32")
    mask[0, 0] = 0
    return rng.integers(0, 256, (*shape, 3), dtype="uint8"), mask


def steps_inside(mask):
    """The least number of steps from each covered pixel to one that is not, by trying all of them."""
    free = np.argwhere(mask == 0)
    steps = np.zeros(mask.shape)
    for place in np.argwhere(mask == 1):
        steps[tuple(place)] = np.abs(free - place).sum(1).min()
    return steps


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("seed", range(4))
def test_fill_keeps_the_others_and_depends_on_them_only(shape, seed):
    pixels, mask = random_case(shape, seed)
    filled = fill(pixels, mask)
    free = mask == 0
    assert filled.dtype == np.uint8
    assert np.array_equal(filled[free], pixels[free])
    other = np.where(free[:, :, None], pixels, np.random.default_rng(seed + 100).integers(0, 256, pixels.shape))
    assert np.array_equal(fill(other.astype("uint8"), mask), filled)
    # An average of the others: never outside of them.
    assert np.all(filled >= pixels[free].min(0))
    assert np.all(filled <= pixels[free].max(0))


@pytest.mark.parametrize("shape", SIZES)
def test_fill_continues_one_colour_exactly(shape):
    _, mask = random_case(shape, 9)
    pixels = np.where(mask[:, :, None] == 0, np.array([255, 131, 2]), 77).astype("uint8")
    assert np.array_equal(fill(pixels, mask), np.broadcast_to([255, 131, 2], pixels.shape))


@pytest.mark.parametrize("shape", SIZES)
def test_a_picture_that_is_covered_is_grey_and_one_that_is_not_is_kept(shape):
    pixels, _ = random_case(shape, 3)
    assert np.all(fill(pixels, np.ones(shape)) == 128)
    assert np.array_equal(fill(pixels, np.zeros(shape)), pixels)


def test_fill_is_smooth():
    """A hole in a slope: close to the slope, and without a step larger than a few times its own."""
    slope = np.broadcast_to(np.arange(0, 192, 2)[None, :, None], (64, 96, 3)).astype("uint8")
    mask = np.zeros((64, 96))
    mask[16:48, 32:64] = 1
    filled = fill(slope, mask).astype(int)
    assert np.abs(filled - slope).max() <= 12
    assert np.abs(np.diff(filled, axis=1)).max() <= 5
    assert np.abs(np.diff(filled, axis=0)).max() <= 3


@pytest.mark.parametrize("height", range(57, 73))
def test_fill_is_smooth_wherever_the_edge_lies(height):
    """Blocks of the pyramid may end at the mask's edge or anywhere else."""
    ramp = np.broadcast_to(np.linspace(0, 255, 64)[:, None], (height + 30, 64, 3)).astype("uint8")
    mask = np.zeros(ramp.shape[:2])
    mask[height:] = 1
    filled = fill(ramp, mask).astype(int)
    assert np.abs(filled[height] - ramp[0]).max() <= 10
    assert np.abs(np.diff(filled, axis=0)).max() <= 10


def test_fill_takes_the_nearer_colour():
    pixels = np.zeros((40, 80, 3), "uint8")
    pixels[:, 60:] = 200
    mask = np.zeros((40, 80))
    mask[:, 20:60] = 1
    columns = fill(pixels, mask).mean((0, 2))
    assert columns[21] < 40
    assert columns[58] > 160
    assert np.all(np.diff(columns) >= -1)


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("feather", [0, 1, 2, 5, 1000])
def test_paste_back_keeps_what_is_not_covered(shape, feather):
    original, mask = random_case(shape, 5)
    drawn = 255 - original
    pasted = paste_back(drawn, original, mask, feather)
    assert pasted.dtype == np.uint8
    assert np.array_equal(pasted[mask == 0], original[mask == 0])
    if not feather:
        assert np.array_equal(pasted[mask == 1], drawn[mask == 1])


@pytest.mark.parametrize("feather", [1, 2, 3, 8])
def test_the_weight_rises_with_the_distance_from_the_edge(feather):
    """White on black shows the weight itself: half a pixel inside in the first pixel, one in the next, ..."""
    rng = np.random.default_rng(feather)
    mask = np.ones((20, 23), "float32")
    mask[tuple(rng.integers(0, 20, (2, 3)))] = 0
    black, white = np.zeros((2, 20, 23, 3), "uint8")
    white += 255
    expected = np.rint(np.clip((steps_inside(mask) - 0.5) / feather, 0, 1) * 255)
    assert np.array_equal(paste_back(white, black, mask, feather)[:, :, 1], expected)
    assert paste_back(white, black, mask, feather).max() == 255


def test_feathers_are_the_blend_of_both():
    ramp = np.tile(np.arange(12) >= 4, (3, 1)).astype("float32")
    original = np.full((3, 12, 3), 200, "uint8")
    drawn = np.full((3, 12, 3), 100, "uint8")
    assert paste_back(drawn, original, ramp, 4)[1, :, 0].tolist() == [200] * 4 + [188, 162, 138, 112] + [100] * 4


def test_a_border_of_the_picture_is_no_edge():
    drawn, original = np.zeros((2, 6, 9, 3), "uint8")
    original += 9
    assert np.array_equal(paste_back(drawn, original, np.ones((6, 9)), 50), drawn)
    assert np.array_equal(paste_back(drawn, original, np.zeros((6, 9)), 50), original)


@pytest.mark.parametrize("feather", [-1, 1.5, True, "2", None, 10**9, 10**400, np.ones(2)])
def test_wrong_feathers_are_refused(feather):
    pixels, mask = random_case((4, 4), 0)
    with pytest.raises(RequestError, match="feather"):
        paste_back(pixels, pixels, mask, feather)


def test_different_sizes_are_named():
    pixels, mask = random_case((4, 6), 0)
    with pytest.raises(RequestError, match=r"pixels 4 x 6, mask 6 x 4"):
        fill(pixels, mask.T)
    with pytest.raises(RequestError, match=r"drawn 4 x 6, original 4 x 6, mask 4 x 5"):
        paste_back(pixels, pixels, mask[:, :5])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("drawn", None),
        ("original", [[[1, 2, 3]]]),
        ("drawn", np.zeros((4, 6))),
        ("mask", np.zeros((4, 6, 1))),
        ("mask", 1),
    ],
)
def test_what_is_no_picture_or_mask_is_refused(name, value):
    pixels, mask = random_case((4, 6), 0)
    with pytest.raises(RequestError, match=rf"{name} must be an array \(height, width.*\), not"):
        paste_back(**{"drawn": pixels, "original": pixels, "mask": mask, name: value})
