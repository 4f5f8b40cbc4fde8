"""Image to image and inpainting: against diffusers, by what must hold, and on the embedded model."""

from __future__ import annotations

import types

import checkpoints
import numpy as np
import pytest
from checkpoints import diffusers, torch

import kerasdiff
from kerasdiff.models.config import TINY
from kerasdiff.request import make_request
from kerasdiff.request_steps import first_step
from kerasdiff.samplers import SAMPLERS
from kerasdiff.training import scenes, score
from kerasdiff.training.scenes import Scene, Thing

# diffusers makes arrays of torch's tensors in a way that NumPy will drop.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
PROMPT = "a red circle on a blue background"
QUICK = {"num_steps": 6, "progress": False}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """kind -> (diffusers' pipeline, a generator of the same weights)."""
    folder = tmp_path_factory.mktemp("checkpoints")
    found = {}
    for kind in ("v1", "inpainting"):
        pipe = checkpoints.pipeline(kind, folder / kind / "vocabulary")
        saved = checkpoints.save(pipe, folder / kind / "model")
        found[kind] = pipe, kerasdiff.Generator(str(saved), precision="float32", jit_compile=False)
    return found


@pytest.fixture(scope="module")
def photo():
    """A picture of 56 x 72, whose latents cannot be halved evenly, and a mask that ends where their cells do."""
    rng = np.random.default_rng(7)
    coarse = rng.integers(0, 256, (7, 9, 3), dtype="uint8")
    mask = np.zeros((56, 72), bool)
    mask[16:40, 24:64] = True
    return np.repeat(np.repeat(coarse, 8, 0), 8, 1), mask


def arithmetic(order, num_steps, strength):
    """The step that diffusers' image to image starts at."""
    scheduler = types.SimpleNamespace(timesteps=np.arange(order * num_steps), order=order)
    pipe = types.SimpleNamespace(scheduler=scheduler)
    times, left = diffusers.StableDiffusionImg2ImgPipeline.get_timesteps(pipe, num_steps, strength, None)
    assert len(times) == order * left
    return num_steps - left


def test_the_step_that_a_strength_starts_at_is_diffusers():
    for num_steps in range(1, 101):
        for percent in range(1, 101):
            strength = percent / 100
            ours = first_step(num_steps, strength)
            assert ours == arithmetic(1, num_steps, strength) == arithmetic(2, num_steps, strength)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_starts_on_a_whole_step(tiny, sampler):
    for num_steps, strength in ((8, 1.0), (8, 0.5), (8, 0.2), (8, 0.1), (5, 0.99)):
        request = make_request(
            TINY, "", num_steps=num_steps, strength=strength, image=np.zeros((128, 128, 3), "uint8"), sampler=sampler
        )
        run = tiny.schedule(request)
        first = first_step(num_steps, strength)
        assert sorted({*run.steps[:, 0].tolist()}) == [*range(first, num_steps)]
        if len(run):
            assert run.initial_sigmas[0] == tiny.table(request, first).initial_sigma


def parts_of(pipe, scheduler):
    """A pipeline's components, with a scheduler of another class."""
    own = {"timestep_spacing": "linspace"}
    if scheduler == "DDIMScheduler":
        own = {"clip_sample": False, "set_alpha_to_one": False}
    return {**pipe.components, "scheduler": getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **own)}


def ours_as_theirs(latents):
    return torch.from_numpy(np.ascontiguousarray(np.asarray(latents).transpose(0, 3, 1, 2)))


def far(ours, theirs):
    theirs = theirs.numpy().transpose(0, 2, 3, 1)
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def draw_there(monkeypatch, pipeline, noise):
    """Has a pipeline of diffusers start from our noise."""
    module = getattr(diffusers.pipelines.stable_diffusion, f"pipeline_stable_diffusion_{pipeline}")
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: ours_as_theirs(noise))


