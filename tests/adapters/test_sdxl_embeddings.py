"""Embeddings for Stable Diffusion XL: vectors for each text encoder, in one file or in one for each."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from safetensors.numpy import save_file

from kerasdiff import info
from kerasdiff.adapter_files import EmbeddingFile
from kerasdiff.adapters.library import AdapterLibrary
from kerasdiff.adapters.textual_inversion import by_encoder, read_embeddings
from kerasdiff.errors import ModelError
from kerasdiff.models.config import SD_V1, SD_V2, SDXL, SDXL_REFINER
from kerasdiff.models.tokenizer import Tokenizer
from kerasdiff.request import make_request

RNG = np.random.default_rng(0)
FIRST, SECOND = (RNG.normal(size=(3, width)).astype("float32") for width in (768, 1280))
CLIP = Tokenizer.clip()
IDS = dict.fromkeys(("text_encoder", "text_encoder_2"), lambda text: CLIP.encode(text)[1:-1])


def write(path, **tensors):
    save_file(tensors, path)
    return path


def library(config=SDXL):
    return AdapterLibrary(config, lambda _: {}, IDS)


def vectors(words, text):
    """The vectors that a text's tokens have."""
    found = [token.vector for token in words.tokens(IDS["text_encoder"](words.spaced(text)))]
    return np.array([vector for vector in found if vector is not None])


@pytest.mark.parametrize("layout", ["clip", "pivotal", "bundled", "two files", "a folder"])
def test_each_text_encoder_has_its_vectors(tmp_path, layout):
    names = [("learned_embeds", FIRST), ("learned_embeds_2", SECOND)]
    if layout in ("two files", "a folder"):
        files = [write(tmp_path / f"{name}.safetensors", **{"<toy>": value}) for name, value in names]
    else:
        keys = {
            "pivotal": "text_encoders_0 text_encoders_1",
            "bundled": "bundle_emb.<toy>.clip_l bundle_emb.<toy>.clip_g",
        }
        pair = dict(zip(keys.get(layout, "clip_l clip_g").split(), (FIRST, SECOND), strict=True))
        files = [write(tmp_path / "toy.safetensors", **pair)]
    given = [tmp_path] if layout == "a folder" else files
    trigger = "toy" if layout in ("clip", "pivotal") else "<toy>"
    words = library().words([EmbeddingFile(str(path)) for path in given])
    assert [*words] == ["text_encoder", "text_encoder_2"]
    for network, expected in (("text_encoder", FIRST), ("text_encoder_2", SECOND)):
        np.testing.assert_array_equal(vectors(words[network], f"a {trigger}, red"), expected)
        for name, _ in names:  # of one of the files alone
            assert not len(vectors(words[network], name))
    settled = library().settled(make_request(SDXL, f"a {trigger}", embeddings=list(map(str, given)), seed=1))
    assert [(one.file, one.trigger) for one in settled.embeddings] == [(str(path), trigger) for path in files]
    again = library().settled(settled)
    assert again == settled


def test_a_trigger_of_the_user_is_that_of_both(tmp_path):
    both = write(tmp_path / "toy.safetensors", clip_l=FIRST, clip_g=SECOND)
    halves = [
        write(tmp_path / f"{name}.safetensors", emb_params=value) for name, value in (("a", FIRST), ("b", SECOND))
    ]
    for files in ([both], halves):
        words = library().words([EmbeddingFile(str(path), "my thing") for path in files])
        assert len(vectors(words["text_encoder"], "my thing")) == len(vectors(words["text_encoder_2"], "my thing")) == 3
    with pytest.raises(ModelError, match=r"a\.safetensors is an embedding for Stable Diffusion 1\.x \(width 768\)"):
        library().words([EmbeddingFile(str(path)) for path in halves])


