"""Embeddings: every layout of their files, where prompts mean them, and diffusers' numbers."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import pickle

import checkpoints
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from checkpoints import torch
from PIL import Image, PngImagePlugin

import kerasdiff
from kerasdiff import info
from kerasdiff.adapter_files import EmbeddingFile, split_embedding
from kerasdiff.adapters import file_search, textual_inversion
from kerasdiff.adapters.textual_inversion import LearnedWord, LearnedWords, read_embeddings
from kerasdiff.checkpoints import hub
from kerasdiff.checkpoints.formats import tokenizer_folder
from kerasdiff.diffusion.text_stage import TextStage
from kerasdiff.errors import ModelError
from kerasdiff.models.config import SD_V1, SD_V2
from kerasdiff.models.network_configs import TextEncoderConfig
from kerasdiff.models.tokenizer import Tokenizer

RNG = np.random.default_rng(0)
WIDTH = 768
VECTORS = RNG.normal(size=(3, WIDTH)).astype("float32")


def write(path, tensors, **metadata):
    safetensors.numpy.save_file(tensors, path, {key: str(value) for key, value in metadata.items()} or None)
    return path


def write_picture(path, document, *, text=None, compressed=False):
    """As AUTOMATIC1111's training leaves it: JSON with the tensor as lists, in base64."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", "a toy")
    if text is None:
        text = base64.b64encode(json.dumps(document).encode()).decode()
    chunks.add_text("sd-ti-embedding", text, zip=compressed)
    Image.new("RGB", (8, 8)).save(path, pnginfo=chunks)
    return path


def document(vectors, **more):
    return {"string_to_token": {"*": 265}, "string_to_param": {"*": {"TORCHTENSOR": vectors.tolist()}}, **more}


def word(name, *others, vectors=VECTORS, file="toy.safetensors"):
    return LearnedWord(file, f"{len(name):064x}", (name, *others), vectors)


@pytest.fixture(scope="module")
def stage():
    """CLIP's tokenizer without an encoder."""
    return TextStage(None, False, None, Tokenizer.clip(), TextEncoderConfig())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """diffusers' pipeline with CLIP's vocabulary, and the same as ours."""
    folder = tmp_path_factory.mktemp("made")
    pipe = checkpoints.pipeline("v1", folder / "small")
    tokenizer_folder.write(Tokenizer.clip(), folder / "clip", 77)
    files = (str(folder / "clip" / name) for name in ("vocab.json", "merges.txt"))
    pipe.tokenizer = checkpoints.transformers.CLIPTokenizer(*files, model_max_length=77)
    pipe.text_encoder.resize_token_embeddings(49408)
    torch.nn.init.normal_(pipe.text_encoder.get_input_embeddings().weight)
    return pipe, kerasdiff.Generator(
        checkpoints.save(pipe, folder / "model"), precision="float32", jit_compile=False, backend="tensorflow"
    )


def test_prompts_and_images_are_those_of_diffusers(made, tmp_path):
    pipe, generator = made
    vectors = RNG.normal(size=(4, 64)).astype("float32")
    files = [
        write(tmp_path / "several.safetensors", {"<cat-toy>": vectors}),
        write(tmp_path / "one.safetensors", {"<blue>": vectors[0] / 2}),
    ]
    pipe.load_textual_inversion([str(tmp_path)] * 2, weight_name=files[0].name)
    pipe.load_textual_inversion(str(tmp_path), weight_name=files[1].name)
    text = generator._pipeline.conditioner.main
    found = [word for file in files for word in read_embeddings(EmbeddingFile(str(file)), generator.config)]
    words = LearnedWords(found, text.ids)
    prompts = ["a <cat-toy>, red", "a photo of <cat-toy>.", "(<cat-toy>)<blue> x<cat-toy>'s", "a cat-toy <blue", ""]
    with torch.no_grad():
        theirs = [pipe.encode_prompt(prompt, "cpu", 1, False)[0].numpy() for prompt in prompts]
        ours = [text(prompt, words=words).context[None] for prompt in prompts]
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert np.abs(ours[0] - text(prompts[0]).context).max() > 0.1
        generators = torch.Generator().manual_seed(3)
        latents = torch.randn(1, 4, 8, 8, generator=generators)
        options = {"num_inference_steps": 2, "guidance_scale": 5.0, "latents": latents, "output_type": "np"}
        their_image = pipe(prompts[0], negative_prompt=prompts[2], **options).images[0]
    image = generator.generate(
        prompt_embeds=ours[0],
        negative_prompt_embeds=ours[2],
        num_steps=2,
        guidance_scale=5.0,
        latents=latents.numpy().transpose(0, 2, 3, 1),
        progress=False,
    ).images[0]
    assert np.abs(image.astype(float) - 255 * their_image).max() <= 1