@pytest.mark.parametrize("strength", [0.35, 0.8, 1.0])
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_image_to_image_is_diffusers(made, photo, monkeypatch, scheduler, strength):
    pipe, generator = made["v1"]
    image, _ = photo
    parts = parts_of(pipe, scheduler)
    theirs = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    latents = generator.encode_image(image[None])
    noise = generator.initial_latents(1, height=56, width=72, seed=3)
    draw_there(monkeypatch, "img2img", noise)
    expected = theirs(
        "a red circle",
        image=ours_as_theirs(latents),
        strength=strength,
        num_inference_steps=7,
        guidance_scale=4.0,
        output_type="latent",
    ).images
    ours = generator.generate(
        "a red circle",
        image=image,
        strength=strength,
        num_steps=7,
        guidance_scale=4.0,
        sampler=scheduler,
        spacing="leading" if scheduler == "DDIMScheduler" else "linspace",
        seed=3,
        progress=False,
    )
    assert far(ours.latents, expected) < 1e-4


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("kind", ["v1", "inpainting"])
@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "HeunDiscreteScheduler", "UniPCMultistepScheduler"])
def test_inpainting_is_diffusers(made, photo, monkeypatch, scheduler, kind, strength):
    pipe, generator = made[kind]
    image, mask = photo
    parts = parts_of(pipe, scheduler)
    theirs = diffusers.StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    hidden = kerasdiff.images.fill(image, mask.astype("float32")) if strength == 1 and kind == "v1" else image
    masked = (image.astype("float32") / 127.5 - 1) * ~mask[..., None]
    noise = generator.initial_latents(1, height=56, width=72, seed=3)
    draw_there(monkeypatch, "inpaint", noise)
    expected = theirs(
        "a red circle",
        image=ours_as_theirs(generator.encode_image(hidden[None])),
        mask_image=torch.from_numpy(mask.astype("float32"))[None, None],
        masked_image_latents=ours_as_theirs(generator._pipeline.encode(masked)[None]),
        height=56,
        width=72,
        strength=strength,
        num_inference_steps=6,
        guidance_scale=4.0,
        output_type="latent",
    ).images
    ours = generator.generate(
        "a red circle",
        image=image,
        mask=mask,
        strength=strength,
        num_steps=6,
        guidance_scale=4.0,
        sampler=scheduler,
        spacing="leading" if scheduler == "DDIMScheduler" else "linspace",
        seed=3,
        progress=False,
    )
    assert far(ours.latents, expected) < 1e-4
    assert np.array_equal(ours[0][~mask], image[~mask])


def test_torchs_seed_gives_diffusers_pictures(made, photo, monkeypatch):
    """From pixels to pixels; diffusers draws latents around the encoder's mean, which is taken out."""
    pipe, generator = made["v1"]
    image, _ = photo
    parts = parts_of(pipe, "DDIMScheduler")
    theirs = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    distribution = diffusers.models.autoencoders.vae.DiagonalGaussianDistribution

    def mean(self, generator=None):
        torch.randn(self.mean.shape, generator=generator)
        return self.mean

    monkeypatch.setattr(distribution, "sample", mean)
    arguments = {"strength": 0.6, "guidance_scale": 4.0}
    scaled = torch.from_numpy(image.astype("float32") / 255).permute(2, 0, 1)[None]
    seeded = torch.Generator().manual_seed(5)
    expected = theirs(
        "a ring", image=scaled, num_inference_steps=5, generator=seeded, output_type="np", **arguments
    ).images
    ours = generator.generate(
        "a ring", image=image, num_steps=5, sampler="ddim", rng="torch", seed=5, progress=False, **arguments
    )
    assert np.abs(ours.images.astype(int) - np.round(expected * 255).astype(int)).max() <= 1


def test_no_strength_is_what_the_autoencoder_makes_of_it(tiny):
    picture = scenes.render(score.held_out_scenes(1, seed=5)[0])
    for strength in (0.0, 0.1):  # the last int(6 * 0.1) steps are none
        result = tiny.generate(PROMPT, image=picture, strength=strength, seed=1, **QUICK)
        assert np.array_equal(result.images, tiny.decode(tiny.encode_image(picture[None])))


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_what_is_covered_matters_only_below_strength_one(tiny, strength):
    picture = scenes.render(score.held_out_scenes(1, seed=5)[0])
    mask = np.zeros((128, 128), bool)
    mask[30:90, 41:77] = True
    other = picture.copy()
    other[mask] = np.random.default_rng(0).integers(0, 256, (mask.sum(), 3))
    drawn = [
        tiny.generate(PROMPT, image=one, mask=mask, strength=strength, seed=1, **QUICK) for one in (picture, other)
    ]
    assert np.array_equal(drawn[0].images, drawn[1].images) == (strength == 1)
    assert np.array_equal(drawn[0][0][~mask], picture[~mask])


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "euler_a", "pndm"])
@pytest.mark.parametrize("masked", [False, True])
def test_rows_of_a_batch_are_the_single_runs(tiny, sampler, masked):
    asked = score.held_out_scenes(3, seed=9)
    pictures = [scenes.render(scene) for scene in asked]
    mask = np.zeros((128, 128), bool)
    mask[40:100, 10:64] = True
    arguments = {"sampler": sampler, **QUICK, **({"mask": mask} if masked else {})}
    strengths, scales, prompts = [0.2, 1.0, 0.55], [3.0, 1.0, 6.0], [*score.prompts_of(asked)]
    together = tiny.generate(
        prompts, image=pictures, strength=strengths, guidance_scale=scales, seed=[4, 5, 6], **arguments
    )
    for row in range(3):
        alone = tiny.generate(
            prompts[row],
            image=pictures[row],
            strength=strengths[row],
            guidance_scale=scales[row],
            seed=4 + row,
            **arguments,
        )
        assert np.abs(together.latents[row] - alone.latents[0]).max() / np.abs(alone.latents).max() < 1e-4
        assert np.abs(together[row].astype(int) - alone[0]).max() <= 1


