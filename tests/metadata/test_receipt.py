"""Receipts: to JSON, into pictures and back, and what files from anywhere do to them."""

from __future__ import annotations

import bisect
import dataclasses
import io
import json
import random
import re
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from xml.etree import ElementTree

import numpy as np
import pytest
import sd_parsers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import kerasdiff
from kerasdiff import metadata
from kerasdiff.adapter_files import EmbeddingFile, Lora
from kerasdiff.guidance import GuidanceScale
from kerasdiff.hires import Hires, make_hires
from kerasdiff.metadata import a1111_text, embedded
from kerasdiff.metadata.a1111 import SAMPLER_NAMES, SCHEDULE_TYPES
from kerasdiff.metadata.receipt import ARRAYS, LARGEST
from kerasdiff.models.config import TINY
from kerasdiff.prompts import a1111_syntax
from kerasdiff.request import Request, make_request

KINDS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
PIXELS = np.random.default_rng(0).integers(0, 256, (16, 8, 3)).astype("uint8")
TEXTS = st.text(st.characters(exclude_categories=()), max_size=40) | st.text(max_size=300)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
quick = settings(max_examples=40, deadline=None, database=None)

A = Request(
    prompts=("a cat", "a dog, running: fast", "a bird"),
    negative_prompts=("", "blur", ""),
    seeds=(7, 2**64 - 1, 0),
    height=64,
    width=128,
    num_steps=20,
    guidance_scale=GuidanceScale.from_plain(7.5),
    sampler="euler_a",
    spacing="karras",
    sampler_options=(("eta", 0.1), ("lower_order_final", True), ("solver_order", 2), ("solver_type", "heun")),
)
RECEIPT = metadata.Receipt(
    request=A,
    index=1,
    model="models/photo.safetensors",
    revision=None,
    variant="fp16",
    weights="pretrained",
    model_hash="0123456789abcdef" * 4,
    precision="float32",
    jit_compile=True,
    inference_only=True,
    backend="tensorflow",
    device="a processor avx2",
    versions={"kerasdiff": "0.1.0", "tensorflow": "2.20.0", "keras": "3.14.1"},
    given={"latents": "ab" * 32},
    pictures=None,
    nsfw=None,
)


def receipt_of(request=None, **changes):
    """The receipt above with other fields; fields of the request in a dict."""
    request = dict(request or {})
    if "guidance_scale" in request:
        request["guidance_scale"] = GuidanceScale.from_plain(request["guidance_scale"])
    return dataclasses.replace(RECEIPT, request=dataclasses.replace(A, **request), **changes)


def one(prompt, negative="", **changes):
    """A receipt of a single image."""
    return receipt_of({"prompts": (prompt,), "negative_prompts": (negative,), "seeds": (1,)}, index=0, **changes)


def saved(receipt, kind):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, **metadata.save_arguments(receipt, kind))
    return file.getvalue()


@pytest.fixture(scope="module")
def back(tmp_path_factory):
    """Receipt and kind -> the receipt that is read from a file of that kind."""
    folder = tmp_path_factory.mktemp("pictures")

    def save_and_read(receipt, kind):
        path = folder / f"a.{KINDS[kind]}"
        path.write_bytes(saved(receipt, kind))
        return metadata.read(path)

    return save_and_read


@pytest.fixture
def refusal(tmp_path):
    """Bytes of a file -> the one line that `read` says about it."""

    def message(content):
        path = tmp_path / "a.png"
        path.write_bytes(content)
        with pytest.raises(kerasdiff.RequestError) as caught:
            metadata.read(path)
        assert "\n" not in str(caught.value)
        return str(caught.value).removeprefix(str(path)).removeprefix(": ").strip()

    return message


def receipt_or_line(make, value):
    """Fails unless a receipt is made of a value, or it is refused in one line."""
    try:
        assert isinstance(make(value), metadata.Receipt)
    except kerasdiff.RequestError as error:
        line = str(error)
    else:
        return
    assert "\n" not in line


