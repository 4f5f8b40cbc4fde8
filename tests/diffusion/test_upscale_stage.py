"""The upscaler's stage: tiles show nowhere, one program serves all pictures, memory and overflow are handled."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from upscaler_files import compact, reference, rrdb, save

import kerasdiff
from kerasdiff.adapter_files import UpscalerFile
from kerasdiff.checkpoints.formats.esrgan_file import open_upscaler
from kerasdiff.diffusion import upscale_stage
from kerasdiff.diffusion.upscale_stage import MAX_PARTS, UpscaleCost, tile_side
from kerasdiff.diffusion.upscaler import Upscaler, UpscalerLibrary
from kerasdiff.images.reader import scaled
from kerasdiff.models.upscaler_config import CompactConfig, RRDBConfig
from kerasdiff.runtime.batch_sizer import BatchSizer, MicroBatch
from kerasdiff.runtime.precision import Execution
from kerasdiff.runtime.program_cache import ProgramCache

PICTURE = np.random.default_rng(0).integers(0, 256, (1, 40, 44, 3)).repeat(8, 1).repeat(8, 2)[0].astype("uint8")


@pytest.fixture
def make(tmp_path):
    numbers = itertools.count()

    def make(tensors, precision="float32", backend="tensorflow", free=lambda: 10**10):
        model = open_upscaler(save(tensors, tmp_path / f"{next(numbers)}.safetensors"))
        sizer = BatchSizer(ProgramCache(None), (), free)
        return Upscaler(model, Execution("CPU", precision, False, backend), ProgramCache(None), sizer)

    return make


def expected(tensors, picture):
    made = reference(tensors, picture[None] / 255.0)[0] * 255
    return np.clip(np.round(made), 0, 255).astype("uint8")


@pytest.mark.parametrize(
    "tensors", [rrdb(blocks=1, doublings=1), rrdb(features=6, blocks=1, unshuffle=2), compact(scale=2)]
)
def test_a_picture_in_tiles_is_the_whole_one(make, monkeypatch, tensors):
    """2 x 3 tiles of 160 pixels: what a layer sees of its neighbours is within what tiles have in common."""
    monkeypatch.setattr(upscale_stage, "_STEP", 128)
    upscaler = make(tensors)
    picture = PICTURE[:288]
    assert upscaler.tiles(*picture.shape[:2]) == 2 * 3
    made = upscaler(picture)
    difference = np.abs(made.astype(int) - expected(tensors, picture))
    assert made.shape == (576, 704, 3)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-4  # where a half is rounded up or down


def test_one_program_serves_all_pictures(make):
    upscaler, advanced = make(compact(features=4, blocks=1, scale=2)), []
    for height, width in ((320, 352), (289, 300), (300, 290)):
        assert upscaler(PICTURE[:height, :width], None, lambda: advanced.append(1)).shape == (2 * height, 2 * width, 3)
    assert [compiled.traces for compiled in upscaler.compiled] == [1]
    assert len(advanced) == 3 * 4 == 3 * upscaler.tiles(300, 290)
    (compiled,) = upscaler.compiled
    assert compiled.programs == 1
    upscaler(PICTURE[:50, :60])  # smaller ones have few sizes
    upscaler(PICTURE[:33, :64])
    assert compiled.programs == 2
    assert upscaler.release()
    assert compiled.programs == 0


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (65, 3), (64, 64)])
def test_small_pictures(make, size):
    tensors = rrdb(features=4, blocks=1, doublings=1)
    picture = PICTURE[: size[0], : size[1]]
    made = make(tensors)(picture)
    assert made.shape == (2 * size[0], 2 * size[1], 3)
    if size == (64, 64):
        assert np.abs(made.astype(int) - expected(tensors, picture)).max() <= 1


def test_tiles_cover_every_length():
    for length, parts in itertools.product((1, 63, 64, 100, 288, 289, 511, 512, 513, 1024, 5000), (1, 2, 4, 8)):
        side = tile_side(length, parts)
        filled = max(side, -(-length // 4) * 4)
        starts = upscale_stage._starts(filled, side)
        assert starts[0] == 0
        assert starts[-1] + side == filled >= length
        assert all(start % 4 == 0 for start in starts)
        assert all(one + side - other >= 32 for one, other in itertools.pairwise(starts))
    assert [len(upscale_stage._starts(length, 288)) for length in (512, 768, 1024, 2048)] == [2, 3, 4, 8]


def test_a_smaller_scale_is_reached_by_lanczos(make):
    upscaler = make(compact(features=4, blocks=1))
    whole = upscaler(PICTURE[:64, :64])
    assert np.array_equal(upscaler(PICTURE[:64, :64], 1.5), scaled(whole, 96, 96, crop=False))
    assert upscaler.size(33, 50, 2.5) == (82, 125)
    with pytest.raises(kerasdiff.RequestError, match="makes pictures 4 times as large, not 5; give a smaller scale"):
        upscaler(PICTURE, 5)
    with pytest.raises(kerasdiff.RequestError, match="the upscaled image is 32000 pixels high and 32000 wide"):
        upscaler.size(8000, 8000)


def test_numbers_that_overflow_half_precision_are_computed_again(make):
    tensors = rrdb(features=4, blocks=1, doublings=1)
    tensors["conv_first.weight"] *= 1e6
    tensors["conv_last.weight"] *= 1e-6
    upscaler = make(tensors, "float16")
    with pytest.warns(UserWarning, match="the upscaler gives numbers .* not finite in float16; it runs in float32"):
        made = upscaler(PICTURE[:64, :64])
    assert np.abs(made.astype(int) - expected(tensors, PICTURE[:64, :64])).max() <= 1
    tensors["conv_last.weight"] *= float("nan")
    with pytest.raises(kerasdiff.NonFiniteError, match="the upscaler gives numbers that are not finite in float32"):
        make(tensors)(PICTURE[:64, :64])


def test_with_little_memory_tiles_are_smaller(make, monkeypatch):
    tensors = compact(features=4, blocks=1, scale=2)
    upscaler, sides = make(tensors, free=lambda: 0), set()
    compiled = upscaler._stage.function("upscale", upscale_stage._upscale)
    monkeypatch.setattr(type(compiled), "__call__", functools.partialmethod(noting, sides, type(compiled).__call__))
    made = upscaler(PICTURE[:256, :256])
    assert sides == {256 // MAX_PARTS + 32}
    assert np.abs(made.astype(int) - expected(tensors, PICTURE[:256, :256])).max() <= 1


def noting(compiled, sides, call, tile):
    sides.add(tile.shape[1])
    return call(compiled, tile)


@pytest.mark.parametrize("config", [RRDBConfig(), RRDBConfig(scale=2, unshuffle=2), CompactConfig()])
def test_smaller_tiles_are_expected_to_take_less(config):
    cost = UpscaleCost("upscaler", 2048, 2048, "upscaler", max_parts=8, config=config, itemsize=4)
    needs = [cost.need(MicroBatch(1, parts)) for parts in (1, 2, 4, 8)]
    assert needs == sorted(needs, reverse=True)
    assert needs[0] < 3e9


@pytest.mark.parametrize("backend", ["openvino"])
def test_other_backends_make_the_same(make, backend):
    for tensors in (rrdb(features=4, blocks=1, plus=True), rrdb(features=4, blocks=1, unshuffle=2), compact()):
        made = make(tensors, backend=backend)(PICTURE[:64, :64])
        assert np.abs(made.astype(int) - expected(tensors, PICTURE[:64, :64])).max() <= 1


def test_a_file_is_opened_once_while_it_stays_the_same(tmp_path):
    runs = Execution("CPU", "float32", False), ProgramCache(None), BatchSizer(ProgramCache(None), (), lambda: 10**10)
    library, path = UpscalerLibrary(*runs), save(compact(blocks=1), tmp_path / "a.safetensors")
    settled = library.settled(UpscalerFile(str(path)))
    assert settled == library.settled(settled)
    assert (settled.scale, len(settled.sha256)) == (4.0, 64)
    assert library.open(settled) is library.open(UpscalerFile(str(path), 2.0))
    save(compact(blocks=2), path)
    with pytest.raises(kerasdiff.ModelError, match="has changed: its SHA-256 was"):
        library.open(settled)
    assert library.open(UpscalerFile(str(path))).config.blocks == 2