FLOATS = {
    name: np.dtype(getattr(ml_dtypes, name, name)) for name in ("float16", "bfloat16", "float32", "float8_e4m3fn")
}


def test_every_layout_gives_its_words_and_their_vectors(tmp_path):
    bundled = {"lora_unet_x.lora_down.weight": np.ones((4, 8), "float32"), "bundle_emb.b.v1.emb_params": VECTORS[0]}
    for name, tensors, expected in (
        ("diffusers", {"<cat-toy>": VECTORS}, [(("<cat-toy>", "diffusers"), VECTORS)]),
        ("one", {"<cat-toy>": VECTORS[0]}, [(("<cat-toy>", "one"), VECTORS[:1])]),
        ("several", {"<a>": VECTORS[0], "<b>": VECTORS}, [(("<a>",), VECTORS[:1]), (("<b>",), VECTORS)]),
        ("kohya", {"emb_params": VECTORS}, [(("kohya",), VECTORS)]),
        (
            "a1111",
            {"string_to_param.*": VECTORS, "string_to_token.*": np.array([265])},
            [(("a1111",), VECTORS)],
        ),
        ("star", {"*": VECTORS}, [(("star",), VECTORS)]),
        (
            "lora",
            {**bundled, "bundle_emb.a.string_to_param.*": VECTORS},
            [(("a",), VECTORS), (("b.v1",), VECTORS[:1])],
        ),
    ):
        path = write(tmp_path / f"{name}.safetensors", tensors)
        found = sorted(read_embeddings(EmbeddingFile(str(path)), SD_V1), key=lambda word: word.triggers)
        assert [word.triggers for word in found] == [triggers for triggers, _ in expected], name
        for one, (_, vectors) in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.vectors, vectors)
            assert (one.file, len(one.sha256)) == (str(path), 64)
    for name, kind in FLOATS.items():
        path = write(tmp_path / f"{name}.safetensors", {"emb_params": VECTORS.astype(kind)})
        (one,) = read_embeddings(EmbeddingFile(str(path)), SD_V1)
        assert one.vectors.dtype == "float32"
        np.testing.assert_array_equal(one.vectors, VECTORS.astype(kind).astype("float32"))


def test_a_picture_of_automatic1111_is_read_without_its_pixels(tmp_path):
    path = write_picture(tmp_path / "toy-900.png", document(VECTORS, name="toy", step=900, sd_checkpoint_name="v1-5"))
    (found,) = read_embeddings(EmbeddingFile(str(path)), SD_V1)
    assert (found.triggers, found.steps, found.trained_on) == (("toy", "toy-900"), 900, "v1-5")
    np.testing.assert_array_equal(found.vectors, VECTORS)


def test_a_trigger_of_the_user_takes_the_place_of_the_files_own_or_chooses_one(tmp_path):
    one = write(tmp_path / "one.safetensors", {"<toy>": VECTORS})
    two = write(tmp_path / "two.safetensors", {"<a>": VECTORS, "<B>": VECTORS[:1]})
    (found,) = read_embeddings(EmbeddingFile(*split_embedding(f"{one}:my style")), SD_V1)
    assert found.triggers == ("my style",)
    (found,) = read_embeddings(EmbeddingFile(str(two), "<b>"), SD_V1)
    assert (found.triggers, len(found.vectors)) == (("<b>",), 1)
    (found,) = read_embeddings(EmbeddingFile(str(one), sha256=hashlib.sha256(one.read_bytes()).hexdigest()), SD_V1)
    with pytest.raises(ModelError, match=r"two\.safetensors has 2 embeddings and none is called '<c>': '<.>', '<.>'$"):
        read_embeddings(EmbeddingFile(str(two), "<c>"), SD_V1)
    with pytest.raises(ModelError, match=r"one\.safetensors has changed: its SHA-256 was 000000000000\.\.\., and is"):
        read_embeddings(EmbeddingFile(str(one), sha256="0" * 64), SD_V1)