def refused(text):
    """The one line that `from_json` says."""
    with pytest.raises(kerasdiff.RequestError) as caught:
        metadata.Receipt.from_json(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    return str(caught.value)


def changed(path, value):
    """The JSON of the receipt above with another value at a path such as "request/seeds"."""
    document = json.loads(RECEIPT.to_json())
    *groups, name = path.split("/")
    place = document
    for group in groups:
        place = place[group]
    place[name] = value
    return json.dumps(document)


REQUESTS = st.integers(1, 3).flatmap(
    lambda count: st.builds(
        Request,
        prompts=st.tuples(*[TEXTS] * count),
        negative_prompts=st.tuples(*[TEXTS] * count),
        seeds=st.tuples(*[st.integers(0, 2**64 - 1)] * count),
        height=st.integers(8, 4096),
        width=st.integers(8, 4096),
        num_steps=st.integers(1, 1000),
        guidance_scale=st.one_of(
            FLOATS,
            st.tuples(FLOATS, FLOATS),
            st.tuples(*[st.tuples(FLOATS)] * count),
            st.tuples(*[st.tuples(FLOATS, FLOATS)] * count),
        ).map(GuidanceScale.from_plain),
        sampler=st.sampled_from(sorted(kerasdiff.SAMPLERS)),
        spacing=st.none() | st.sampled_from(sorted(kerasdiff.SPACINGS)),
        timesteps=st.none() | st.tuples(FLOATS, FLOATS),
        sigmas=st.none() | st.tuples(FLOATS),
        sampler_options=st.lists(
            st.tuples(TEXTS, TEXTS | FLOATS | st.booleans() | st.none() | st.integers(-9, 2**64 - 1)), max_size=3
        ).map(tuple),
        guidance_interval=st.tuples(FLOATS, FLOATS),
        guidance_rescale=FLOATS,
        strengths=st.none() | st.tuples(*[FLOATS] * count),
    )
)
RECEIPTS = REQUESTS.flatmap(
    lambda request: st.builds(
        metadata.Receipt,
        request=st.just(request),
        index=st.integers(0, len(request) - 1),
        model=TEXTS,
        revision=st.none() | TEXTS,
        variant=st.none() | TEXTS,
        weights=st.sampled_from(["pretrained", "random"]),
        model_hash=st.none() | st.just("ab" * 32),
        precision=st.just("bfloat16"),
        jit_compile=st.booleans(),
        inference_only=st.booleans(),
        backend=st.just("jax"),
        device=TEXTS,
        versions=st.dictionaries(TEXTS, TEXTS, max_size=3).map(lambda found: {**found, "kerasdiff": "0.1.0.dev1+x"}),
        given=st.dictionaries(TEXTS, TEXTS, max_size=2),
        pictures=st.none() | st.just({"image": "cd" * 32, "mask": "ef" * 32}),
        nsfw=st.none() | st.booleans(),
    )
)


@quick
@given(RECEIPTS)
def test_json_gives_the_same_receipt(receipt):
    text = receipt.to_json()
    read = metadata.Receipt.from_json(text)
    assert read == receipt
    # As text, 7 and 7.0, 0.0 and -0.0, and a list and a tuple differ.
    assert repr(read.request) == repr(receipt.request)
    assert read.to_json() == text
    assert "\n" not in text


@pytest.mark.parametrize("kind", KINDS)
@quick
@given(receipt=RECEIPTS)
@example(
    receipt=one('a "quoted", <b>&amp;</b>\r\n\ttext: 中文 🎨 \0\x1b\x7f\x85\u2028\ufeff\ufffe\uffff]]>', "\\u0000 \\")
)
@example(receipt=one("a path that is no Unicode", model="models/\udce9t\udce9"))
@example(receipt=one("Negative prompt: x\nSteps: 3, Sampler: y", "Steps: 1"))
def test_pictures_give_the_same_receipt(back, kind, receipt):
    assert back(receipt, kind) == receipt


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("letter", ["a", "&", "é", "中", "🎨"])
def test_5000_characters_fit(back, kind, letter):
    receipt = one(letter * 5000, letter * 2000)
    assert back(receipt, kind) == receipt


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_batch_is_told_by_one_row(back, kind):
    prompts = tuple(f"prompt {number} " + "word " * 200 for number in range(200))
    request = {"prompts": prompts, "negative_prompts": prompts[::-1], "seeds": tuple(range(200))}
    receipt = receipt_of(request, index=150)
    read = back(receipt, kind)
    assert read == receipt.alone()
    assert (read.index, read.request.prompts, read.request.seeds) == (0, (prompts[150],), (150,))
    assert len(saved(receipt, kind)) < 20_000


def test_the_row_of_one_image():
    request = {
        "num_steps": 2,
        "guidance_scale": ((1.0, 2.0), (3.0, 4.0), (5.0, 6.0)),
        "strengths": (0.1, 0.2, 0.3),
        "pictures": np.zeros(3),
    }
    alone = receipt_of(request, index=2).alone()
    assert alone.index == 0
    assert alone.request == dataclasses.replace(
        A,
        prompts=("a bird",),
        negative_prompts=("",),
        seeds=(0,),
        num_steps=2,
        guidance_scale=GuidanceScale(((5.0, 6.0),), per_image=True, per_step=True),
        strengths=(0.3,),
    )
    alone = receipt_of({"guidance_scale": (7.0, 1.0, 2.0)}).alone().request
    assert alone.guidance_scale == GuidanceScale(((7.0, 1.0, 2.0),), per_step=True)


def test_a_prompt_that_does_not_fit_is_refused():
    long = one("a" * 40_000)
    with pytest.raises(
        kerasdiff.RequestError, match=r"too long for the metadata of a JPEG, .* save as \.png or \.webp"
    ):
        metadata.save_arguments(long, "JPEG")
    assert saved(long, "PNG")
    for kind in KINDS:
        with pytest.raises(kerasdiff.RequestError, match="the prompt is too long"):
            metadata.save_arguments(one("a" * LARGEST), kind)


@pytest.mark.parametrize("letter", ["a", "&"])
def test_the_longest_prompt_that_fits_a_jpeg(back, letter):
    def fits(length):
        try:
            return bool(metadata.save_arguments(one(letter * length), "JPEG"))
        except kerasdiff.RequestError:
            return False

    length = bisect.bisect_left(range(40_000), True, key=lambda length: not fits(length)) - 1
    assert length > 10_000
    assert back(one(letter * length), "JPEG") == one(letter * length)


def test_the_comment_is_of_the_type_and_byte_order_that_exif_asks_for():
    exif = metadata.save_arguments(one("a"), "JPEG")["exif"]
    assert exif.startswith(b"Exif\0\0MM")
    assert b"\x92\x86\0\7" in exif
    read = Image.Exif()
    read.load(exif)
    assert list(read) == [0x8769]
    assert read.get_ifd(0x8769) == {0x9286: b"UNICODE\0" + metadata.parameters_text(one("a")).encode("utf-16-be")}


def test_an_unknown_kind_is_refused():
    with pytest.raises(kerasdiff.RequestError, match="kind='GIF' is unknown"):
        metadata.save_arguments(RECEIPT, "GIF")


def test_what_make_request_makes_comes_back():
    request = make_request(
        TINY,
        ["a", "b"],
        batch_size=2,
        seed=[2**64 - 1, 0, 2**53 + 1, 5],
        sampler="dpmpp_2m",
        sampler_options={"solver_order": np.int64(2), "lower_order_final": True},
        guidance_scale=[2.5, 1.0, 0.1],
        sigmas=[14.0, 3.3, 0.7, 0],
    )
    receipt = dataclasses.replace(RECEIPT, request=request)
    assert metadata.Receipt.from_json(receipt.to_json()).request == request
    request = make_request(TINY, ["a", "b"], image=np.zeros((64, 64, 3), "uint8"), strength=[0.25, 1], seed=1)
    receipt = dataclasses.replace(RECEIPT, request=request)
    assert metadata.Receipt.from_json(receipt.to_json()).request == dataclasses.replace(request, pictures=None)
    receipt = receipt_of({"sampler_options": (("eta", np.float32(0.1)),)})
    assert metadata.Receipt.from_json(receipt.to_json()) == receipt


@pytest.mark.parametrize("value", [object(), float("nan"), float("inf")])
def test_an_option_that_json_does_not_have_is_refused(value):
    with pytest.raises(kerasdiff.RequestError, match="cannot be written as metadata"):
        receipt_of({"sampler_options": (("eta", value),)}).to_json()


@pytest.mark.parametrize("kind", KINDS)
def test_equal_runs_give_equal_files(kind):
    turned = dataclasses.replace(
        RECEIPT,
        versions=dict(reversed(RECEIPT.versions.items())),
        given=dict(reversed(RECEIPT.given.items())),
        request=dataclasses.replace(A),
    )
    assert saved(RECEIPT, kind) == saved(RECEIPT, kind) == saved(turned, kind)
    assert saved(RECEIPT, kind) != saved(dataclasses.replace(RECEIPT, index=0), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_without_a_receipt(kind):
    plain = io.BytesIO()
    Image.fromarray(PIXELS).save(plain, kind)
    with Image.open(plain) as before, Image.open(io.BytesIO(saved(RECEIPT, kind))) as after:
        assert np.array_equal(np.asarray(before), np.asarray(after))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("pictures", "expected"),
    [(None, "trainedAlgorithmicMedia"), ({"image": "ab" * 32}, "compositeWithTrainedAlgorithmicMedia")],
)
def test_xmp_says_how_the_image_came_about(kind, pictures, expected):
    content = saved(one('<&">', pictures=pictures), kind)
    with Image.open(io.BytesIO(content)) as image:
        document = image.info["XML:com.adobe.xmp" if kind == "PNG" else "xmp"]
    found = ElementTree.fromstring(document).findtext(
        ".//{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    )
    assert found == f"http://cv.iptc.org/newscodes/digitalsourcetype/{expected}"


def test_the_text_of_one_image():
    old = dataclasses.replace(RECEIPT, model="models/photo.ckpt")
    assert metadata.parameters_text(old) == metadata.parameters_text(RECEIPT)
    assert metadata.parameters_text(RECEIPT) == (
        "a dog, running: fast\n"
        "Negative prompt: blur\n"
        "Steps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 7.5, Seed: 18446744073709551615, "
        "Size: 128x64, Model hash: 0123456789, Model: photo, Version: kerasdiff 0.1.0"
    )
    other = receipt_of(
        {
            "sampler": "dpm_solver",
            "spacing": "trailing",
            "guidance_scale": (3.0, 5.0),
            "num_steps": 2,
            "strengths": (1.0, 0.25, 0.75),
        },
        index=2,
        model="hf://someone/a, b: c",
        model_hash=None,
    )
    assert metadata.parameters_text(other) == (
        "a bird\n"
        "Steps: 2, Sampler: dpm_solver, Schedule type: trailing, CFG scale: 3, Seed: 0, "
        'Size: 128x64, Model: "a, b: c", Denoising strength: 0.75, Version: kerasdiff 0.1.0'
    )


def test_the_text_without_a_prompt():
    assert metadata.parameters_text(one("", "blur")).startswith("Negative prompt: blur\nSteps: 20, ")
    assert metadata.parameters_text(one("")).startswith("Steps: 20, ")


@pytest.mark.parametrize(
    ("request_fields", "expected"),
    [
        ({"spacing": None, "sampler": "euler"}, ", Schedule type: Uniform,"),
        ({"spacing": None, "sampler": "ddim"}, ", Schedule type: leading,"),
        ({"spacing": None, "timesteps": (9.0, 1.0)}, "Sampler: Euler a, CFG scale"),
        ({"spacing": None, "sigmas": (9.0, 0.0)}, "Sampler: Euler a, CFG scale"),
        ({"guidance_scale": ((1.0,), (2.0,), (3.0,))}, "CFG scale: 2,"),
        ({"guidance_scale": ((1.0, 9.0), (2.25, 9.0), (3.0, 9.0))}, "CFG scale: 2.25,"),
        ({"guidance_scale": ()}, "Karras, Seed"),
        ({"token_merging_ratio": 0.5}, ", Token merging ratio: 0.5, Version"),
        ({"tile": "xy"}, "Model: photo, Tiling: True, Version"),
        ({"tile": "x"}, "Model: photo, Version"),
        ({"guidance_scale": ((), (), ())}, "Karras, Seed"),
        ({"sampler": "of another version", "spacing": None}, "Sampler: of another version, CFG scale"),
        ({"clip_skip": 1}, "128x64, Model hash: 0123456789, Model: photo, Clip skip: 2, Version"),
        ({"prompt_syntax": "a1111", "emphasis": "no_norm"}, ", Emphasis: No norm, Version"),
        ({"prompt_syntax": "compel"}, ", Prompt syntax: compel, Version"),
        ({"hires": Hires(2.0)}, "Denoising strength: 0.7, Hires upscale: 2, Hires upscaler: Latent, Version"),
        ({"hires": Hires(width=96, steps=9)}, "Hires resize: 96x0, Hires steps: 9, Hires upscaler: Latent, Version"),
        (
            {
                "hires": Hires(
                    1.5, sampler="heun", spacing="beta", guidance_scale=4.0, upscaler="latent (nearest-exact)"
                )
            },
            ", Hires sampler: Heun, Hires schedule type: Beta, Hires CFG Scale: 4, Hires upscale: 1.5, "
            "Hires upscaler: Latent (nearest-exact), Version",
        ),
        ({"hires": Hires(2.0, sampler="euler_a", spacing="karras")}, "0.7, Hires upscale: 2, Hires upscaler"),
        (
            {"hires": Hires(2.0, prompt="a (b), c", negative_prompt='"d"'), "loras": (Lora("/x/e.safetensors"),)},
            'Hires prompt: "a \\\\(b\\\\), c <lora:e:1>", Hires negative prompt: "\\"d\\"", Hires upscale',
        ),
    ],
)
def test_settings_that_are_told_in_other_words(request_fields, expected):
    assert expected in metadata.parameters_text(receipt_of(request_fields))


def test_plain_signs_are_written_as_plain_signs():
    texts = {"prompts": (r"a (b) [c] \ AND <lora:d:1>",), "negative_prompts": ("a BREAK",), "seeds": (1,)}
    text = metadata.parameters_text(receipt_of(texts, index=0))
    assert text.startswith("a \\(b\\) \\[c\\] \\\\ and < lora:d:1>\nNegative prompt: a break\nSteps")
    text = metadata.parameters_text(receipt_of({**texts, "prompt_syntax": "a1111"}, index=0))
    assert text.startswith("a (b) [c] \\ AND <lora:d:1>\nNegative prompt: a BREAK\nSteps")


@quick
@given(st.lists(st.sampled_from([*r"ab()[]\:|<>., ", "AND", "BREAK", "<lora:a:1>", "1.5"]), max_size=20).map("".join))
@example("(a:1.3) [b:c:3] \\( AND [d|e] 16:9")
def test_plain_signs_mean_nothing_in_that_interface(text):
    written = metadata.parameters_text(one(f"x {text}")).partition("\nSteps: ")[0]
    (part,) = a1111_syntax.joined(written)
    assert a1111_syntax.joined(written)[part] == 1
    ((_, version),) = a1111_syntax.schedule(part, 20)
    ((words, weight),) = a1111_syntax.fragments(version)
    assert weight == 1
    without = str.maketrans("", "", " ")
    assert words.translate(without).lower() == f"x{text}".translate(without).lower()
    assert not re.search(r"<\w+:[^>]+>", written)


def test_loras_are_tags_and_used_embeddings_have_hashes(back):
    loras = (
        Lora("/x/style.safetensors", 0.8, 0.8, "ab" * 32, "0123456789ab"),
        Lora("org/colour", 1.0, 0.5, "cd" * 32, "ba9876543210"),
    )
    embeddings = (EmbeddingFile("/x/toy.pt", None, "ef" * 32), EmbeddingFile("/x/b.pt", "<word>", "12" * 32))
    receipt = receipt_of({"loras": loras, "embeddings": embeddings, "prompts": ("a cat", "A TOY", "a bird")})
    text = metadata.parameters_text(receipt)
    assert text.startswith("A TOY <lora:style:0.8> <lora:colour:0.5:1>\nNegative")
    assert 'Lora hashes: "style: 0123456789ab, colour: ba9876543210", TI hashes: "toy: efefefefefef", Version' in text
    read = back(receipt, "PNG")
    assert read.request.loras == (dataclasses.replace(loras[0], file="style.safetensors"), loras[1])
    document = json.loads(receipt.to_json())
    for lora in document["request"]["loras"]:
        del lora["short_hash"]  # as files from before it have them
    read = metadata.Receipt.from_json(json.dumps(document)).request.loras
    assert read[1] == dataclasses.replace(loras[1], short_hash=None)


def test_names_of_that_interface_are_of_samplers_and_spacings_here():
    assert set(SAMPLER_NAMES) <= set(kerasdiff.SAMPLERS)
    assert set(SCHEDULE_TYPES) <= set(kerasdiff.SPACINGS)
    assert len(set(SAMPLER_NAMES.values())) == len(SAMPLER_NAMES)


def test_characters_that_no_chunk_holds_are_replaced_in_the_text_only():
    receipt = one("a\0b\udce9c")
    assert metadata.parameters_text(receipt).startswith("a\ufffdb\ufffdc\n")
    assert metadata.Receipt.from_json(receipt.to_json()) == receipt


OPENED = []


def parsed_by_another(data):
    """What another program reads; it tells images apart by their address, so none is freed."""
    OPENED.append(Image.open(io.BytesIO(data)))
    return sd_parsers.ParserManager().parse(OPENED[-1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("prompt", "negative"),
    [
        ("a cat", ""),
        ("a cat, {fluffy:1.2}, 4k: best", "blur, worst: 1"),
        ("line\nand line\n\nand: line, Size: 3 :", "several\nlines"),
        ("中文, 🎨 é", "ß, 日本"),
        ("word " * 1000 + "end", "x " * 1000 + "end"),
    ],
)
def test_another_program_reads_the_same(kind, prompt, negative):
    receipt = one(prompt, negative)
    found = parsed_by_another(saved(receipt, kind))
    assert found.generator is sd_parsers.data.Generators.AUTOMATIC1111
    (sampler,) = found.samplers
    assert [one.value for one in sampler.prompts] == [prompt]
    assert [one.value for one in sampler.negative_prompts] == ([negative] if negative else [])
    assert sampler.name == "Euler a"
    assert sampler.parameters == {"steps": "20", "scheduler": "Karras", "cfg_scale": "7.5", "seed": "1"}
    assert (sampler.model.name, sampler.model.hash) == ("photo", "0123456789")
    assert found.metadata == {"Size": "128x64", "Version": "kerasdiff 0.1.0"}


def test_another_program_reads_a_second_pass():
    hires = Hires(2.0, steps=9, strength=0.5, sampler="heun", guidance_scale=4.0)
    found = parsed_by_another(saved(receipt_of({"hires": hires}), "PNG")).metadata
    assert {name: value for name, value in found.items() if name.startswith(("Hires", "Den"))} == {
        "Denoising strength": "0.5",
        "Hires sampler": "Heun",
        "Hires CFG Scale": "4",
        "Hires upscale": "2",
        "Hires steps": "9",
        "Hires upscaler": "Latent",
    }


@pytest.mark.parametrize(
    "hires",
    [
        Hires(2.0, steps=9, strength=0.5, sampler="heun", spacing="beta", guidance_scale=4.0),
        Hires(height=96, width=128, upscaler="lanczos", prompt='a cat, "big": one', negative_prompt='"b"'),
        Hires(width=96, upscaler="latent (bicubic antialiased)", spacing="exponential"),
    ],
)
def test_the_text_says_all_of_a_second_pass(hires):
    fields = {"hires": hires, "sampler": "euler_a", "spacing": "karras"}
    found = a1111_text.read({"parameters": metadata.parameters_text(receipt_of(fields))})
    assert not [entry for entry in found.left_out if "ires" in entry]
    read = make_hires("hires", found.arguments["hires"])
    own = {} if hires.sampler or not hires.spacing else {"sampler": "euler_a"}  # which is the first one's
    assert read == dataclasses.replace(hires, **own)
    receipt = receipt_of(fields)
    assert metadata.Receipt.from_json(receipt.to_json()) == receipt


@pytest.mark.parametrize("name", sorted(kerasdiff.SAMPLERS))
def test_another_program_reads_every_sampler(name):
    (sampler,) = parsed_by_another(saved(receipt_of({"sampler": name}), "PNG")).samplers
    assert sampler.name == SAMPLER_NAMES.get(name, name)


def test_what_differs_now():
    now = receipt_of(
        model_hash=None,
        precision="bfloat16",
        jit_compile=False,
        inference_only=False,
        backend="jax",
        device="another\nprocessor",
        versions={"kerasdiff": "0.1.0", "tensorflow": "2.21.0", "jax": "0.7.0", "x\ny": "1"},
        index=0,
        nsfw=True,
    )
    assert metadata.differences(RECEIPT, RECEIPT) == []
    assert metadata.differences(RECEIPT, now) == [
        "jax none then, 0.7.0 now",
        "keras 3.14.1 then, none now",
        "tensorflow 2.20.0 then, 2.21.0 now",
        "'x\\ny' none then, 1 now",
        "backend tensorflow then, jax now",
        "device a processor avx2 then, 'another\\nprocessor' now",
        "precision float32 then, bfloat16 now",
        "jit_compile True then, False now",
        "inference_only True then, False now",
        f"model hash {'0123456789abcdef' * 4} then, none now",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"index": 3}, "index=3 is out of range; the request has 3 images"),
        ({"index": -1}, "index=-1 is out of range"),
        ({"request": {"seeds": (1, 2)}}, "the request's seeds has 2 entries for 3 images"),
        ({"request": {"strengths": (0.5,)}}, "the request's strengths has 1 entries for 3 images"),
        ({"request": {"guidance_scale": ((1.0,), (2.0,))}}, "the request's guidance_scale has 2 entries"),
    ],
)
def test_rows_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(kerasdiff.RequestError, match=message):
        receipt_of(**changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "damaged: it is not JSON"),
        ("{", "damaged: it is not JSON"),
        ("[" * 100_000, "damaged: it is not JSON"),
        ('{"a":' * 100_000, "damaged: it is not JSON"),
        ("9" * 100_000, "damaged: it is not JSON"),
        ("[]", "not a JSON object"),
        ("NaN", "not a JSON object"),
        ("{}", "does not say of which version"),
        (changed("kerasdiff", 1), "does not say of which version"),
        (changed("kerasdiff", "0.1\n0"), "does not say of which version"),
        (changed("format", 2), "kerasdiff 0.1.0 in another format than kerasdiff"),
        (" " * LARGEST + "{}", f"too long: {LARGEST + 2} characters"),
        (changed("request", None), "its request is not a JSON object"),
        (changed("request", []), "its request is not a JSON object"),
        (changed("request/prompts", "a cat"), "its prompts is of a wrong kind"),
        (changed("request/prompts", [1, 2, 3]), "its prompts is of a wrong kind"),
        (changed("request/prompts", ["a", "b"]), "the request's negative_prompts has 3 entries for 2 images"),
        (changed("request/prompts", []), "out of range; the request has 0 images"),
        (changed("request/seeds", [1, 2, 2**64]), "its seeds is of a wrong kind or out of range"),
        (changed("request/seeds", [1, 2, 3.0]), "its seeds is of a wrong kind"),
        (changed("request/seeds", [1, 2, True]), "its seeds is of a wrong kind"),
        (changed("request/height", "64"), "its height is of a wrong kind"),
        (changed("request/height", None), "its height is of a wrong kind"),
        (changed("request/guidance_scale", [1.0, [2.0]]), "its guidance_scale is of a wrong kind"),
        (changed("request/guidance_interval", [0.0]), "its guidance_interval is of a wrong kind"),
        (changed("request/sampler_options", [["eta", {"a": 1}]]), "its sampler_options is of a wrong kind"),
        (changed("request/sampler_options", [["eta", 1, 2]]), "its sampler_options is of a wrong kind"),
        (changed("request/sampler_options", {"eta": 1}), "its sampler_options is of a wrong kind"),
        (changed("request/guidance_rescale", 0.5).replace("0.5", "1e999"), "its guidance_rescale is of a wrong kind"),
        (changed("request/guidance_rescale", 0.5).replace("0.5", "NaN"), "its guidance_rescale is of a wrong kind"),
        (changed("request/guidance_rescale", 0.5).replace("0.5", "[" * 900 + "]" * 900), "guidance_rescale|not JSON"),
        (changed("versions", {"numpy": 2}), "its versions is of a wrong kind"),
        (changed("given", []), "its given is of a wrong kind"),
        (changed("jit_compile", 1), "its jit_compile is of a wrong kind"),
        (changed("index", 3), "damaged: index=3 is out of range"),
    ],
)
def test_damaged_json_is_refused(text, message):
    assert re.search(message, refused(text))


