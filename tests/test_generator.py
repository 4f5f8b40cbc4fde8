"""The main job on the embedded model: what changes an image and what must not."""

from __future__ import annotations

import gc
import json
import pathlib
import subprocess
import sys
import traceback
import weakref

import numpy as np
import pytest

import kerasdiff
import kerasdiff.request
import kerasdiff.runtime.precision
from kerasdiff.checkpoints import resolve
from kerasdiff.runtime.compiled import Compiled
from kerasdiff.training import score

PROMPT = "a red circle above a blue square on a yellow background"
# Few steps: these tests are about equality, not about looks.
QUICK = {"num_steps": 4, "progress": False}


def levels(first, second):
    """Largest difference in grey levels."""
    return int(np.abs(np.asarray(first, "int32") - np.asarray(second, "int32")).max())


def test_a_picture_obeys_its_prompt(tiny):
    result = tiny.generate(PROMPT, batch_size=8, seed=7, progress=False)
    assert result.images.shape == (8, 128, 128, 3)
    assert result.images.dtype == np.uint8
    seen = [score.look(image) for image in result]
    right = 0
    for background, things in seen:
        if background == "yellow" and len(things) == 2:
            upper, lower = sorted(things, key=lambda thing: thing.y)
            right += (upper.colour, upper.shape) == ("red", "circle") and (lower.colour, lower.shape) == (
                "blue",
                "square",
            )
    assert right >= 6


def test_the_same_request_in_two_processes_is_bit_equal(tmp_path):
    script = (
        "import sys, numpy as np, kerasdiff\n"
        f"result = kerasdiff.generate({PROMPT!r}, 3, model='tiny', seed=11, num_steps=4, progress=False)\n"
        "np.save(sys.argv[1], result.images)\n"
    )
    for name in ("a", "b"):
        subprocess.run([sys.executable, "-c", script, str(tmp_path / name)], check=True, capture_output=True)
    first, second = (np.load(tmp_path / f"{name}.npy") for name in ("a", "b"))
    assert np.array_equal(first, second)
    assert first.std() > 10


def test_an_image_does_not_depend_on_its_batch(tiny):
    alone = tiny.generate(PROMPT, seed=22, progress=False)[0]
    three = tiny.generate(PROMPT, batch_size=3, seed=[21, 22, 23], progress=False)
    eight = tiny.generate(PROMPT, batch_size=8, seed=20, progress=False)
    assert levels(three[1], alone) <= 1
    assert levels(eight[2], alone) <= 1
    for place in (0, 7):
        seeds = [100 + index for index in range(8)]
        seeds[place] = 22
        assert levels(tiny.generate(PROMPT, batch_size=8, seed=seeds, progress=False)[place], alone) <= 1


def test_different_seeds_differ(tiny):
    result = tiny.generate(PROMPT, batch_size=3, seed=1, **QUICK)
    for first in range(3):
        for second in range(first):
            assert levels(result[first], result[second]) > 20


@pytest.mark.parametrize(
    "change",
    [
        {"negative_prompt": "a green star"},
        {"num_steps": 5},
        {"guidance_scale": 1.0},
        {"guidance_scale": 6.0},
        {"sampler": "euler", "spacing": "leading"},
        {"sampler": "euler_a"},
        {"sampler": "ddim", "sampler_options": {"eta": 1.0}},
        {"spacing": "karras"},
        {"num_steps": None, "timesteps": [999, 700, 300]},
        {"num_steps": None, "sigmas": [100.0, 10.0, 1.0, 0.1, 0.0]},
        {"guidance_interval": (0.0, 0.5)},
        {"guidance_rescale": 1.0},
        {"deep_cache_interval": 3},
        {"token_merging_ratio": 0.5},
        {"rng": "torch"},
        {"height": 96},
        {"width": 160},
    ],
)
def test_every_argument_changes_the_image(tiny, change):
    usual = tiny.generate(PROMPT, seed=5, **QUICK)
    changed = tiny.generate(PROMPT, seed=5, **{**QUICK, **change})
    request = changed.request
    assert changed.images.shape == (1, request.height, request.width, 3)
    assert usual.images.shape != changed.images.shape or levels(usual.images, changed.images) > 10


def test_several_prompts_with_several_images_each(tiny):
    prompts = ["a red circle on a blue background", "a white star on a black background"]
    together = tiny.generate(prompts, batch_size=2, seed=3, **QUICK)
    assert together.request.prompts == (prompts[0], prompts[0], prompts[1], prompts[1])
    second = tiny.generate(prompts[1], batch_size=2, seed=5, **QUICK)
    assert levels(together.images[2:], second.images) <= 1


