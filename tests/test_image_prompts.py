"""Pictures as prompts, through IP-Adapters of small models, against diffusers."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib
import warnings

import checkpoints
import numpy as np
import pytest
import safetensors.torch
from checkpoints import diffusers, torch
from control_checkpoints import controlnet
from image_prompt_checkpoints import image_encoder, ip_adapter, save_ip_adapter
from PIL import Image
from xl_checkpoints import xl_pipeline

import kerasdiff
from kerasdiff import Control, ImagePrompt
from kerasdiff.diffusion.image_prompt_stage import ImageEncoderStage
from kerasdiff.errors import ModelError, RequestError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers' schedulers
QUICK = {"height": 64, "width": 64, "num_steps": 2, "seed": 3, "rng": "torch", "progress": False, "sampler": "ddim"}
PROMPT = "a red circle"
KINDS = ("plain", "plus", "full")


@dataclasses.dataclass
class Made:
    """diffusers' pipeline, a generator of the same model, and the files of its adapters, by kind."""

    pipe: object
    folder: pathlib.Path
    generator: kerasdiff.Generator
    files: dict

    def theirs(self, kinds, pictures, scale=0.8, **settings):
        """Latents (N, h, w, 4) of diffusers with some adapters, each with a list of pictures."""
        folder, names = self.files["plain"].parent, [self.files[kind].name for kind in kinds]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.pipe.load_ip_adapter(
                str(folder), subfolder="", weight_name=names, image_encoder_folder="image_encoder"
            )
            self.pipe.set_ip_adapter_scale(scale)
            try:
                found = self.pipe(
                    PROMPT,
                    ip_adapter_image=[[Image.fromarray(one) for one in own] for own in pictures],
                    height=64,
                    width=64,
                    num_inference_steps=2,
                    generator=torch.Generator().manual_seed(3),
                    output_type="latent",
                    **settings,
                ).images
            finally:
                self.pipe.unload_ip_adapter()
                self.pipe.feature_extractor = None
        return found.permute(0, 2, 3, 1).numpy()

    def asking(self, kind, image, scale=0.8, **settings):
        return ImagePrompt(**{"model": str(self.files[kind]), "image": image, "scale": scale} | settings)

    def generate(self, prompts, prompt=PROMPT, **settings):
        return self.generator.generate(prompt, **QUICK | settings, image_prompts=prompts)

    def latents(self, *arguments, **settings):
        return self.generate(*arguments, **settings).latents


def _made(pipe, place):
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    pipe.set_progress_bar_config(disable=True)
    folder = checkpoints.save(pipe, place / "model")
    encoder = image_encoder()
    files = {
        kind: save_ip_adapter(
            place / "adapters" / f"{kind}.{'bin' if kind == 'plus' else 'safetensors'}",
            ip_adapter(pipe.unet, kind, encoder, seed=number),
            encoder,
        )
        for number, kind in enumerate(KINDS)
    }
    generator = kerasdiff.Generator(folder, precision="float32", jit_compile=False, backend="openvino")
    return Made(pipe, folder, generator, files)


@pytest.fixture(scope="module")
def v1(tmp_path_factory):
    place = tmp_path_factory.mktemp("v1")
    return _made(checkpoints.pipeline("v1", place / "vocabulary"), place)


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    place = tmp_path_factory.mktemp("xl")
    return _made(xl_pipeline("base", place / "vocabulary"), place)


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (20 + seed, 31, 3), "uint8")


def test_latents_and_images_are_those_of_diffusers(v1):
    denoise = v1.generator._pipeline.denoise
    before = denoise.traces
    found = v1.generate(v1.asking("plain", picture(0)))
    assert denoise.traces <= before + 1  # what was prepared was what the steps needed
    assert np.abs(found.latents - v1.generate(None).latents).max() > 0.05
    expected = v1.theirs(["plain"], [[picture(0)]])
    np.testing.assert_allclose(found.latents, expected, atol=1e-4)
    with torch.no_grad():
        latents = torch.from_numpy(expected).permute(0, 3, 1, 2) / v1.pipe.vae.config.scaling_factor
        decoded = v1.pipe.image_processor.postprocess(v1.pipe.vae.decode(latents).sample, "np")[0]
    assert np.abs(found.images[0].astype(int) - (255 * decoded).round().astype(int)).max() <= 1


def test_plus_reads_patches_and_scale_start_and_end_compile_nothing(v1):
    asked, generator = v1.asking("plus", picture(0)), v1.generator
    size = {name: QUICK[name] for name in ("height", "width")}
    plans = [generator.plan(**size, image_prompts=one) for one in (None, asked)]
    generator.warm_up(**size, image_prompts=asked)
    programs = generator.programs
    found = v1.latents(asked)
    assert generator.programs == programs
    weights = sum(network.weight_bytes for network in generator._pipeline.controls.named["IP-Adapter plus"].members)
    assert plans[1].memory["weights"] - plans[0].memory["weights"] == pytest.approx(1.35 * weights, abs=3)
    np.testing.assert_allclose(found, v1.theirs(["plus"], [[picture(0)]]), atol=1e-4)
    none, traces = v1.latents(None), v1.generator._pipeline.denoise.traces
    early = v1.latents(v1.asking("plus", picture(0), start=0.5))
    assert np.abs(early - found).max() > 0.01 < np.abs(early - none).max()
    later = v1.latents(v1.asking("plus", picture(0), scale=0.3, end=0.1))  # in no step
    np.testing.assert_array_equal(later, none)
    np.testing.assert_array_equal(v1.latents(v1.asking("plus", picture(0), scale=0)), none)
    assert v1.generator._pipeline.denoise.traces == traces


