"""Walks between prompts and seeds: what frames are, that one program makes them, files, and the command."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

import kerasdiff
from kerasdiff import metadata
from kerasdiff.cli import interpolate_command
from kerasdiff.diffusion import sampling_loop
from kerasdiff.diffusion.overrides import Overrides
from kerasdiff.images.animation import write_animation
from kerasdiff.models.config import TINY
from kerasdiff.request import make_request
from kerasdiff.request_values import Waypoint
from kerasdiff.samplers.noise import slerp
from kerasdiff.walk import make_walk

ENDS = ["a red circle on a white background", "a blue star on a white background"]
QUICK = {"num_steps": 4, "height": 64, "width": 64, "progress": False}
OF_REQUEST = {name: value for name, value in QUICK.items() if name != "progress"}


@pytest.fixture(scope="module")
def walk(tiny):
    """Five frames with two prompts and two seeds; how many programs they took."""
    tiny.release()
    before = tiny.programs
    return kerasdiff.interpolate(ENDS, 5, seed=[3, 8], generator=tiny, **QUICK), tiny.programs - before


def test_one_program_of_each_stage_makes_all_frames(walk, tiny):
    _, programs = walk
    assert programs == 3
    kerasdiff.interpolate(ENDS[::-1], 7, seed=1, loop=True, generator=tiny, **QUICK)
    assert tiny.programs == 3


def test_the_ends_are_ordinary_images_and_the_middle_is_what_lies_between(walk, tiny):
    frames, _ = walk
    for place, (prompt, seed) in ((0, (ENDS[0], 3)), (4, (ENDS[1], 8))):
        alone = tiny.generate(prompt, seed=seed, **QUICK)
        assert np.array_equal(frames.latents[place], alone.latents[0])
        assert np.array_equal(frames[place], alone[0])
    first, second = tiny.initial_latents(2, height=64, width=64, seed=[3, 8])
    embeds = tiny.encode_text(ENDS)
    for place, share in ((1, 0.25), (2, 0.5)):
        noise, text = slerp(first, second, share), (1 - share) * embeds[0] + share * embeds[1]
        between = tiny.generate(prompt_embeds=text[None], latents=noise[None], **QUICK)
        assert np.abs(frames.latents[place] - between.latents[0]).max() < 1e-4
    steps = np.abs(np.diff(frames.latents, axis=0)).mean((1, 2, 3))
    assert (steps > 0.01).all()


def test_a_great_circle():
    rng = np.random.default_rng(0)
    first, second = rng.standard_normal((2, 8, 8, 4)).astype("float32")
    for share, expected in enumerate([first, second, -first, -second, first]):
        assert np.array_equal(slerp(first, second, share), expected)
    around = np.stack([slerp(first, second, 4 * turn / 40) for turn in range(40)])
    assert np.abs(around.std((1, 2, 3)) - 1).max() < 0.1
    moved = np.sqrt(((around - np.roll(around, 1, axis=0)) ** 2).sum((1, 2, 3)))
    assert moved.max() < 1.2 * moved.min()
    # As diffusers and others compute it.
    angle = np.arccos(np.sum(first * second) / np.linalg.norm(first) / np.linalg.norm(second))
    expected = (np.sin(0.7 * angle) * first + np.sin(0.3 * angle) * second) / np.sin(angle)
    assert np.abs(slerp(first, second, 0.3) - expected).max() < 1e-6


def ways(*arguments, **more):
    request = make_walk(TINY, *arguments, num_steps=2, **more)
    return [
        (request.prompts[index], request.seeds[index], *vars(waypoint).values())
        for index, waypoint in enumerate(request.towards)
    ]


def test_where_frames_are():
    assert ways(["a", "b", "c"], 5, seed=1) == [
        ("a", 1, "b", 1, 0.0),
        ("a", 1, "b", 1, 0.5),
        ("b", 1, "c", 1, 0.0),
        ("b", 1, "c", 1, 0.5),
        ("b", 1, "c", 1, 1.0),
    ]
    assert ways(["a", "b"], 4, seed=[1, 2], loop=True) == [
        ("a", 1, "b", 2, 0.0),
        ("a", 1, "b", 2, 0.5),
        ("b", 2, "a", 1, 0.0),
        ("b", 2, "a", 1, 0.5),
    ]
    assert ways("a", 3, seed=[1, 2]) == [("a", 1, "a", 2, 0.0), ("a", 1, "a", 2, 0.5), ("a", 1, "a", 2, 1.0)]
    assert ways("a", 4, seed=2**64 - 1, loop=True) == [("a", 2**64 - 1, "a", 0, float(share)) for share in range(4)]
    request = make_walk(TINY, ["a", "b"], 4, negative_prompt=["c", "d"], guidance_scale=[[2], [3]])
    assert request.negative_prompts == ("c", "c", "c", "c")
    assert (len({*request.seeds}), request.exact, request.guidance.shape) == (1, True, (20, 4))
    assert request.only([2]).towards == request.towards[2:3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"prompts": "a", "seed": 1},
            "nothing changes from one prompt and one seed; give several of either, or",
        ),
        ({"prompts": ["a", "b"], "seed": [1, 2, 3]}, "prompts has 2 entries for 3 stops of the walk; give one, or 3"),
        ({"prompts": ["a", "b", "c"], "seed": [1, 2]}, "seed has 2 entries for 3 stops of the walk; give one, or 3"),
        ({"prompts": ["a", "b"], "frames": 1}, "frames=1 is out of range; it must be between 2 and 100000"),
        ({"prompts": []}, "prompts is an empty list"),
        ({"prompts": ["a", "b"], "seed": -1}, "seed=-1 is out of range"),
        ({"prompts": ["a", "b"], "loop": "yes"}, "loop must be True or False"),
        ({"prompts": ["a", "b"], "num_steps": 0}, "num_steps=0 is out of range"),
        ({"prompts": "a", "loop": True, "image": [np.zeros((64, 64, 3), "uint8")] * 2}, "image makes 2 stops"),
    ],
)
def test_what_is_no_walk_is_one_line(arguments, message):
    with pytest.raises(kerasdiff.RequestError, match=message):
        make_walk(TINY, **arguments)


def test_an_argument_of_another_name_is_told():
    with pytest.raises(TypeError, match="seeds is called seed here"):
        kerasdiff.interpolate(ENDS, seeds=[1, 2])


@pytest.mark.parametrize(
    ("syntax", "ends", "joined"),
    [
        ("plain", ["a red circle", "a star (big)"], 0),
        ("a1111", ["a (red:1.3) circle", "a star, " * 40], 0),
        ("a1111", ["a ring AND a star:0.5", "[a heart:a circle:0.5]"], 2),
        ("compel", ["a red+ circle", '("a ring", "a star").blend(0.5, 0.5)'], 0),
    ],
)
@pytest.mark.filterwarnings("ignore:.*prompt_syntax")
def test_what_frames_read_lies_between_what_their_prompts_mean(tiny, syntax, ends, joined):
    arguments = {"prompt_syntax": syntax, "num_steps": 4, "seed": 5}
    walk, ordinary = make_walk(TINY, ends, 5, **arguments), make_request(TINY, ends, **arguments)
    texts, own = (tiny._pipeline.conditioner.texts(request, Overrides()) for request in (walk, ordinary))
    assert texts.joined(walk) == texts.joined(walk.only([1])) == own.joined(ordinary) == joined
    assert texts.tokens([0]) == texts.tokens([3]) == own.tokens()
    table, ends_of = texts.table(range(5), True), own.table(range(2), True)
    for step in range(4):
        read, own_read = (
            [one.contexts[key].context for key in one.read([step] * images, True)]
            for one, images in ((table, 5), (ends_of, 2))
        )
        for part in range(len(table.parts)):
            first, second = own_read[2 * part : 2 * part + 2]
            for place, share in enumerate(np.linspace(0, 1, 5)):
                assert np.abs(read[5 * part + place] - ((1 - share) * first + share * second)).max() < 1e-5
    if joined:
        assert np.allclose(table.weights[:, ::2], [[1, 1, 1], [0.5, 0.25, 0]])


def test_noise_that_samplers_add_goes_along(tiny):
    """Between two seeds it would otherwise jump where one takes over from the other."""
    frames = kerasdiff.interpolate(ENDS[0], 4, seed=[1, 2], loop=True, sampler="euler_a", generator=tiny, **QUICK)
    for place, seed in ((0, 1), (2, 2)):
        alone = tiny.generate(ENDS[0], seed=seed, sampler="euler_a", **QUICK)
        assert np.array_equal(frames.latents[place], alone.latents[0])
    for rng in ("torch", "philox"):
        request = make_walk(TINY, "a", 3, seed=[1, 2], rng=rng, **OF_REQUEST)
        noise, ends = (sampling_loop.noise_of(TINY, one) for one in (request, request.only([0, 2])))
        first = noise.initial(), ends.initial()
        fresh = noise.fresh([0, 0, 0]), ends.fresh([0, 0])
        for all_, two in (first, fresh):
            assert np.array_equal(all_[[0, 2]], two)
            assert np.abs(all_[1] - slerp(*two, 0.5)).max() < 1e-6


def test_a_frame_is_replayed(walk, tiny, tmp_path, recwarn):
    frames, _ = walk
    (path,) = frames.only(1).save(tmp_path / "a.png")
    receipt = metadata.read(path)
    assert receipt.request.towards == (Waypoint(ENDS[1], 8, 0.25),)
    assert (receipt.request.prompts, receipt.request.seeds, receipt.given) == ((ENDS[0],), (3,), {})
    assert metadata.Receipt.from_json(frames.receipt(1).to_json()) == frames.receipt(1)
    again = kerasdiff.replay(path, progress=False)
    assert np.abs(again[0].astype(int) - frames[1]).max() <= 1
    assert "towards" not in tiny.generate("a ring", **QUICK).receipt(0).to_json()


@pytest.mark.parametrize("change", [{"share": 4.5}, {"seed": -1}, {"share": "x"}, {"prompt": 3}, {"other": 1}])
def test_a_hostile_receipt_is_one_line(walk, change):
    document = json.loads(walk[0].receipt(1).to_json())
    document["request"]["towards"][1] |= change
    with pytest.raises(kerasdiff.RequestError, match="the metadata is damaged"):
        metadata.Receipt.from_json(json.dumps(document))
    document["request"]["towards"] = document["request"]["towards"][:2]
    with pytest.raises(kerasdiff.RequestError, match="the metadata is damaged"):
        metadata.Receipt.from_json(json.dumps(document))


def read_back(path):
    with Image.open(path) as animation:
        frames, durations = [], []
        for number in range(animation.n_frames):
            animation.seek(number)
            frames.append(np.asarray(animation.convert("RGB")))
            durations.append(animation.info["duration"])
        return np.stack(frames), durations, animation.info["loop"]


@pytest.mark.parametrize("extension", ["gif", "webp"])
def test_gif_and_webp(walk, tmp_path, extension):
    frames, _ = walk
    path = frames.save_animation(tmp_path / f"walk.{extension}", fps=12)
    images, durations, loop = read_back(path)
    assert (images.shape, loop) == (frames.images.shape, 0)
    assert np.abs(images.astype(int) - frames.images).mean() < 6
    # Five twelfths of a second, whatever one frame is rounded to.
    assert sum(durations) == (420 if extension == "gif" else 417)


def fake_ffmpeg(folder, script, monkeypatch):
    program = folder / "ffmpeg"
    program.write_text(f"#!/bin/sh\nfor last; do :; done\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_mp4_goes_through_ffmpeg(tmp_path, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), dtype="uint8")
    fake_ffmpeg(tmp_path, 'echo "$@" > "$(dirname "$0")/arguments"; cat > "${last#file:}"', monkeypatch)
    path = write_animation(images, tmp_path / "walk.mp4", 7.5)
    assert path.read_bytes() == images.tobytes()
    arguments = (tmp_path / "arguments").read_text()
    for part in ("-f rawvideo -pix_fmt rgb24 -s 24x16 -r 7.5 -i -", "-pix_fmt yuv420p", "-f mp4"):
        assert part in arguments
    fake_ffmpeg(tmp_path, "echo 'no such encoder' >&2; exit 3", monkeypatch)
    with pytest.raises(kerasdiff.RequestError, match=r"ffmpeg could not write .*walk2.mp4.*: no such encoder"):
        write_animation(np.zeros((50, 64, 64, 3), "uint8"), tmp_path / "walk2.mp4")
    assert {file.name for file in tmp_path.iterdir()} == {"walk.mp4", "ffmpeg", "arguments"}


@pytest.mark.parametrize(
    ("name", "fps", "message"),
    [
        (
            "a.mp4",
            12,
            "MP4 needs the program ffmpeg, and there is none on the PATH; install it, or",
        ),
        ("a.avi", 12, "the name must end in one of .gif, .webp, .mp4"),
        ("a.gif", 60, "fps=60 is out of range; it must be between 0.1 and 50"),
        ("a.gif", 0, "fps=0.* is out of range"),
        ("missing/a.gif", 12, "there is no folder"),
    ],
)
def test_what_cannot_be_written_is_one_line(tmp_path, monkeypatch, name, fps, message):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(kerasdiff.RequestError, match=message):
        write_animation(np.zeros((2, 8, 8, 3), "uint8"), tmp_path / name, fps)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def call(tiny, monkeypatch, capsys):
    """The command in this process, with the generator of the tests; status, output and errors."""
    monkeypatch.setattr("kerasdiff.cli.generate_command.load_generator", lambda *_: tiny)
    program = interpolate_command.PROGRAM

    def run(*arguments):
        program.signals.signal = None
        flags = [f"--{name}={value}" for name, value in {**OF_REQUEST, "verbosity": "silent"}.items()]
        status = program.call(interpolate_command.main, ["kerasdiff interpolate", *arguments, *flags])
        return status, *capsys.readouterr()

    yield run
    program.signals.signal = None


def test_the_command_writes_an_animation_or_a_folder(call, walk, tmp_path):
    status, out, err = call(*ENDS, "--frames=5", "--seed=3,8", "--fps=4", f"--output={tmp_path / 'a.gif'}")
    assert (status, out, err) == (0, f"{tmp_path / 'a.gif'} (5 of 5 frames, 4 per second)\n", "")
    assert read_back(tmp_path / "a.gif")[1] == [250] * 5
    status, out, _ = call(*ENDS, "--frames=5", "--seed=3,8", "--json", f"--output={tmp_path / 'frames'}")
    names = [f"frame_000{number}.png" for number in range(1, 6)]
    assert (status, [json.loads(line)["type"] for line in out.splitlines()]) == (0, ["image"] * 5)
    assert sorted(os.listdir(tmp_path / "frames")) == names
    with Image.open(tmp_path / "frames" / names[2]) as picture:
        assert np.array_equal(picture, walk[0][2])
    for wrong, message in (("--output=a.avi", "must end in one of"), ("--frames=1", "frames=1 is out of range")):
        status, _, err = call(*ENDS, wrong)
        assert status == 2
        assert message in err
    assert call()[0] == 2


def test_ctrl_c_keeps_finished_frames(call, tiny, tmp_path, monkeypatch):
    signals, each = interpolate_command.PROGRAM.signals, type(tiny).each

    def interrupted(self, *arguments, **more):
        for number, result in enumerate(each(self, *arguments, **more)):
            signals.signal = 2 if number == 1 else None
            yield result

    monkeypatch.setattr(type(tiny), "each", interrupted)
    status, out, _ = call(*ENDS, "--frames=5", "--seed=1", f"--output={tmp_path / 'a.webp'}")
    assert (status, out) == (130, f"{tmp_path / 'a.webp'} (2 of 5 frames, 12 per second)\n")
    assert len(read_back(tmp_path / "a.webp")[0]) == 2


def test_a_prompt_of_the_second_pass_is_that_of_all_frames():
    walk = make_walk(TINY, ENDS, 3, seed=1, hires={"prompt": "a ring"})
    second = walk.second_pass(TINY)
    assert {*second.prompts, *(waypoint.prompt for waypoint in second.towards)} == {"a ring"}
    assert [waypoint.share for waypoint in second.towards] == [waypoint.share for waypoint in walk.towards]


def test_a_walk_has_one_hint_for_all_frames_or_one_per_prompt():
    hints = [np.full((64, 64, 3), level, "uint8") for level in (1, 2)]
    controls = [("net", hints[0], 0.5), ("net", hints)]
    walk = make_walk(TINY, ENDS, 4, controls=controls)
    levels = [one.image.images[list(one.image.index), 0, 0, 0].tolist() for one in walk.controls]
    assert levels == [[1] * 4, [1, 1, 1, 1]]
    walk = make_walk(TINY, ENDS, 4, loop=True, controls=controls)
    assert walk.controls.entries[1].image.index == (0, 0, 1, 1)
    assert make_walk(TINY, "a", 3, loop=True, controls=controls[:1]).controls.entries[0].scale == (0.5,) * 3
    with pytest.raises(kerasdiff.RequestError, match="controls make 2 stops of the walk of 1; give one, or one per"):
        make_walk(TINY, "a", 3, loop=True, controls=controls[1:])