def test_after_warm_up_nothing_is_traced():
    tiny = kerasdiff.Generator("tiny", precision="float32")  # of its own: others' tests warm up the one they share
    seconds = tiny.warm_up(batch_size=2)
    assert list(seconds) == ["text", "denoise", "decode"]
    assert all(value > 0 for value in seconds.values())
    before = tiny.programs
    for sampler in kerasdiff.SAMPLERS:
        for num_steps in (1, 2, 5):
            tiny.generate(["a ring", "a heart"], sampler=sampler, num_steps=num_steps, seed=1, progress=False)
    assert tiny.programs == before
    tiny.generate("a ring", batch_size=5, seed=1, **QUICK)
    assert tiny.programs == before + 1


def test_after_warm_up_for_pictures_nothing_is_traced():
    generator = kerasdiff.Generator("tiny", precision="float32")
    assert list(generator.warm_up(batch_size=2, guidance="both", image=True)) == ["text", "encode", "denoise", "decode"]
    before = generator.programs
    picture = np.zeros((128, 128, 3), "uint8")
    generator.generate("a ring", 2, image=picture, strength=[0.5, 1.0], guidance_interval=(0, 0.5), **QUICK)
    assert generator.programs == before
    with pytest.raises(kerasdiff.RequestError, match="image must be True or False"):
        generator.warm_up(image="photo.png")


def test_the_last_model_stays_loaded_and_each_is_opened_once(monkeypatch):
    from kerasdiff import api

    opened = []
    monkeypatch.setattr(api, "open_model", lambda *a, **more: opened.append(a[0]) or resolve.open_model(*a, **more))
    api._last.clear()
    first = kerasdiff.generate(PROMPT, seed=1, **QUICK)
    second = kerasdiff.generate(PROMPT, seed=1, **QUICK)
    assert opened == ["tiny"]
    assert np.array_equal(first.images, second.images)


def test_few_frames_lie_between_the_call_and_the_compiled_step(tiny, monkeypatch):
    """Of ours: a request's way is short enough to be read in one sitting."""
    package, depths = str(pathlib.Path(kerasdiff.__file__).parent), []
    program = Compiled.__call__

    def counted(compiled, *arguments):
        frames = [frame.filename for frame in traceback.extract_stack() if frame.filename.startswith(package)]
        if compiled.network.name == "unet":
            depths.append(len(frames))
        return program(compiled, *arguments)

    monkeypatch.setattr(Compiled, "__call__", counted)
    kerasdiff.generate(PROMPT, seed=1, **QUICK)
    # Between generate, which is one of them, and the program there is also `Compiled.__call__`, replaced here; of the
    # others one is what goes from a request's first pass to its second.
    assert max(depths) - 1 + 1 <= 8


@pytest.mark.parametrize(
    ("precision", "jit_compile"),
    [
        *((precision, False) for precision in kerasdiff.runtime.precision.PRECISIONS),
        ("float32", True),
        # The same compiler, most of a minute each.
        *(
            pytest.param(precision, True, marks=pytest.mark.slow)
            for precision in kerasdiff.runtime.precision.PRECISIONS
            if precision != "float32"
        ),
    ],
)
def test_every_precision_draws_nearly_the_same(tiny, precision, jit_compile):
    generator = kerasdiff.Generator("tiny", precision=precision, jit_compile=jit_compile)
    assert generator.execution.precision == precision
    stored = "float32" if precision.startswith(("mixed", "float32")) else precision
    assert {weight.dtype for weight in generator.networks["unet"].weights} == {stored}
    usual = tiny.generate(PROMPT, seed=5, **QUICK)
    other = generator.generate(PROMPT, seed=5, **QUICK)
    difference = np.abs(usual.images.astype(int) - other.images.astype(int))
    assert difference.mean() < (0.01 if precision == "float32" else 4)


def test_auto_says_what_it_chose():
    execution = kerasdiff.Generator("tiny").execution
    assert execution.precision in kerasdiff.runtime.precision.PRECISIONS
    assert isinstance(execution.jit_compile, bool)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"model": "tinny"},
            r"model='tinny' is unknown; did you mean 'tiny'\? known: sd-v1-4, sd-v2-1, sdxl, sdxl-re",
        ),
        ({"model": 5}, r"model must be a name, a path or a keras_cv\.models\.StableDiffusion, not int"),
        ({"weights": "none"}, r"weights='none' is unknown; choose 'pretrained' or 'random'"),
        ({"precision": "float64"}, r"precision='float64' is unknown; choose one of auto, float32"),
        ({"jit_compile": "yes"}, r"jit_compile='yes' is neither True, False nor 'auto'"),
    ],
)
def test_wrong_models_and_modes(arguments, message):
    with pytest.raises(kerasdiff.KerasdiffError, match=message) as caught:
        kerasdiff.generate("a red circle", **arguments)
    assert "\n" not in str(caught.value)