def test_fields_of_another_version_are_named_with_both_versions():
    document = json.loads(changed("kerasdiff", "0.9.0"))
    del document["request"]["rng"]
    document["request"].update({"vae\n": 1, "adapters": []})
    message = refused(json.dumps(document))
    assert f"written by kerasdiff 0.9.0, and kerasdiff {kerasdiff.__version__} cannot read it" in message
    assert "it does not have rng, has 'vae\\n', has 'adapters'; use kerasdiff 0.9.0" in message
    document = json.loads(changed("created", 0))
    del document["nsfw"]
    assert "it does not have nsfw, has 'created'" in refused(json.dumps(document))
    assert "has 'pictures'" in refused(changed(f"request/{ARRAYS[0]}", None))
    assert len(refused(changed("x" * 100_000, None))) < 300


@given(st.recursive(st.none() | st.booleans() | st.floats() | TEXTS, lambda v: st.lists(v) | st.dictionaries(TEXTS, v)))
@quick
def test_json_of_anything_else_is_refused(value):
    assert refused(json.dumps(value))
    for path in ("request", "request/prompts", "request/sampler_options", "versions", "index"):
        receipt_or_line(metadata.Receipt.from_json, changed(path, value))


def test_files_that_are_no_pictures_are_refused(tmp_path, refusal, monkeypatch):
    with pytest.raises(kerasdiff.RequestError, match=r"there is no file .*nothing\.png"):
        metadata.read(tmp_path / "nothing.png")
    with pytest.raises(kerasdiff.RequestError, match="there is no file"):
        metadata.read(tmp_path)
    with pytest.raises(kerasdiff.RequestError, match="path must be the path of an image, not int"):
        metadata.read(3)
    gif = io.BytesIO()
    Image.fromarray(PIXELS).save(gif, "GIF")
    for content in (b"", b"\x89PNG\r\n\x1a\n", b"RIFF", b"text" * 1000, gif.getvalue()):
        assert refusal(content) == "is not a PNG, JPEG or WebP image, or is damaged"
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(2**28 + 1)
    with pytest.raises(kerasdiff.RequestError, match="is larger than 256 MiB"):
        metadata.read(tmp_path / "large.png")

    def forbidden(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(embedded, "plugin_of", forbidden)
    assert refusal(b"") == "cannot be read: Permission denied"


def test_reading_leaves_the_process_as_it_is(tmp_path, monkeypatch):
    """Also in threads, where `warnings.catch_warnings` would put back what another thread had set."""
    (tmp_path / "a.png").write_bytes(saved(RECEIPT, "PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    filters, switches = list(warnings.filters), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: metadata.read(tmp_path / "a.png"), range(300)))
    finally:
        sys.setswitchinterval(switches)
    assert set(map(id, warnings.filters)) == set(map(id, filters))
    assert all(one == RECEIPT for one in found)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("invert_mask", True),
        ("deep_cache_interval", 3),
        ("deep_cache_branch", 2),
        ("token_merging_ratio", 0.5),
        ("tile", "x"),
    ],
)
def test_what_is_switched_on_is_in_the_receipt_and_what_is_off_is_not(field, value):
    assert field not in RECEIPT.to_json()
    changed = dataclasses.replace(RECEIPT, request=dataclasses.replace(RECEIPT.request, **{field: value}))
    assert f'"{field}": {json.dumps(value)}' in changed.to_json()
    assert metadata.Receipt.from_json(changed.to_json()) == changed
    assert metadata.Receipt.from_json(RECEIPT.to_json()) == RECEIPT


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_without_a_receipt_are_told_from_those_of_other_programs(kind, refusal):
    nothing = "has no embedded metadata: it was saved without, or another program removed it"

    def picture(text):
        arguments = metadata.save_arguments(RECEIPT, kind)
        if kind == "PNG":
            arguments["pnginfo"] = PngInfo()
            arguments["pnginfo"].add_text("parameters", text)
        else:
            exif = Image.Exif()
            exif[0x8769] = {0x9286: b"UNICODE\0" + text.encode("utf-16-be")}
            arguments = {"exif": exif}
        file = io.BytesIO()
        Image.fromarray(PIXELS).save(file, kind, **arguments)
        return file.getvalue()

    plain = io.BytesIO()
    Image.fromarray(PIXELS).save(plain, kind)
    assert refusal(plain.getvalue()) == nothing
    assert refusal(picture("a holiday")) == nothing
    ours = "was made by kerasdiff 0.1.0, and only kerasdiff's metadata is read"
    assert refusal(picture(metadata.parameters_text(RECEIPT))).startswith(ours)
    foreign = "a secret\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Version: v1.10.1"
    theirs = "was made by AUTOMATIC1111 v1.10.1, and only kerasdiff's metadata is read; kerasdiff.replay takes over "
    assert refusal(picture(foreign)) == f"{theirs}what it can"


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_pictures_give_the_receipt_or_one_line(kind, tmp_path):
    whole, chance = saved(RECEIPT, kind), random.Random(0)
    damaged = [whole[: chance.randrange(len(whole))] for _ in range(60)]
    for _ in range(200):
        content = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            content[chance.randrange(min(3000, len(whole)))] ^= 1 << chance.randrange(8)
        damaged.append(bytes(content))
    path = tmp_path / "a.png"
    for content in damaged:
        path.write_bytes(content)
        receipt_or_line(metadata.read, path)


def test_text_that_swells_is_refused(refusal):
    for key in ("kerasdiff", "parameters"):
        chunks = PngInfo()
        chunks.add_text(key, "[" * 2**22, zip=True)
        file = io.BytesIO()
        Image.fromarray(PIXELS).save(file, "PNG", pnginfo=chunks)
        assert refusal(file.getvalue()) == "is not a PNG, JPEG or WebP image, or is damaged"
    chunks = PngInfo()
    chunks.add_text("kerasdiff", "[" * 2**22)
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG", pnginfo=chunks)
    assert "the metadata is too long" in refusal(file.getvalue())


def test_texts_of_other_programs_may_be_large_or_damaged():
    arguments = metadata.save_arguments(RECEIPT, "PNG")
    arguments["pnginfo"].add_text("workflow", '{"n": 1}' * 2**19, zip=True)
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG", **arguments)
    assert metadata.read_bytes(file.getvalue()) == RECEIPT
    whole = saved(RECEIPT, "PNG")
    place = whole.index(b"IDAT") - 4
    assert metadata.read_bytes(whole[:place] + b"\0\0\0\1tEXta1234" + whole[place:]) == RECEIPT


@pytest.mark.parametrize(
    "change",
    [
        lambda xmp: xmp.replace(b"<x:xmpmeta", b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">]><x:xmpmeta'),
        lambda xmp: xmp.replace(b"<x:xmpmeta", b"<x:xmpmet"),
        lambda xmp: xmp.decode().encode("utf-16"),
        lambda xmp: xmp.replace(b"a cat", b"\xff"),
        lambda xmp: xmp.replace(b"kerasdiff:ns:receipt/", b"other:"),
        lambda xmp: xmp + b" " * 9 * 2**20,
        lambda xmp: b"",
    ],
)
def test_xmp_that_is_not_ours_is_no_receipt(change, refusal):
    arguments = metadata.save_arguments(RECEIPT, "WEBP")
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "WEBP", xmp=change(arguments["xmp"]))
    assert refusal(file.getvalue()).startswith("has no embedded metadata")


def test_a_receipt_that_another_program_packed_anew_is_read(tmp_path):
    arguments = metadata.save_arguments(RECEIPT, "WEBP")
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", xmp=arguments["xmp"] + b"\n" * 2000 + b"\0")
    assert metadata.read(tmp_path / "a.jpg") == RECEIPT


def test_many_pixels_are_no_matter(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(saved(RECEIPT, "PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert metadata.read(str(tmp_path / "a.png")) == RECEIPT
