"""Models that edit a picture as a text says (InstructPix2Pix): against diffusers, and what must hold in any run."""

from __future__ import annotations

import dataclasses
import itertools
import json
import warnings

import checkpoints
import numpy as np
import pytest
from checkpoints import diffusers, far, torch
from control_checkpoints import controlnet
from image_prompt_checkpoints import image_encoder, ip_adapter, save_ip_adapter
from PIL import Image

import kerasdiff
from kerasdiff import metadata
from kerasdiff.checkpoints.export import write_diffusers, write_keras_cv, write_native, write_single_file
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.metadata.a1111_text import read as read_a1111
from kerasdiff.models.config import TINY
from kerasdiff.request import make_request
from kerasdiff.walk import make_walk

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers' schedulers
PROMPTS, NEGATIVES = ["make it a red circle", "a star"], ["a ring", ""]
QUICK = {"num_steps": 4, "seed": 3, "progress": False}
EDIT = dataclasses.replace(TINY, unet=dataclasses.replace(TINY.unet, in_channels=8))
PICTURE = np.zeros((64, 64, 3), "uint8")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """diffusers' pipeline and the folder of its model."""
    place = tmp_path_factory.mktemp("edit")
    pipe = checkpoints.pipeline("edit", place / "vocabulary")
    pipe.set_progress_bar_config(disable=True)
    return pipe, checkpoints.save(pipe, place / "model")


@pytest.fixture(scope="module")
def generator(made):
    return opened(made[1])


@pytest.fixture(scope="module")
def photos():
    """Two pictures of 56 x 72, whose latents cannot be halved evenly."""
    coarse = np.random.default_rng(7).integers(0, 256, (2, 7, 9, 3), dtype="uint8")
    return coarse.repeat(8, 1).repeat(8, 2)


def opened(path):
    return kerasdiff.Generator(str(path), precision="float32", jit_compile=False, backend="openvino")


def theirs(pipe, generator, photos, scheduler="DDIMScheduler", count=2, **settings):
    """Latents (N, h, w, 4) of diffusers, from our noise."""
    own = {"clip_sample": False, "set_alpha_to_one": False} if scheduler == "DDIMScheduler" else {}
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, timestep_spacing="leading", **own)
    noise = generator.initial_latents(count, height=56, width=72, seed=3).transpose(0, 3, 1, 2)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = pipe(
            PROMPTS[:count],
            image=[Image.fromarray(photo) for photo in photos[:count]],
            negative_prompt=NEGATIVES[:count],
            num_inference_steps=4,
            latents=torch.from_numpy(np.ascontiguousarray(noise)),
            output_type="latent",
            **settings,
        ).images
    return found.permute(0, 2, 3, 1).numpy()


def ours(generator, photos, count=2, **settings):
    texts = {"prompt": PROMPTS[:count], "negative_prompt": NEGATIVES[:count], "image": [*photos[:count]]}
    return generator.generate(**texts | QUICK | {"sampler": "ddim", "spacing": "leading"} | settings)


@pytest.mark.parametrize(
    ("scheduler", "guidance", "image_guidance"),
    [("DDIMScheduler", 7.5, None), ("EulerDiscreteScheduler", 3.0, 1.1)],
)
def test_edits_are_those_of_diffusers(made, generator, photos, scheduler, guidance, image_guidance):
    weights = {} if image_guidance is None else {"image_guidance_scale": image_guidance}
    expected = theirs(made[0], generator, photos, scheduler, guidance_scale=guidance, **weights)
    found = ours(generator, photos, guidance_scale=guidance, sampler=scheduler, **weights)
    assert far(found.latents, expected) < 1e-4
    assert found.request.image_guidance_scale == (image_guidance or 1.5)
    assert found.request.strengths is None


def test_each_weight_and_each_picture_counts(generator, photos):
    plain = ours(generator, photos).latents
    for other in ({"guidance_scale": 5.0}, {"image_guidance_scale": 1.3}, {"image": [photos[0], photos[0]]}):
        found = ours(generator, photos, **other).latents
        assert far(found[1:], plain[1:]) > 1e-3
        assert (far(found[:1], plain[:1]) < 1e-5) == ("image" in other)


def test_guidance_may_differ_from_step_to_step_and_between_images(made, generator, photos):
    weights = [7.5, 1.5, 3.0, 5.0]

    def next_weight(pipe, step, _, inputs):
        pipe._guidance_scale = weights[min(step + 1, 3)]
        return inputs

    expected = theirs(made[0], generator, photos, guidance_scale=weights[0], callback_on_step_end=next_weight)
    assert far(ours(generator, photos, guidance_scale=weights).latents, expected) < 1e-4
    both = ours(generator, photos, guidance_scale=[weights, [2.0] * 4]).latents
    assert far(both[:1], expected[:1]) < 1e-4
    assert far(both[1:], ours(generator, photos, guidance_scale=2.0).latents[1:]) < 1e-4