def test_an_unknown_argument_is_refused(tiny):
    with pytest.raises(TypeError, match="guidance"):
        tiny.generate("a red circle", guidance=3)


def test_starting_latents_can_be_given(tiny):
    usual = tiny.generate(PROMPT, batch_size=2, seed=9, **QUICK)
    start = tiny.initial_latents(2, seed=9)
    assert start.shape == (2, 16, 16, 4)
    # Another seed then has no say, as this sampler draws no more noise.
    given = tiny.generate(PROMPT, batch_size=2, seed=1, latents=start, **QUICK)
    assert np.array_equal(given.images, usual.images)
    for wrong in (np.zeros((1, 3)), np.zeros((1, 16, 16, 4))):
        with pytest.raises(kerasdiff.RequestError, match=r"latents have shape .*, this request needs \(2, 16, 16, 4\)"):
            tiny.generate(PROMPT, batch_size=2, latents=wrong, **QUICK)
    assert not np.array_equal(tiny.initial_latents(2, seed=9, rng="torch"), start)
    assert tiny.initial_latents(height=64, width=96).shape == (1, 8, 12, 4)


def test_embeddings_can_be_given(tiny):
    usual = tiny.generate([PROMPT, "a ring"], batch_size=2, negative_prompt="a star", seed=3, **QUICK)
    context, without = tiny.encode_text([PROMPT, "a ring"]), tiny.encode_text(["a star"])
    given = tiny.generate(
        prompt_embeds=context, negative_prompt_embeds=np.asarray(without), batch_size=2, seed=3, **QUICK
    )
    assert np.array_equal(given.images, usual.images)
    through = kerasdiff.generate(prompt_embeds=context, negative_prompt_embeds=without, batch_size=2, seed=3, **QUICK)
    assert levels(through.images, usual.images) <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give prompt or prompt_embeds, and not both"),
        ({"prompt": "x", "prompt_embeds": np.zeros((1, 77, 128))}, "give prompt or prompt_embeds, and not both"),
        ({"prompt_embeds": np.zeros((77, 128))}, r"prompt_embeds has shape \(77, 128\); it must be \(N, tokens, 128\)"),
        ({"prompt_embeds": np.zeros((1, 77, 64))}, r"prompt_embeds has shape \(1, 77, 64\)"),
        (
            {"prompt": "x", "negative_prompt": "y", "negative_prompt_embeds": np.zeros((1, 77, 128))},
            "give negative_prompt or negative_prompt_embeds, not both",
        ),
        (
            {"prompt": "x", "batch_size": 3, "negative_prompt_embeds": np.zeros((2, 77, 128))},
            "negative_prompt_embeds has 2 rows for 3 images; give one, or one per image",
        ),
        (
            {"prompt": "x", "negative_prompt_embeds": np.zeros((1, 10, 128))},
            "prompt_embeds has 77 tokens and negative_prompt_embeds 10; they must have the same number",
        ),
    ],
)
def test_wrong_embeddings_are_one_clear_line(tiny, arguments, message):
    with pytest.raises(kerasdiff.RequestError, match=message):
        tiny.generate(progress=False, **arguments)


def test_the_stages_one_by_one_make_the_same_image(tiny):
    usual = tiny.generate(PROMPT, batch_size=2, seed=4, guidance_scale=5.0, sampler="euler_a", **QUICK)
    latents = tiny.denoise(
        tiny.initial_latents(2, seed=4),
        tiny.encode_text([PROMPT]),
        guidance_scale=5.0,
        sampler="euler_a",
        seed=4,
        **QUICK,
    )
    assert np.array_equal(latents, usual.latents)
    assert np.array_equal(tiny.decode(latents), usual.images)
    other = tiny.denoise(tiny.initial_latents(1, seed=4), tiny.encode_text([PROMPT]), tiny.encode_text(["x"]), **QUICK)
    assert other.shape == (1, 16, 16, 4)
    with pytest.raises(kerasdiff.RequestError, match=r"latents have shape \(16, 16, 4\); they must be \(N, h, w, 4\)"):
        tiny.denoise(np.zeros((16, 16, 4)), tiny.encode_text([PROMPT]))
    with pytest.raises(kerasdiff.RequestError, match="context has 2 rows for 3 images"):
        tiny.denoise(np.zeros((3, 16, 16, 4)), tiny.encode_text([PROMPT, "x"]))


