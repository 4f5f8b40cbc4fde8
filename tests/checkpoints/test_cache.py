"""Foreign checkpoints kept as mapped files: once, the same numbers, and never in the way."""

from __future__ import annotations

import logging
import math
import os
import pathlib
import shutil
import subprocess
import sys

import checkpoints
import numpy as np
import pytest

import kerasdiff
from kerasdiff.checkpoints import resolve, weight_cache
from kerasdiff.checkpoints.formats.native import NativeSource
from kerasdiff.runtime import cache_dir, safetensors_map
from kerasdiff.runtime.precision import Execution

FLOAT32 = Execution("CPU", "float32", False)
BFLOAT16 = Execution("CPU", "bfloat16", False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("cache")
    return checkpoints.save(checkpoints.pipeline("v1", made / "vocabulary"), made / "model")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A cache that takes small models."""
    monkeypatch.setenv("KERASDIFF_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weight_cache, "_LEAST_BYTES", 0)
    return tmp_path / "cache" / "weights"


def weights(network):
    return [np.asarray(weight).astype("float32") for weight in network.weights]


@pytest.mark.parametrize("execution", [FLOAT32, BFLOAT16])
def test_a_kept_network_is_the_one_that_was_read(folder, place, execution, monkeypatch):
    direct = resolve.open_model(folder)
    monkeypatch.setenv("KERASDIFF_CACHE_GB", "0")
    expected = {name: weights(direct.build(name, execution)) for name in ("text_encoder", "unet", "decoder")}
    assert not place.exists()
    monkeypatch.delenv("KERASDIFF_CACHE_GB")
    for _ in ("written", "read"):
        for name, values in expected.items():
            kept = weights(resolve.open_model(folder).build(name, execution))
            assert all(np.array_equal(one, other) for one, other in zip(kept, values, strict=True))
        assert len(list(place.iterdir())) == 3


def test_the_second_time_the_checkpoint_is_not_read(folder, place, monkeypatch):
    resolve.open_model(folder).build("unet", FLOAT32)
    opened = []
    read = safetensors_map._read_header
    monkeypatch.setattr(safetensors_map, "_read_header", lambda path: opened.append(path) or read(path))
    resolve.open_model(folder).build("unet", FLOAT32)
    assert {path.parent for path in opened} == {place}


@pytest.mark.parametrize("time", ["first", "second"])
def test_parameters_lie_in_the_mapped_file(folder, place, time):
    """Also in the process that wrote it."""
    networks = [resolve.open_model(folder).build("unet", FLOAT32)]
    if time == "second":
        networks.append(resolve.open_model(folder).build("unet", FLOAT32))
    (kept,) = place.iterdir()
    lines = pathlib.Path("/proc/self/maps").read_text().splitlines()
    places = [[int(one, 16) for one in line.split()[0].split("-")] for line in lines if str(kept) in line]
    assert len(places) == len(networks), "what it was written by is gone"
    for weight in networks[-1].weights:
        address = np.from_dlpack(weight.value.read_value()).ctypes.data
        assert any(start <= address < end for start, end in places)


@pytest.mark.parametrize("time", ["first", "second"])
def test_writing_to_a_parameter_leaves_the_file_alone(folder, place, time):
    network = resolve.open_model(folder).build("unet", FLOAT32)
    if time == "second":
        network = resolve.open_model(folder).build("unet", FLOAT32)
    (kept,) = place.iterdir()
    before = kept.read_bytes()
    for weight in network.weights:
        weight.assign_add(np.ones(weight.shape, "float32"))
    assert kept.read_bytes() == before
    again = resolve.open_model(folder).build("unet", FLOAT32)
    difference = np.asarray(network.weights[0]) - np.asarray(again.weights[0])
    assert np.abs(difference - 1).max() < 1e-6


def test_a_changed_checkpoint_is_read_anew(folder, place, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    before = weights(resolve.open_model(copy).build("unet", FLOAT32))
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-4:] = np.float32(123).tobytes()
    path.write_bytes(content)
    after = weights(resolve.open_model(copy).build("unet", FLOAT32))
    changed = [index for index, (one, other) in enumerate(zip(before, after, strict=True)) if (one != other).any()]
    assert len(changed) == 1
    assert 123 in after[changed[0]]
    assert len(list(place.iterdir())) == 2


def test_a_damaged_kept_file_is_made_again(folder, place):
    expected = weights(resolve.open_model(folder).build("unet", FLOAT32))
    (kept,) = place.iterdir()
    kept.write_bytes(kept.read_bytes()[:1000])
    healed = weights(resolve.open_model(folder).build("unet", FLOAT32))
    assert all(np.array_equal(one, other) for one, other in zip(healed, expected, strict=True))
    NativeSource(kept)


def test_a_kept_file_of_which_the_disk_lost_a_part_is_made_again(folder, place, caplog):
    expected = weights(resolve.open_model(folder).build("unet", FLOAT32))
    (kept,) = place.iterdir()
    content = bytearray(kept.read_bytes())
    content[-(2**12) :] = bytes(2**12)
    kept.write_bytes(content)
    healed = weights(resolve.open_model(folder).build("unet", FLOAT32))
    assert all(np.array_equal(one, other) for one, other in zip(healed, expected, strict=True))
    assert "is incomplete, as after a power failure" in caplog.text
    assert weight_cache.is_valid(kept)


def test_what_was_not_used_for_longest_makes_room(folder, place, monkeypatch):
    model = resolve.open_model(folder)
    for age, name in enumerate(("text_encoder", "unet", "decoder")):
        model.build(name, FLOAT32)
        (made,) = place.glob(f"{name}-*")
        os.utime(made, (1e9 - age, 1e9 - age))
    model.build("unet", FLOAT32)
    size = sum(path.stat().st_size for path in place.iterdir())
    needed = 2 * sum(map(math.prod, model.shapes("decoder").values()))
    monkeypatch.setenv("KERASDIFF_CACHE_GB", str((size + needed - 1) / 1e9))
    model.build("decoder", BFLOAT16)
    left = {path.name.rpartition("-")[0] for path in place.iterdir()}
    assert left == {"text_encoder-float32", "unet-float32", "decoder-bfloat16"}


def test_no_room_means_reading_the_checkpoint(folder, place, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "kerasdiff")
    monkeypatch.setattr(weight_cache, "_SPARE_BYTES", 1e18)
    resolve.open_model(folder).build("unet", FLOAT32)
    assert "no room" in caplog.text
    assert list(place.iterdir()) == []


def test_a_missing_file_is_the_checkpoint_s_own_error(folder, place, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    model = resolve.open_model(copy)
    (copy / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(kerasdiff.ModelError, match=r"has no diffusion_pytorch_model\.safetensors"):
        model.build("unet", FLOAT32)
    keras_cv = tmp_path / "keras_cv"
    keras_cv.mkdir()
    (keras_cv / "kcv_diffusion_model.h5").write_bytes(b"no HDF5")
    with pytest.raises(kerasdiff.ModelError, match=r"kcv_decoder\.h5 cannot be read: No such file"):
        resolve.open_model(keras_cv).build("decoder", FLOAT32)


def test_a_folder_that_cannot_be_written_means_reading_the_checkpoint(folder, place, tmp_path, caplog):
    caplog.set_level(logging.INFO, "kerasdiff")
    (tmp_path / "cache").write_text("a file where the folder should be")
    resolve.open_model(folder).build("unet", FLOAT32)
    assert "is not cached" in caplog.text


def test_a_cache_that_is_read_only_is_used(folder, place, monkeypatch):
    resolve.open_model(folder).build("unet", FLOAT32)

    def refused(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "utime", refused)
    monkeypatch.setattr(weight_cache, "put", refused)
    resolve.open_model(folder).build("unet", FLOAT32)


def test_a_process_that_may_only_read_adds_nothing(folder, place, monkeypatch):
    monkeypatch.setenv(cache_dir.READ_ONLY, "1")
    resolve.open_model(folder).build("unet", FLOAT32)
    assert list(place.glob("*")) == []


def test_a_disk_that_fills_up_while_writing_leaves_nothing(folder, place, monkeypatch):
    def full(path, *_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weight_cache, "write_mapped", full)
    resolve.open_model(folder).build("unet", FLOAT32)
    assert list(place.iterdir()) == []


def test_what_a_killed_process_left_is_cleared_away_later(folder, place):
    place.mkdir(parents=True)
    for name, age in (("old", 7200), ("new", 60)):
        left = place / f".{name}.safetensors.12.part"
        left.touch()
        past = left.stat().st_mtime - age
        os.utime(left, (past, past))
    resolve.open_model(folder).build("unet", FLOAT32)
    assert sorted(path.name for path in place.glob(".*")) == [".new.safetensors.12.part"]


def test_small_and_random_models_are_not_kept(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("KERASDIFF_CACHE", str(tmp_path / "cache"))
    resolve.open_model(folder).build("unet", FLOAT32)
    monkeypatch.setattr(weight_cache, "_LEAST_BYTES", 0)
    resolve.open_model(folder, "random").build("unet", FLOAT32)
    resolve.open_model("tiny").build("unet", FLOAT32)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("size", ["many", "-1", "nan"])
def test_a_wrong_size_is_named(folder, place, monkeypatch, size):
    monkeypatch.setenv("KERASDIFF_CACHE_GB", size)
    with pytest.raises(kerasdiff.ModelError, match=r"KERASDIFF_CACHE_GB=.* is not a number of gigabytes"):
        resolve.open_model(folder).build("unet", FLOAT32)


def test_two_processes_at_once_both_succeed(folder, place):
    script = (
        "import sys\nfrom kerasdiff.checkpoints import resolve, weight_cache\n"
        "from kerasdiff.runtime.precision import Execution\n"
        "weight_cache._LEAST_BYTES = 0\n"
        "model = resolve.open_model(sys.argv[1])\n"
        "print(len(model.build('unet', Execution('CPU', 'float32', False)).weights))"
    )
    runs = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-c", script, str(folder)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    counts = {run.communicate(timeout=300)[0].split()[-1] for run in runs}
    assert all(run.returncode == 0 for run in runs)
    assert len(counts) == 1
    assert len(list(place.iterdir())) == 1


def test_what_never_fits_evicts_nothing(folder, place, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "kerasdiff")
    resolve.open_model(folder).build("unet", FLOAT32)
    monkeypatch.setenv("KERASDIFF_CACHE_GB", "0.0000001")
    resolve.open_model(folder).build("decoder", FLOAT32)
    assert "no room" in caplog.text
    assert [path.name.partition("-")[0] for path in place.iterdir()] == ["unet"]
