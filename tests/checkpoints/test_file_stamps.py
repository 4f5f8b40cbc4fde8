"""A file or folder that was written anew is opened anew, and nothing is ever drawn with half of it."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import kerasdiff
from kerasdiff import metadata
from kerasdiff.checkpoints import export, resolve
from kerasdiff.checkpoints.resolve import TINY_FOLDER, open_model

QUICK = {"num_steps": 1, "seed": 1, "height": 64, "width": 64, "progress": False}
PICTURE = np.zeros((64, 64, 3), "uint8")


def write(folder, **defaults):
    """A copy of the embedded model in a folder, with other defaults."""
    shutil.copytree(TINY_FOLDER, folder, dirs_exist_ok=True)
    settings = json.loads((folder / "config.json").read_text())
    settings["defaults"] |= defaults
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


def steps(model, **arguments):
    """How many steps `kerasdiff.generate` takes with a model if nothing is said: its folder's default."""
    return kerasdiff.generate("a ring", model=model, **{**QUICK, "num_steps": None, **arguments}).request.num_steps


def replace(path, change):
    """Another file in the place of one, as programs do that write safely."""
    content = bytearray(path.read_bytes())
    change(content)
    beside = path.with_suffix(".new")
    beside.write_bytes(content)
    beside.replace(path)


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "model", num_steps=2)


def test_a_folder_that_was_written_anew_is_opened_anew(folder):
    assert steps(folder) == 2
    write(folder, num_steps=3)
    assert steps(folder) == 3
    assert steps(folder, weights="random") == 3
    write(folder, num_steps=4)
    assert steps(folder, weights="random") == 4


def test_weights_that_were_written_anew_are_read_anew(folder):
    first = kerasdiff.generate("a ring", model=folder, **QUICK)
    replace(folder / "unet.safetensors", lambda content: content.__setitem__(slice(-40_000, None), bytes(40_000)))
    second = kerasdiff.generate("a ring", model=folder, **QUICK)
    assert (first.images != second.images).any()
    assert first.receipt(0).model_hash != second.receipt(0).model_hash


def test_a_path_leads_to_other_files(folder, tmp_path, monkeypatch):
    write(tmp_path / "elsewhere" / "model", num_steps=3)
    monkeypatch.chdir(tmp_path)
    assert steps("model") == 2
    monkeypatch.chdir("elsewhere")
    assert steps("model") == 3
    link = tmp_path / "current"
    link.symlink_to(folder)
    assert steps(link) == 2
    link.unlink()
    link.symlink_to(tmp_path / "elsewhere" / "model")
    assert steps(link) == 3
    monkeypatch.setenv("HOME", str(tmp_path))
    assert steps("~/model") == 2


def test_what_did_not_change_stays_loaded(folder, monkeypatch):
    from kerasdiff import api

    opened = []
    monkeypatch.setattr(api, "open_model", lambda *a, **more: opened.append(a[0]) or resolve.open_model(*a, **more))
    assert steps(folder) == 2
    Image.fromarray(PICTURE).save(folder / "a picture.png")
    assert steps(folder) == 2
    assert opened == [folder]


def test_a_generator_goes_on_with_what_it_has_loaded(folder, monkeypatch):
    generator = kerasdiff.Generator(folder, precision="float32")
    before = generator.generate("a ring", **QUICK)
    assert generator.is_current()
    for name in ("text_encoder", "unet", "decoder", "encoder"):
        replace(folder / f"{name}.safetensors", lambda content: content.__setitem__(slice(-4000, None), bytes(4000)))
    assert not generator.is_current()
    assert np.array_equal(generator.generate("a ring", **QUICK).images, before.images)
    changed = rf"{re.escape(str(folder))}/\w+\.safetensors has changed since model was opened; open the model anew"
    with pytest.raises(kerasdiff.ModelError, match=changed):
        generator.generate("a ring", image=PICTURE, **QUICK)
    assert generator.release()
    kept = kerasdiff.Generator(folder, precision="float32")  # whose values are not those of the other one
    with pytest.raises(kerasdiff.ModelError, match=changed):
        generator.generate("a ring", **QUICK)
    assert (kept.generate("a ring", **QUICK).images != before.images).any()


def test_what_is_in_memory_by_its_file_is_not_used_once_that_was_overwritten(folder):
    generator = kerasdiff.Generator(folder, precision="float32")
    with open(folder / "unet.safetensors", "r+b") as file:
        file.seek(-4000, os.SEEK_END)
        file.write(bytes(4000))
    with pytest.raises(kerasdiff.ModelError, match="was overwritten while model is in use; open the model anew"):
        generator.generate("a ring", **QUICK)
    with pytest.raises(kerasdiff.ModelError, match="was overwritten"):
        generator.encode_text(["a ring"])


def test_an_image_is_not_saved_with_the_hash_of_other_weights(folder, tmp_path, caplog):
    generator = kerasdiff.Generator(folder)
    result = generator.generate("a ring", **QUICK)
    replace(folder / "unet.safetensors", lambda content: content.__setitem__(slice(-4000, None), bytes(4000)))
    (path,) = result.save(tmp_path / "a.png")
    assert metadata.read(path).model_hash is None
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith("images will be saved without the model's hash: ")


def test_a_generator_does_not_depend_on_the_current_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = kerasdiff.Generator("model")
    monkeypatch.chdir("/")
    assert generator.generate("a ring", image=PICTURE, **QUICK).images.shape == (1, 64, 64, 3)


def test_a_folder_that_is_being_written_is_refused(folder, monkeypatch):
    read = resolve.read_config

    def read_and_write(path):
        config = read(path)
        os.utime(path / "unet.safetensors", (1, 1))
        return config

    monkeypatch.setattr(resolve, "read_config", read_and_write)
    with pytest.raises(kerasdiff.ModelError, match="model is being written at the moment; open it when that is done"):
        open_model(folder)


def test_a_snapshot_of_the_hub_moves_on(tmp_path, monkeypatch):
    repository = tmp_path / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    export.write_diffusers(open_model("tiny"), repository / "snapshots" / ("a" * 40), "float16")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    opened = open_model("org/name")
    assert resolve.is_current(opened)
    shutil.copytree(repository / "snapshots" / ("a" * 40), repository / "snapshots" / ("b" * 40))
    assert resolve.is_current(opened)
    (repository / "refs" / "main").write_text("b" * 40)
    assert not resolve.is_current(opened)
    assert resolve.is_current(open_model("hf://org/name"))
    pinned = open_model("org/name", revision="a" * 40)
    assert resolve.is_current(pinned)
    shutil.rmtree(repository)
    assert not resolve.is_current(pinned)


def test_a_part_of_a_diffusers_folder_that_changed_is_named(tmp_path):
    folder = pathlib.Path(tmp_path / "model")
    export.write_diffusers(open_model("tiny"), folder, "float16")
    opened = open_model(folder)
    opened.check_unchanged("encoder")
    os.utime(folder / "vae" / "diffusion_pytorch_model.safetensors")
    opened.check_unchanged("unet")
    with pytest.raises(kerasdiff.ModelError, match=r"model/vae/diffusion_pytorch_model\.safetensors has changed"):
        next(opened.parameters("encoder"))
