"""Pictures as prompts, through IP-Adapters of small models, against diffusers."""

from __future__ import annotations

import dataclasses
import warnings

import checkpoints
import numpy as np
import pytest
from checkpoints import diffusers, torch
from control_checkpoints import image_encoder, ip_adapter, save_ip_adapter
from PIL import Image
from xl_checkpoints import xl_pipeline

import kerasdiff
from kerasdiff import ImagePrompt

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers' schedulers
QUICK = {"height": 64, "width": 64, "num_steps": 2, "seed": 3, "rng": "torch", "progress": False, "sampler": "ddim"}
PROMPT = "a red circle"
KINDS = ("plain", "plus", "full")


@dataclasses.dataclass
class Made:
    """diffusers' pipeline, a generator of the same model, and the files of its adapters, by kind."""

    pipe: object
    generator: kerasdiff.Generator
    files: dict

    def theirs(self, kinds, pictures, scale, prompt=PROMPT, **settings):
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
                    prompt,
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

    def latents(self, prompts, prompt=PROMPT, **settings):
        return self.generator.generate(prompt, **QUICK | settings, image_prompts=prompts).latents


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
    return Made(pipe, generator, files)


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


@pytest.mark.parametrize("guidance", [7.5, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_latents_are_those_of_diffusers(v1, kind, guidance):
    found = v1.latents(ImagePrompt(str(v1.files[kind]), picture(0), 0.8), guidance_scale=guidance)
    assert np.abs(found - v1.latents(None, guidance_scale=guidance)).max() > 0.05
    expected = v1.theirs([kind], [[picture(0)]], 0.8, guidance_scale=guidance)
    np.testing.assert_allclose(found, expected, atol=1e-4)
