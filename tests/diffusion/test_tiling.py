"""One image in tiles: how it is cut, how tiles are joined, and what the embedded model makes of it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from kerasdiff.diffusion import tiling
from kerasdiff.diffusion.tiling import Tiles, tile_shape
from kerasdiff.errors import RequestError

FACTOR = 8
SIZES = [(8, 8), (8, 13), (9, 11), (10, 31), (16, 16), (17, 8), (23, 40), (64, 33)]
PARTS = [1, 2, 3, 4, 5]
# Whole numbers, so that every decoder here is exact.
COLOURS = np.array([[3, -2, 5], [7, 1, -4], [-6, 2, 2], [1, 8, -3]], "float32")


def decode_tiles(decode, latents, parts, factor):
    tiles = Tiles("latents", latents, parts, 1, factor)
    return tiles.join([decode(tile) for tile in tiles])


def encode_tiles(encode, pictures, parts, factor):
    tiles = Tiles("pictures", pictures, parts, factor, 1)
    return tiles.join([encode(tile) for tile in tiles])


def latents_of(height, width):
    return np.random.default_rng(height * width).integers(-6, 7, (1, height, width, 4)).astype("float32")


def places(height, width):
    """Latents that say where they are."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.stack([rows, columns], axis=-1)[None].astype("float32")


def doubled(values, factor=FACTOR):
    return np.repeat(np.repeat(values, factor, axis=1), factor, axis=2)


def local(dtype):
    """A decoder that looks at one cell at a time."""

    def decode(latents):
        colours = doubled(latents @ COLOURS)
        return np.clip(colours + 128, 0, 255).astype(dtype)

    return decode


