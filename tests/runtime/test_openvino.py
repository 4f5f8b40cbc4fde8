"""OpenVINO: the images of TensorFlow, and all that a generation promises; no TensorFlow where nothing is traced."""

from __future__ import annotations

import gc
import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import checkpoints
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import kerasdiff
from kerasdiff import metadata
from kerasdiff.checkpoints.resolve import TINY_FOLDER
from kerasdiff.diffusion import residency
from kerasdiff.diffusion.text_stage import TextStage
from kerasdiff.runtime import cache_dir, constant_files, program_cache
from kerasdiff.runtime.backends import openvino as backend
from kerasdiff.runtime.backends import openvino_program as runs
from kerasdiff.runtime.batch_sizer import BatchSizer
from kerasdiff.runtime.program_cache import ProgramCache
from kerasdiff.training import scenes, score

PROMPT = "a red circle above a blue square on a yellow background"
QUICK = {"num_steps": 3, "seed": 5, "progress": False}
PICTURE = scenes.render(score.held_out_scenes(1, seed=5)[0])
MASK = np.zeros(PICTURE.shape[:2], bool)
MASK[30:90, 41:77] = True


def levels(first, second):
    return int(np.abs(np.asarray(first, int) - np.asarray(second, int)).max())


# What other processes of the run are writing at the moment.
_UNFINISHED = shutil.ignore_patterns(".*.part")