def test_several_pictures_are_read_together_and_images_of_a_batch_have_their_own(v1):
    several = [picture(0), picture(1)]
    asked = v1.asking("plus", [several, [picture(2)]], scale=[0.8, 0.4])
    found = v1.latents(asked, [PROMPT, "a blue square"], seed=[3, 4])
    np.testing.assert_allclose(found[:1], v1.theirs(["plus"], [several]), atol=1e-4)
    # One with fewer pictures reads the same as alone.
    alone = v1.latents(v1.asking("plus", picture(2), scale=0.4), "a blue square", seed=4)
    np.testing.assert_allclose(found[1:], alone, atol=1e-4)


def test_several_adapters_beside_a_controlnet_without_guidance(v1, tmp_path):
    net, hint = controlnet(v1.pipe.unet), np.full((64, 64, 3), 200, "uint8")
    net.save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="is no IP-Adapter: give it in controls"):
        v1.latents(ImagePrompt(str(tmp_path), picture(0)))
    asked = [v1.asking("full", picture(0)), v1.asking("plain", picture(1), scale=0.5)]
    found = v1.latents(asked, guidance_scale=1, controls=Control(str(tmp_path), hint))
    steered = diffusers.StableDiffusionControlNetPipeline(**v1.pipe.components, controlnet=net)
    steered.set_progress_bar_config(disable=True)
    expected = dataclasses.replace(v1, pipe=steered).theirs(
        ["full", "plain"], [[picture(0)], [picture(1)]], [0.8, 0.5], guidance_scale=1.0, image=Image.fromarray(hint)
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_picture_beside_joined_prompts(v1):
    joined = v1.latents(v1.asking("plain", picture(0)), f"{PROMPT} AND a blue square :0", prompt_syntax="a1111")
    np.testing.assert_allclose(joined, v1.latents(v1.asking("plain", picture(0))), atol=1e-4)


def test_latents_of_stable_diffusion_xl_are_those_of_diffusers(xl):
    found = xl.latents(xl.asking("plain", picture(0)))
    assert np.abs(found - xl.latents(None)).max() > 0.05
    np.testing.assert_allclose(found, xl.theirs(["plain"], [[picture(0)]]), atol=1e-4)


def test_tensorflow_agrees(v1):
    other = kerasdiff.Generator(v1.folder, precision="float32", jit_compile=False, backend="tensorflow")
    asked = v1.asking("plain", picture(0))
    found = other.generate(PROMPT, **QUICK, image_prompts=asked).latents
    np.testing.assert_allclose(found, v1.latents(asked), atol=1e-4)


def test_a_picture_is_seen_once_in_a_request(v1, monkeypatch):
    seen = []
    see = ImageEncoderStage.__call__
    monkeypatch.setattr(ImageEncoderStage, "__call__", lambda stage, *own: seen.append(own[0]) or see(stage, *own))
    v1.latents(v1.asking("plain", picture(0)), batch_size=2, exact=True)
    assert [one is None for one in seen] == [True, False]


def test_an_encoder_keeps_its_path_and_a_file_its_hash(v1, monkeypatch):
    monkeypatch.chdir(v1.folder.parent)
    found = v1.generate(v1.asking("plain", picture(0), encoder="adapters/image_encoder")).request.image_prompts
    (prompt,) = found
    assert prompt.encoder == str(v1.folder.parent / "adapters" / "image_encoder")
    assert prompt.sha256 == hashlib.sha256(v1.files["plain"].read_bytes()).hexdigest()


def test_adapters_that_cannot_be_had_or_read(v1, xl, tmp_path):
    def refused(asked, words, error=ModelError, **settings):
        with pytest.raises(error, match=words):
            v1.latents(asked, **settings)

    plain = safetensors.torch.load_file(v1.files["plain"])
    save = lambda name, tensors, *encoder: str(save_ip_adapter(tmp_path / name, tensors, *encoder))  # noqa: E731
    refused(
        v1.asking("plain", picture(0), model=str(xl.files["plain"])), "made for texts of 192 numbers a token, .* 64"
    )
    refused(
        ImagePrompt(save("a.safetensors", plain), picture(0)), "needs the image encoder whose embeddings are 24 wide"
    )
    other = image_encoder(projection_dim=7)
    refused(
        ImagePrompt(save("o/a.safetensors", plain, other), picture(0)), r"o/image_encoder is one of 7; give another"
    )
    away = ImagePrompt(save("a.safetensors", plain), picture(0), 0.8, encoder=str(v1.files["plain"].parent))
    np.testing.assert_array_equal(v1.latents(away), v1.latents(v1.asking("plain", picture(0))))
    for name in ("image_proj.perceiver_resampler.norm.weight", "ip_adapter.1.to_q_lora.down.weight"):
        refused(
            ImagePrompt(save("f.safetensors", plain | {name: torch.ones(1)}), picture(0)), "an IP-Adapter of FaceID"
        )
    instant = {"image_proj.latents": torch.ones(1, 4, 32), "image_proj.proj_in.weight": torch.ones(32, 512)}
    refused(ImagePrompt(save("i.safetensors", instant), picture(0)), "InstantID")
    del plain["ip_adapter.5.to_k_ip.weight"]
    refused(ImagePrompt(save("b.safetensors", plain), picture(0)), "made for 3 attentions .* has 4")
    model = str(v1.files["plain"])
    asked = Control(model, np.zeros((64, 64, 3), "uint8"))
    refused(None, "is an IP-Adapter: give it in image_prompts", RequestError, controls=asked)