def averages(pictures):
    """An encoder that looks at one cell at a time; exact for levels."""
    _, height, width, channels = pictures.shape
    cells = pictures.reshape(1, height // FACTOR, FACTOR, width // FACTOR, FACTOR, channels)
    return cells.astype("float32").mean((2, 4))


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_local_decoder_gives_the_same_to_the_bit(height, width, parts):
    latents = latents_of(height, width)
    for dtype in ("uint8", "float16", "float32"):
        whole = local(dtype)(latents)
        tiled = decode_tiles(local(dtype), latents, parts, FACTOR)
        assert tiled.dtype == dtype
        np.testing.assert_array_equal(tiled, whole)
    pictures = np.random.default_rng(1).integers(0, 256, (1, FACTOR * height, FACTOR * width, 3)).astype("uint8")
    np.testing.assert_array_equal(encode_tiles(averages, pictures, parts, FACTOR), averages(pictures))


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_tiles_have_one_shape_and_overlap_by_a_quarter(height, width, parts):
    seen = []

    def decode(latents):
        seen.append(latents)
        return doubled(latents)

    decode_tiles(decode, places(height, width), parts, FACTOR)
    shape = tile_shape(height, width, parts)
    assert [tile.shape for tile in seen] == [(1, *shape, 2)] * parts**2
    for axis, length in enumerate((height, width)):
        tile = shape[axis]
        starts = sorted({int(tile[..., axis].min()) for tile in seen})
        assert len(starts) == parts
        assert (starts[0], starts[-1]) == (0, length - tile)
        assert all(4 * (first + tile - second) >= tile for first, second in itertools.pairwise(starts))


def test_tile_shapes_are_as_small_as_the_overlap_allows():
    assert [tile_shape(64, 96, parts) for parts in PARTS] == [(64, 96), (37, 55), (26, 39), (20, 30), (16, 24)]
    assert tile_shape(8, 8, 7) == (2, 2)


@pytest.mark.parametrize("parts", PARTS)
def test_weights_are_linear_and_sum_to_one(parts):
    """Each tile's weights are seen where it is white and all others black."""
    length, width = 61, 47
    weights = []
    for white in range(parts**2):
        turn = iter(range(parts**2))

        def decode(tile, turn=turn, white=white):
            return np.full((*tile.shape[:3], 3), next(turn) == white, "float32")

        weights.append(decode_tiles(decode, np.zeros((1, length, width, 4)), parts, 1)[0, :, :, 0])
    total = np.sum(weights, axis=0)
    assert np.abs(total - 1).max() < 1e-6
    assert min(map(np.min, weights)) >= 0
    constant = decode_tiles(lambda tile: np.full(tile.shape, 0.1, "float32"), np.zeros((1, length, width, 3)), parts, 1)
    assert np.all(constant == np.float32(0.1))
    if parts == 1:
        return
    # Down the first column of tiles, at a place that no tile of the second covers.
    first, second = weights[0][:, 0], weights[parts][:, 0]
    (both,) = np.nonzero((first > 0) & (second > 0))
    ramp = (np.arange(len(both)) + 0.5) / len(both)
    assert 4 * len(both) >= tile_shape(length, width, parts)[0]
    assert np.allclose(second[both], ramp, atol=1e-6)
    assert np.allclose(first[both], ramp[::-1], atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tile_shape(8, 7, 2), "8 x 7 latents are too few for tiles; both sides must be at least 8"),
        (lambda: tile_shape(9, 8, 8), "parts=8 is out of range; it must be between 1 and 7"),
        (lambda: tile_shape(9, 8, 0), "parts=0 is out of range"),
        (lambda: tile_shape(9, 8, 1.5), "parts must be an integer, not float"),
        (
            lambda: decode_tiles(doubled, np.zeros((2, 8, 8, 4)), 2, 8),
            r"latents have shape \(2, 8, 8, 4\); they must be",
        ),
        (lambda: decode_tiles(doubled, np.zeros((8, 8, 4)), 2, 8), r"latents have shape \(8, 8, 4\); they must be"),
        (
            lambda: encode_tiles(averages, np.zeros((1, 64, 70, 3)), 2, 8),
            r"pictures have shape \(1, 64, 70, 3\); they must be .* multiples of 8",
        ),
        (
            lambda: decode_tiles(doubled, np.zeros((1, 8, 8, 4)), 2, 4),
            r"a tile of latents gave an array of shape \(1, 40, 40, 4\); it must be \(1, 20, 20, C\)",
        ),
    ],
)
def test_wrong_calls_are_refused(call, message):
    with pytest.raises(RequestError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


PROMPTS = [
    "a red circle above a blue square on a yellow background",
    "a ring",
    "a large green triangle left of a small purple star on a white background",
]


@pytest.fixture(scope="module")
def drawn(tiny):
    """Latents (1, h, w, 4) of six pictures in two sizes, and what they are decoded to at once."""
    sizes = ((128, 128), (192, 256))
    results = [tiny.generate(PROMPTS, height=h, width=w, num_steps=8, seed=3, progress=False) for h, w in sizes]
    latents = [one[None] for result in results for one in result.latents]
    return [(one, tiny.decode(one)) for one in latents]


def seams(pictures, parts):
    """How much larger steps are across borders of tiles than elsewhere, as shares of those of the whole pictures.

    Three numbers: where a tile begins, where the one before it ends, and in the middle between both.
    """
    ratios = np.zeros((4, 2))
    for whole, tiled in pictures:
        for axis in (1, 2):
            length = whole.shape[axis] // FACTOR
            side = tiling._side(length, parts)
            starts = np.array(tiling._starts(length, side, parts))
            begins, ends = FACTOR * starts[1:], FACTOR * (starts[:-1] + side)
            # Between a line and the one before it.
            lines = [begins - 1, ends - 1, (begins + ends) // 2 - 1]
            lines.append(np.setdiff1d(np.arange(whole.shape[axis] - 1), lines))
            for column, picture in enumerate((whole, tiled)):
                steps = np.abs(np.diff(picture[0].astype(float), axis=axis - 1)).sum((2 - axis, 2))
                ratios[:, column] += [steps[places].sum() for places in lines]
    shares = ratios[:, 1] / ratios[:, 0]
    return shares[:3] / shares[3]


def tiled(tiny, drawn, parts):
    return [(whole, decode_tiles(tiny.decode, latents, parts, FACTOR)) for latents, whole in drawn]


@pytest.mark.parametrize(("parts", "levels"), [(2, 4), (3, 8)])
def test_the_embedded_model_shows_no_seams(tiny, drawn, parts, levels):
    """At most 15 % more than elsewhere; on average within `levels` of 255 of the whole picture."""
    pictures = tiled(tiny, drawn, parts)
    assert seams(pictures, parts).max() < 1.15
    assert np.mean([np.abs(whole.astype(float) - picture).mean() for whole, picture in pictures]) < levels


@pytest.mark.parametrize(
    ("place", "ramp"),
    [(0, lambda length: np.ones(length, "float32")), (2, lambda length: (np.arange(length) >= length // 2) * 1.0)],
)
def test_without_blending_seams_would_be_seen(tiny, drawn, monkeypatch, place, ramp):
    """Where a tile begins if it covers the one before it, in the middle if each has half of the overlap."""
    monkeypatch.setattr(tiling, "_ramp", ramp)
    assert seams(tiled(tiny, drawn, 2), 2)[place] > 1.3


def test_the_embedded_model_encodes_in_tiles(tiny, drawn):
    """Within 10 % of the latents' deviation, on average."""
    for _, picture in drawn[:3]:
        whole = tiny.encode_image(picture)
        tiled = encode_tiles(tiny.encode_image, picture, 2, FACTOR)
        assert tiled.dtype == whole.dtype
        assert np.abs(tiled - whole).mean() < 0.1 * whole.std()
