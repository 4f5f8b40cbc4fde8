"""Embeddings of requests: words of a user's own in prompts."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from safetensors.numpy import save_file

import kerasdiff
from kerasdiff import metadata

QUICK = {"num_steps": 3, "seed": 5, "sampler": "euler", "progress": False}


@pytest.fixture(scope="module")
def file(tiny, tmp_path_factory):
    """A word whose vectors are those of "red circle"."""
    weights = {weight.path: weight for weight in tiny.networks["text_encoder"].weights}
    table = np.asarray(next(weight for path, weight in weights.items() if "token_embedding" in path))
    path = tmp_path_factory.mktemp("embeddings") / "file.safetensors"
    save_file({"<thing>": table[tiny._pipeline.conditioner.main.ids("red circle")]}, str(path))
    return path


@pytest.mark.parametrize(
    ("prompt", "same", "syntax"),
    [
        ("a <thing> on a blue background", "a red circle on a blue background", "plain"),
        ("a (<thing>:1.2) AND a star", "a (red circle:1.2) AND a star", "a1111"),
        ("a <thing>++, a star", "a (red circle)++, a star", "compel"),
    ],
)
def test_a_word_draws_what_its_vectors_stand_for(tiny, file, prompt, same, syntax):
    arguments = {**QUICK, "prompt_syntax": syntax, "negative_prompt": "a star"}
    expected = tiny.generate(same, **arguments)
    for given in (file, file.parent, [(file, "<thing>")]):
        result = tiny.generate(prompt, embeddings=given, **arguments)
        assert np.abs(result.latents - expected.latents).max() < 1e-3
        (used,) = result.request.embeddings
        assert (used.file, used.trigger) == (str(file), "<thing>")
    with pytest.warns(UserWarning, match="no word of .*file.safetensors is in a prompt"):
        tiny.generate(same, embeddings=file, **arguments)


def test_a_word_is_looked_for_in_what_the_encoder_reads(tiny, file, tmp_path):
    """Not in the signs of the syntax; and each file that does nothing is named."""
    path = tmp_path / "a (toy).safetensors"
    shutil.copy(file, path)
    once = QUICK | {"num_steps": 2}
    for prompt, trigger in ((r"a \(toy\) here", "a (toy)"), ("my [toy:hat:0.5] thing", "my toy"), ("x", None)):
        given = [(path, trigger), file] if trigger else [(path, "x"), (file, "y")]
        with pytest.warns(UserWarning, match="no word of .*file.safetensors is in a prompt"):
            result = tiny.generate(prompt, embeddings=given, prompt_syntax="a1111", **once)
        assert [used.trigger for used in result.request.embeddings] == [trigger or "x"]


def test_metadata_name_it_and_replay_finds_it(tiny, file, tmp_path):
    result = tiny.generate("a <thing>", embeddings=[(file, "<Thing>")], **QUICK)
    (path,) = result.save(tmp_path / "a.png")
    (used,) = metadata.read(path).request.embeddings
    assert (used.file, used.trigger, len(used.sha256)) == ("file.safetensors", "<Thing>", 64)
    shutil.copy(file, tmp_path / "other.safetensors")
    assert np.array_equal(kerasdiff.replay(path, embeddings=tmp_path).images, result.images)
    with pytest.raises(kerasdiff.RequestError, match=r"made with the embedding file\.safetensors"):
        kerasdiff.replay(path)


def test_a_generator_has_its_own_and_reads_them_again_when_they_change(tiny, file, tmp_path):
    path = tmp_path / "word.safetensors"
    shutil.copy(file, path)
    generator = kerasdiff.Generator("tiny", precision="float32", embeddings=tmp_path)
    first = generator.generate("a <thing>", **QUICK)
    assert np.array_equal(first.latents, tiny.generate("a <thing>", embeddings=file, **QUICK).latents)
    assert np.array_equal(generator.encode_text(["a <thing>"]), generator.encode_text(["a word"]))
    save_file({"<thing>": np.zeros((1, generator.config.text_encoder.width), "float32")}, str(path))
    assert np.abs(generator.generate("a <thing>", **QUICK).latents - first.latents).max() > 0.01
    assert np.array_equal(
        generator.generate("a <thing>", embeddings=[], **QUICK).latents, tiny.generate("a <thing>", **QUICK).latents
    )
