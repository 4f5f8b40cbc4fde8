"""Small models of Stable Diffusion XL's kind against diffusers: what a step reads of texts and sizes, and images."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
import warnings

import checkpoints
import numpy as np
import pytest
from checkpoints import decoded, diffusers, far, torch
from safetensors.numpy import save_file
from xl_checkpoints import xl_pipeline

import kerasdiff
from kerasdiff.batch.job import make_job
from kerasdiff.batch.rows import Row
from kerasdiff.diffusion.overrides import Overrides
from kerasdiff.metadata import read_any
from kerasdiff.metadata.a1111 import parameters_text
from kerasdiff.models.config import SDXL, SDXL_REFINER, TINY
from kerasdiff.request import make_request
from kerasdiff.size_conditioning import time_ids
from kerasdiff.walk import make_walk

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers' schedulers
SIZE = {"height": 64, "width": 96}
QUICK = {**SIZE, "num_steps": 2, "seed": 3, "rng": "torch", "progress": False}
RED, BLUE = "a red circle", "a blue star on white"
SIZES = {"original_size": (300, 200), "crop": (7, 40), "target_size": (64, 128)}
# What diffusers does only if both are given.
NEGATIVES = {"negative_original_size": (32, 48), "negative_crop": (20, 3), "negative_target_size": (512, 512)}
THEIRS = {
    "num_steps": "num_inference_steps",
    "crop": "crops_coords_top_left",
    "negative_crop": "negative_crops_coords_top_left",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """kind -> diffusers' pipeline, and its folder."""
    place, pipes = tmp_path_factory.mktemp("xl"), {}

    def of(kind, **settings):
        if kind not in pipes:
            pipe = xl_pipeline(kind, place / kind / "vocabulary", **settings)
            pipe.set_progress_bar_config(disable=True)
            pipes[kind] = pipe, checkpoints.save(pipe, place / kind / "model")
        return pipes[kind]

    return of


@pytest.fixture(scope="module")
def opened(made):
    """kind, backend -> a generator."""
    generators = {}

    def of(kind="base", backend="openvino"):
        if (kind, backend) not in generators:
            settings = {"precision": "float32", "jit_compile": False, "backend": backend}
            generators[kind, backend] = kerasdiff.Generator(made(kind)[1], **settings)
        return generators[kind, backend]

    return of


def expected(pipe, prompt=RED, **arguments):
    """Latents (N, h, w, 4) of diffusers."""
    arguments = {**QUICK, "guidance_scale": 5.0, **arguments}
    seed = arguments.pop("seed")
    ours = ("rng", "progress", "sampler", "spacing", "exact")
    named = {THEIRS.get(name, name): value for name, value in arguments.items() if name not in ours}
    count = 1 if isinstance(prompt, str) else len(prompt)
    seeds = [torch.Generator().manual_seed(seed + place) for place in range(count)]
    latents = pipe(prompt, generator=seeds, output_type="latent", **named).images
    return latents.permute(0, 2, 3, 1).numpy()


def scheduled(pipe, scheduler, **settings):
    """A pipeline with a scheduler of another class."""
    other = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **settings)
    made = diffusers.StableDiffusionXLPipeline(**{**pipe.components, "scheduler": other}, add_watermarker=False)
    made.set_progress_bar_config(disable=True)
    return made


def drawn(generator, prompt=RED, **arguments):
    return generator.generate(prompt, **{**QUICK, "guidance_scale": 5.0, **arguments})


CASES = {
    "plain": {},
    "an empty negative prompt": {"negative_prompt": ""},
    "sizes": SIZES,
    "sizes and negatives": {**SIZES, **NEGATIVES, "negative_prompt": BLUE},
    "clip_skip": {"clip_skip": 1, "negative_prompt": BLUE},
}


