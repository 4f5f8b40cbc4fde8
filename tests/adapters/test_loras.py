"""LoRAs of requests: weights change for as long as a request is drawn, and nothing else does."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import threading

import numpy as np
import pytest
from lora_files import merged_by_hand, write_lora
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import kerasdiff
from kerasdiff import metadata
from kerasdiff.adapter_files import Lora
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.convert import convert
from kerasdiff.runtime import tf_setup
from kerasdiff.runtime.backends import openvino_program, tensorflow

PROMPT = "a red circle on a blue background"
QUICK = {"num_steps": 3, "seed": 5, "sampler": "euler", "progress": False}


@pytest.fixture(scope="module")
def shapes():
    model = open_model("tiny")
    return {network: model.shapes(network) for network in ("unet", "text_encoder")}


@pytest.fixture(scope="module")
def files(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    both = write_lora(folder / "both.safetensors", shapes, 1)
    other = write_lora(folder / "other.safetensors", shapes, 2, rank=2, networks=("unet",), layers=("to_k", "conv1"))
    return both, other


@pytest.fixture(scope="module")
def plain(tiny):
    return tiny.generate(PROMPT, **QUICK).latents


def by_hand(files_and_scales):
    """The latents of a model of its own whose variables were assigned."""
    model = kerasdiff.Generator("tiny", precision="float32", backend="tensorflow")
    for network in ("unet", "text_encoder"):
        layer = model.networks[network]
        values = {weight.path.replace("/", "."): np.asarray(weight) for weight in layer.weights}
        for file, scale, text_scale in files_and_scales:
            values = merged_by_hand(file, values, {"unet": scale, "text_encoder": text_scale})
        for weight, value in zip(layer.weights, values.values(), strict=True):
            weight.assign(value)
    return model.generate(PROMPT, **QUICK).latents


@pytest.fixture(scope="module")
def expected(files):
    """What assigned weights give, for the file of both networks at 0.7 and 0.3, and the other one at -0.5."""
    return by_hand([(files[0], 0.7, 0.3), (files[1], -0.5, -0.5)])


@pytest.mark.parametrize("backend", ["tiny", "openvino"])
def test_weights_change_as_by_hand_and_programs_do_not(backend, request, files, expected):
    generator = request.getfixturevalue(backend)
    before = generator.generate(PROMPT, **QUICK)
    counts = generator.traces, generator.programs
    several = generator.generate(PROMPT, loras=[(files[0], 0.7, 0.3), (files[1], -0.5)], **QUICK)
    assert np.abs(several.latents - expected).max() < 2e-4
    assert np.abs(several.latents - before.latents).max() > 0.1
    text_only = generator.generate(PROMPT, loras=[(files[0], 0, 1)], **QUICK)
    assert np.abs(text_only.latents - before.latents).max() > 1e-3
    off = generator.generate(PROMPT, loras=[(files[0], 0.0)], **QUICK)
    assert np.array_equal(off.latents, before.latents)
    again = generator.generate(PROMPT, **QUICK)
    assert np.array_equal(again.latents, before.latents)
    assert (generator.traces, generator.programs) == counts


def test_matrices_of_a_large_network_change_without_preparing_it_anew(files, expected, monkeypatch):
    monkeypatch.setattr(openvino_program, "_SMALL", 0)
    monkeypatch.setattr(openvino_program.platform_info, "processor", lambda: "any avx512_bf16")
    prepared, prepare = [], openvino_program._Graph.prepared
    monkeypatch.setattr(openvino_program._Graph, "prepared", lambda *given: prepared.append(1) or prepare(*given))
    generator = kerasdiff.Generator("tiny", precision="float32", backend="openvino")
    before = generator.generate(PROMPT, **QUICK).latents
    prepared.clear()
    first = generator.generate(PROMPT, loras=[(files[0], 0.7, 0.3)], **QUICK).latents
    assert np.abs(first - before).max() > 0.1
    assert np.array_equal(generator.generate(PROMPT, **QUICK).latents, before)
    assert np.array_equal(generator.generate(PROMPT, loras=[(files[0], 0.7, 0.3)], **QUICK).latents, first)
    assert not prepared
    # Kernels of convolutions are constants.
    both = generator.generate(PROMPT, loras=[(files[0], 0.7, 0.3), (files[1], -0.5)], **QUICK).latents
    assert np.abs(both - expected).max() < 2e-4
    assert prepared
    assert np.array_equal(generator.generate(PROMPT, **QUICK).latents, before)


def test_matrices_of_a_very_large_network_are_constants_until_loras_change_them(files, monkeypatch):
    monkeypatch.setattr(openvino_program, "_SMALL", 0)
    monkeypatch.setattr(openvino_program, "_LARGE", 0)
    monkeypatch.setattr(openvino_program.platform_info, "processor", lambda: "any avx512_bf16")
    made, prepare = [], openvino_program._Graph.prepared
    monkeypatch.setattr(openvino_program._Graph, "prepared", lambda *given: made.append(prepare(*given)) or made[-1])
    generator = kerasdiff.Generator("tiny", precision="float32", backend="openvino")

    def inputs(**arguments):
        """The latents, and how many inputs of programs stay from call to call, of those that had to be prepared."""
        made.clear()
        latents = generator.generate(PROMPT, **arguments, **QUICK).latents
        return latents, [len(each._inputs) for each in made]

    before, none = inputs()
    assert none
    assert not any(none)
    first, some = inputs(loras=[(files[0], 0.7, 0.3)])
    assert any(some)
    second, none = inputs(loras=[(files[0], 0.2, 0.3)])
    assert none == []
    assert np.abs(first - second).max() > 1e-3
    again, none = inputs()
    assert none
    assert not any(none)
    assert np.array_equal(again, before)


def test_what_does_not_change_is_held_once(tiny, files):
    network = tiny._pipeline.networks.network("unet")
    base = network.values
    stack = tiny._pipeline.adapters.stack(kerasdiff.Generator("tiny", loras=files[0]).config.defaults.loras)
    with tiny._pipeline.networks.applying(stack):
        values = network.values
        assert network.values is values
        changed = [index for index, (one, other) in enumerate(zip(base, values, strict=True)) if one is not other]
        assert 0 < len(changed) < len(base) / 3
        assert values.changed == {*changed}
    assert network.values is base


def test_a_generator_has_its_own_which_a_request_replaces(files, plain):
    generator = kerasdiff.Generator("tiny", precision="float32", loras=[(files[0], 0.5)])
    own = generator.generate(PROMPT, **QUICK)
    assert [lora.scale for lora in own.request.loras] == [0.5]
    assert np.abs(own.latents - plain).max() > 0.01
    assert np.array_equal(generator.generate(PROMPT, loras=[], **QUICK).latents, plain)
    embeddings = generator.encode_text([PROMPT])
    given = generator.generate(prompt_embeds=embeddings, negative_prompt_embeds=generator.encode_text([""]), **QUICK)
    assert np.array_equal(given.latents, own.latents)


def test_on_top_of_what_somebody_assigned(files, expected):
    """As with a live KerasCV model, whose layers are read anew for each image."""
    model = kerasdiff.Generator("tiny", precision="float32")
    for network, scale in (("unet", 0.7), ("text_encoder", 0.3)):
        layer = model.networks[network]
        before = {weight.path.replace("/", "."): np.asarray(weight) for weight in layer.weights}
        after = merged_by_hand(files[0], before, {network: scale})
        for weight, value in zip(layer.weights, after.values(), strict=True):
            weight.assign(value)
    own = model.generate(PROMPT, **QUICK).latents
    assert np.abs(model.generate(PROMPT, loras=[(files[1], -0.5)], **QUICK).latents - expected).max() < 2e-4
    assert np.array_equal(model.generate(PROMPT, **QUICK).latents, own)


def test_threads_and_interleaved_streams_keep_apart(tiny, files, plain):
    def drawn(file):
        return tiny.generate(PROMPT, loras=file, **QUICK).latents

    alone, results = [drawn(file) for file in files], {}
    threads = [
        threading.Thread(target=lambda index=index, file=file: results.update({index: drawn(file)}))
        for index, file in enumerate([*files, []])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(results[index], latents) for index, latents in enumerate([*alone, plain]))
    stream = tiny.stream([PROMPT] * 2, loras=files[0], exact=True, **QUICK | {"seed": [5, 5]})
    first = next(stream)
    assert np.array_equal(drawn(files[1]), alone[1])
    assert np.array_equal(next(stream).latents, first.latents)


def test_metadata_name_it_and_replay_finds_it_by_its_hash(tiny, files, tmp_path):
    result = tiny.generate(PROMPT, loras=[(files[0], 0.7, 0.3)], **QUICK)
    (path,) = result.save(tmp_path / "a.png")
    text = metadata.read(path).to_json()
    assert str(files[0].parent) not in text
    (lora,) = metadata.read(path).request.loras
    assert (lora.file, lora.scale, lora.text_scale) == ("both.safetensors", 0.7, 0.3)
    data = files[0].read_bytes()
    behind = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()[:12]
    with Image.open(path) as picture:
        parameters = picture.info["parameters"]
    assert parameters.startswith(f"{PROMPT} <lora:both:0.3:0.7>\n")
    assert f", Lora hashes: both: {behind}, Version" in parameters.replace('"', "")
    renamed = tmp_path / "loras" / "renamed.safetensors"
    renamed.parent.mkdir()
    shutil.copy(files[0], renamed)
    for given in (files[0], [files[1], renamed], tmp_path / "loras"):
        assert np.array_equal(kerasdiff.replay(path, loras=given).images, result.images)
    with pytest.raises(kerasdiff.RequestError, match=r"made with the LoRA both\.safetensors \(SHA-256 .*; give"):
        kerasdiff.replay(path)
    with pytest.raises(kerasdiff.RequestError, match="none of the files that were given is it"):
        kerasdiff.replay(path, loras=files[1])
    with pytest.raises(kerasdiff.RequestError, match=r"says the strengths of its loras; give .* without"):
        kerasdiff.replay(path, loras=[(files[0], 0.5)])
    (plain,) = tiny.generate(PROMPT, **QUICK).save(tmp_path / "plain.png")
    assert len(kerasdiff.replay(plain, loras=tmp_path / "loras")) == 1
    with pytest.raises(kerasdiff.RequestError, match="was made without loras; leave them out"):
        kerasdiff.replay(plain, loras=files[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": None}, "is damaged: it has no SHA-256 of both"),
        ({"scale": 1e300}, r"loras\[0\].* is out of range"),
        ({"sha256": "0" * 64, "file": "a\nb" * 500}, "made with the LoRA a ba b"),
    ],
)
def test_a_strange_receipt_is_one_line(tiny, files, tmp_path, changes, message):
    result = tiny.generate(PROMPT, loras=files[0], **QUICK | {"num_steps": 1})
    (lora,) = result.request.loras
    request = dataclasses.replace(result.request, loras=(dataclasses.replace(lora, **changes),))
    (path,) = dataclasses.replace(result, request=request).save(tmp_path / "a.png")
    with pytest.raises(kerasdiff.RequestError, match=message) as found:
        kerasdiff.replay(path, loras=files[0])
    assert "\n" not in str(found.value)


def test_an_image_of_another_program_finds_its_loras(tiny, files, tmp_path):
    text = (
        f"{PROMPT} <lora:Both:0.3:0.7>\nSteps: 3, Sampler: Euler, CFG scale: 2, Seed: 5, Size: 64x64, Version: v1.10.1"
    )
    path, chunks = tmp_path / "a.png", PngInfo()
    chunks.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=chunks)
    with pytest.warns(UserWarning, match="made by AUTOMATIC1111 v1.10.1"):
        result = kerasdiff.replay(path, model="tiny", loras=files[0].parent)
    assert [(lora.scale, lora.text_scale) for lora in result.request.loras] == [(0.7, 0.3)]
    like = {"height": 64, "width": 64, "spacing": "linspace", "guidance_scale": 2, "rng": "torch"}
    same = tiny.generate(PROMPT, loras=[(files[0], 0.7, 0.3)], **QUICK, **like)
    assert np.abs(result.images.astype(int) - same.images).max() <= 1


def test_weights_that_were_promised_not_to_change_are_one_warning(tiny, files, monkeypatch):
    tiny.generate(PROMPT, **QUICK)
    monkeypatch.setattr(tf_setup, "is_inference_only", lambda: True)
    tensorflow._warn_of_new_kernels.cache_clear()
    with pytest.warns(UserWarning, match="memory of the earlier ones is not given back"):
        tiny.generate(PROMPT, loras=files[1], **QUICK)
    tiny.generate(PROMPT, **QUICK)  # it is said once


def test_a_file_that_changes_is_read_again(tiny, shapes, plain, tmp_path):
    path = write_lora(tmp_path / "a.safetensors", shapes, 1)
    first = tiny.generate(PROMPT, loras=path, **QUICK)
    path.unlink()
    write_lora(path, shapes, 3)
    second = tiny.generate(PROMPT, loras=path, **QUICK)
    assert np.abs(first.latents - second.latents).max() > 0.01
    with pytest.raises(kerasdiff.ModelError, match=r"a\.safetensors has changed: its SHA-256 was"):
        tiny.run(first.request)


def test_a_converted_model_has_it_merged(tiny, files, expected, tmp_path):
    folder = convert("tiny", tmp_path / "merged", dtype="float32", loras=[(files[0], 0.7, 0.3)])
    model = kerasdiff.Generator(folder, precision="float32")
    assert np.abs(model.generate(PROMPT, loras=[(files[1], -0.5)], **QUICK).latents - expected).max() < 2e-4


def test_prompts_name_files_of_a_folder(tiny, files, tmp_path, monkeypatch):
    named = tiny.generate(f"{PROMPT} <lora:both:0.3:0.7>", lora_folder=files[0].parent, **QUICK)
    assert named.request.prompts == (PROMPT,)
    given = tiny.generate(PROMPT, loras=[(files[0], 0.7, 0.3)], **QUICK)
    assert np.array_equal(named.latents, given.latents)
    for prompts, message in (
        ([f"{PROMPT} <lora:both:0.3>", PROMPT], "all prompts of a call must name the same LoRAs"),
        (["<lora:both:much>"], "is not of the form <lora:name:0.8>"),
        (["<lora:none:1>"], "none"),
        (["<lora:both:nan>"], "<lora:both:nan>: the strength=nan is not finite"),
        (["<lora:both:1:-1e9>"], "<lora:both:1:-1e9>: the strength=.* is out of range"),
        (["<lora:x/../../both:1>"], "leads out of lora_folder; give such a file in loras"),
        ([f"<lora:{files[0]}:1>"], "leads out of lora_folder; give such a file in loras"),
        (["<lora:both:0.1>" * 101], "loras has 101 entries"),
    ):
        with pytest.raises(kerasdiff.KerasdiffError, match=message):
            tiny.generate(prompts, lora_folder=files[0].parent, **QUICK)
    # One folder is meant, not a name on the hub, and the file is recorded as it is called.
    monkeypatch.chdir(files[0].parent.parent)
    folder = files[0].parent.name
    with pytest.warns(UserWarning, match="'lbw=OUTALL' is not supported; the whole LoRA is used"):
        relative = tiny.generate(f"{PROMPT} <lora:both:0.3:0.7:lbw=OUTALL>", lora_folder=folder, **QUICK)
    assert np.array_equal(relative.latents, given.latents)
    for result in (relative, tiny.generate(PROMPT, loras=f"{folder}/both", **QUICK)):
        (lora,) = metadata.read(*result.save(tmp_path / "a.png")).request.loras
        assert lora.file == "both.safetensors"
    with pytest.raises(kerasdiff.ModelError, match="nowhere is no folder; give"):
        tiny.generate("<lora:both:1>", lora_folder="nowhere", **QUICK)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (5, "loras must be a path or a list of paths, not int"),
        ([("a", 1, 2, 3)], r"loras\[0\] must be a path, \(path, scale\) or \(path, scale, text_scale\)"),
        ([("a", float("nan"))], r"loras\[0\]"),
        ([("a", 1e9)], r"loras\[0\]"),
        (Lora("a", text_scale=float("inf")), r"loras\[0\]=inf is not finite"),
        (["there-is-none.safetensors"], "there-is-none.safetensors"),
        (["a"] * 101, "loras has 101 entries"),
        (("a", 0.5), r"loras\[1\] must be a path, not float \(0.5\); a file and its scale are \[\(path, scale\)\]"),
        ([Lora("a", float("inf"))], r"loras\[0\]=inf is not finite"),
    ],
)
def test_a_wrong_value_is_one_line(tiny, value, message):
    with pytest.raises(kerasdiff.KerasdiffError, match=message) as found:
        tiny.generate(PROMPT, loras=value, **QUICK)
    assert "\n" not in str(found.value)
