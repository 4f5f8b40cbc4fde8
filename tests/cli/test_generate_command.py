"""python -m kerasdiff: the same as from Python, and one line with exit code 2 for whatever is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import pkgutil
import pty
import subprocess
import sys
import termios

import numpy as np
import pytest
from lora_files import write_lora
from PIL import Image

import kerasdiff
import kerasdiff.__main__ as command_line
import kerasdiff.batch
import kerasdiff.metadata
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.cli import generate_command
from kerasdiff.cli.options import BATCH, GENERATE, OPTIONS
from kerasdiff.cli.program import Program
from kerasdiff.hints import HINTS
from kerasdiff.images import reader


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Runs the command line in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = GENERATE.call(generate_command.generate, ["kerasdiff", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def objects(out):
    """What --json printed."""
    return [json.loads(line) for line in out.splitlines()]


PROMPT = "a red circle above a blue square on a yellow background"
QUICK = ("--num_steps=3", "--noprogress", "--precision=float32")


def test_it_draws_what_python_draws(call, tiny, tmp_path):
    code, out, err = call(PROMPT, "--model=tiny", "--batch_size=2", "--seed=7", "--grid=all.png", *QUICK)
    assert (code, err) == (0, "")
    assert out.splitlines() == ["out_1.png (seed 7)", "out_2.png (seed 8)", "all.png"]
    expected = tiny.generate(PROMPT, batch_size=2, seed=7, num_steps=3, progress=False)
    for number, image in enumerate(expected, start=1):
        with Image.open(tmp_path / f"out_{number}.png") as saved:
            assert np.array_equal(np.asarray(saved), image)
    with Image.open(tmp_path / "all.png") as saved:
        assert saved.size == (256, 128)


def test_a_plan_is_told_and_nothing_is_drawn(call, tiny, tmp_path):
    code, out, err = call(PROMPT, "a ring", "--batch_size=35", "--height=96", "--plan", *QUICK)
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "70 images of 128 x 96: 2 x 32 + 6 at once"
    assert len(out.splitlines()) == 3
    assert list(tmp_path.iterdir()) == []
    code, _, err = call(PROMPT, "--plan", "--output_dir=out")
    assert code == 2
    assert err == "kerasdiff: --output_dir does not go with --plan; leave one of them out\n"


def test_a_plan_is_of_what_would_be_left_out(call, monkeypatch):
    got, plan = {}, kerasdiff.Generator.plan
    monkeypatch.setattr(kerasdiff.Generator, "plan", lambda one, *a, **more: got.update(more) or plan(one, *a, **more))
    shortcuts = {"deep_cache_interval": 3, "deep_cache_branch": 1, "token_merging_ratio": 0.25}
    assert call(PROMPT, "--plan", *(f"--{name}={value}" for name, value in shortcuts.items()), *QUICK)[0] == 0
    assert {name: got[name] for name in shortcuts} == shortcuts


def test_it_says_what_auto_chose(call):
    code, _, err = call("a ring", "--num_steps=1", "--seed=1", "--progress")
    assert code == 0
    assert err.splitlines()[0] in ("tiny: CPU, float32, no XLA", "tiny: GPU, mixed_float16, XLA")


def test_every_flag_reaches_the_request(call, monkeypatch):
    got = {}

    def make_request(config, prompts, **arguments):
        got.update(arguments, size=config.defaults.height, prompts=prompts)
        raise kerasdiff.RequestError("seen")

    monkeypatch.setattr(generate_command, "make_request", make_request)
    values = {
        "batch_size": 4,
        "negative_prompt": "blur",
        "height": 320,
        "width": 640,
        "original_size": "300,200",
        "crop": "0,64",
        "target_size": "64,128",
        "negative_original_size": "1,2",
        "negative_crop": "3,4",
        "negative_target_size": "5,6",
        "aesthetic_score": 5.5,
        "negative_aesthetic_score": 2.0,
        "tile": "x",
        "num_steps": 9,
        "recipe": "lcm",
        "hires": "scale=2,strength=0.6",
        "guidance_scale": 2.5,
        "guidance_rescale": 0.7,
        "image_guidance_scale": 1.2,
        "sampler": "euler",
        "spacing": "linspace",
        "rng": "torch",
        "long_prompts": "chunk",
        "resize": "fit",
        "feather": 3,
        "deep_cache_interval": 3,
        "deep_cache_branch": 2,
        "token_merging_ratio": 0.5,
        "prompt_syntax": "a1111",
        "emphasis": "no_norm",
        "clip_skip": 2,
        "lora_folder": "loras",
        "safety": "flag",
        "denoising_end": 0.8,
        "refiner_strength": 0.4,
    }
    lists = {
        "seed": ("1,2,3", [1, 2, 3]),
        "strength": ("0.5,0.6", [0.5, 0.6]),
        "guidance_interval": ("0.1,0.8", [0.1, 0.8]),
        "timesteps": ("999,500", [999.0, 500.0]),
        "sigmas": ("14.6,3,0", [14.6, 3.0, 0.0]),
        "upscale": ("up.pth:2", ("up.pth", 2.0)),
        "sampler_options": (
            "eta=0.5,order=3,solver_type=bh1,skip_prk_steps=false",
            {"eta": 0.5, "order": 3, "solver_type": "bh1", "skip_prk_steps": False},
        ),
    }
    given = [*((name, value) for name, value in values.items()), *((name, text) for name, (text, _) in lists.items())]
    pictures = {"image": ["a.png", "b.png"], "mask": ["c.png", "d.png"]}
    flags_given = [f"--{name}={value}" for name, value in given]
    flags_given += [
        "--lora=a.safetensors:0.5:1",
        "--lora=C:b",
        "--embedding=c.pt:<toy>",
        "--embedding=d",
        "--embedding=e:f.PNG",
    ]
    flags_given += [
        "--control=net:edges.png:0.5:0.1:0.9",
        "--control=C:\\nets\\depth:D:\\a.png",
        "--control=org/name/a.safetensors:.5",
        *("--control_mode=prompt", "--hint=canny", "--hint=none", "--hint=canny"),
        "--image_prompt=hf://org/ip:12:30.png,b.png:1",
    ]
    flags_given += [f"--{name}={path}" for name, paths in pictures.items() for path in paths]
    code, _, err = call("one", "two", *flags_given, "--model=sd-v1-4", "--weights=random")
    assert (code, err) == (2, "kerasdiff: seen\n")
    expected = {name: value for name, (_, value) in lists.items()} | {"exact": False, "invert_mask": False}
    expected |= {
        "loras": [("a.safetensors", 0.5, 1.0), ("C:b",)],
        "embeddings": [("c.pt", "<toy>"), ("d",), ("e:f.PNG",)],
        "controls": (
            kerasdiff.Control("net", "edges.png", 0.5, 0.1, 0.9, mode="prompt", hint="canny"),
            kerasdiff.Control("C:\\nets\\depth", "D:\\a.png", mode="prompt"),
            kerasdiff.Control("org/name/a.safetensors", None, 0.5, mode="prompt", hint="canny"),
        ),
        "image_prompts": [{"model": "hf://org/ip", "image": ["12:30.png", "b.png"], "scale": 1.0}],
    }
    assert got == {**values, **expected, **pictures, "prompts": ["one", "two"], "size": 512}
    call("one", "--guidance_scale=3,2,1")
    assert got["guidance_scale"] == [3.0, 2.0, 1.0]
    call("one", "two", "--guidance_scale=3,2", "--guidance_scale=4,1", "--negative_prompt=a", "--negative_prompt=b,c")
    assert got["guidance_scale"] == [[3.0, 2.0], [4.0, 1.0]]
    assert got["negative_prompt"] == ["a", "b,c"]
    call("one", "--image=a.png", "--strength=0.4")
    assert (got["image"], got["strength"], got["mask"], got["safety"]) == ("a.png", 0.4, None, None)
    assert got["exact"] is False
    call("one", "--exact", "--invert_mask")
    assert got["exact"] is got["invert_mask"] is True


def test_a_picture_and_a_mask_reach_the_picture(call, tiny, tmp_path):
    picture = np.tile(np.linspace(0, 255, 128, dtype="uint8")[:, None, None], (1, 128, 3))
    mask = np.zeros((128, 128), "uint8")
    mask[40:80, 30:70] = 255
    Image.fromarray(picture).save(tmp_path / "photo.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    pictures = ("--image=photo.png", "--mask=mask.png", "--feather=4", "--strength=0.9")
    code, out, err = call(PROMPT, *pictures, "--seed=7", "--metadata=off", *QUICK)
    assert (code, out, err) == (0, "out.png (seed 7)\n", "")
    arguments = {"image": picture, "mask": mask, "feather": 4, "strength": 0.9, "seed": 7, "num_steps": 3}
    with Image.open(tmp_path / "out.png") as saved:
        assert np.array_equal(np.asarray(saved), tiny.generate(PROMPT, progress=False, **arguments)[0])
        assert not saved.info


def test_prompts_become_a_folder_of_pictures(call, tiny, tmp_path):
    arguments = (PROMPT, "a ring", "--output_dir=out", "--batch_size=2", "--seed=7", "--format=webp", "--exact", *QUICK)
    code, out, err = call(*arguments)
    assert (code, err) == (0, "")
    assert out.startswith("out: 4 generated, 0 already there, 0 failed (")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.webp")) == [
        f"{row}_{number}.webp" for row in (1, 2) for number in (1, 2)
    ]
    assert [kerasdiff.metadata.read(tmp_path / "out" / f"2_{number}.webp").request.exact for number in (1, 2)] == [
        True
    ] * 2
    assert call(*arguments) == (0, "out: 0 generated, 4 already there, 0 failed\n", "")


def test_a_file_of_prompts_becomes_a_folder_of_pictures(call, tiny, tmp_path):
    Image.new("RGB", (128, 128), "red").save(tmp_path / "there.png")
    (tmp_path / "rows.csv").write_text("id,prompt,image\nfirst,a ring,there.png\nsecond,a star,missing.png\n")
    code, out, err = call("--prompts=rows.csv", "--output_dir=out", *QUICK)
    assert code == 1
    assert out.startswith("out: 1 generated, 0 already there, 1 failed (")
    assert err == "kerasdiff: 1 of 2 images failed; out/manifest.jsonl says why; rerun the same command to retry them\n"
    expected = tiny.generate(
        "a ring",
        image=tmp_path / "there.png",
        seed=kerasdiff.batch.Row("first", "x").first_seed,
        num_steps=3,
        progress=False,
    )
    with Image.open(tmp_path / "out" / "first.png") as saved:
        assert np.array_equal(np.asarray(saved), expected[0])


def test_the_batch_command_is_that_job(call, capsys, tiny, tmp_path):
    (tmp_path / "rows.csv").write_text("id,prompt,seed\nfirst,a ring,3\n")

    def batch(*arguments):
        code = BATCH.call(generate_command.batch, ["kerasdiff batch", *arguments])
        return code, *capsys.readouterr()

    code, out, err = batch("rows.csv", "--output_dir=out", "--json", *QUICK)
    assert (code, err) == (0, "")
    assert [(one["type"], one.get("path")) for one in objects(out)] == [("image", "out/first.png"), ("summary", None)]
    made = ("--prompts=rows.csv", "--output_dir=out", *QUICK)
    assert call(*made) == (0, "out: 0 generated, 1 already there, 0 failed\n", "")
    usage = "usage: python -m kerasdiff batch FILE --output_dir=FOLDER"
    for arguments, message in [
        (("--output_dir=out",), f"kerasdiff batch: give one file of prompts; {usage}"),
        (("a.csv", "b.csv", "--output_dir=out"), f"kerasdiff batch: give one file of prompts; {usage}"),
        (("rows.csv",), f"kerasdiff batch: --output_dir is missing; {usage}"),
        (("rows.csv", "--output_dir=out", "--seed=3,4"), "kerasdiff batch: --output_dir takes one --seed"),
        (("rows.csv", "--output_dir=out", "--cfg=3"), "kerasdiff batch: --cfg is called --guidance_scale here"),
    ]:
        code, out, err = batch(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith(message)


def test_rows_with_different_loras_leave_weights_free(call, tiny, tmp_path, monkeypatch):
    start, frozen = generate_command._start, []
    monkeypatch.setattr(
        generate_command, "_start", lambda program, *more: frozen.append(more[0]) or start(program, *more)
    )
    model = open_model("tiny")
    write_lora(tmp_path / "style.safetensors", {"unet": model.shapes("unet")}, 1, networks=("unet",))
    rows = '{"id": "a", "prompt": "a ring"}\n{"id": "b", "prompt": "a ring", "loras": ["style.safetensors:0.5"]}\n'
    (tmp_path / "rows.jsonl").write_text(rows)
    quick = (*QUICK, "--seed=3", "--height=64", "--width=64")
    assert call("--prompts=rows.jsonl", "--output_dir=mixed", *quick)[0] == 0
    (tmp_path / "tags.txt").write_text("a ring <lora:style:0.5>\na ring <lora:style:0.5>\n")
    assert call("--prompts=tags.txt", "--output_dir=tags", "--lora_folder=.", *quick)[0] == 0
    assert call("a ring", "--lora=style.safetensors:0.5", *quick)[0] == 0
    assert frozen == [False, True, True]
    images = [np.asarray(Image.open(tmp_path / name)) for name in ("tags/1.png", "out.png", "mixed/a.png")]
    assert np.abs(images[0].astype(int) - images[1]).max() <= 1
    assert np.abs(images[0].astype(int) - images[2]).max() > 1
    assert kerasdiff.metadata.read(tmp_path / "mixed" / "b.png").request.loras[0].scale == 0.5
    assert call("a ring", "--replay=x")[0] == 2
    code, out, _ = call("--replay=out.png", "--lora=.", "--output=again.png", "--noprogress")
    assert (code, out) == (0, "again.png (seed 3)\n")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "out.png").read_bytes()
    for arguments in (("--plan",), ()):
        code, _, err = call("a ring", "--lora=none.safetensors", *arguments, *QUICK)
        assert (code, err.startswith("kerasdiff: there is no LoRA 'none.safetensors'")) == (2, True)


def test_a_seed_counts_up_over_a_file_of_prompts(call, tmp_path):
    (tmp_path / "rows.csv").write_text("id,prompt,seed\ncat,a ring,\ndog,a star,70\nowl,a ring,\n")
    arguments = ("--prompts=rows.csv", "--output_dir=out", "--batch_size=2", "--seed=3", "--json", *QUICK)
    for status in ("drawn", "kept"):
        code, out, err = call(*arguments)
        assert (code, err) == (0, "")
        told = [(one["id"], one["status"], one["seed"]) for one in objects(out)[:-1]]
        seeds = {"cat": (3, 4), "dog": (70, 71), "owl": (7, 8)}
        assert sorted(told) == [(name, status, seed) for name, pair in seeds.items() for seed in pair]


@pytest.mark.parametrize(
    ("prompts", "whole"),
    [
        (["a", "red", "circle"], "a red circle"),
        (["'a", "red", "circle'"], "a red circle"),
        (["“a", "red", "circle”"], "a red circle"),
        (["red", "circle"], "red circle"),
        (["red"], None),
        (["a red circle", "star"], None),
    ],
)
def test_words_without_quotes_are_a_warning(call, prompts, whole):
    expected = contextlib.nullcontext() if whole is None else pytest.warns(match=f'double quotes: "{whole}"')
    with expected:
        assert call(*prompts, "--plan", *QUICK)[0] == 0


@pytest.mark.parametrize(("name", "flag"), [("rows.CSV", "prompts"), ("a.png", "image")])
def test_a_file_as_a_prompt_is_a_warning(call, tmp_path, name, flag):
    (tmp_path / name).write_text("prompt\na ring\n")
    with pytest.warns(match=f"'{name}' is taken as a prompt; the file is given as --{flag}="):
        assert call(name, "--plan", *QUICK)[0] == 0


@pytest.mark.parametrize(
    ("argv", "name", "arguments"),
    [
        (["a ring", "--seed=7"], "kerasdiff", ["a ring", "--seed=7"]),
        ([], "kerasdiff", []),
        (["generate", "info"], "kerasdiff", ["info"]),
        (["--json", "info"], "kerasdiff", ["--json", "info"]),
        (["batch", "rows.csv"], "kerasdiff batch", ["rows.csv"]),
        (["bulk", "--shards"], "kerasdiff.bulk", ["--shards"]),
        (["info"], "kerasdiff.info", []),
        (["convert", "a", "b"], "kerasdiff.convert", ["a", "b"]),
        (["verify"], "kerasdiff.verify", []),
        (["bench", "--runs=1"], "kerasdiff.bench", ["--runs=1"]),
    ],
)
def test_the_first_word_is_a_command(monkeypatch, argv, name, arguments):
    ran = []
    monkeypatch.setattr(Program, "run", lambda program, main, given: ran.append((program.name, main, given)))
    monkeypatch.setattr(sys, "argv", ["kerasdiff", *argv])
    command_line.run()
    ((program, main, given),) = ran
    assert (program, given) == (name, arguments)
    assert callable(pkgutil.resolve_name(main))


def test_a_job_shows_how_far_it_is(call):
    code, _, err = call("a ring", "a star", "--output_dir=out", "--num_steps=1", "--progress")
    assert code == 0
    assert "2/2 [" in err
    assert "image/s" in err
    assert "step" not in err


def test_samplers_are_listed(call):
    code, out, err = call("--list_samplers")
    assert (code, err) == (0, "")
    assert out == f"samplers\n{kerasdiff.SAMPLERS}\n\nspacings\n{kerasdiff.SPACINGS}\n\nrecipes\n{kerasdiff.RECIPES}\n"


def test_samplers_spacings_and_torchs_noise_reach_the_picture(call, tiny, tmp_path):
    flags_given = ("--sampler=DDIMScheduler", "--sampler_options=eta=0.5", "--spacing=karras", "--rng=torch")
    code, _, err = call(PROMPT, *flags_given, "--guidance_interval=0,0.5", "--seed=7", *QUICK)
    assert (code, err) == (0, "")
    expected = tiny.generate(
        PROMPT,
        sampler="ddim",
        sampler_options={"eta": 0.5},
        spacing="karras",
        rng="torch",
        guidance_interval=(0, 0.5),
        seed=7,
        num_steps=3,
        progress=False,
    )
    with Image.open(tmp_path / "out.png") as saved:
        assert np.array_equal(np.asarray(saved), expected[0])


def test_precision_and_compiler_are_passed_on(call):
    code, _, err = call("a ring", "--num_steps=1", "--progress", "--precision=mixed_bfloat16", "--jit_compile=false")
    assert code == 0
    assert err.splitlines()[0].endswith("U, mixed_bfloat16, no XLA")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "there is no prompt; usage: python -m kerasdiff"),
        (("x", "--nonsense=1"), "Unknown command line flag 'nonsense'"),
        (("x", "--batch_size=many"), "flag --batch_size=many"),
        (("x", "--batch_size=0"), "batch_size=0 is out of range; it must be at least 1"),
        (("x", "--height=100"), "height=100 is not a multiple of 8; the nearest valid size is 96 or 104"),
        (("x", "--width=1"), "width=1 is not a multiple of 8; the nearest valid size is 8"),
        (("x", "--num_steps=0"), "num_steps=0 is out of range; it must be between 1 and 1000"),
        (("x", "--guidance_scale=nan"), "guidance_scale=nan is not finite"),
        (("x", "--guidance_scale=much"), "guidance_scale=much is not a number or a list of them"),
        (("x", "--guidance_interval=1,0"), "guidance_interval must be (start, end)"),
        (("x", "--guidance_rescale=2"), "guidance_rescale=2 is out of range"),
        (("x", "--sampler=unipc", "--sampler_options=disable_corrector=[0,1],eta=0.5"), "has no option 'eta'"),
        (("x", "--sampler_options=eta"), "sampler_options=eta: 'eta' is not of the form name=value"),
        (("x", "--sampler=ddim", "--sampler_options=eta=x"), "eta must be a number, not str ('x')"),
        (("x", "--sigmas=5,6,0"), "sigmas must fall from step to step"),
        (("x", "--timesteps=1200,6"), "timesteps must lie between 0 and 999"),
        (("x", "--rng=dice"), "rng='dice' is unknown; known: philox, torch"),
        (("x", "--long_prompts=keep"), "long_prompts='keep' is unknown; known: chunk, cut"),
        (("x", "--sampler=eular"), "sampler='eular' is unknown; did you mean 'euler'?"),
        (("x", "--spacing=wide"), "spacing='wide' is unknown"),
        (("x", "--seed=-1"), "seed=-1 is out of range"),
        (("x", "--seed=1,2"), "seed has 2 entries for 1 images"),
        (("x", "--seed=abc"), "seed=abc is not an integer or a list of them"),
        (("x", "--seed=" + "9" * 5000), "9... is not an integer or a list of them"),
        (("x", "--sampler_options=eta=" + "(" * 500), "eta"),
        (("x", "--model=none"), "model='none' is unknown"),
        (("x", "--weights=some"), "weights='some' is unknown"),
        (("x", "--precision=half"), "precision='half' is unknown"),
        (("x", "--jit_compile=perhaps"), "flag --jit_compile=perhaps"),
        (("x", "--output=picture.gif"), "cannot save to picture.gif: the name must end in one of .png"),
        (("x", "--output=no/such/folder.png"), "there is no folder no/such; make it first"),
        (("x", "--grid=sheet.bmp"), "cannot save to sheet.bmp"),
        (("x", f"--output={'x' * 252}.png"), "File name too long; choose another name"),
        (("x", "--batch_size=10", f"--output={'x' * 249}.png"), "File name too long; choose another name"),
        (("x", f"--output_dir={'x' * 256}"), "File name too long; choose another output"),
        (("x", "--invert_mask"), "invert_mask needs image and mask"),
        (("x", "--grid=a.png", "--grid_columns=0"), "grid_columns=0 is out of range; it must be at least 1"),
        (("x", "--grid_columns=2"), "--grid_columns needs --grid"),
        (("x", "--replay=a.png"), "--replay takes the prompt from the image; leave the prompt out"),
        (("--replay=a.png", "--num_steps=3"), "--replay takes everything from the image; leave --num_steps out"),
        (("--replay=a.png", "--plan"), "--replay takes everything from the image; leave --plan out"),
        (("--replay=a.png", "--json", "--image=b.png", "--verbosity=silent"), "there is no file a.png"),
        (("--prompts=rows.txt",), "--prompts needs --output_dir"),
        (("x", "--format=jpg"), "--format needs --output_dir"),
        (("x", "--format=gif"), "flag --format=gif"),
        (("--output_dir=out",), "give a prompt, or --prompts with a file of them; usage"),
        (("--prompts=rows.txt", "--output_dir=out"), "cannot read rows from rows.txt: No such file or directory"),
        (("x", "--prompts=rows.txt", "--output_dir=out"), "leave those on the command line out"),
        (("--seed=3", "--prompts=rows.txt", "--output_dir=out"), "cannot read rows from rows.txt"),
        (("x", "--steps=3"), "--steps is called --num_steps here: --num_steps=3"),
        (("x", "--steps", "3"), "--steps is called --num_steps here: --num_steps=3"),
        (("x", "--CFG-scale=7"), "--CFG-scale is called --guidance_scale here: --guidance_scale=7"),
        (("x", "--num-steps=3"), "--num-steps is called --num_steps here: --num_steps=3"),
        (("x", "--H=64"), "--H is called --height here: --height=64"),
        (
            ("x", "--sampler_name=DPM++ 2M Karras"),
            "--sampler_name is called --sampler here: --sampler='DPM++ 2M Karras'",
        ),
        (("x", "--scheduler=karras"), "--scheduler is called --spacing here: --spacing=karras"),
        (("x", "--scheduler=EulerDiscreteScheduler"), "--scheduler is called --sampler here: --sampler=EulerDiscr"),
        (("x", "--ddim_eta=0.5"), "--ddim_eta is written --sampler_options=eta=0.5 here"),
        (("x", "--use_karras_sigmas=false"), "leave --use_karras_sigmas out; its opposite is written --spacing=karras"),
        (("x", "--safety_checker=true"), "leave --safety_checker out; its opposite is written --safety=off here"),
        (("x", "--mask_invert"), "--mask_invert is called --invert_mask here: --invert_mask"),
        (("x", "-o", "a.png"), "--o is called --output here: --output=a.png"),
        (("x", "--plms"), "--plms is written --sampler=pndm here"),
        (("x", "--generator=7"), "--generator is called seed here: --seed=7, with --rng='torch'"),
        (
            ("--prompt=a red circle",),
            '--prompt is no flag here: write the prompt alone, in quotes: kerasdiff "a red circle"',
        ),
        (("x", "--seed=-1"), "; leave it out for a random one"),
        (("x", "--seed=random"), "; leave it out for a random one"),
        (("x", "--image="), "--image is empty; give it a value, or leave it out"),
        (("x", "--output_dir="), "--output_dir is empty; give it a value, or leave it out"),
        (("x", "--height=512px"), "flag --height=512px: not an integer"),
        (("x", "--guidance_rescale=0,7"), "flag --guidance_rescale=0,7: not a number; write 0.7"),
        (("x", "--guidance_scale=7,5"), "; if one number was meant, write --guidance_scale=7.5"),
        (
            ("x", "--sampler=ddim", "--sampler_options=eta=0,5"),
            "if one number was meant, write --sampler_options=eta=0.5",
        ),
        (("x", "--control=net"), "controls[0] has no image, and the request has none either"),
        (("x", "--control=net:a.png"), "controls[0].image: 'a.png' cannot be read: No such file or directory"),
        (("x", "--control=net:a.png:1:0.5:0.1"), "controls[0]: start=0.5 is after end=0.1"),
        (("x", "--hint=canny"), "hint needs a control that it is for"),
        (("x", "--control=net", "--control_mode=a", "--control_mode=b"), "control_mode has 2 entries for 1 controls"),
        (("x", "--control=net", "--control_mode=prmpt"), "mode='prmpt' is unknown; did you mean 'prompt'?"),
        (("x", "--control=net", "--hint=cany"), "controls[0].hint='cany' is unknown; did you mean 'canny'?"),
        (("x", "--image_prompt=net"), "image_prompts[0] has no image"),
        (("x", "--exact=yes"), "flag --exact=yes: neither true nor false"),
        (("x", "--noexact=1"), "--noexact=1 does not take an argument"),
        (("x", "--sampler=DPM++ 2M Karras", "--spacing=trailing"), "means spacing='karras', but spacing='trailing' is"),
        (("x", "--seed=3,4", "--output_dir=out"), "--output_dir takes one --seed"),
        (("x", "--output=a.png", "--output_dir=out"), "--output_dir does not go with --output; leave one"),
        (("x", "--grid=a.png", "--output_dir=out"), "--output_dir does not go with --grid; leave one"),
        (("--replay=a.png", "--output_dir=out"), "--output_dir does not go with --replay; leave one"),
        (("x", "--metadata=off", "--output_dir=out"), "--output_dir does not go with --metadata=off"),
        (("x", "--sampler=eular", "--output_dir=out"), "sampler='eular' is unknown; did you mean 'euler'?"),
        (("x", "--batch_size=0", "--output_dir=out"), "batch_size=0 is out of range"),
        (("x", "--model=none", "--output_dir=out"), "model='none' is unknown"),
        (("x", "--precision=half", "--output_dir=out"), "precision='half' is unknown"),
        (("x", "--image=a.png", "--image=b.png", "--output_dir=out"), "image of a job must be a path"),
        (("x", "--output_dir=no/such/out"), "there is no folder no/such; create it first"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(call, tmp_path, arguments, message):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("kerasdiff: ")
    assert message in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("arguments", "word"), [(("x", "--sampler=eular"), "eular"), (("x", "--nope"), "nope")])
def test_a_real_process_says_no_more_than_that_line(tmp_path, arguments, word):
    run = subprocess.run(
        [sys.executable, "-m", "kerasdiff", *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert run.returncode == 2
    assert run.stdout == ""
    assert word in run.stderr
    assert run.stderr.startswith("kerasdiff: ")
    assert run.stderr.count("\n") == 1


def test_a_wrong_argument_is_found_without_tensorflow(tmp_path):
    script = (
        "import sys\n"
        "from kerasdiff.cli.options import GENERATE\n"
        "code = GENERATE.call('kerasdiff.cli.generate_command:generate', ['kerasdiff', 'x', '--sampler=eular'])\n"
        "print(code, 'tensorflow' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert run.stdout == "2 False\n"


def test_outputs_are_tried_before_anything_is_drawn(call, tmp_path, monkeypatch):
    monkeypatch.setattr(generate_command, "load_generator", None)
    for name in ("taken.png", "out_2.png"):
        (tmp_path / name).mkdir()
    for flags in (["--output=taken.png"], ["--grid=taken.png"], ["--batch_size=2"]):
        code, out, err = call("x", *flags)
        assert (code, out) == (2, "")
        assert ".png: there is a folder of this name; choose another name or folder" in err
    assert sorted(os.listdir(tmp_path)) == ["out_2.png", "taken.png"]
    code, _, err = call("x", "--batch_size=3", "--output=a.png", f"--grid={tmp_path / 'a_3.png'}")
    assert (code, err.partition(" is the file of an image, too; ")[2]) == (2, "choose another name for the grid\n")
    _, _, err = call("x", "--batch_size=2", "--output=taken.png")  # images beside a folder have names of their own
    assert "'NoneType' object is not callable" in err


def test_hints_are_saved_beside_the_images_and_cover_nothing(call, tmp_path, monkeypatch):
    def load(*_):
        raise kerasdiff.ModelError("seen")

    monkeypatch.setattr(generate_command, "load_generator", load)
    picture = np.zeros((64, 64, 3), "uint8")
    picture[:, 32:] = 200
    for name, pixels in (("a.png", picture), ("b.png", picture.swapaxes(0, 1)), ("out.hint2.png", picture)):
        Image.fromarray(pixels).save(tmp_path / name)
    controls = ("--control=net.safetensors:a.png", "--control=net.safetensors:b.png")
    code, out, err = call("x", *controls, "--hint=invert")
    assert (code, out) == (2, "")
    assert "there is no ControlNet or adapter 'net.safetensors'" in err
    (tmp_path / "net.safetensors").touch()
    for _ in range(2):
        code, out, err = call("x", *controls, "--hint=invert", "--json")
        assert (code, err) == (2, "kerasdiff: seen\n")
        saved = [{"type": "hint", "path": f"out.hint{number}.png", "hint": "invert"} for number in (1, "2_2")]
        assert objects(out) == saved
    for name, pixels in (("out.hint1.png", 255 - picture), ("out.hint2_2.png", 255 - picture.swapaxes(0, 1))):
        assert np.array_equal(reader.read(tmp_path / name), pixels)
    assert np.array_equal(reader.read(tmp_path / "out.hint2.png"), picture)
    _, out, _ = call("x", "--image=a.png", "--image=b.png", controls[0].partition(":")[0], "--hint=gray", "--hint=none")
    assert out == ""
    images = ("--image=a.png", "--image=b.png")
    _, out, _ = call("x", *images, controls[0].partition(":")[0], "--hint=gray", "--output=b.webp")
    assert out.splitlines() == ["b_1.hint1.png (hint 1, gray)", "b_2.hint1.png (hint 1, gray)"]
    files = len(os.listdir(tmp_path))
    call("x", *controls, "--hint=gray", "--plan")
    assert len(os.listdir(tmp_path)) == files
    assert all(name in OPTIONS["hint"].help for name in HINTS)


def test_a_tilde_in_a_flag_is_the_home_folder(call, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "p.txt").write_text("a ring\n")
    code, out, err = call("a ring", "--output=~/a.png", "--seed=1", *QUICK)
    assert (code, out, err) == (0, f"{tmp_path / 'home' / 'a.png'} (seed 1)\n", "")
    code, out, err = call("--prompts=~/p.txt", "--output_dir=~/out", "--image=~/a.png", *QUICK)
    assert (code, err) == (0, "")
    assert out.startswith(f"{tmp_path / 'home' / 'out'}: 1 generated")
    code, out, err = call("--replay=~/a.png", "--output=~/b.png", "--noprogress")
    assert (code, err) == (0, "")
    assert sorted(os.listdir(tmp_path)) == ["home"]
    assert sorted(os.listdir(tmp_path / "home")) == ["a.png", "b.png", "out", "p.txt"]
    code, _, err = call("a ring", "--model=~/out")
    assert (code, err[:60]) == (2, f"kerasdiff: {tmp_path / 'home' / 'out'} is not a model folder"[:60])


def test_a_picture_that_is_far_too_large_is_told_and_not_begun(call, tmp_path):
    Image.new("RGB", (6000, 4000), "blue").save(tmp_path / "photo.jpg")
    told = (
        "kerasdiff: image is 6000 x 4000 pixels, and the result would be, far above the model's 128 x 128; it would "
        "take at least 52.4 GB of memory. Give resize='cover' for the model's size, or height=4000 and width=6000 if "
        "you mean it\n"
    )
    assert call("a ring", "--image=photo.jpg") == (2, "", told)
    assert call("a ring", "--image=photo.jpg", "--plan") == (2, "", told)
    code, out, err = call("a ring", "--image=photo.jpg", "--resize=cover", "--plan", *QUICK)
    assert (code, err, out.splitlines()[0]) == (0, "", "1 images of 128 x 128: 1 at once")
    code, out, err = call("a ring", "--height=8192", "--width=8192", "--plan", *QUICK)
    assert (code, err) == (0, "")
    assert "too large for this machine, which has " in out


def test_json_has_an_object_for_each_image(call):
    arguments = ("--batch_size=2", "--seed=7", "--negative_prompt=a star", "--negative_prompt=", "--json")
    code, out, err = call("a ring", "a heart", "--guidance_scale=3,2,1", "--grid=all.png", *arguments, *QUICK)
    assert (code, err) == (0, "")
    *found, grid = objects(out)
    assert grid == {"type": "grid", "path": "all.png"}
    assert found[1:] == [
        {**found[0], "path": f"out_{number}.png", "seed": 6 + number, "prompt": prompt, "negative_prompt": negative}
        for number, prompt, negative in [(2, "a ring", "a star"), (3, "a heart", ""), (4, "a heart", "")]
    ]
    assert found[0] == {
        "type": "image",
        "path": "out_1.png",
        "seed": 7,
        "prompt": "a ring",
        "negative_prompt": "a star",
        "width": 128,
        "height": 128,
        "num_steps": 3,
        "sampler": "dpmpp_2m",
        "guidance_scale": [3.0, 2.0, 1.0],
        "nsfw": None,
    }


def test_guidance_of_one_image_is_a_number_in_json(call):
    code, out, _ = call("a ring", "a star", "--guidance_scale=3", "--guidance_scale=1.5", "--json", *QUICK)
    assert code == 0
    assert [one["guidance_scale"] for one in objects(out)] == [3.0, 1.5]


def test_a_grid_has_the_columns_that_are_asked_for(call, tmp_path):
    assert call("a ring", "--batch_size=3", "--grid=all.png", "--grid_columns=9", *QUICK)[0] == 0
    with Image.open(tmp_path / "all.png") as sheet:
        assert sheet.size == (3 * 128, 128)


def test_a_picture_is_made_again_with_json(call, tmp_path):
    assert call("a ring", "--seed=5", *QUICK)[0] == 0
    code, out, err = call("--replay=out.png", "--output=again.png", "--json", "--noprogress")
    assert (code, err) == (0, "")
    (told,) = objects(out)
    assert (told["path"], told["seed"], told["num_steps"]) == ("again.png", 5, 3)
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "out.png").read_bytes()


def test_json_of_plans_and_samplers(call):
    code, out, _ = call(PROMPT, "--batch_size=3", "--plan", "--json", *QUICK)
    (plan,) = objects(out)
    assert (code, plan["type"], plan["batch_size"], sum(plan["chunks"])) == (0, "plan", 3, 3)
    assert plan["peak"] > plan["memory"]["weights"] > 0
    code, out, _ = call("--list_samplers", "--json")
    found = objects(out)
    assert code == 0
    assert [one["name"] for one in found if one["type"] == "sampler"] == list(kerasdiff.SAMPLERS)
    assert [one["name"] for one in found if one["type"] == "spacing"] == list(kerasdiff.SPACINGS)
    assert [one["name"] for one in found if one["type"] == "recipe"] == list(kerasdiff.RECIPES)
    assert all(one["summary"] for one in found)


def test_json_of_a_job(call, tmp_path):
    (tmp_path / "rows.csv").write_text("id,prompt,image,seed\ncat,a ring,,3\ndog,a star,missing.png,4\n")
    arguments = ("--prompts=rows.csv", "--output_dir=out", "--batch_size=2", "--json", *QUICK)
    code, out, err = call(*arguments)
    assert code == 1
    assert err.startswith("kerasdiff: 2 of 4 images failed")
    *found, summary = objects(out)
    assert [(one["id"], one["number"], one["status"], one["path"], one["seed"]) for one in found] == [
        ("cat", 1, "drawn", "out/cat_1.png", 3),
        ("cat", 2, "drawn", "out/cat_2.png", 4),
        ("dog", 1, "failed", None, 4),
        ("dog", 2, "failed", None, 5),
    ]
    assert (found[0]["num_steps"], found[0]["width"], found[0]["sampler"], found[0]["error"]) == (
        3,
        128,
        "dpmpp_2m",
        None,
    )
    assert "cannot be read: No such file" in found[2]["error"]
    assert found[0]["seconds"] > 0
    assert summary.pop("seconds") > 0
    assert summary == {"type": "summary", "output_dir": "out", "drawn": 2, "kept": 0, "failed": 2, "missing": 2}
    Image.new("RGB", (128, 128), "red").save(tmp_path / "missing.png")
    code, out, err = call(*arguments)
    assert (code, err) == (0, "")
    assert [(one["id"], one["status"]) for one in objects(out)[:-1]] == [
        *[("cat", "kept")] * 2,
        *[("dog", "drawn")] * 2,
    ]
    code, out, err = call(*arguments)
    *found, summary = objects(out)
    assert (code, [one["status"] for one in found]) == (0, ["kept"] * 4)
    assert (summary["kept"], summary["missing"], found[2]["prompt"]) == (4, 0, "a star")


def test_a_progress_bar_is_for_terminals(tmp_path):
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    command = [sys.executable, "-W", "ignore", "-m", "kerasdiff", "a ring", "--num_steps=2"]
    somebody_watches = os.environ | {"TERM": "xterm", "CI": ""}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, text=True, cwd=tmp_path, env=somebody_watches
    ) as process:
        out, _ = process.communicate()
    os.write(theirs, b"END")  # a terminal that nobody holds open may lose what was written
    with open(ours, "rb", buffering=0) as terminal:
        shown = ""
        while not shown.endswith("END"):
            shown += terminal.read(100_000).decode(errors="replace")
    os.close(theirs)
    assert out.startswith("out.png (seed ")
    assert shown.startswith("tiny: ")
    assert "2/2 [" in shown


def test_a_reader_that_goes_away_ends_a_job_quietly(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "kerasdiff", "a ring", "--batch_size=300", "--exact"]
    arguments = ["--output_dir=out", "--json", "--num_steps=1"]
    with subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as process:
        assert json.loads(process.stdout.readline())["status"] == "drawn"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1
    assert 2 <= len(list((tmp_path / "out").glob("*.png"))) < 300