@pytest.fixture(scope="module")
def cases(opened):
    return {name: drawn(opened(), **arguments) for name, arguments in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_images_are_diffusers(made, cases, name):
    pipe, _ = made("base")
    latents = expected(pipe, **CASES[name])
    assert far(cases[name].latents, latents) < 1e-4
    assert np.abs(cases[name].images.astype(int) - decoded(pipe, latents)).max() <= 1


def test_each_of_these_is_another_image(cases):
    """A negative prompt that is not given is not the empty one, and sizes and their negatives are looked at."""
    for name, other in zip(CASES, [*CASES][1:], strict=False):
        assert far(cases[name].latents, cases[other].latents) > 1e-3


def test_tensorflow_draws_the_same(opened, cases):
    name = "sizes and negatives"
    assert far(drawn(opened(backend="tensorflow"), **CASES[name]).latents, cases[name].latents) < 1e-4


ON_JAX = """
import json, sys
import numpy as np
import kerasdiff
generator = kerasdiff.Generator(sys.argv[1], precision="float32", backend="jax")
np.save(sys.argv[2], generator.generate(**json.loads(sys.argv[3])).latents)
"""


def test_jax_draws_the_same(made, cases, tmp_path):
    name, path = "sizes and negatives", tmp_path / "latents.npy"
    arguments = json.dumps({"prompt": RED, **QUICK, "guidance_scale": 5.0, **CASES[name]})
    command = [sys.executable, "-W", "ignore", "-c", ON_JAX, str(made("base")[1]), str(path), arguments]
    subprocess.run(command, check=True, env={**os.environ, "KERAS_BACKEND": "jax"})
    assert far(np.load(path), cases[name].latents) < 1e-4


def test_several_prompts_have_negative_ones_and_images_of_their_own(made, opened, cases):
    texts = {"prompt": [RED, BLUE], "negative_prompt": [BLUE, ""]}
    both = drawn(opened(), **texts, **SIZES)
    assert far(both.latents, expected(made("base")[0], **texts, **SIZES)) < 1e-4
    # diffusers has no such list: one is not given.
    some = drawn(opened(), [RED, RED], negative_prompt=[None, ""], seed=[3, 3])
    for latents, name in zip(some.latents, ("plain", "an empty negative prompt"), strict=True):
        assert far(latents, cases[name].latents[0]) < 1e-5
    assert some.request.negative_prompts == (None, "")


def test_without_guidance_a_step_takes_one_half(made, opened):
    """As Turbo is drawn with."""
    arguments = {"num_steps": 1, "guidance_scale": 1.0, "sampler": "euler_a", "spacing": "trailing", **SIZES}
    pipe = scheduled(made("base")[0], "EulerAncestralDiscreteScheduler", timestep_spacing="trailing")
    assert far(drawn(opened(), **arguments).latents, expected(pipe, **arguments)) < 1e-4


def test_each_evaluation_of_deep_cache_reads_all(opened):
    """And an image is the same in any batch."""
    for interval in (1, 2):
        arguments = {"deep_cache_interval": interval, "negative_prompt": BLUE, "num_steps": 3, **SIZES}
        both = drawn(opened(), [RED, BLUE], **arguments)
        for place, prompt in enumerate((RED, BLUE)):
            alone = drawn(opened(), prompt, **{**arguments, "seed": 3 + place})
            assert far(both.latents[place], alone.latents[0]) < 1e-5


@pytest.fixture(scope="module")
def photo():
    rng = np.random.default_rng(0)
    mask = np.zeros((64, 96), bool)
    mask[16:48, 24:64] = True
    return rng.integers(0, 256, (64, 96, 3), dtype="uint8"), mask


def as_theirs(latents):
    return torch.from_numpy(np.ascontiguousarray(np.asarray(latents).transpose(0, 3, 1, 2)))


@pytest.mark.parametrize("kind", ["base", "refiner"])
def test_image_to_image_is_diffusers(made, opened, photo, monkeypatch, kind):
    """A refiner reads scores instead of the target size."""
    pipe, generator, (picture, _) = made(kind)[0], opened(kind), photo
    if kind == "base":
        pipe = diffusers.StableDiffusionXLImg2ImgPipeline(**pipe.components, add_watermarker=False)
        pipe.set_progress_bar_config(disable=True)
    noise = as_theirs(generator.initial_latents(1, **SIZE, seed=3))
    monkeypatch.setattr(
        diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img,
        "randn_tensor",
        lambda *_, **__: noise,
    )
    arguments = {
        "original_size": (300, 200),
        "crop": (7, 40),
        "negative_original_size": (32, 48),
        "strength": 0.5,
        "num_steps": 4,
    }
    if kind == "refiner":
        arguments |= {"aesthetic_score": 3.5, "negative_crop": (20, 3), "negative_prompt": ""}
    latents = as_theirs(generator.encode_image(picture[None]))
    found = expected(pipe, **{**arguments, "height": None, "width": None}, image=latents)
    ours = drawn(generator, **{**arguments, "rng": "philox"}, image=picture)
    assert far(ours.latents, found) < 1e-4


@pytest.mark.parametrize("kind", ["base", "inpainting"])
def test_inpainting_is_diffusers(made, opened, photo, monkeypatch, kind):
    """With 4 and with 9 channels."""
    generator, (picture, mask) = opened(kind), photo
    pipe = diffusers.StableDiffusionXLInpaintPipeline(**made(kind)[0].components, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    noise = as_theirs(generator.initial_latents(1, **SIZE, seed=3))
    monkeypatch.setattr(
        diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_inpaint,
        "randn_tensor",
        lambda *_, **__: noise,
    )
    masked = (picture.astype("float32") / 127.5 - 1) * ~mask[..., None]
    arguments = {"strength": 0.7, "num_steps": 4, **SIZES}
    found = expected(
        pipe,
        **arguments,
        image=as_theirs(generator.encode_image(picture[None])),
        mask_image=torch.from_numpy(mask.astype("float32"))[None, None],
        masked_image_latents=as_theirs(generator._pipeline.encode(masked)[None]),
    )
    ours = drawn(generator, **{**arguments, "rng": "philox"}, image=picture, mask=mask)
    assert far(ours.latents, found) < 1e-4
    assert np.array_equal(ours[0][~mask], picture[~mask])


def test_v_prediction_without_signal_at_the_last_timestep_is_diffusers(made, opened):
    zero = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    theirs = scheduled(made("base")[0], "DDIMScheduler", **zero, timestep_spacing="trailing", clip_sample=False)
    generator, plain = opened(), opened().config
    schedule = dataclasses.replace(plain.schedule, **zero, set_alpha_to_one=True)
    generator._pipeline.config = generator.config = dataclasses.replace(plain, schedule=schedule)
    try:
        ours = drawn(generator, sampler="ddim", spacing="trailing", guidance_rescale=0.7)
    finally:
        generator._pipeline.config = generator.config = plain
    assert far(ours.latents, expected(theirs, guidance_rescale=0.7)) < 1e-4


def test_guidance_may_be_an_input(made, opened):
    """Of a latent consistency model: the negative prompt is not read."""
    ours = drawn(opened("lcm"), sampler="lcm", num_steps=4, guidance_scale=8.0, recipe="none", spacing="lcm", **SIZES)
    theirs = scheduled(made("lcm")[0], "LCMScheduler")
    assert far(ours.latents, expected(theirs, num_steps=4, guidance_scale=8.0, **SIZES)) < 1e-4


def read(generator, prompt, **arguments):
    """What the first step of an image reads: contexts (2, T, width), pooled (2, P), sizes (2, n)."""
    request = make_request(generator.config, prompt, **SIZE, **arguments)
    table = generator._pipeline.conditioner.texts(request, Overrides()).table([0], True)
    return table.arrays(table.read([0], True), True)


def chunks_there(pipe, texts):
    """What both text encoders make of chunks of 75 tokens, each (77, width), and the pooled embedding of the first."""
    rows, pooled = [], None
    with torch.no_grad():
        for text in texts:
            parts = []
            for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
                ids = tokenizer(text, padding="max_length", max_length=77, return_tensors="pt").input_ids
                found = encoder(ids, output_hidden_states=True)
                parts.append(found.hidden_states[-2][0].numpy())
            pooled = found.text_embeds[0].numpy() if pooled is None else pooled
            rows.append(parts)
    return rows, pooled


def test_long_prompts_are_chunks_of_each_encoder(made, opened):
    pieces = ["red " * 75, "blue star"]
    rows, pooled = chunks_there(made("base")[0], [*pieces, ""])
    joined = [np.concatenate(parts, axis=-1) for parts in rows]
    found = read(opened(), pieces[0] + pieces[1], negative_prompt="", long_prompts="chunk")
    assert np.abs(found.text[1] - np.concatenate(joined[:2])).max() < 1e-4
    assert np.abs(found.text[0] - np.concatenate([joined[2]] * 2)).max() < 1e-4
    assert np.abs(found.pooled[1] - pooled).max() < 1e-5
    with pytest.warns(UserWarning, match="this part is not used: 'blue star'") as told:
        cut = read(opened(), pieces[0] + pieces[1])
    assert len(told) == 1
    assert np.array_equal(cut.text[0], np.zeros_like(joined[0]))
    assert np.array_equal(cut.pooled[0], np.zeros_like(pooled))


def test_weights_are_of_tokens_and_leave_the_pooled_embedding(made, opened):
    """As in AUTOMATIC1111's interface: each encoder's embeddings keep their own mean."""
    (parts,), pooled = chunks_there(made("base")[0], ["a red circle"])
    weights = np.ones((77, 1), "float32")
    ids = made("base")[0].tokenizer("a red").input_ids
    weights[len(made("base")[0].tokenizer("a").input_ids) - 1 : len(ids) - 1] = 1.5
    changed = [part * weights for part in parts]
    changed = [new * (part.mean() / new.mean()) for new, part in zip(changed, parts, strict=True)]
    found = read(opened(), "a (red:1.5) circle", prompt_syntax="a1111")
    assert np.abs(found.text[1] - np.concatenate(changed, axis=-1)).max() < 1e-4
    assert np.abs(found.pooled[1] - pooled).max() < 1e-5


@pytest.mark.parametrize(
    "text",
    ["a red++ circle on (blue)0.4", '("a red circle", "a (blue)0.3 star").blend(0.7, 0.5)', "red " * 90 + "star+"],
)
def test_compel_reads_the_same(made, opened, text):
    import compel

    pipe = made("base")[0]
    theirs = compel.CompelForSDXL(pipe)(text, negative_prompt=BLUE)
    found = read(opened(), text, negative_prompt=BLUE, prompt_syntax="compel")
    for half, (context, pooled) in enumerate(
        (
            (theirs.negative_embeds, theirs.negative_pooled_embeds),
            (theirs.embeds, theirs.pooled_embeds),
        )
    ):
        assert np.abs(found.text[half] - context[0].numpy()).max() < 1e-4
        assert np.abs(found.pooled[half] - pooled[0].numpy()).max() < 1e-5


def test_what_is_between_two_prompts_has_a_pooled_embedding(opened):
    generator = opened()
    walk = make_walk(generator.config, [RED, BLUE], 3, seed=1, **SIZE)
    table = generator._pipeline.conditioner.texts(walk, Overrides()).table(range(3), False)
    pooled = table.arrays(table.read([0, 0, 0], False), False).pooled
    assert np.array_equal(pooled[[0, 2]], generator.encode_pooled([RED, BLUE]))
    assert np.allclose(pooled[1], pooled[[0, 2]].mean(axis=0), atol=1e-6)


def test_embeddings_in_place_of_texts(opened, cases):
    generator = opened()
    texts = {"prompt_embeds": generator.encode_text([RED]), "pooled_prompt_embeds": generator.encode_pooled([RED])}
    negative = {
        "negative_prompt_embeds": generator.encode_text([""]),
        "negative_pooled_prompt_embeds": generator.encode_pooled([""]),
    }
    name = "an empty negative prompt"
    assert np.array_equal(drawn(generator, None, **texts, **negative).latents, cases[name].latents)
    assert np.array_equal(drawn(generator, None, **texts).latents, cases["plain"].latents)
    noise = generator.initial_latents(seed=3, rng="torch", **SIZE)
    by_stage = generator.denoise(
        noise,
        texts["prompt_embeds"],
        negative["negative_prompt_embeds"],
        pooled=texts["pooled_prompt_embeds"],
        negative_pooled=negative["negative_pooled_prompt_embeds"],
        num_steps=2,
        guidance_scale=5.0,
    )
    assert np.array_equal(by_stage, cases[name].latents)
    for arguments, message in (
        ({"prompt_embeds": texts["prompt_embeds"]}, "give pooled_prompt_embeds with prompt_embeds"),
        ({**texts, "negative_prompt_embeds": texts["prompt_embeds"]}, "give negative_pooled_prompt_embeds with neg"),
        ({"prompt": RED, "pooled_prompt_embeds": texts["pooled_prompt_embeds"]}, "give prompt_embeds with pooled"),
        ({**texts, "pooled_prompt_embeds": np.zeros((1, 7))}, r"has shape \(1, 7\); it must be \(N, 96\)"),
        ({**texts, "pooled_prompt_embeds": np.zeros((2, 96))}, "has 2 rows and prompt_embeds 1"),
    ):
        with pytest.raises(kerasdiff.RequestError, match=message):
            generator.generate(**{"prompt": None, **QUICK, **arguments})


def test_models_without_pooled_embeddings_refuse_them(tiny):
    with pytest.raises(kerasdiff.RequestError, match="reads no pooled embeddings"):
        tiny.encode_pooled([RED])
    with pytest.raises(kerasdiff.RequestError, match="pooled_prompt_embeds: this model reads no pooled embeddings"):
        tiny.generate(RED, pooled_prompt_embeds=np.zeros((1, 8)), num_steps=1)


def numbers(config=SDXL, **arguments):
    request = make_request(config, "a", **{"height": 768, "width": 1024, **arguments})
    return time_ids(request, request.height, request.width, config.unet.num_time_ids).tolist()


def test_sizes_are_those_of_the_image_unless_said():
    own = [768, 1024, 0, 0, 768, 1024]
    assert numbers() == [own, own]
    said = [300, 200, 7, 40, 64, 128]
    assert numbers(**SIZES) == [said, said]
    assert numbers(**SIZES, **NEGATIVES) == [[32, 48, 20, 3, 512, 512], said]
    assert numbers(**SIZES, negative_crop=(0, 0)) == [[300, 200, 0, 0, 64, 128], said]
    assert numbers(crop="5, 9", negative_original_size=np.array([1, 2])) == [
        [1, 2, 5, 9, 768, 1024],
        [768, 1024, 5, 9, 768, 1024],
    ]
    assert numbers(SDXL_REFINER, crop=(5, 9)) == [[768, 1024, 5, 9, 2.5], [768, 1024, 5, 9, 6]]
    assert numbers(SDXL_REFINER, aesthetic_score=7, negative_aesthetic_score=1.5) == [
        [768, 1024, 0, 0, 1.5],
        [768, 1024, 0, 0, 7],
    ]


def test_a_refiner_beside_a_model_reads_scores_and_skips_layers():
    both = dataclasses.replace(SDXL, refiner=SDXL_REFINER)
    request = make_request(both, "a", height=768, width=1024, aesthetic_score=7)
    assert time_ids(request, 768, 1024, 5)[1].tolist() == [768, 1024, 0, 0, 7]
    shallow = dataclasses.replace(SDXL_REFINER.text_encoder_2, num_layers=4)
    both = dataclasses.replace(SDXL, refiner=dataclasses.replace(SDXL_REFINER, text_encoder_2=shallow))
    with pytest.raises(kerasdiff.RequestError, match="clip_skip=3 is more than the 2 of the refiner's text encoder"):
        make_request(both, "a", clip_skip=3)


def test_a_refiner_reads_the_empty_text_where_a_base_model_has_zeros(opened):
    generator = opened("refiner")
    request = dataclasses.replace(make_request(generator.config, RED, **SIZE), negative_prompts=(None,))
    table = generator._pipeline.conditioner.texts(request, Overrides()).table([0], True)
    assert np.array_equal(table.arrays(table.read([0], True), True).text[0], generator.encode_text([""])[0])


def test_a_second_pass_has_its_own_size():
    request = make_request(SDXL, "a", hires=1.5, crop=(1, 2))
    second = request.second_pass(SDXL)
    assert time_ids(second, second.height, second.width, 6)[1].tolist() == [1536, 1536, 1, 2, 1536, 1536]
    request = make_request(SDXL, "a", hires=1.5, target_size=(1024, 1024))
    second = request.second_pass(SDXL)
    assert time_ids(second, second.height, second.width, 6)[1].tolist() == [1536, 1536, 0, 0, 1024, 1024]


@pytest.mark.parametrize(
    ("arguments", "config", "message"),
    [
        ({"crop": (0, 1)}, TINY, "crop is for Stable Diffusion XL, and this model reads no sizes; leave it out"),
        ({"aesthetic_score": 5}, TINY, "aesthetic_score is for Stable Diffusion XL"),
        ({"target_size": (64, 64)}, SDXL_REFINER, "target_size: a refiner reads no target size"),
        ({"crop": 5}, SDXL, r"crop must be two integers, top and left, such as \(0, 256\), not 5"),
        ({"original_size": "1024x1024"}, SDXL, r"original_size must be two integers, height and width"),
        ({"original_size": (1, 2, 3)}, SDXL, "original_size must be two integers"),
        ({"target_size": (64, -1)}, SDXL, r"target_size\[1\]=-1 is out of range"),
        ({"negative_crop": "1,x"}, SDXL, r"negative_crop\[1\] must be an integer"),
        ({"aesthetic_score": float("nan")}, SDXL_REFINER, "aesthetic_score"),
        ({"aesthetic_score": 5}, SDXL, "aesthetic_score is read by SDXL's refiner alone; leave it out"),
        ({"clip_skip": 11}, SDXL, "clip_skip=11 is out of range"),
    ],
)
def test_what_no_size_is_has_one_line(arguments, config, message):
    with pytest.raises(kerasdiff.RequestError, match=message) as caught:
        make_request(config, "a", **arguments)
    assert "\n" not in str(caught.value)


def test_a_saved_image_keeps_what_it_was_told(made, opened, tmp_path):
    """And whether there was a negative prompt."""
    for name, arguments in {"none": SIZES, "empty": {**NEGATIVES, "negative_prompt": ""}}.items():
        result = drawn(opened(), **arguments)
        result.save(tmp_path / f"{name}.png")
        request = read_any(tmp_path / f"{name}.png").request
        assert request == result.request
        assert request.negative_prompts == (arguments.get("negative_prompt"),)
        assert "Negative prompt" not in parameters_text(read_any(tmp_path / f"{name}.png"))
    assert np.array_equal(kerasdiff.replay(tmp_path / "none.png")[0], drawn(opened(), **SIZES)[0])


def test_all_is_known_beforehand(opened):
    """What is planned and warmed up is what is then drawn with."""
    generator = opened()
    generator.warm_up(**SIZE, guidance="both", clip_skip=1)
    before = generator.traces, generator.programs
    assert generator.plan(**SIZE).programs == {
        "text encoder": "ready",
        "text encoder 2": "ready",
        "U-Net 1": "ready",
        "decoder": "ready",
    }
    drawn(generator, clip_skip=1, guidance_interval=(0.0, 0.5))
    assert (generator.traces, generator.programs) == before


def test_a_changing_text_takes_its_pooled_embedding_along(opened):
    """And joined texts have one each."""
    generator = opened()
    request = make_request(generator.config, f"[{RED}:{BLUE}:0.5] AND a ring", prompt_syntax="a1111", num_steps=4)
    table = generator._pipeline.conditioner.texts(request, Overrides()).table([0], True)
    pooled = generator.encode_pooled([RED, BLUE, "a ring"])
    for step, first in ((0, 0), (3, 1)):
        found = table.arrays(table.read([step], True), True)
        assert np.array_equal(found.pooled, [np.zeros(96), pooled[first], pooled[2]])
        assert found.time_ids.shape == (3, 6)
    drawn(generator, f"[{RED}:{BLUE}:0.5] AND a ring", prompt_syntax="a1111")


def test_rows_of_a_job_have_sizes_and_negative_prompts_of_their_own():
    rows = [Row("a", RED), Row("b", BLUE, crop=(5, 9), negative_prompt=""), Row("c", BLUE, crop="5,9")]
    job = make_job(rows, {}, {"original_size": [300, 200], "crop": (0, 64)})
    requests = {one[0].row.id: job.request(one) for one in job.blocks(TINY, {"128x128": 4})}
    assert [requests[name]["crop"] for name in "ab"] == ["0,64", "5,9"]
    assert requests["a"]["original_size"] == "300,200"
    assert requests["b"]["negative_prompt"] == ["", None]
    request = make_request(SDXL, **requests["b"])
    assert (request.original_size, request.crop, request.negative_prompts) == ((300, 200), (5, 9), ("", None))
    with pytest.raises(kerasdiff.RequestError, match="crop must be two integers"):
        Row("a", RED, crop="5")


def test_encoders_of_different_lengths_read_as_many_tokens(opened):
    checkpoint = opened()._checkpoint
    shorter = copy.copy(checkpoint.tokenizer_2)
    shorter.max_length = 40
    generator = kerasdiff.Generator(dataclasses.replace(checkpoint, tokenizer_2=shorter), backend="openvino")
    assert [stage.length for stage in generator._pipeline.conditioner.stages.values()] == [40, 40]


def write_lora(path, pipe, names, seed):
    """Random pairs for attention of all networks, as kohya's scripts or as diffusers `names` them."""
    generator, tensors = np.random.default_rng(seed), {}
    beginnings = {"unet": "lora_unet", "text_encoder": "lora_te1", "text_encoder_2": "lora_te2"}
    for network, beginning in beginnings.items():
        for name, layer in getattr(pipe, network).named_modules():
            if name.endswith(("to_q", "to_v", "q_proj", "out_proj")):
                pair = [(4, layer.in_features), (layer.out_features, 4)]
                down, up = (generator.normal(0, 0.15, shape).astype("float32") for shape in pair)
                if names == "kohya":
                    where = f"{beginning}_{name.replace('.', '_')}"
                    alpha = {f"{where}.alpha": np.array(3, "float32")}
                    tensors |= {f"{where}.lora_down.weight": down, f"{where}.lora_up.weight": up} | alpha
                else:
                    where = f"{network}.{name}"
                    tensors |= {f"{where}.lora_A.weight": down, f"{where}.lora_B.weight": up}
    save_file(tensors, path)
    return path


def test_two_loras_and_an_embedding_are_diffusers(made, opened, cases, tmp_path):
    """Strengths are those of the U-Net and of both text encoders, and a word has vectors for each of these."""
    pipe, files = copy.deepcopy(made("base")[0]), {}
    for seed, names in enumerate(("kohya", "peft")):
        files[names] = write_lora(tmp_path / f"{names}.safetensors", pipe, names, seed)
    vectors = [np.random.default_rng(2).normal(0, 0.5, (2, width)).astype("float32") for width in (64, 128)]
    save_file(dict(zip(("clip_l", "clip_g"), vectors, strict=True)), tmp_path / "toy.safetensors")
    loras = [(files["kohya"], 0.7, 0.4), (files["peft"], -0.5)]
    words = {"negative_prompt": "blue toy", "embeddings": tmp_path / "toy.safetensors"}
    plain, ours = (drawn(opened(), "a toy, red", loras=some, **words) for some in ([], loras))
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for name, file in files.items():
            pipe.load_lora_weights(file, adapter_name=name)
        pipe.set_adapters([*files], [{"unet": 0.7, "text_encoder": 0.4, "text_encoder_2": 0.4}, -0.5])
        for values, end in zip(vectors, ("", "_2"), strict=True):
            parts = {name: getattr(pipe, name + end) for name in ("text_encoder", "tokenizer")}
            pipe.load_textual_inversion({"<toy>": torch.from_numpy(values)}, token="<toy>", **parts)
        latents = expected(pipe, "a <toy>, red", negative_prompt="blue <toy>")
    assert far(ours.latents, latents) < 1e-4
    assert np.abs(ours.images.astype(int) - decoded(pipe, latents)).max() <= 1
    assert np.abs(ours.images.astype(int) - plain.images).max() > 10
    assert [one.trigger for one in ours.request.embeddings] == ["toy"]
    # The model's own weights are back.
    assert np.array_equal(drawn(opened()).latents, cases["plain"].latents)