@pytest.fixture
def prepared(monkeypatch):
    """Collects every graph that is made ready to run."""
    found, make = [], runs._Prepared.__init__

    def noted(self, *arguments):
        found.append(self)
        make(self, *arguments)

    monkeypatch.setattr(runs._Prepared, "__init__", noted)
    return found


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A cache of its own, with what this run of tests has traced so far."""
    shared = cache_dir.folder()
    for kind in ("programs", "blobs"):
        if (shared / kind).is_dir():
            shutil.copytree(shared / kind, tmp_path / "cache" / kind, ignore=_UNFINISHED)
    monkeypatch.setenv("KERASDIFF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def copied(folder):
    """A generator of a copy of the embedded model: nothing of its values is in memory."""
    return kerasdiff.Generator(shutil.copytree(TINY_FOLDER, folder), precision="float32", backend="openvino")


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


# Two images at once are what most other tests trace.
CASES = {
    **{sampler: {"sampler": sampler} for sampler in ("dpmpp_2m", "euler_a", "pndm", "dpmpp_3m_sde")},
    "without guidance": {"guidance_scale": 1.0},
    "guidance in a part of the steps": {"guidance_interval": (0.3, 0.7)},
    "rescaled guidance": {"guidance_scale": 9.0, "guidance_rescale": 0.7},
    "from a picture": {"image": PICTURE, "strength": [0.5, 1.0]},
    "into a mask": {"image": PICTURE, "mask": MASK, "strength": 0.9},
    "exact": {"exact": True},
    "another size": {"height": 64, "width": 128},
}


@pytest.mark.parametrize("arguments", CASES.values(), ids=CASES)
def test_images_are_those_of_tensorflow(openvino, tiny, arguments):
    ours, theirs = (each.generate(PROMPT, 2, **{**QUICK, **arguments}) for each in (openvino, tiny))
    assert levels(ours.images, theirs.images) <= 1
    assert np.abs(ours.latents - theirs.latents).max() < 1e-3
    assert ours.images.std() > 10


@pytest.mark.parametrize("kind", ["v2", "inpainting"])
def test_other_architectures_are_too(tmp_path, prepared, kind):
    """Of v2: linear projections, other heads, v-prediction. Of the other: nine channels, and a safety checker."""
    pipe = checkpoints.pipeline(kind, tmp_path / "vocabulary")
    arguments = {"height": 64, "width": 64, **QUICK}
    if kind == "inpainting":
        pipe = checkpoints.with_safety_checker(pipe)
        arguments.update(image=PICTURE[:64, :64], mask=MASK[:64, :64], safety="flag")
    folder = str(checkpoints.save(pipe, tmp_path / "model"))
    made = [kerasdiff.Generator(folder, precision="float32", backend=name) for name in ("openvino", "tensorflow")]
    ours, theirs = (generator.generate(PROMPT, **arguments) for generator in made)
    assert levels(ours.images, theirs.images) <= 1
    # Parameters that were read from a file of another layout, once somebody may have changed them.
    prepared.clear()
    made[0].networks["unet"]
    assert np.array_equal(made[0].generate(PROMPT, **arguments).images, ours.images)
    assert not prepared
    assert ours.nsfw == theirs.nsfw
    assert (ours.nsfw is None) == (kind == "v2")


def test_bfloat16_is_near(openvino):
    half = kerasdiff.Generator("tiny", precision="bfloat16", backend="openvino").generate(PROMPT, 1, **QUICK).images
    apart = np.abs(half.astype(int) - openvino.generate(PROMPT, 1, **QUICK).images)
    assert 0 < apart.mean() < 2


def test_an_image_is_the_same_alone_and_in_any_batch(openvino):
    alone = openvino.generate(PROMPT, 3, exact=True, **QUICK)
    single = openvino.generate(PROMPT, **{**QUICK, "seed": alone.seeds[2]})
    assert np.array_equal(alone.images[2:], single.images)
    assert levels(openvino.generate(PROMPT, 4, **QUICK).images[:3], alone.images) <= 1


def test_a_callback_sees_previews_and_stops_the_run(openvino, tiny):
    def drawn(generator):
        seen = []
        result = generator.generate(PROMPT, 2, callback=lambda *told: seen.append(told) or len(seen) < 2, **QUICK)
        assert [step for step, _, _ in seen] == [1, 2]
        assert result.stopped_after == 2
        return np.concatenate([preview for _, _, preview in seen]), result

    (ours, result), (theirs, expected) = drawn(openvino), drawn(tiny)
    assert levels(ours, theirs) <= 1
    assert levels(result.images, expected.images) <= 1


def test_an_image_that_cannot_be_written_to_is_read(openvino):
    """Arrays of JAX, and of files that are mapped for reading."""
    embeddings, latents = openvino.encode_text([PROMPT]), np.full((1, 16, 16, 4), 0.5, "float32")
    expected = openvino.generate(prompt_embeds=embeddings, latents=latents, **QUICK).images
    for array in (embeddings, latents):
        array.flags.writeable = False
    assert np.array_equal(openvino.generate(prompt_embeds=embeddings, latents=latents, **QUICK).images, expected)


def test_a_receipt_names_it_and_it_draws_the_same_pixels_again(openvino, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("KERASDIFF_BACKEND", "jax")  # which nobody asks who knows better
    for generator, name in ((openvino, "openvino"), (tiny, "tensorflow")):
        path = generator.generate(PROMPT, 2, **QUICK).save(tmp_path / f"{name}.png")[1]
        assert metadata.read(path).backend == name
        assert name in metadata.read(path).versions
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            (again,) = kerasdiff.replay(path, progress=False).save(tmp_path / "again.png")
        assert again.read_bytes() == path.read_bytes()


def test_memory_that_ends_in_any_run_of_a_graph_halves_the_batch(openvino, monkeypatch, caplog):
    sizer = lambda: BatchSizer(ProgramCache(None), ("test",), lambda: 10**11)  # noqa: E731
    monkeypatch.setattr(openvino._pipeline.retries, "sizer", sizer())
    whole, run = openvino.generate(PROMPT, 2, **{**QUICK, "num_steps": 2}).images, runs._Prepared.__call__
    count = index = 0

    def runs_out(self, *arguments):
        nonlocal count
        count += 1
        results = run(self, *arguments)
        if count == index + 1:
            raise RuntimeError(
                "Exception from src/inference/src/cpp/infer_request.cpp:223:\n"
                "Failed to allocate 134217728 bytes of memory\n"
            )
        return results

    monkeypatch.setattr(runs._Prepared, "__call__", runs_out)
    while True:
        openvino._pipeline.retries.sizer, count = sizer(), 0
        with caplog.at_level(logging.WARNING, "kerasdiff"):
            caplog.clear()
            images = openvino.generate(PROMPT, 2, **{**QUICK, "num_steps": 2}).images
        assert levels(images, whole) <= 1
        if count <= index:
            break
        assert len(caplog.records) == 1
        assert "(RuntimeError: Failed to allocate 134217728 bytes of memory)" in caplog.text
        index += 1
    assert index >= 6  # two texts, what depends on them, two steps, two pictures


def test_memory_that_ends_while_a_graph_is_prepared_is_tried_again(openvino, prepared, monkeypatch):
    expected = openvino.generate(PROMPT, **QUICK).images
    compile_, failed = runs._Graph._with, []

    def runs_out(*arguments):
        if len(failed) < 2:
            failed.append(arguments)
            raise RuntimeError("Exception from src/inference/src/cpp/core.cpp:109:\nbad allocation\n")
        return compile_(*arguments)

    monkeypatch.setattr(runs._Graph, "_with", runs_out)
    monkeypatch.setenv("KERASDIFF_CACHE_GB", "0")  # or it would be read
    openvino.release()
    assert np.array_equal(openvino.generate(PROMPT, **QUICK).images, expected)
    assert len(failed) == 2


def test_the_step_and_the_decoder_are_prepared_while_a_text_is_encoded(place, tmp_path, monkeypatch):
    """Of any size, unless little memory is free; nothing is prepared twice."""
    monkeypatch.setattr(backend, "size_of", lambda _: 2 * 10**9, raising=False)
    generator = copied(tmp_path / "model")
    expected, encode, made = generator.generate(PROMPT, **QUICK).images, TextStage.__call__, []
    prepare, change, wanted = runs.OpenVINOProgram._prepare, threading.Condition(), 0

    def noted(program, values):
        if program._values is not values:
            with change:
                made.append(program)
                change.notify_all()
        prepare(program, values)

    def waits(*arguments):
        with change:
            assert change.wait_for(lambda: len(made) >= wanted, 60)
            assert wanted or len(made) <= 1  # the text encoder itself
        return encode(*arguments)

    monkeypatch.setattr(runs.OpenVINOProgram, "_prepare", noted)
    monkeypatch.setattr(TextStage, "__call__", waits)
    for free, early in ((10**11, 2), (10**8, 0)):
        wanted = early
        generator.release()
        made.clear()
        monkeypatch.setattr(generator._pipeline.retries, "sizer", BatchSizer(ProgramCache(None), (), lambda: free))  # noqa: B023
        assert np.array_equal(generator.generate(PROMPT, **QUICK).images, expected)
        assert len(made) == 3


def test_what_cannot_be_prepared_in_advance_fails_where_it_is_needed(openvino, place, monkeypatch):
    def fails(*_):
        raise ValueError("no such graph")

    openvino.release()
    monkeypatch.setattr(runs.OpenVINOProgram, "prepare", fails)  # in a thread
    openvino.generate(PROMPT, **QUICK)
    openvino.release()
    monkeypatch.setattr(runs.OpenVINOProgram, "_prepare", fails)
    with pytest.raises(ValueError, match="no such graph"):
        openvino.generate(PROMPT, **QUICK)


def test_numbers_that_are_not_finite_are_computed_again_in_float32(tmp_path):
    folder = shutil.copytree(TINY_FOLDER, tmp_path / "model")
    path = folder / "decoder.safetensors"
    tensors = {name: array.astype("float32") for name, array in safetensors.numpy.load_file(path).items()}
    tensors["conv_out.bias"][0] = 3.4e38  # which rounds to infinity in bfloat16
    safetensors.numpy.save_file(tensors, path)
    half, full = (kerasdiff.Generator(folder, precision=kind, backend="openvino") for kind in ("bfloat16", "float32"))
    latents = np.random.default_rng(0).normal(size=(2, 16, 16, 4)).astype("float32")
    expected = full.decode(latents)
    with pytest.warns(UserWarning, match="decoder gives numbers that are not finite in bfloat16; it runs in float32"):
        assert np.array_equal(half.decode(latents), expected)
    tensors["conv_in.bias"][...] = np.nan
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(kerasdiff.NonFiniteError, match="the decoder gives numbers that are not finite in float32"):
        kerasdiff.Generator(folder, precision="float32", backend="openvino").decode(latents)


def test_weights_that_change_are_followed_and_others_not_prepared_again(place, tmp_path, prepared):
    generator = copied(tmp_path / "model")
    other = kerasdiff.Generator(tmp_path / "model", precision="float32", backend="openvino")
    before = [each.generate(PROMPT, **QUICK).images for each in (generator, other)]
    prepared.clear()
    kernel = generator.networks["unet"].conv_out.kernel
    assert np.array_equal(generator.generate(PROMPT, **QUICK).images, before[0])
    assert not prepared
    for change, back in (
        (lambda: kernel.assign(kernel * 0.5), lambda: kernel.assign(kernel * 2)),
        (lambda: kernel.value.assign_sub(kernel.value * 0.5), lambda: kernel.value.assign_add(kernel.value)),
    ):
        change()
        changed = generator.generate(PROMPT, **QUICK).images
        assert levels(changed, before[0]) > 10
        of_change = len(prepared)
        assert np.array_equal(generator.generate(PROMPT, **QUICK).images, changed)
        assert len(prepared) == of_change > 0
        assert np.array_equal(other.generate(PROMPT, **QUICK).images, before[1])
        back()
        assert np.array_equal(generator.generate(PROMPT, **QUICK).images, before[0])
        prepared.clear()
    assert generator.traces == 0


def test_what_is_released_comes_back(openvino):
    before = openvino.generate(PROMPT, **QUICK).images
    held = [openvino.networks.network(name).values for name in ("unet", "decoder")]
    assert openvino.release()
    assert (openvino.programs, openvino._pipeline.weight_bytes) == (0, 0)
    del held
    gc.collect()
    assert np.array_equal(openvino.generate(PROMPT, **QUICK).images, before)


def test_threads_share_a_generator(openvino, place):
    requests = [{"sampler": ("euler", "dpmpp_2m", "euler_a")[number % 3], "seed": number} for number in range(6)]

    def drawn(number):
        return openvino.generate(f"a ring {number}", **{**QUICK, **requests[number]}).images

    alone = [drawn(number) for number in range(6)]
    openvino.release()  # so that they also prepare at once
    with ThreadPoolExecutor(6) as pool:
        for number, images in enumerate(pool.map(drawn, [*range(6)] * 3)):
            assert np.array_equal(images, alone[number % 6])


def check_rebuilt(tmp_path, caplog, expected, paths):
    """Each damaged file of `paths` is made again with one warning, as it was; then nothing is."""
    with caplog.at_level(logging.WARNING, "kerasdiff"):
        for told in (paths, []):
            caplog.clear()
            generator = kerasdiff.Generator(tmp_path / "model", precision="float32", backend="openvino")
            assert np.array_equal(generator.generate(PROMPT, **QUICK).images, expected)
            said = sorted(record.getMessage() for record in caplog.records)
            assert said == [f"{path} is corrupt; rebuilding it" for path in told]
            del generator
            gc.collect()


def test_a_damaged_blob_is_made_again_with_one_warning(place, tmp_path, caplog):
    shutil.rmtree(place / "blobs", ignore_errors=True)
    expected = copied(tmp_path / "model").generate(PROMPT, **QUICK).images
    gc.collect()
    paths = files(place / "blobs")
    assert len(paths) == 4  # of the text, of the step and what depends on the text alone, and of the decoder
    cache = ProgramCache(paths[0].parent)
    paths[0].write_bytes(b"")
    paths[1].write_bytes(paths[1].read_bytes()[:-9])
    cache.write(paths[2].name, b"garbage!" * 9)
    cache.write(paths[3].name, cache.read(paths[3].name)[:-99])
    check_rebuilt(tmp_path, caplog, expected, paths)


def test_a_damaged_file_of_constants_is_made_again_with_one_warning(place, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(constant_files, "_LEAST_BYTES", 1)
    monkeypatch.setattr(runs, "_SMALL", 0)  # as of a large model, which has no blobs
    expected = copied(tmp_path / "model").generate(PROMPT, **QUICK).images
    gc.collect()
    paths = files(place / "constants")
    assert paths
    for number, path in enumerate(paths):
        content = path.read_bytes()
        path.write_bytes(content[:-9] if number % 2 else content[:-9] + bytes(9))
    check_rebuilt(tmp_path, caplog, expected, paths)


def resident(folder):
    """Kilobytes of the files below a folder that are in this process's memory."""
    total, inside = 0, False
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.partition(" ")[0]:
            inside = str(folder) in line
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1])
    return total


