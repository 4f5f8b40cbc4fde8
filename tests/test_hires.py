"""A second pass at a larger size: against torch, against our own image to image, and by what must hold."""

from __future__ import annotations

import dataclasses
import itertools
import logging

import numpy as np
import pytest
import tensorflow as tf
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import kerasdiff
from kerasdiff.adapter_files import UpscalerFile
from kerasdiff.batch import Row
from kerasdiff.batch.row_files import read_rows
from kerasdiff.cli.options import GENERATE, request_arguments
from kerasdiff.diffusion.conditioning import Conditioning, ContextTable
from kerasdiff.diffusion.enlarging import enlarge, resized
from kerasdiff.diffusion.initial_state import from_latents
from kerasdiff.hires import LATENT_UPSCALERS, UPSCALERS, Hires, make_hires
from kerasdiff.images import reader
from kerasdiff.models.config import TINY
from kerasdiff.prompts import a1111_syntax
from kerasdiff.request import make_request
from kerasdiff.runtime.batch_sizer import BatchSizer
from kerasdiff.runtime.compiled import Compiled
from kerasdiff.runtime.program_cache import ProgramCache

PROMPT = "a red circle on a blue background"
SMALL = {"height": 64, "width": 64, "num_steps": 4, "seed": 3, "progress": False}
HIRES = {"scale": 2, "strength": 0.6, "steps": 3, "upscaler": "lanczos"}


@pytest.mark.parametrize("upscaler", LATENT_UPSCALERS)
def test_latents_are_resized_as_torch_does_it(upscaler):
    mode, antialias = LATENT_UPSCALERS[upscaler]
    latents = np.random.default_rng(0).normal(size=(2, 5, 7, 4)).astype("float32")
    theirs = torch.from_numpy(latents.transpose(0, 3, 1, 2))
    for size in ((10, 14), (8, 9), (7, 16), (5, 7), (13, 31), (3, 4)):
        expected = torch.nn.functional.interpolate(theirs, size=size, mode=mode, antialias=antialias)
        assert np.abs(expected.numpy().transpose(0, 2, 3, 1) - resized(latents, *size, mode, antialias)).max() < 1e-5


@pytest.mark.parametrize(
    ("hires", "height", "width", "enlarged", "size"),
    [
        (2, 512, 768, (1024, 1536), (1024, 1536)),
        (1.3, 512, 512, (664, 664), (664, 664)),  # of 665
        ({"width": 1024}, 512, 768, (680, 1024), (680, 1024)),
        ({"height": 1024}, 512, 768, (1024, 1536), (1024, 1536)),
        ({"width": 1024, "height": 1024}, 512, 768, (1024, 1536), (1024, 1024)),
        ({"width": 1024, "height": 512}, 512, 512, (1024, 1024), (512, 1024)),
    ],
)
def test_sizes_are_a1111s(hires, height, width, enlarged, size):
    assert make_hires("hires", hires).sizes(height, width, 8) == (enlarged, size)


def test_what_sticks_out_is_cropped_in_latents():
    request = make_request(TINY, "", hires={"height": 160, "width": 288, "upscaler": "latent (nearest)"})
    latents = np.arange(16 * 16, dtype="float32").reshape(1, 16, 16, 1)
    found = enlarge(latents, request, TINY, None, None, None)
    assert found.shape == (1, 20, 36, 1)
    assert np.array_equal(found, resized(latents, 36, 36, "nearest")[:, 8:28])


def test_as_many_steps_run_as_the_second_pass_has():
    """Of steps / strength in all, as in A1111's interface, whatever the strength."""
    for steps, percent in itertools.product((1, 2, 7, 20), range(5, 101)):
        hires = {"steps": steps, "strength": percent / 100}
        second = make_request(TINY, "", num_steps=5, hires=hires, height=64, width=64).second_pass(TINY)
        assert second.num_steps == int(steps / min(percent / 100, 0.999))
        assert second.run_steps == steps
    whole = make_request(TINY, "", num_steps=5, hires={"strength": 0}).second_pass(TINY)
    assert (whole.num_steps, whole.run_steps) == (5, 0)