def test_a_folder_gives_those_that_fit_and_counts_the_others(tmp_path, caplog, monkeypatch):
    (tmp_path / "below").mkdir()
    write(tmp_path / "a.safetensors", {"emb_params": VECTORS})
    write(tmp_path / "below" / "b.safetensors", {"<b>": VECTORS})
    write_picture(tmp_path / "c.PNG", document(VECTORS, name="c"))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.preview.png")
    (tmp_path / "notes.txt").write_text("not looked at")
    found = read_embeddings(EmbeddingFile(str(tmp_path)), SD_V1)
    assert [word.triggers[0] for word in found] == ["a", "<b>", "c"]
    assert found[1].file == str(tmp_path / "below" / "b.safetensors")
    assert not caplog.records
    write(tmp_path / "d.safetensors", {"emb_params": np.ones((2, 1280), "float32")})
    (tmp_path / "e.pt").write_bytes(pickle.dumps({}))
    assert len(read_embeddings(EmbeddingFile(str(tmp_path)), SD_V1)) == 3
    (record,) = caplog.records
    assert record.getMessage() == (
        f"{tmp_path}: 2 of 6 files are left out; {tmp_path}/d.safetensors is an embedding for Stable Diffusion XL "
        "(width 1280); this model reads 768"
    )
    with pytest.raises(ModelError, match=r"has no embedding for this model; .*a\.safetensors is an embedding for"):
        read_embeddings(EmbeddingFile(str(tmp_path)), SD_V2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"has no embedding for this model$"):
        read_embeddings(EmbeddingFile(str(tmp_path / "empty")), SD_V1)
    monkeypatch.setattr(file_search, "_MOST_FILES", 3)
    with pytest.raises(ModelError, match="has more than 3 files; give a folder of adapters alone"):
        read_embeddings(EmbeddingFile(str(tmp_path)), SD_V1)


def test_names_on_the_hub_lead_to_their_files(tmp_path, monkeypatch):
    asked = []
    path = write(tmp_path / "learned_embeds.safetensors", {"<toy>": VECTORS})
    monkeypatch.setattr(hub, "fetch_adapter", lambda name, usual: asked.append((name, usual)) or path)
    names = ("org/cat-toy", "org/cat-toy/toy.safetensors", "hf://org/cat-toy")
    for name in names:
        (found,) = read_embeddings(EmbeddingFile(name), SD_V1)
        assert (found.file, found.triggers[0]) == (name, "<toy>")
    assert asked == [(name, ("learned_embeds.safetensors", "learned_embeds.bin")) for name in names]


def raw(header, data=b""):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