def test_programs_that_are_idle_keep_no_pages_of_constants(place, tmp_path, monkeypatch):
    monkeypatch.setattr(constant_files, "_LEAST_BYTES", 1)
    monkeypatch.setattr(runs, "_SMALL", 0)
    generator = copied(tmp_path / "model")
    expected = generator.generate(PROMPT, **QUICK).images
    assert resident(place / "constants") > 1000
    for compiled in generator._pipeline.compiled:
        compiled.idle()
    assert resident(place / "constants") == 0
    assert np.array_equal(generator.generate(PROMPT, **QUICK).images, expected)
    generator.encode_text([PROMPT])
    assert resident(place / "constants") > 0
    monkeypatch.setattr(residency, "_LARGE", 0)
    generator.encode_text([PROMPT])  # what has been read goes, a moment later
    assert resident(place / "constants") < 100
    assert np.array_equal(generator.generate(PROMPT, **QUICK).images, expected)


@pytest.mark.parametrize("kind", ["read-only", "off", "open to others"])
def test_caches_that_are_not_to_be_used_are_not(openvino, tmp_path, monkeypatch, caplog, kind):
    expected = openvino.generate(PROMPT, **QUICK).images
    shared, place = cache_dir.folder(), tmp_path / "cache"
    if (shared / "programs").is_dir():
        shutil.copytree(shared / "programs", place / "programs", ignore=_UNFINISHED)
    if kind == "open to others":
        (place / "blobs").mkdir(parents=True)
        (place / "blobs").chmod(0o777)
    before = files(tmp_path)
    monkeypatch.setenv("KERASDIFF_CACHE", str(place))
    variables = {"read-only": (cache_dir.READ_ONLY, "1"), "off": ("KERASDIFF_CACHE_GB", "0")}
    if kind in variables:
        monkeypatch.setenv(*variables[kind])
    openvino.release()
    with caplog.at_level(logging.WARNING, "kerasdiff"):
        assert np.array_equal(openvino.generate(PROMPT, **QUICK).images, expected)
    told = [record.getMessage() for record in caplog.records]
    others = f"{place / 'blobs'} belongs to or can be changed by others; the cache in it is not used"
    assert {*told} == ({others} if kind == "open to others" else set())
    assert files(tmp_path) == before