def test_an_image_prompt_is_read_beside_the_prompt_alone(made, generator, photos, tmp_path):
    pipe, encoder = made[0], image_encoder()
    file = save_ip_adapter(tmp_path / "plain.safetensors", ip_adapter(pipe.unet, "plain", encoder, seed=1), encoder)
    picture = np.random.default_rng(2).integers(0, 256, (30, 31, 3), "uint8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.load_ip_adapter(str(tmp_path), subfolder="", weight_name=file.name, image_encoder_folder="image_encoder")
    try:
        read = Image.fromarray(picture)
        expected = theirs(pipe, generator, photos, count=1, guidance_scale=4.0, ip_adapter_image=read)
    finally:
        pipe.unload_ip_adapter()
        pipe.feature_extractor = pipe.image_encoder = None
    settings = {"count": 1, "guidance_scale": 4.0}
    found = ours(generator, photos, **settings, image_prompts=[(file, picture)]).latents
    assert far(found, expected) < 1e-4
    assert far(ours(generator, photos, **settings).latents, expected) > 1e-3


def test_a_controlnet_steers_an_edit(made, generator, photos, tmp_path):
    controlnet(made[0].unet).save_pretrained(tmp_path)
    plain = ours(generator, photos).latents
    off, on = (ours(generator, photos, controls=[(str(tmp_path), None, scale)]).latents for scale in (0.0, [0.0, 1.0]))
    assert far(off, plain) < 1e-5
    assert far(on[:1], plain[:1]) < 1e-5
    assert np.isfinite(on).all()
    assert far(on[1:], plain[1:]) > 1e-3


def test_a_walk_leads_from_edit_to_edit(generator, photos):
    settings = QUICK | {"num_steps": 2, "image": photos[0], "exact": True}
    progress = settings.pop("progress")
    walk = generator.run(make_walk(generator.config, PROMPTS, 3, **settings), progress=progress)
    alone = generator.generate(PROMPTS[1], **settings, progress=False)
    assert np.array_equal(walk.latents[2], alone.latents[0])
    assert all(far(one, other) > 1e-3 for one, other in itertools.pairwise(walk.latents))


def test_every_format_keeps_an_edit(made, tmp_path):
    model = open_model(str(made[1]))
    write_single_file(model, tmp_path / "model.safetensors")
    write_native(model, tmp_path / "native", "float32")
    write_diffusers(model, tmp_path / "folder")
    index = json.loads((tmp_path / "folder" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionInstructPix2PixPipeline"
    for name in ("model.safetensors", "native", "folder"):
        again = open_model(str(tmp_path / name))
        assert again.config.edits
        assert again.config.unet == model.config.unet
        for (key, one), (_, other) in zip(again.parameters("unet"), model.parameters("unet"), strict=True):
            assert np.array_equal(one, other), (name, key)
    with pytest.raises(kerasdiff.ModelError, match="reads pictures too, which KerasCV has no place for"):
        write_keras_cv(model, tmp_path / "keras_cv")


def test_an_image_is_needed(generator):
    with pytest.raises(kerasdiff.RequestError, match="is a model for editing: give image, and a prompt that says what"):
        generator.generate("a ring", **QUICK)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": np.ones((64, 64), bool)}, "mask: a model for editing reads no mask; leave it out"),
        ({"strength": 0.5}, "strength: a model for editing does all steps from pure noise, beside the image; image_g"),
        ({"hires": 2}, "hires: a model for editing has one pass"),
        ({"denoising_start": 0.5}, "denoising_start: a model for editing does all steps"),
        ({"denoising_end": 0.5}, "denoising_end: a model for editing does all steps"),
        ({"guidance_rescale": 0.5}, "guidance_rescale: it is about two predictions, and a model for editing makes t"),
        ({"image_guidance_scale": -1}, "image_guidance_scale"),
        ({"prompt": "a AND b", "prompt_syntax": "a1111"}, "AND joins several predictions, and this model joins those"),
    ],
)
def test_what_an_edit_takes_nothing_of_is_refused_in_one_line(arguments, message):
    with pytest.raises(kerasdiff.RequestError) as caught:
        make_request(EDIT, **{"prompt": "a", "image": PICTURE, **arguments})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_models_take_no_weight_of_the_image():
    assert make_request(TINY, "a").image_guidance_scale is None
    with pytest.raises(kerasdiff.RequestError, match=r"image_guidance_scale is for models that edit .*; leave it out"):
        make_request(TINY, "a", image=PICTURE, image_guidance_scale=1.5)


def test_a_saved_edit_is_drawn_again(made, generator, photos, tmp_path):
    result = ours(generator, photos, count=1, image_guidance_scale=1.25)
    result.save(tmp_path / "edit.png")
    again = kerasdiff.replay(tmp_path / "edit.png", image=photos[0], progress=False)
    assert np.array_equal(again.images, result.images)
    assert again.request.image_guidance_scale == 1.25
    text = metadata.parameters_text(metadata.read(tmp_path / "edit.png"))
    assert "CFG scale: 7.5, Image CFG scale: 1.25, Seed: 3" in text
    # That interface writes a strength as well.
    found = read_a1111({"parameters": text.replace("Seed: 3", "Seed: 3, Denoising strength: 0.75")})
    assert found.arguments["image_guidance_scale"] == 1.25
    assert found.from_picture
    assert "strength" not in found.arguments


def test_shortcuts_plan_and_warm_up(generator, photos):
    size, denoise = {"height": 56, "width": 72}, generator._pipeline.denoise
    assert {*generator.warm_up(2, **size)} == {"text", "encode", "denoise", "decode"}
    traces, plain = denoise.traces, ours(generator, photos).latents
    assert denoise.traces == traces
    assert generator.plan(2, **size).programs["U-Net 2"] == "ready"
    for shortcut in ({"deep_cache_interval": 2}, {"token_merging_ratio": 0.5}, {"guidance_interval": (0.5, 1.0)}):
        found = ours(generator, photos, **shortcut).latents
        assert np.isfinite(found).all()
        assert far(found, plain) > 1e-4
