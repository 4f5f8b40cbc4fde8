"""python -m kerasdiff: the same as from Python, and one line with exit code 2 for whatever is wrong."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from PIL import Image

import kerasdiff
import kerasdiff.__main__ as command_line


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Runs the command line in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        flags.FLAGS.unparse_flags()
        for name in flags.FLAGS.flags_by_module_dict()[command_line.__name__]:
            name.value, name.present = name.default, 0
        try:
            code = command_line.main(command_line._parse(["kerasdiff", *arguments]))
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


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


def test_it_says_what_auto_chose(call):
    code, _, err = call("a ring", "--num_steps=1", "--seed=1")
    assert code == 0
    assert err.splitlines()[0] in ("tiny: CPU, float32, no XLA", "tiny: GPU, mixed_float16, XLA")


def test_every_flag_reaches_the_request(call, monkeypatch):
    got = {}

    def make_request(config, prompts, **arguments):
        got.update(arguments, size=config.defaults.height, prompts=prompts)
        raise kerasdiff.RequestError("seen")

    monkeypatch.setattr(command_line, "make_request", make_request)
    values = {
        "batch_size": 4,
        "negative_prompt": "blur",
        "height": 320,
        "width": 640,
        "num_steps": 9,
        "guidance_scale": 2.5,
        "guidance_rescale": 0.7,
        "sampler": "euler",
        "spacing": "linspace",
        "rng": "torch",
        "long_prompts": "chunk",
        "resize": "fit",
        "feather": 3,
        "safety": "flag",
    }
    lists = {
        "seed": ("1,2,3", [1, 2, 3]),
        "strength": ("0.5,0.6", [0.5, 0.6]),
        "guidance_interval": ("0.1,0.8", [0.1, 0.8]),
        "timesteps": ("999,500", [999.0, 500.0]),
        "sigmas": ("14.6,3,0", [14.6, 3.0, 0.0]),
        "sampler_options": (
            "eta=0.5,order=3,solver_type=bh1,skip_prk_steps=false",
            {"eta": 0.5, "order": 3, "solver_type": "bh1", "skip_prk_steps": False},
        ),
    }
    given = [*((name, value) for name, value in values.items()), *((name, text) for name, (text, _) in lists.items())]
    pictures = {"image": ["a.png", "b.png"], "mask": ["c.png", "d.png"]}
    flags_given = [f"--{name}={value}" for name, value in given]
    flags_given += [f"--{name}={path}" for name, paths in pictures.items() for path in paths]
    code, _, err = call("one", "two", *flags_given, "--model=sd-v1-4", "--weights=random")
    assert (code, err) == (2, "kerasdiff: seen\n")
    expected = {name: value for name, (_, value) in lists.items()}
    assert got == {**values, **expected, **pictures, "prompts": ["one", "two"], "size": 512}
    call("one", "--guidance_scale=3,2,1")
    assert got["guidance_scale"] == [3.0, 2.0, 1.0]
    call("one", "--image=a.png", "--strength=0.4")
    assert (got["image"], got["strength"], got["mask"], got["safety"]) == ("a.png", 0.4, None, None)


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


def test_samplers_are_listed(call):
    code, out, err = call("--list_samplers")
    assert (code, err) == (0, "")
    assert out == f"samplers\n{kerasdiff.SAMPLERS}\n\nspacings\n{kerasdiff.SPACINGS}\n"


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
    code, _, err = call("a ring", "--num_steps=1", "--seed=1", "--precision=mixed_bfloat16", "--jit_compile=false")
    assert code == 0
    assert err.splitlines()[0].endswith("U, mixed_bfloat16, no XLA")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "there is no prompt; usage: python -m kerasdiff"),
        (("x", "--nonsense=1"), "Unknown command line flag 'nonsense'"),
        (("x", "--batch_size=many"), "flag --batch_size=many"),
        (("x", "--batch_size=0"), "batch_size=0 is out of range; it must be at least 1"),
        (("x", "--height=100"), "height=100 is not a multiple of 16; the nearest valid size is 96 or 112"),
        (("x", "--width=1"), "width=1 is not a multiple of 16; the nearest valid size is 16"),
        (("x", "--num_steps=0"), "num_steps=0 is out of range; it must be between 1 and 1000"),
        (("x", "--guidance_scale=nan"), "guidance_scale=nan is not finite"),
        (("x", "--guidance_scale=much"), "guidance_scale=much is not a number or a list of them"),
        (("x", "--guidance_interval=1,0"), "guidance_interval must be (start, end)"),
        (("x", "--guidance_rescale=2"), "guidance_rescale=2 is out of range"),
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
        (("x", "--seed=abc"), "seed=abc is not a whole number or a list of them"),
        (("x", "--model=none"), "model='none' is unknown"),
        (("x", "--weights=some"), "weights='some' is unknown"),
        (("x", "--precision=half"), "precision='half' is unknown"),
        (("x", "--jit_compile=perhaps"), "flag --jit_compile=perhaps"),
        (("x", "--output=picture.gif"), "cannot save to picture.gif: the name must end in one of .png"),
        (("x", "--output=no/such/folder.png"), "there is no folder no/such; make it first"),
        (("x", "--grid=sheet.bmp"), "cannot save to sheet.bmp"),
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
        "import sys, kerasdiff.__main__ as c\n"
        "code = c.main(c._parse(['kerasdiff', 'x', '--sampler=eular']))\n"
        "print(code, 'tensorflow' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert run.stdout == "2 False\n"


def test_help_lists_every_flag_without_tensorflow(tmp_path):
    run = subprocess.run([sys.executable, "-m", "kerasdiff", "--help"], capture_output=True, text=True, check=False)
    for name in ("model", "batch_size", "negative_prompt", "guidance_scale", "seed", "output", "grid", "jit_compile"):
        assert f"--{name}:" in run.stdout or f"--[no]{name}:" in run.stdout
    assert run.stderr == ""
