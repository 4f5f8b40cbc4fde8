"""Traced programs kept between processes: when they are used, and what becomes of those that are damaged."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import kerasdiff
from kerasdiff.diffusion.pipeline import MADE_OF
from kerasdiff.runtime import backend, program_cache
from kerasdiff.runtime.compiled import Compiled, LayerNetwork
from kerasdiff.runtime.program_cache import ProgramCache

PROMPT = "a red circle on a blue background"
QUICK = {"num_steps": 2, "seed": 1, "progress": False}
SCRIPT = """
import json, sys
import kerasdiff
generator = kerasdiff.Generator("tiny", precision="float32", jit_compile=False)
result = generator.generate("a red circle on a blue background", num_steps=2, seed=1, progress=False)
result.save(sys.argv[1])
layers = sum(network._layer is not None for network in generator.networks.known.values())
print(json.dumps({"traces": generator.traces, "layers": layers, "times": generator.times}))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("KERASDIFF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "programs"


def draw(**arguments):
    generator = kerasdiff.Generator("tiny", precision="float32", jit_compile=False, **arguments)
    return generator, generator.generate(PROMPT, **QUICK).images


def python(script, *arguments):
    command = [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


def programs(place):
    return sorted(path for path in place.rglob("*") if path.is_file())


def test_a_second_process_traces_nothing_and_builds_no_layer(place, tmp_path):
    told = []
    for name in ("one.png", "two.png"):
        run = python(SCRIPT, tmp_path / name)
        told.append(json.loads(run.stdout.splitlines()[-1]))
    assert (told[0]["traces"], told[0]["layers"]) == (3, 3)
    assert (told[1]["traces"], told[1]["layers"]) == (0, 0)
    assert told[0]["times"]["trace"] > 0 == told[1]["times"]["trace"]
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    # Three stages, and the names and shapes of three networks.
    assert len(programs(place)) == 6


def test_what_is_kept_is_the_users_own(place):
    draw()
    assert all(path.stat().st_mode & 0o777 == 0o700 for path in (place, *place.iterdir()))
    assert all(path.stat().st_mode & 0o077 == 0 for path in programs(place))


def cut(content):
    return content[:-9]


def flipped(content):
    return content[:-9] + b"?" + content[-8:]


def emptied(content):
    return b""


def check_made_again(caplog, expected, count):
    with caplog.at_level(logging.WARNING, "kerasdiff"):
        generator, images = draw()
    assert [record.getMessage().endswith("is corrupt; rebuilding it") for record in caplog.records] == [True] * count
    assert generator.traces == 3
    assert np.array_equal(images, expected)
    caplog.clear()
    generator, images = draw()
    assert (generator.traces, caplog.records) == (0, [])
    assert np.array_equal(images, expected)


def test_a_damaged_program_is_made_again_with_one_warning_each(place, caplog):
    """Three programs and three files of shapes: each damage to one of either kind."""
    _, expected = draw()
    for suffix in (True, False):
        damaged = [path for path in programs(place) if (path.suffix == ".shapes") == suffix]
        for path, damage in zip(damaged, (cut, flipped, emptied), strict=True):
            path.write_bytes(damage(path.read_bytes()))
    check_made_again(caplog, expected, 6)


def test_nonsense_with_a_right_checksum_is_a_damaged_program_too(place, caplog):
    _, expected = draw()
    for path in programs(place):
        if path.suffix != ".shapes":
            ProgramCache(path.parent).write(path.name, b"\x08\x00\x00\x00\x00\x00\x00\x00garbage!garbage!")
    check_made_again(caplog, expected, 3)


def test_a_change_in_any_file_that_runs_while_a_stage_is_traced_makes_its_programs_anew(place, monkeypatch):
    """What Python really executes is compared with what the imports say; then each file is changed in a copy."""
    package = pathlib.Path(kerasdiff.__file__).parent
    executed: set[pathlib.Path] = set()

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(str(package)):
            executed.add(pathlib.Path(frame.f_code.co_filename))

    traced = Compiled._traced

    def noted(*arguments):
        sys.setprofile(note)
        try:
            return traced(*arguments)
        finally:
            sys.setprofile(None)

    monkeypatch.setattr(Compiled, "_traced", noted)
    generator = kerasdiff.Generator("tiny", precision="float32", jit_compile=False)
    picture = generator.generate("a red circle", **QUICK)
    generator.generate("a red circle", image=picture.images[0], strength=0.5, **QUICK)
    made_of = (*MADE_OF, "kerasdiff.runtime.backends.tensorflow")
    files = set(program_cache.sources(made_of))
    assert len(executed) > 8
    assert executed <= files
    assert not [path for path in files if path.parent.name in ("batch", "cli", "bench", "ray")]
    copy = place.parent / "copy" / "kerasdiff"
    for path in files:
        (copy / path.relative_to(package)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy / path.relative_to(package))
    monkeypatch.setattr(program_cache, "_PACKAGE", copy)
    program_cache.sources.cache_clear()
    seen = {program_cache._digest.__wrapped__(made_of)}
    for path in sorted(executed):
        with (copy / path.relative_to(package)).open("a") as file:
            file.write("# changed\n")
        program_cache.sources.cache_clear()
        seen.add(program_cache._digest.__wrapped__(made_of))
    program_cache.sources.cache_clear()
    assert len(seen) == 1 + len(executed)


def test_versions_flags_precision_and_compiler_have_programs_of_their_own(place, monkeypatch):
    seen = {program_cache.environment("CPU", MADE_OF)}
    for change in (
        lambda: monkeypatch.setenv("XLA_FLAGS", "--xla_something"),
        lambda: monkeypatch.setattr(program_cache, "_versions", lambda: {"tensorflow": "9"}),
        lambda: monkeypatch.setattr(program_cache, "_digest", lambda _: "other code"),
        lambda: monkeypatch.setattr(program_cache, "processor", lambda: "another processor"),
    ):
        change()
        assert program_cache.environment("CPU", MADE_OF) not in seen
        seen.add(program_cache.environment("CPU", MADE_OF))
    assert program_cache.environment("GPU", MADE_OF) not in seen
    monkeypatch.undo()
    monkeypatch.setenv("KERASDIFF_CACHE", str(place.parent))
    draw()
    for precision, jit_compile, program in (
        ("float32", False, "kept"),
        ("bfloat16", False, "new"),
        ("float32", True, "new"),
    ):
        generator = kerasdiff.Generator("tiny", precision=precision, jit_compile=jit_compile)
        assert set(generator.plan().programs.values()) == {program}


def test_a_place_that_others_can_write_to_is_not_used(place, caplog):
    place.mkdir(parents=True)
    place.chmod(0o777)
    with caplog.at_level(logging.WARNING, "kerasdiff"):
        draw()
    assert "can be changed by others" in caplog.text
    assert programs(place) == []


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KERASDIFF_CACHE", str(tmp_path / "file" / "below"))
    generator, images = draw()
    assert generator.traces == 3
    assert images.std() > 5


def test_zero_gigabytes_switch_it_off(place, monkeypatch):
    monkeypatch.setenv("KERASDIFF_CACHE_GB", "0")
    draw()
    assert programs(place) == []


def test_two_processes_at_once(place, tmp_path):
    commands = [[sys.executable, "-W", "ignore", "-c", SCRIPT, str(tmp_path / f"{number}.png")] for number in range(2)]
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for command in commands
    ]
    for run in runs:
        _, stderr = run.communicate()
        assert run.returncode == 0, stderr[-2000:]
    assert (tmp_path / "0.png").read_bytes() == (tmp_path / "1.png").read_bytes()
    assert len(programs(place)) == 6
    assert draw()[0].traces == 0


def test_the_oldest_programs_make_room(tmp_path, monkeypatch):
    monkeypatch.setattr(program_cache, "_MOST_BYTES", 1000)
    kept = ProgramCache(tmp_path / "programs" / "here")
    for number in range(4):
        kept.write(str(number), bytes(300))
        os.utime(kept.folder / str(number), (1e9 + number, 1e9 + number))
    kept.write("last", bytes(300))
    assert kept.read("last") == bytes(300)
    assert [kept.read(str(number)) is None for number in range(4)] == [True, True, False, False]


def test_to_ask_whether_a_network_is_there_builds_nothing(place):
    draw()
    generator, _ = draw()
    assert "unet" in generator.networks
    assert "encoder" not in generator.networks
    assert len(generator.networks) == 3
    assert all(network._layer is None for network in generator.networks.known.values())


def test_weights_that_change_are_followed(place):
    generator, before = draw()
    kernel = generator.networks["unet"].conv_out.kernel
    kernel.assign(kernel * 0.5)
    changed = generator.generate(PROMPT, **QUICK).images
    assert np.abs(changed.astype(int) - before.astype(int)).max() > 10
    kernel.assign(kernel * 2)
    assert np.array_equal(generator.generate(PROMPT, **QUICK).images, before)
    assert generator.traces == 3


def test_what_depends_on_weights_alone_is_computed_once():
    import keras

    layer = keras.layers.Dense(3)
    layer.build((None, 2))
    values = LayerNetwork(layer).values
    kept = {"identity": None, "layer_to_trace": layer, "values": values, "backend": backend.of("tensorflow")}
    network = type("Kept", (), kept)()

    def function(layer, x):
        return keras.ops.matmul(x, keras.ops.exp(layer.kernel) + 1) + layer.bias

    stage = Compiled("stage", function, network, False)
    x = np.ones((4, 2), "float32")
    expected = x @ (np.exp(np.asarray(values[0])) + 1)
    assert np.allclose(np.asarray(stage(x)), expected, atol=1e-6)
    ((derived,),) = values.derived.values()
    assert np.allclose(np.asarray(derived), np.exp(np.asarray(values[0])) + 1)
    assert np.asarray(stage(2 * x)) is not None
    assert next(iter(values.derived.values()))[0] is derived


TRAINING = """
import numpy as np, sys
if sys.argv[1] == "beside":
    import kerasdiff
    kerasdiff.generate("a circle", num_steps=1, progress=False)
import keras
keras.utils.set_random_seed(1)
layers = [keras.layers.Conv2D(8, 3), keras.layers.Flatten(), keras.layers.Dense(2)]
model = keras.Sequential([keras.layers.Input((8, 8, 4)), *layers])
model.compile("adam", "mse")
x = np.random.default_rng(0).standard_normal((64, 8, 8, 4)).astype("float32")
y = x.mean((1, 2))[:, :2]
history = model.fit(x, y, epochs=3, verbose=0, shuffle=False)
print(history.history["loss"])
"""


def test_a_layer_that_is_trained_beside_us_learns_as_it_would_alone():
    losses = []
    for kind in ("beside", "alone"):
        run = python(TRAINING, kind)
        losses.append(json.loads(run.stdout.splitlines()[-1]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][-1] < losses[0][0]


INFERENCE = """
import sys, kerasdiff
if sys.argv[2] == "promised":
    kerasdiff.inference_only()
for seed in (1, 2):
    result = kerasdiff.generate("a circle", num_steps=2, seed=seed, jit_compile=sys.argv[3] == "xla", progress=False)
    result.save(f"{sys.argv[1]}_{seed}.png")
"""


@pytest.mark.parametrize("compiler", ["graph", pytest.param("xla", marks=pytest.mark.slow)])
def test_inference_only_draws_the_same(place, tmp_path, compiler):
    for kind in ("promised", "plain"):
        python(INFERENCE, tmp_path / kind, kind, compiler)
    for seed in (1, 2):
        promised, plain = (pixels(tmp_path / f"{kind}_{seed}.png") for kind in ("promised", "plain"))
        assert np.abs(promised - plain).max() <= 1
        assert plain.std() > 5
    kept = [path for path in (place.parent / "xla").rglob("*") if path.is_file()]
    assert len(kept) == (3 if compiler == "xla" else 0)
    if compiler == "xla":  # a damaged entry is an error in TensorFlow
        for path in kept:
            path.write_bytes(b"damaged")
        run = python(INFERENCE, tmp_path / "again", "promised", "xla")
        assert "it is compiled again" in run.stderr
        assert np.array_equal(pixels(tmp_path / "again_1.png"), pixels(tmp_path / "promised_1.png"))


def test_inference_only_must_come_before_tensorflow():
    import tensorflow  # noqa: F401

    with pytest.raises(kerasdiff.RequestError, match="call it before TensorFlow is imported"):
        kerasdiff.inference_only()


def test_a_stage_that_fails_is_seen():
    network = LayerNetwork(lambda x: x.no_such_attribute)
    with pytest.raises(AttributeError, match="no_such_attribute"):
        Compiled("fails", lambda layer, x: layer(x), network, False)(np.ones(2, "float32"))