# What a file holds -> what its line says.
HOSTILE = {
    "not a number": ({"emb_params": VECTORS * np.nan}, "numbers that are not finite"),
    "infinite": ({"<a>": np.array([np.inf] * WIDTH, "float16")}, "numbers that are not finite"),
    "beyond float32": ({"<a>": np.full((1, WIDTH), 1e300)}, "numbers that are not finite"),
    "no vectors": ({"emb_params": np.zeros((0, WIDTH), "float32")}, r"without vectors: its shape is \(0, 768\)"),
    "no width": ({"emb_params": np.zeros((3, 0), "float32")}, "without vectors"),
    "no tensors": ({}, "has no embedding: it is empty"),
    "too many": ({"emb_params": np.zeros((76, WIDTH), "float32")}, "76 vectors for one word; a prompt has 75 places"),
    "2.x": ({"emb_params": np.zeros((1, 1024), "float32")}, r"for Stable Diffusion 2.x \(width 1024\); this model"),
    "another width": ({"<a>": np.zeros(64, "float32")}, "an embedding of width 64; this model reads 768"),
    "SDXL": (
        {"clip_l": VECTORS, "clip_g": np.zeros((3, 1280), "float32")},
        r"XL \(clip_l, clip_g\), and this model",
    ),
    "SDXL in a LoRA": (
        {"bundle_emb.a.clip_g": np.zeros((1, 1280), "float32")},
        r"XL \(clip_l, clip_g\), and this model",
    ),
    "SD 3": ({"clip_l": VECTORS, "t5xxl": VECTORS}, "for Stable Diffusion 3 or a later model: it has t5xxl"),
    "three axes": ({"emb_params": np.zeros((1, 3, WIDTH), "float32")}, r"is F32 of the shape \(1, 3, 768\), among 1"),
    "a number": ({"emb_params": np.zeros((), "float32")}, r"is not an embedding: .* of the shape \(\)"),
    "integers": ({"emb_params": np.zeros((3, WIDTH), "int64")}, r"is not an embedding: its tensor 'emb_params' is I64"),
    "truths": ({"emb_params": np.zeros((3, WIDTH), bool)}, "is not an embedding: its tensor 'emb_params' is BOOL"),
    "several widths": ({"<a>": VECTORS, "<b>": np.zeros((3, 64), "float32")}, "is not an embedding: its tensor"),
    "many": ({f"w{index}": np.zeros(WIDTH, "float32") for index in range(101)}, "is not an embedding: .* among 101"),
    "a LoRA": (
        {"lora_unet_x.lora_down.weight": np.zeros((4, 8), "float32"), "lora_unet_x.alpha": np.zeros((), "float32")},
        "is a LoRA, not an embedding: give it with loras=",
    ),
    "a VAE": ({"decoder.conv_in.weight": np.zeros((4, 4, 3, 3), "float32")}, r"is an autoencoder \(VAE\), not an"),
    "a word of 300": ({"\x00": VECTORS, "<" * 300: VECTORS}, "has a name that is no word for a prompt; give a trigger"),
    "nothing": (b"", "is empty; get the file again"),
    "zeros": (bytes(64), "is corrupt or incomplete"),
    "cut off": (raw({"emb_params": {"dtype": "F32", "shape": [1, WIDTH], "data_offsets": [0, 3072]}}), "is corrupt"),
    "a huge shape": (raw({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, bytes(4)), "is corrupt"),
    "a huge header": ((2**60).to_bytes(8, "little") + b"{", "is corrupt"),
    "no JSON": ((8).to_bytes(8, "little") + b"{'a': 1}", "is corrupt"),
    "unknown type": (raw({"a": {"dtype": "F7", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "is corrupt"),
    "a pickle": (
        pickle.dumps({"string_to_param": {"*": [1.0]}}),
        "is a pickle checkpoint, .*; use a .safetensors",
    ),
    "GGUF": (b"GGUF" + bytes(64), "is a GGUF file"),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
    "a picture alone": (b"\x89PNG\r\n\x1a\n" + bytes(40), "a picture without the text sd-ti-embedding"),
    "a cut picture": (b"\x89PNG\r\n\x1a\n\0\0\x10\0tEXtsd-ti", "a picture without the text sd-ti-embedding"),
    "a wrong sum": (
        b"\x89PNG\r\n\x1a\n\0\0\0\x14tEXtsd-ti-embedding\0e30=\0\0\0\0",
        "its text sd-ti-embedding is damaged",
    ),
}
# The same of what a picture says.
PICTURES = {
    "no base64": "!!!",
    "a list": [1, 2],
    "nested": "[" * 100_000,
    "two words": {"string_to_param": {"*": {"TORCHTENSOR": [[1.0]]}, "a": {"TORCHTENSOR": [[1.0]]}}},
    "no numbers": {"string_to_param": {"*": {"TORCHTENSOR": [["a"]]}}},
    "ragged": {"string_to_param": {"*": {"TORCHTENSOR": [[1.0], [1.0, 2.0]]}}},
    "a huge number": {"string_to_param": {"*": {"TORCHTENSOR": [[10**400]]}}},
    "no tensor": {"string_to_param": {"*": "cos\nsystem\n"}},
}


def test_hostile_and_damaged_files_are_one_line_each(tmp_path, monkeypatch):
    def check(path, expected):
        with pytest.raises(ModelError) as caught:
            read_embeddings(EmbeddingFile(str(path)), SD_V1)
        line = str(caught.value)
        assert line.startswith(str(path)), line
        assert len(line.splitlines()) == 1, line
        caught.match(expected)

    for name, (content, expected) in HOSTILE.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content) if isinstance(content, bytes) else write(path, content)
        check(path, expected)
    for name, content in PICTURES.items():
        text = content if isinstance(content, str) else base64.b64encode(json.dumps(content).encode()).decode()
        text = base64.b64encode(text.encode()).decode() if name == "nested" else text
        check(write_picture(tmp_path / f"{name}.png", None, text=text), "text sd-ti-embedding is damaged, or holds no")
    check(write_picture(tmp_path / "x.png", document(np.zeros((1, 1, 2)))), r"has the shape \(1, 1, 2\)")
    check(write_picture(tmp_path / "y.png", document(np.zeros((1, 1024)))), "for Stable Diffusion 2.x")
    check(write_picture(tmp_path / "z.png", document(VECTORS), compressed=True), "a picture without the text")
    os.mkfifo(tmp_path / "pipe.safetensors")  # opening it would wait without end
    check(tmp_path / "pipe.safetensors", "is not a file")
    monkeypatch.setattr(textual_inversion, "_MOST_PNG_CHUNKS", 1)
    check(write_picture(tmp_path / "w.png", document(VECTORS)), "a picture without the text")
    with pytest.raises(ModelError, match=r"there is no embedding '/no/such\.safetensors': give a file, a folder, or"):
        read_embeddings(EmbeddingFile("/no/such.safetensors"))


def test_a_trigger_is_found_by_its_tokens(stage, caplog):
    toy, cat, style = word("toy"), word("<cat>", vectors=VECTORS[:1]), word("toy style", vectors=VECTORS[:2])
    words = LearnedWords([toy, cat, style], stage.ids)
    for text, expected in (
        ("a toy", "a toy toy' toy'"),
        ("A TOY, toys; toy-car", "a toy toy' toy' , toys ; toy toy' toy' - car"),  # no word: toys
        ("toy  Style", "toy style toy style'"),  # the longest first
        ("toy\nstyle toy", "toy style toy style' toy toy' toy'"),
        ("<cat>", "<cat>"),
        ("((<CAT>)) a<cat>.<cat>!", "(( <cat> )) a <cat> . <cat> !"),  # signs beside it do not hide it
        ("< cat >", "<cat>"),  # tokens know no spaces
        ("cat", "cat"),
        ("", ""),
    ):
        tokens = stage.tokens(text, words)
        shown = [
            token.word + "'" * token.joined if token.word else stage._tokenizer.decode([token.id]) for token in tokens
        ]
        assert " ".join(shown) == expected
    run = [token for token in stage.tokens("my toy style", words) if token.word]
    assert np.array_equal([token.vector for token in run], style.vectors)
    assert [token.joined for token in run] == [False, True]
    assert words.used(["a toy", "<cat> and (toy:1.2)"]) == (
        EmbeddingFile("toy.safetensors", "toy", toy.sha256),
        EmbeddingFile("toy.safetensors", "<cat>", cat.sha256),
    )
    assert words.used(["a cat"]) == ()


def test_two_names_of_a_word_work_and_a_doubtful_one_is_told(stage, caplog):
    caplog.set_level(logging.INFO, "kerasdiff")
    first = word("<one>", "toy", file="one.safetensors")
    words = LearnedWords([first], stage.ids)
    assert [token.word for token in stage.tokens("<one> toy", words)][::3] == ["<one>", "toy"]
    assert [file.trigger for file in words.used(["<one> toy"])] == ["<one>", "toy"]
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert caplog.records[0].getMessage() == (
        "'toy' is a word of the model, too; it stands for the embedding in one.safetensors"
    )
    caplog.clear()
    # A second name gives way to a first one, whatever the order; of two first ones, the first file is taken.
    second = word("toy", vectors=VECTORS[:1], file="two.safetensors")
    words = LearnedWords([first, second], stage.ids)
    assert len(stage.tokens("toy", words)) == 1
    caplog.clear()
    words = LearnedWords([second, word("Toy", file="three.safetensors")], stage.ids)
    assert len(stage.tokens("toy", words)) == 1
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "'Toy' is the trigger of two.safetensors and of three.safetensors; the first one is used"
    ]
    caplog.clear()
    LearnedWords([word("<two words>"), word("<two words>")], stage.ids)
    assert not caplog.records
    with pytest.raises(ModelError, match=r"toy\.safetensors: the trigger 'toy' has no token; give another one"):
        LearnedWords([word("toy")], lambda text: [])


def test_vectors_stay_in_one_chunk_and_what_is_cut_off_has_its_name(stage):
    words = LearnedWords([word("<toy>")], stage.ids)
    prompt = "a " * 73 + "<toy> red"
    chunks = stage.chunked(prompt, 2, words)
    assert [len(chunk) for chunk in chunks] == [73, 4]
    assert [token.word for token in chunks[1]] == ["<toy>"] * 3 + [""]
    assert stage.chunks("a " * 72 + "<toy>", words) == 1
    with pytest.warns(UserWarning, match=r"has 79 tokens and the model reads 77; .* is not used: '<toy> red'$"):
        kept = stage.chunked(prompt, 1, words)
    assert [len(chunk) for chunk in kept] == [73]
    left = TextStage(None, False, None, Tokenizer.clip(), TextEncoderConfig())
    left._tokenizer.truncation_side = "left"
    with pytest.warns(UserWarning, match=r"is not used: 'a <toy>'$"):
        kept = left.chunked("a <toy> " + "a " * 74, 1, words)
    assert [len(chunk) for chunk in kept] == [74]


def test_a_trigger_may_be_a_word_that_the_checkpoint_has_already():
    tokenizer = Tokenizer.clip()
    tokenizer = Tokenizer.from_json(tokenizer.to_json(), "here")
    tokenizer.vocabulary.add_tokens(["<toy>", "<toy>_1", "<hat>"])
    stage = TextStage(None, False, None, tokenizer, TextEncoderConfig(vocab_size=49411))
    words = LearnedWords([word("<toy>", vectors=VECTORS[:1])], stage.ids)
    assert stage.ids("a <toy> <hat>") == [320, 49408, 49409, 49410]
    assert [token.id if token.vector is None else None for token in stage.tokens("a <toy> <hat>", words)] == [
        *(320, None, 49410)
    ]


def test_info_tells_what_a_file_holds(tmp_path, capsys):
    path = write(tmp_path / "toy.safetensors", {"<cat-toy>": VECTORS}, ss_steps=1500)
    assert info.PROGRAM.call(info.main, ["kerasdiff.info", f"--embedding={path}"]) == 0
    told = "<cat-toy> or toy: 3 vectors of width 768, for Stable Diffusion 1.x, trained for 1500 steps, in "
    assert capsys.readouterr().out == f"{told}{path}\n"
    assert info.PROGRAM.call(info.main, ["kerasdiff.info", f"--embedding={path}", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["embeddings"]
    assert (found["triggers"], found["vectors"], found["width"]) == (["<cat-toy>", "toy"], 3, 768)
    path.write_bytes(b"")
    assert info.PROGRAM.call(info.main, ["kerasdiff.info", f"--embedding={path}"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_text_of_a_picture_is_checked_against_its_sum(tmp_path):
    path = write_picture(tmp_path / "toy.png", document(VECTORS))
    content = bytearray(path.read_bytes())
    place = content.index(b"sd-ti-embedding") + 200
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(ModelError, match="its text sd-ti-embedding is damaged"):
        read_embeddings(EmbeddingFile(str(path)), SD_V1)