def test_a_long_prompt_can_be_read_in_chunks(tiny):
    first, second = "a red circle on a blue background " * 9, "a white star " * 5
    long = first + second
    room, words = 75, tiny.tokenizer.encode(long)[1:-1]
    assert room < len(words) < 2 * room
    context = np.asarray(tiny.encode_text([long, "a ring"], chunks=2))
    assert context.shape == (2, 154, 128)
    start, end = tiny.tokenizer.start_id, tiny.tokenizer.end_id
    for place, part in enumerate((words[:room], words[room:])):
        ids = [start, *part, end]
        alone = tiny.networks["text_encoder"](np.array([ids + [end] * (77 - len(ids))], "int32"))
        assert np.allclose(context[0, 77 * place : 77 * place + 77], alone[0], atol=1e-5)
    # A short text is followed by what an empty one gives.
    assert np.array_equal(context[1, :77], np.asarray(tiny.encode_text(["a ring"]))[0])
    assert np.array_equal(context[1, 77:], np.asarray(tiny.encode_text([""]))[0])
    # No warning (warnings are errors here), and what comes late has a say.
    drawn = tiny.generate(long, long_prompts="chunk", seed=1, **QUICK)
    other = tiny.generate(first + "a black ring " * 5, long_prompts="chunk", seed=1, **QUICK)
    assert levels(drawn.images, other.images) > 10
    # Prompts that fit are not changed by the choice.
    short = tiny.generate("a ring", long_prompts="chunk", seed=1, **QUICK)
    assert np.array_equal(short.images, tiny.generate("a ring", seed=1, **QUICK).images)


def test_a_long_prompt_is_cut_with_a_warning_that_names_what_is_lost(tiny):
    long = "a red circle on a blue background " * 12 + "zebra"
    with pytest.warns(UserWarning, match=r"model reads 77; this part is not used: '.*zebra'"):
        tiny.generate(long, seed=1, **QUICK)


@pytest.mark.parametrize("prompt", ["", "🦓 Ünïcode \x00 &amp; tabs\t\n", "quantum zebra!!!", "A RED CIRCLE"])
def test_strange_prompts_draw_something(tiny, prompt):
    result = tiny.generate(prompt, seed=1, **QUICK)
    assert np.isfinite(result.latents).all()


def test_pictures_survive_the_autoencoder(tiny):
    asked = score.held_out_scenes(8, seed=77)
    pictures = np.stack([score.scenes.render(scene) for scene in asked])
    latents = tiny.encode_image(pictures)
    assert latents.shape == (8, 16, 16, 4)
    assert abs(latents.mean()) < 0.3
    assert 0.7 < latents.std() < 1.3
    rebuilt = tiny.decode(latents)
    errors = (rebuilt.astype(float) - pictures) ** 2
    assert 10 * np.log10(255**2 / errors.mean()) > 25


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 128, 128, 3), "float32"), r"images must be uint8 \(N, height, width, 3\), not float32"),
        (np.zeros((128, 128, 3), "uint8"), r"images must be uint8"),
        (np.zeros((1, 100, 128, 3), "uint8"), r"images are 100 x 128; both must be multiples of 8"),
    ],
)
def test_wrong_images_are_refused(tiny, images, message):
    with pytest.raises(kerasdiff.RequestError, match=message):
        tiny.encode_image(images)


def test_importing_the_package_does_not_import_tensorflow():
    script = "import json, sys, kerasdiff; print(json.dumps('tensorflow' in sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(run.stdout) is False


def test_the_public_names():
    assert sorted(kerasdiff.__all__) == [
        "Control",
        "Generator",
        "ImagePrompt",
        "KerasdiffError",
        "ModelError",
        "NonFiniteError",
        "OutOfMemoryError",
        "RECIPES",
        "Request",
        "RequestError",
        "Result",
        "SAMPLERS",
        "SPACINGS",
        "StableDiffusion",
        "StableDiffusionV2",
        "generate",
        "inference_only",
        "interpolate",
        "replay",
        "upscale",
    ]
    for name in kerasdiff.__all__:
        assert getattr(kerasdiff, name) is not None
    script = "import sys, kerasdiff; print(kerasdiff.samplers.trajectory.__name__, 'tensorflow' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout == "trajectory False\n"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        kerasdiff.nothing  # noqa: B018


def test_a_generator_that_is_dropped_leaves_memory():
    generator = kerasdiff.Generator("tiny", precision="float32", jit_compile=False)
    generator.generate("a circle", num_steps=1, progress=False)
    generator.encode_image(np.zeros((1, 128, 128, 3), "uint8"))
    handles = [
        weakref.ref(weight.value.handle) for network in generator.networks.values() for weight in network.weights
    ]
    assert all(handle() is not None for handle in handles)
    del generator
    gc.collect()
    # A handle that is alive holds its values: so do graphs that outlive their function.
    assert not any(handle() is not None for handle in handles)