# What a file has, and what is said of it by which models.
REFUSED = [
    (
        {"<a>": FIRST},
        {
            SDXL: r"for Stable Diffusion 1\.x \(width 768\), and this model, Stable Diffusion XL, needs vectors of "
            "width 1280 as well: a file with clip_l and clip_g, or one for each",
            SDXL_REFINER: r"for Stable Diffusion 1\.x \(width 768\); this model reads 1280",
        },
    ),
    ({"<a>": SECOND}, {SDXL: r"an embedding \(width 1280\), and this model, .* needs vectors of width 768 as well"}),
    (
        {"<a>": np.ones((1, 1024), "float32")},
        {SDXL: r"Stable Diffusion 2\.x \(width 1024\); this model reads 768 and 1280"},
    ),
    (
        {"clip_l": FIRST, "clip_g": SECOND},
        {
            SD_V1: r"XL \(clip_l, clip_g\), and this model is Stable Diffusion 1\.x",
            SD_V2: r"XL \(clip_l, clip_g\), and this model is Stable Diffusion 2\.x",
        },
    ),
    (
        {"clip_l": FIRST},
        {
            SDXL: r"of Stable Diffusion XL that lacks a half \(width 768\)",
            SDXL_REFINER: "has no clip_g, and the refiner of",
        },
    ),
    ({"clip_l": FIRST, "clip_g": SECOND[:2]}, {SDXL: "has 3 vectors for one text encoder and 2 for the other"}),
    ({"clip_l": SECOND, "clip_g": FIRST}, {SDXL: r"width 1280\); this model reads 768 and 1280"}),
    ({"clip_l": FIRST, "t5xxl": FIRST}, {SDXL: "for Stable Diffusion 3 or a later model: it has t5xxl"}),
]


def test_what_is_for_another_family_is_one_line(tmp_path):
    path = tmp_path / "toy.safetensors"
    for tensors, models in REFUSED:
        write(path, **tensors)
        for config, message in models.items():
            with pytest.raises(ModelError, match=message) as caught:
                library(config).words([EmbeddingFile(str(path))])
            assert str(caught.value).startswith(str(path))
            assert "\n" not in str(caught.value)


def test_the_refiner_reads_the_second_half(tmp_path):
    path = write(tmp_path / "toy.safetensors", clip_l=FIRST, clip_g=SECOND)
    words = library(SDXL_REFINER).words([EmbeddingFile(str(path))])
    assert [*words] == ["text_encoder_2"]
    np.testing.assert_array_equal(vectors(words["text_encoder_2"], "toy"), SECOND)


def test_a_folder_gives_those_for_the_model_and_counts_the_others(tmp_path, caplog):
    write(tmp_path / "a.safetensors", clip_l=FIRST, clip_g=SECOND)
    write(tmp_path / "b.safetensors", emb_params=FIRST)
    (found,) = (library().words([EmbeddingFile(str(tmp_path))])[network] for network in ("text_encoder_2",))
    assert len(vectors(found, "a")) == 3
    assert not len(vectors(found, "b"))
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith(
        f"{tmp_path}: 1 of 2 files are left out; {tmp_path}/b.safetensors is an embedding for Stable"
    )
    assert [word.file for word in read_embeddings(EmbeddingFile(str(tmp_path)), SD_V1)] == [f"{tmp_path}/b.safetensors"]


def test_a_doubtful_trigger_is_told_once(tmp_path, caplog):
    for name in "ab":
        values = {"clip_l": RNG.normal(size=(1, 768)).astype("float32"), "clip_g": SECOND[:1]}
        (tmp_path / name).mkdir()
        write(tmp_path / name / "toy.safetensors", **values)
    words = library().words([EmbeddingFile(str(tmp_path))])
    assert len(vectors(words["text_encoder_2"], "toy")) == 1
    assert len([record for record in caplog.records if "is the trigger of" in record.getMessage()]) == 1


def test_info_tells_both_halves(tmp_path, capsys):
    path = write(tmp_path / "toy.safetensors", clip_l=FIRST, clip_g=SECOND)
    assert info.PROGRAM.call(info.main, ["kerasdiff.info", f"--embedding={path}"]) == 0
    told = "".join(f"toy: 3 vectors of width {n}, for Stable Diffusion XL, in {path}\n" for n in (768, 1280))
    assert capsys.readouterr().out == told
    assert {*by_encoder(read_embeddings(EmbeddingFile(str(path))), SDXL)} == {"text_encoder", "text_encoder_2"}