def test_one_prompt_is_drawn_into_each_picture_and_each_is_encoded_once(tiny, monkeypatch):
    pictures = [scenes.render(scene) for scene in score.held_out_scenes(2, seed=9)]
    encoded, encode = [], tiny._pipeline.encode
    monkeypatch.setattr(tiny._pipeline, "encode", lambda image, tile: encoded.append(1) or encode(image, tile))
    assert len(tiny.generate(PROMPT, image=pictures, strength=0.2, **QUICK)) == 2
    assert len(tiny.generate(PROMPT, 3, image=pictures[0], strength=0.2, **QUICK)) == 3
    drawn = tiny.generate(PROMPT, image=np.stack(pictures), strength=0.2, seed=1, **QUICK)
    again = tiny.generate(PROMPT, image=drawn, strength=0.2, **QUICK)
    assert np.array_equal(again.request.pictures.images, drawn.images)
    assert sum(encoded) == 2 + 1 + 2 + 2


def test_strengths_and_pictures_compile_nothing_anew(tiny):
    picture = scenes.render(score.held_out_scenes(1, seed=5)[0])
    mask = np.zeros((128, 128), bool)
    mask[30:90, 41:77] = True
    tiny.generate(PROMPT, image=picture, strength=0.3, **QUICK)
    before = tiny.programs
    tiny.generate(PROMPT, **QUICK)
    tiny.generate(PROMPT, image=picture, strength=0.9, sampler="heun", **QUICK)
    tiny.generate(PROMPT, image=picture, mask=mask, **QUICK)
    assert tiny.programs == before


def test_recolouring_keeps_the_place(tiny):
    """Image to image with another colour in the prompt: the shape stays where it is and takes the colour."""
    kept, recoloured = 0, 0
    colours = [("red", "blue"), ("yellow", "purple"), ("white", "orange"), ("green", "pink")] * 2
    for seed, (before, after) in enumerate(colours):
        thing = Thing("circle", before, "large", 40 + 6.0 * seed, 70 - 4.0 * seed, 29.0)
        background = "black" if seed % 2 else "white" if before != "white" else "blue"
        picture = scenes.render(Scene(background, (thing,)))
        prompt = f"a large {after} circle on a {background} background"
        drawn = tiny.generate(prompt, image=picture, strength=0.4, num_steps=20, seed=seed, progress=False)[0]
        _, found = score.look(drawn)
        kept += any(np.hypot(one.x - thing.x, one.y - thing.y) < 10 for one in found)
        recoloured += any(one.colour == after for one in found)
    assert kept >= 7
    assert recoloured >= 6


def test_inpainting_replaces_only_what_is_covered(tiny):
    replaced = 0
    for seed in range(6):
        above = Thing("circle", "red", "", 64, 36, 23.0)
        below = Thing("square", "blue", "", 64, 92, 23.0)
        picture = scenes.render(Scene("yellow", (above, below)))
        mask = np.zeros((128, 128), bool)
        mask[64:, :] = True
        prompt = "a red circle above a green square on a yellow background"
        drawn = tiny.generate(prompt, image=picture, mask=mask, num_steps=20, seed=seed, progress=False)[0]
        assert np.array_equal(drawn[~mask], picture[~mask])
        _, found = score.look(drawn)
        assert any((one.colour, one.shape) == ("red", "circle") for one in found)
        replaced += any(one.colour == "green" and one.y > 64 for one in found)
    assert replaced >= 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": 0.5}, "strength needs image"),
        ({"mask": np.zeros((8, 8))}, "mask, resize and feather need image"),
        ({"strength": 1.5}, "strength=1.5 is out of range; it must be between 0 and 1"),
        ({"strength": [0.1, 0.2, 0.3]}, "strength has 3 entries for 1 prompts and 1 images"),
        ({"strength": "1"}, "strength must be a number, not str"),
        ({"mask": np.zeros((8, 8))}, "the mask is 8 x 8 and the image 128 x 128 pixels; their sizes must be the same"),
        ({"feather": 3}, "feather needs mask"),
        ({"resize": "crop"}, "resize='crop' is unknown; .*known: cover, fit, stretch"),
        ({"image": []}, "image is an empty list"),
        ({"sigmas": [10.0, 5.0]}, "sigmas end at 5, which leaves noise in the image"),
        ({"image": "nowhere.png"}, "nowhere.png"),
        ({"height": 256}, "resize="),
        ({"safety": "on"}, "this model comes without a safety filter; leave safety out"),
    ],
)
def test_wrong_arguments_are_one_clear_line(tiny, arguments, message):
    alone = {"strength", "mask"} if "image" in message.split()[-1:] else set()
    picture = {} if alone & set(arguments) else {"image": np.zeros((128, 128, 3), "uint8")}
    with pytest.raises(kerasdiff.RequestError, match=message):
        tiny.generate("a ring", **{**picture, **arguments})


def test_a_model_for_inpainting_says_what_it_needs(made, photo):
    for arguments in ({}, {"image": photo[0]}):
        with pytest.raises(kerasdiff.RequestError, match=r"a model for inpainting; .* give image and mask"):
            made["inpainting"][1].generate("a ring", **arguments)