def test_the_oldest_blobs_make_room(openvino, place, monkeypatch):
    shutil.rmtree(place / "blobs", ignore_errors=True)
    openvino.release()
    openvino.generate(PROMPT, **QUICK)
    paths = files(place / "blobs")
    assert len(paths) == 4
    assert all(path.stat().st_mode & 0o077 == 0 for path in paths)
    for number, path in enumerate(paths):
        os.utime(path, (1e9 + number, 1e9 + number))
    monkeypatch.setattr(program_cache, "_MOST_BYTES", sum(path.stat().st_size for path in paths))
    ProgramCache(paths[0].parent).write("new", b"some")
    assert [path.exists() for path in paths] == [False, True, True, True]


# Prints the modules that a process has imported when it ends.
MODULES = """
import atexit, json, sys
atexit.register(lambda: print(json.dumps([name for name, module in sys.modules.items() if module is not None])))
"""
FIRST = f"{MODULES}\nfrom kerasdiff.__main__ import run\nrun()"
SECOND = f"""{MODULES}
import time
import kerasdiff
from kerasdiff.runtime.backends import openvino_program
generator = kerasdiff.Generator("tiny", precision="float32", backend="openvino")
generator.generate({PROMPT!r}, 3, num_steps=3, seed=5, progress=False).save(sys.argv[1])
print(generator.traces)
generator.release()
openvino_program._SMALL = 0
generator._pipeline.decoder.expected((16, 16, 4)).prefetch()
time.sleep(0.02)  # the process ends while that is being prepared
"""


