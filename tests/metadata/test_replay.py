"""Receipts of whole generations: what files say, and the same pixels made again from them in a new process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import kerasdiff
from kerasdiff import metadata
from kerasdiff.checkpoints.resolve import TINY_FOLDER
from kerasdiff.training import scenes, score

QUICK = {"num_steps": 3, "progress": False}
PROMPTS = ['a red circle, "twice"\non a blue background', "größer: 🎈"]


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(scenes.render(score.held_out_scenes(1, seed=5)[0])).resize((150, 130)).save(path)
    return path


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def command(*arguments):
    line = [sys.executable, "-W", "ignore", "-m", "kerasdiff", *map(str, arguments), "--noprogress"]
    return subprocess.run(line, capture_output=True, text=True)


def test_the_same_file_is_made_again_in_a_new_process(tiny, tmp_path):
    result = tiny.generate(
        PROMPTS,
        batch_size=2,
        seed=[5, 7, 2**64 - 1, 0],
        guidance_scale=[2.0, 5.0],
        sampler="dpmpp_2m_sde",
        spacing="karras",
        negative_prompt="a star",
        **QUICK,
    )
    paths = result.save(tmp_path / "a.png")
    again = tmp_path / "again.png"
    run = command(f"--replay={paths[2]}", f"--output={again}")
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == f"{again} (seed {2**64 - 1})\n"
    assert again.read_bytes() == paths[2].read_bytes()
    assert np.array_equal(pixels(again), result[2])


def test_what_the_command_line_drew_the_command_line_draws_again(tmp_path):
    first, again = tmp_path / "a.png", tmp_path / "again.png"
    assert command("a ring", "--num_steps=3", "--seed=4", f"--output={first}").returncode == 0
    assert metadata.read(first).inference_only
    run = command(f"--replay={first}", f"--output={again}")
    assert (run.returncode, run.stderr) == (0, "")
    assert again.read_bytes() == first.read_bytes()


def test_an_exact_picture_is_drawn_without_its_batch(tiny, tmp_path, monkeypatch):
    paths = tiny.generate(PROMPTS, 3, seed=5, exact=True, **QUICK).save(tmp_path / "a.png")
    seen, run = [], kerasdiff.Generator.run

    def count(generator, request, **arguments):
        seen.append(len(request))
        return run(generator, request, **arguments)

    monkeypatch.setattr(kerasdiff.Generator, "run", count)
    (again,) = kerasdiff.replay(paths[4], progress=False).save(tmp_path / "again.png")
    assert seen == [1]
    assert again.read_bytes() == paths[4].read_bytes()


def test_a_picture_from_a_picture_is_made_again_with_it(tmp_path, photo):
    arguments = {"image": str(photo), "resize": "cover", "strength": 0.5, "seed": 3, **QUICK}
    (path,) = kerasdiff.generate("a ring", **arguments).save(tmp_path / "a.png")
    with pytest.raises(kerasdiff.RequestError, match="made from a picture, which is not in the file; give it as image"):
        kerasdiff.replay(path)
    assert np.array_equal(kerasdiff.replay(path, image=photo, progress=False)[0], pixels(path))
    with pytest.raises(kerasdiff.RequestError, match="was made with another one for image"):
        kerasdiff.replay(path, image=np.zeros((130, 150, 3), "uint8"))
    with pytest.raises(kerasdiff.RequestError, match="was made without a mask; leave mask out"):
        kerasdiff.replay(path, image=photo, mask=np.ones((130, 150), bool))
    run = command(f"--replay={path}", f"--image={photo}", f"--output={tmp_path / 'again.png'}")
    assert (run.returncode, run.stderr) == (0, "")
    assert np.array_equal(pixels(tmp_path / "again.png"), pixels(path))


@pytest.mark.parametrize(
    "arguments",
    [
        {"timesteps": [999.0, 600.0, 200.0]},
        {"sigmas": [14.0, 3.0, 0.5, 0.0], "sampler": "euler"},
        {"num_steps": 3, "sampler": "ddim", "sampler_options": {"eta": 0.5}, "rng": "torch"},
        {"num_steps": 3, "sampler": "unipc", "sampler_options": {"disable_corrector": [0, 1], "sigma_max": None}},
        {"num_steps": 2, "guidance_scale": [3.0, 1.0], "guidance_rescale": 0.5, "guidance_interval": (0.0, 0.9)},
        {"num_steps": 3, "deep_cache_interval": 3},
        {"num_steps": 2, "long_prompts": "chunk", "height": 64, "width": 192},
        {"num_steps": 2, "height": 64, "width": 64, "hires": {"height": 96, "prompt": "a, b", "sampler": "heun"}},
        {"num_steps": 2, "height": 64, "width": 64, "hires": "scale=1.5,steps=1,upscaler=lanczos", "exact": True},
    ],
)
def test_every_argument_is_in_the_receipt(tiny, tmp_path, arguments):
    prompt = "a red circle " * 40 if "long_prompts" in arguments else "a red circle"
    result = tiny.generate(prompt, seed=1, progress=False, **arguments)
    (path,) = result.save(tmp_path / "a.png")
    again = kerasdiff.replay(path, progress=False)
    assert again.request == result.request
    assert again.images.shape == result.images.shape
    assert np.array_equal(again.images, result.images)


def test_a_receipt_comes_before_what_its_model_says_now(tiny, tmp_path):
    result = tiny.generate("a ring", seed=1, spacing="linspace", **QUICK)
    (path,) = result.save(tmp_path / "a.png")
    shutil.copytree(TINY_FOLDER, tmp_path / "model", copy_function=os.symlink)
    settings = tiny.config.to_json()
    settings["defaults"] |= {"sampler_options": [["solver_order", 3]], "spacing": "karras"}
    (tmp_path / "model" / "config.json").unlink()
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings))
    again = kerasdiff.replay(path, model=tmp_path / "model", progress=False)
    assert again.request == result.request
    assert np.array_equal(again.images, result.images)


def test_all_formats_and_many_files_have_receipts(tiny, tmp_path):
    result = tiny.generate("a ring", 2, seed=1, **QUICK)
    named = kerasdiff.images.save_images(result, tmp_path / "name_")
    for path in [*named, *result.save(tmp_path / "a.jpg"), *result.save(tmp_path / "b.webp")]:
        receipt = metadata.read(path)
        assert receipt.request == result.request
        assert receipt.index == int(path.stem[-1]) - 1
        assert receipt.model == "tiny"
        assert len(receipt.model_hash) == 64
        assert receipt.versions["kerasdiff"] == kerasdiff.__version__
    assert result.only(1).receipt(0) == result.receipt(1)
    (plain,) = result.only(0).save(tmp_path / "plain.png", metadata=False)
    with pytest.raises(kerasdiff.RequestError, match="has no embedded metadata"):
        metadata.read(plain)


def test_what_differs_is_said(tiny, tmp_path, monkeypatch):
    result = tiny.generate("a ring", seed=1, **QUICK)
    monkeypatch.setitem(tiny.origin.versions, "keras", "3.0.0")
    (path,) = result.save(tmp_path / "a.png")
    changed = np.asarray(Image.open(path)).copy()
    changed[3, 4] ^= 1
    Image.fromarray(changed).save(path, **metadata.save_arguments(result.receipt(0), "PNG"))
    with pytest.warns(UserWarning, match="then, |pixels differ") as told:
        kerasdiff.replay(path, progress=False)
    version, difference = (str(one.message) for one in told)
    assert ": keras 3.0.0 then, " in version
    assert difference.endswith("1 pixels differ, by up to 1 grey levels")


def test_what_cannot_be_made_again_is_said(tiny, tmp_path):
    latents = tiny.initial_latents(seed=1)
    (path,) = tiny.generate("a ring", latents=latents, **QUICK).save(tmp_path / "a.png")
    with pytest.raises(kerasdiff.RequestError, match="drawn with latents of its own, which are not in the file"):
        kerasdiff.replay(path)
    stopped = tiny.generate("a ring", callback=lambda step, *_: step < 2, **QUICK)
    (path,) = stopped.save(tmp_path / "b.png")
    with pytest.raises(kerasdiff.RequestError, match="its run was stopped by a callback"):
        kerasdiff.replay(path)
    run = command("a prompt", f"--replay={path}")
    assert (run.returncode, run.stderr) == (
        2,
        "kerasdiff: --replay takes the prompt from the image; leave the prompt out\n",
    )
    run = command(f"--replay={path}", f"--grid={tmp_path / 'grid.gif'}")
    assert run.returncode == 2
    assert "grid.gif: the name must end in one of .png" in run.stderr
    Image.new("RGB", (8, 8)).save(tmp_path / "c.png")
    run = command(f"--replay={tmp_path / 'c.png'}")
    assert run.returncode == 2
    assert run.stderr.endswith("has no embedded metadata: it was saved without, or another program removed it\n")


def test_a_receipt_that_does_not_fit_costs_no_image(tiny, tmp_path):
    with pytest.warns(UserWarning, match="this part is not used"):
        result = tiny.generate("word " * 20_000, seed=1, **QUICK)
    with pytest.warns(UserWarning, match="saved without metadata: the prompt is too long for the metadata of a JPEG"):
        (path,) = result.save(tmp_path / "a.jpg")
    assert pixels(path).shape == (128, 128, 3)