def test_a_latent_consistency_model_does_all_steps_as_from_a_picture():
    config = dataclasses.replace(TINY, unet=dataclasses.replace(TINY.unet, time_cond_proj_dim=32))
    hires = {"steps": 3, "strength": 0.6}
    second = make_request(config, "", sampler="lcm", spacing="lcm", num_steps=4, hires=hires).second_pass(config)
    picture = {"image": np.zeros((64, 64, 3), "uint8"), "strength": 0.6}
    expected = make_request(config, "", sampler="lcm", spacing="lcm", num_steps=3, **picture)
    assert expected.all_steps
    for name in ("all_steps", "strengths", "num_steps", "first_steps", "shares", "run_steps"):
        assert getattr(second, name) == getattr(expected, name)


@pytest.mark.parametrize(
    ("more", "own"),
    [
        pytest.param({"deep_cache_interval": 2}, {}, marks=pytest.mark.slow),
        ({"sampler": "heun", "spacing": "karras", "clip_skip": 1}, {}),
        ({"guidance_scale": [[2.0], [5.0]], "guidance_interval": (0.3, 0.9), "exact": True}, {}),
        (
            {},
            {"prompt": "a blue star", "negative_prompt": "a ring", "sampler": "DPM++ SDE Karras", "guidance_scale": 2},
        ),
        ({"timesteps": [900, 600, 300, 100], "num_steps": None}, {"spacing": "leading"}),
    ],
)
def test_the_second_pass_is_our_image_to_image(tiny, more, own):
    """From the first one's image, with as many steps run and the noise of the same seeds at the larger size."""
    arguments = {**SMALL, **more}
    result = tiny.generate(PROMPT, 2, hires={**HIRES, **own}, **arguments)
    first = tiny.generate(PROMPT, 2, **arguments)
    large = [Image.fromarray(image).resize((128, 128), Image.Resampling.LANCZOS) for image in first.images]
    without = ("height", "width", "timesteps")
    arguments = {name: value for name, value in (arguments | own).items() if name not in without}
    arguments |= {"num_steps": 5, "strength": 0.7, "image": large}
    prompt = arguments.pop("prompt", PROMPT)
    expected = tiny.generate(prompt, 2, **arguments)
    assert expected.request.first_steps == (2, 2)
    assert result.images.shape == (2, 128, 128, 3)
    assert (result.request.height, result.request.width) == (64, 64)
    assert np.array_equal(result.images, expected.images)
    assert np.array_equal(result.latents, expected.latents)