def run(script, *arguments, **environment):
    command = [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert (done.returncode, done.stderr) == (0, "")
    *told, modules = done.stdout.splitlines()
    assert not {"tensorflow", "keras", "jax", "jaxlib", "openvino_telemetry"} & {*json.loads(modules)}
    return told


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_the_very_first_process_imports_neither_tensorflow_nor_keras(tiny, tmp_path):
    path = tmp_path / "out.png"
    flags = "--backend=openvino", "--json", "--num_steps=3", "--seed=5", f"--output={path}"
    (line,) = run(FIRST, PROMPT, *flags, KERASDIFF_CACHE=str(tmp_path / "cache"))
    assert json.loads(line)["path"] == str(path)
    assert metadata.read(path).backend == "openvino"
    assert levels(pixels(path), tiny.generate(PROMPT, **QUICK).images[0]) <= 1


def test_another_process_traces_nothing_and_draws_the_same_bits(openvino, tmp_path):
    ours = openvino.generate(PROMPT, 3, **QUICK).save(tmp_path / "ours.png")
    assert run(SECOND, tmp_path / "theirs.png") == ["0"]
    assert [path.read_bytes() for path in ours] == [
        (tmp_path / f"theirs_{number}.png").read_bytes() for number in (1, 2, 3)
    ]


def test_shipped_graphs_are_those_that_layers_trace_to_now():
    kept = (program_cache._PACKAGE / "graphs" / "openvino" / program_cache.SOURCES).read_text().strip()
    assert kept == program_cache.shipped_digest("openvino"), (
        "what is traced has changed since the graphs of the embedded model were made: run "
        "`python -m kerasdiff.training.graphs`"
    )


def test_a_change_of_any_file_that_runs_while_shipped_graphs_are_traced_is_seen(place, monkeypatch):
    """What Python really executes; the rest says how what was traced is kept and run."""
    package, executed, traced = str(program_cache._PACKAGE), set(), backend.trace

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(package):
            executed.add(frame.f_code.co_filename.removeprefix(package + os.sep))

    def noted(*arguments):
        sys.setprofile(note)
        try:
            return traced(*arguments)
        finally:
            sys.setprofile(None)

    monkeypatch.setattr(backend, "trace", noted)
    monkeypatch.setattr(program_cache, "shipped", lambda _: None)
    shutil.rmtree(place, ignore_errors=True)
    generator = kerasdiff.Generator("tiny", precision="float32", backend="openvino")
    generator.generate(PROMPT, **QUICK, height=64, width=64)
    assert generator.traces == 3
    known = {str(path.relative_to(package)) for path in program_cache.shipped_sources("openvino")}
    assert {f"runtime/backends/{name}.py" for name in ("openvino_trace", "openvino_layout", "tf_tracing")} <= executed
    kept_and_run = {f"runtime/{name}.py" for name in ("backends/openvino", "backends/openvino_program", "compiled")}
    assert executed - known <= {*kept_and_run, "runtime/backend.py", "runtime/tf_setup.py"}


def test_graphs_of_other_layers_are_not_used(monkeypatch, tmp_path):
    graphs = program_cache._PACKAGE / "graphs" / "openvino"
    (tmp_path / "graphs" / "openvino").mkdir(parents=True)
    (tmp_path / "graphs" / "openvino" / program_cache.SOURCES).write_text("a digest\n")
    monkeypatch.setattr(program_cache, "shipped_digest", lambda _: "a digest")
    assert program_cache.shipped("openvino") == (
        graphs if (graphs / program_cache.SOURCES).read_text() == "a digest\n" else None
    )
    monkeypatch.setattr(program_cache, "_PACKAGE", tmp_path)
    assert program_cache.shipped("openvino") == tmp_path / "graphs" / "openvino"


def test_threads_that_use_openvino_first_do_not_wait_for_each_other_for_ever():
    script = """
import sys, threading
from kerasdiff.runtime.backends.openvino_program import ov
sys.setswitchinterval(1e-6)
together = threading.Barrier(6)
threads = [threading.Thread(target=lambda: together.wait() and None or ov.Type.f32.to_dtype()) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60)
