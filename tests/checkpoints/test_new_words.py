"""Models whose text encoder has other words than CLIP's: words saved into a pipeline, other lengths, too few words."""

from __future__ import annotations

import json
import shutil

import checkpoints
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import torch

import kerasdiff
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.convert import convert
from kerasdiff.errors import ModelError, RequestError

TEXTS = ["a <toy> above a Red circle!", "a red circle " * 30]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """diffusers' pipeline with a word of three vectors, as textual inversion leaves it, and its folder."""
    folder = tmp_path_factory.mktemp("words")
    pipe = checkpoints.pipeline("v1", folder / "vocabulary", seed=2)
    pipe.tokenizer.add_tokens(["<toy>", "<toy>_1", "<toy>_2"])
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))
    torch.nn.init.normal_(pipe.text_encoder.get_input_embeddings().weight)
    return pipe, checkpoints.save(pipe, folder / "model")


def edited(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.filterwarnings("ignore:the prompt has")
@pytest.mark.parametrize("rows", [{}, {"model_max_length": 20, "padding_side": "left", "pad_token": "!"}])
def test_prompts_are_encoded_as_in_diffusers(made, tmp_path, rows):
    pipe, folder = made
    copy = shutil.copytree(folder, tmp_path / "copy")
    edited(copy / "tokenizer" / "tokenizer_config.json", **rows)
    pipe = checkpoints.diffusers.StableDiffusionPipeline.from_pretrained(copy, local_files_only=True)
    generator = kerasdiff.Generator(copy, precision="float32", jit_compile=False)
    with torch.no_grad():
        theirs = np.concatenate([pipe.encode_prompt(text, "cpu", 1, False)[0].numpy() for text in TEXTS])
    ours = generator.encode_text(TEXTS)
    assert ours.shape[1] == rows.get("model_max_length", 77)
    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("name", ["single.safetensors", "native", "diffusers"])
def test_a_converted_model_keeps_its_words(made, tmp_path, name):
    pipe, folder = made
    path = convert(folder, tmp_path / name, format="diffusers" if name == "diffusers" else None, dtype="float32")
    again = open_model(path)
    for text in TEXTS:
        assert again.tokenizer.expand(text) == pipe.maybe_convert_prompt(text, pipe.tokenizer)
        assert again.tokenizer.encode(text) == pipe.tokenizer(text).input_ids
    if name == "diffusers":
        theirs = checkpoints.transformers.CLIPTokenizer.from_pretrained(path / "tokenizer")
        assert theirs(TEXTS).input_ids == pipe.tokenizer(TEXTS).input_ids
        assert theirs.model_max_length == 77


def test_kerascvs_files_have_no_place_for_words(made, tmp_path, caplog):
    convert(made[1], tmp_path / "keras_cv", format="keras_cv")
    assert "the tokenizer of model is left out: format='keras_cv' has CLIP's" in caplog.text


def test_a_text_encoder_with_too_few_words_is_refused(made, tmp_path):
    folder = shutil.copytree(made[1], tmp_path / "copy")
    edited(folder / "text_encoder" / "config.json", vocab_size=629)
    message = "the text encoder has 629 words, and 2 of the tokenizer's 631 are beyond: '<toy>_1', '<toy>_2'"
    with pytest.raises(ModelError, match=message):
        open_model(folder)
    native = convert(made[1], tmp_path / "native")
    config = json.loads((native / "config.json").read_text())
    edited(native / "config.json", text_encoder={**config["text_encoder"], "vocab_size": 629})
    with pytest.raises(ModelError, match=message):
        open_model(native)
    # More words than the tokenizer has are fine.
    edited(folder / "text_encoder" / "config.json", vocab_size=700)
    assert open_model(folder).config.text_encoder.vocab_size == 700


def test_a_single_file_whose_words_are_unknown_opens_with_one_line(made, tmp_path):
    path = convert(made[1], tmp_path / "model.safetensors", dtype="float32")
    safetensors.numpy.save_file(safetensors.numpy.load_file(path), path)  # without its tokenizer
    message = "the text encoder has 631 words, and 48777 of the tokenizer's 49408 are beyond"
    with pytest.warns(UserWarning, match=message) as caught:
        generator = kerasdiff.Generator(path, precision="float32", jit_compile=False)
    assert len(caught) == 1
    with pytest.raises(RequestError, match="631 words, and the start of every text is number 49406"):
        generator.encode_text("a red circle")