def test_latents_go_on_with_fresh_noise_of_the_seed(tiny):
    result = tiny.generate(PROMPT, hires={"strength": 0.5, "steps": 2}, rng="torch", **SMALL)
    first = tiny.generate(PROMPT, rng="torch", **SMALL)
    request = make_request(TINY, PROMPT, num_steps=4, seed=3)
    table = tiny.table(request, 2)
    generator = torch.Generator("cpu").manual_seed(3)
    noise = torch.randn((1, 4, 16, 16), generator=generator).numpy().transpose(0, 2, 3, 1)
    second = result.request.second_pass(TINY)
    start = from_latents(resized(first.latents, 16, 16, "bilinear"), noise, tiny.schedule(second))
    context = np.concatenate([tiny.encode_text([""]), tiny.encode_text([PROMPT])])
    conditioning = Conditioning(ContextTable.same(context, 1))
    *_, last = tiny._pipeline.denoise(start, conditioning, second.guidance, tiny.schedule(second), None)
    expected = np.asarray(last.x) * table.scales[-1]
    assert np.abs(result.latents - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("upscaler", UPSCALERS)
def test_every_upscaler_keeps_the_picture(tiny, upscaler):
    """With no step of its own the second pass only enlarges."""
    small = tiny.generate(PROMPT, **SMALL).images[0]
    large = tiny.generate(PROMPT, hires={"strength": 0, "upscaler": upscaler}, **SMALL)
    again = large.images[0].reshape(64, 2, 64, 2, 3).mean((1, 3))
    assert np.abs(again - small).mean() < 4


def test_prompts_that_change_count_on():
    """A1111's own examples, and numbers of steps beyond the first pass."""
    assert a1111_syntax.schedule("a [b:.5] c", 10, 10) == [(10, "a b c")]
    assert a1111_syntax.schedule("a [b:1.5] c", 10, 10) == [(5, "a  c"), (10, "a b c")]
    assert a1111_syntax.schedule("a [b:c:14]", 10, 10) == [(4, "a b"), (10, "a c")]
    assert a1111_syntax.schedule("a [b:c:4]", 10, 10) == [(10, "a c")]
    assert a1111_syntax.schedule("a [b:c:1.5]", 10) == [(10, "a b")]


def test_a_prompt_that_changes_in_the_second_pass(tiny):
    changing = "a [red circle:blue star:1.5] on a white background"
    arguments = {**SMALL, "prompt_syntax": "a1111", "hires": {**HIRES, "steps": 4}}
    result = tiny.generate(changing, **arguments)
    first = "a red circle on a white background"
    second = "a [red circle:blue star:6] on a white background"
    own = {**arguments, "hires": {**arguments["hires"], "prompt": second}}
    assert np.array_equal(result.images, tiny.generate(first, **own).images)
    assert not np.array_equal(result.images, tiny.generate(first, **arguments).images)


def test_embeddings_go_with_both_passes_but_where_there_is_a_prompt(tiny):
    embeds = tiny.encode_text([PROMPT])
    expected = tiny.generate(PROMPT, hires=HIRES, **SMALL)
    assert np.array_equal(tiny.generate(prompt_embeds=embeds, hires=HIRES, **SMALL).images, expected.images)
    own = {**HIRES, "prompt": "a blue star"}
    expected = tiny.generate(PROMPT, hires=own, **SMALL)
    assert np.array_equal(tiny.generate(prompt_embeds=embeds, hires=own, **SMALL).images, expected.images)


def test_a_callback_counts_both_passes_and_stops_in_either(tiny):
    seen = []
    whole = tiny.generate(PROMPT, 2, hires=HIRES, callback=lambda *each: seen.append(each), **SMALL)
    assert [each[:2] for each in seen] == [(step, 7) for step in range(1, 8)]
    assert [each[2].shape[1] for each in seen] == [8] * 4 + [16] * 3
    assert whole.stopped_after is None
    for stop in (2, 4, 5):
        stopped = tiny.generate(PROMPT, 2, hires=HIRES, callback=lambda step, *_, stop=stop: step < stop, **SMALL)
        assert stopped.stopped_after == stop
        assert stopped.images.shape == whole.images.shape
        assert stopped.latents.shape == whole.latents.shape
    first = tiny.generate(PROMPT, 2, callback=lambda step, *_: step < 2, **SMALL)
    large = Image.fromarray(first.images[0]).resize((128, 128), Image.Resampling.LANCZOS)
    stopped = tiny.generate(PROMPT, 2, hires=HIRES, callback=lambda step, *_: step < 2, **SMALL)
    assert np.array_equal(stopped.images[0], tiny.decode(tiny.encode_image(np.asarray(large)[None]))[0])


@pytest.fixture
def calls(tiny, monkeypatch):
    """Shapes that the U-Net is called with, and those with which it runs out of memory."""
    monkeypatch.setattr(tiny._pipeline.retries, "sizer", BatchSizer(ProgramCache(None), ("test",), lambda: 10**11))
    done, fails, original = [], [], Compiled.__call__

    def call(compiled, *arguments):
        if compiled.network.name == "unet":
            shape = tuple(arguments[0].shape)[:2]
            if shape in fails:
                raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
            done.append(shape)
        return original(compiled, *arguments)

    monkeypatch.setattr(Compiled, "__call__", call)
    return done, fails


def test_a_second_pass_that_runs_out_of_memory_is_split_alone(tiny, calls, caplog):
    done, fails = calls
    fails.append((2, 16))
    with caplog.at_level(logging.WARNING, "kerasdiff"):
        result = tiny.generate(PROMPT, 2, hires=HIRES, **SMALL)
    assert done == [(2, 8)] * 4 + [(1, 16)] * 6
    assert "with 2 images at once" in caplog.text
    alone = tiny.generate(PROMPT, hires=HIRES, **{**SMALL, "seed": 4})
    assert np.abs(result.images[1].astype(int) - alone.images[0]).max() <= 1


def test_batches_are_those_of_the_plan(tiny, calls, monkeypatch):
    monkeypatch.setattr(tiny._pipeline.costs, "max_batch", 2)
    size = {"height": 64, "width": 64, "hires": HIRES}
    plan = tiny.plan(3, **size)
    assert (plan.height, plan.second_pass.height, plan.chunks, plan.second_pass.chunks) == (64, 128, (2, 1), (2, 1))
    assert plan.peak >= plan.second_pass.peak > tiny.plan(3, height=64, width=64).peak
    assert "second pass, 3 images of 128 x 128: 2 + 1 at once" in str(plan)
    seconds = tiny.warm_up(3, **size)
    assert "encode" in seconds
    before = tiny.programs
    results = list(tiny.stream(PROMPT, 3, hires=HIRES, **SMALL))
    assert tiny.programs == before
    assert [result.images.shape for result in results] == [(1, 128, 128, 3)] * 3
    whole = tiny.generate(PROMPT, 3, hires=HIRES, **SMALL)
    assert np.array_equal(whole.images, np.concatenate([result.images for result in results]))
    assert whole.only(1).receipt(0).request == whole.request


def test_the_bar_counts_both_passes(tiny, monkeypatch):
    bars = []
    original = kerasdiff.diffusion.pipeline.terminal.bar

    def bar(*arguments, **named):
        bars.append(original(*arguments, **named))
        return bars[-1]

    monkeypatch.setattr("kerasdiff.diffusion.pipeline.terminal.bar", bar)
    monkeypatch.setattr(tiny._pipeline.costs, "max_batch", 2)
    totals = set()
    arguments = {**SMALL, "progress": True}
    tiny.generate(PROMPT, 3, hires=HIRES, callback=lambda *_: totals.add(bars[0].total), **arguments)
    assert totals == {2 * (4 + 3)}
    assert bars[0].n == 14


def test_it_is_of_images_from_text_alone(tiny):
    with pytest.raises(kerasdiff.RequestError, match="images from text alone"):
        make_request(TINY, "", image=np.zeros((64, 64, 3), "uint8"), hires=2)
    with pytest.raises(kerasdiff.RequestError, match="guidance_scale of its own"):
        make_request(TINY, "", num_steps=2, guidance_scale=[[2.0, 3.0]], hires=2)
    own = make_request(TINY, "", num_steps=2, guidance_scale=[[2.0, 3.0]], hires={"guidance_scale": 1})
    assert not own.second_pass(TINY).guided


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (True, "hires must be a scale such as 2"),
        ("x", "not of the form scale=2,strength=0.6"),
        ("scale=2 strength=1", "hires scale must be a number"),
        ("scale=2,scale=3", "hires has scale twice"),
        ({"scal": 2}, "hires has no setting 'scal'; did you mean 'scale'"),
        ({"hr_scale": 2}, "hr_scale is called scale here"),
        ({"denoising_strength": 2}, "denoising_strength is called strength here"),
        ({"num_steps": 2}, "num_steps is called steps here"),
        ({"hr_second_pass_steps": 2}, "is called steps here"),
        (9, "hires scale=9 is out of range"),
        ("scale=2,height=64", "hires has scale and height"),
        ({"width": 100}, "hires width=100 is not a multiple of 8; the nearest valid size is 96 or 104"),
        ({"upscaler": "latnt"}, "did you mean 'latent'"),
        ({"upscaler": "x4"}, "or give the path of an upscaler's file"),
        ({"upscaler": UpscalerFile("a.pth", 2.0)}, "give it as the scale of hires"),
        ({"sampler": "eulr"}, "did you mean 'euler'"),
        ({"sampler": "euler karras", "spacing": "beta"}, "leave one of them out"),
        ({"strength": 0.01}, "hires runs 25 steps at strength=0.01, which are the last of 2500"),
        ({"spacing": "flow"}, "hires: a model with prediction type"),
        ({"prompt": ["a"]}, "hires prompt must be a string"),
    ],
)
def test_what_it_cannot_be_is_one_line(value, message):
    with pytest.raises(kerasdiff.RequestError, match=message.replace("(", r"\(")) as error:
        make_request(TINY, "", num_steps=25, hires=value)
    assert "\n" not in str(error.value)


WORDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
SIZES = st.fixed_dictionaries({}, optional={"height": st.integers(1, 9999), "width": st.integers(1, 9999)})
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "steps": st.integers(1, 100),
        "strength": st.floats(0, 1),
        "upscaler": st.sampled_from(UPSCALERS),
        "prompt": WORDS,
        "negative_prompt": WORDS,
        "sampler": st.sampled_from(["euler", "heun"]),
        "spacing": st.sampled_from(["karras", "beta"]),
        "guidance_scale": st.floats(-1e6, 1e6),
    },
)


@given(VALUES, SIZES | st.fixed_dictionaries({"scale": st.floats(1, 8)}))
def test_a_text_says_all_of_it(values, size):
    made = make_hires("hires", values | size)
    assert make_hires("hires", made.text) == made == make_hires("hires", made)
    assert all(getattr(made, name) == value for name, value in (values | size).items())
    assert None not in (made.scale or made.height or made.width, made.strength)


def test_the_command_line_and_columns_have_the_text(tmp_path):
    for text, expected in (
        ("2", Hires(2.0)),
        ("scale=1.5,strength=0.6,upscaler=Latent (bicubic)", Hires(1.5, strength=0.6, upscaler="latent (bicubic)")),
        ('width=96, prompt="a cat, \\"big\\""', Hires(width=96, prompt='a cat, "big"')),
        ("sampler=DPM++ 2M Karras,steps=5", Hires(2.0, steps=5, sampler="dpmpp_2m", spacing="karras")),
    ):
        GENERATE.parse(["kerasdiff", "a ring", f"--hires={text}"])
        assert make_request(TINY, "", **{"hires": request_arguments(GENERATE.values)["hires"]}).hires == expected
        assert Row("1", "a ring", hires=text) == Row("1", "a ring", hires=expected)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": "a", "prompt": "x", "hires": 2}\n{"id": "b", "prompt": "x", "hires": {"width": 96}}\n')
    assert [row.hires for row in read_rows(path)] == [
        "scale=2,strength=0.7,upscaler=latent",
        "width=96,strength=0.7,upscaler=latent",
    ]
    path = tmp_path / "rows.csv"
    path.write_text('id,prompt,hires\na,x,2\nb,x,\nc,x,"scale=2,prompt=""a, b"""\n')
    assert [row.hires and make_hires("", row.hires).prompt for row in read_rows(path)] == [None, None, "a, b"]


def test_rows_have_their_own(tiny, tmp_path):
    rows = [Row("a", "a ring"), Row("b", "a ring", hires=1)]
    arguments = {"generator": tiny, "hires": {"scale": 2, "steps": 1}, **SMALL, "num_steps": 1}
    assert kerasdiff.batch.run(rows, tmp_path, **arguments).drawn == 2
    assert [len(reader.read(tmp_path / f"{name}.png")) for name in "ab"] == [128, 64]
    assert kerasdiff.batch.run(rows, tmp_path, **arguments).kept == 2
    with pytest.raises(kerasdiff.RequestError, match="holds another job"):
        kerasdiff.batch.run(rows, tmp_path, **{**arguments, "hires": 2})
