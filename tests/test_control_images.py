"""ControlNets of small models against diffusers, and what must hold of them in any run."""

from __future__ import annotations

import warnings

import checkpoints
import numpy as np
import pytest
from checkpoints import diffusers, torch
from control_checkpoints import controlnet
from PIL import Image
from xl_checkpoints import xl_pipeline

import kerasdiff
from kerasdiff import Control

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers' schedulers
SIZE = {"height": 64, "width": 96}
QUICK = {**SIZE, "num_steps": 3, "seed": 3, "rng": "torch", "progress": False, "sampler": "ddim"}
PROMPT = "a red circle"
SCALES = (1.0, 0.6, 0.3)
# diffusers' pipelines for a ControlNet, by what they do.
CLASSES = {
    "v1": diffusers.StableDiffusionControlNetPipeline,
    "xl": diffusers.StableDiffusionXLControlNetPipeline,
    "image": diffusers.StableDiffusionControlNetImg2ImgPipeline,
    "mask": diffusers.StableDiffusionControlNetInpaintPipeline,
}
# ControlNets that have names.
NETS = {"pools": {"global_pool_conditions": True}}


class Made:
    """Pipelines of diffusers by kind, ControlNets by name, and their folders."""

    def __init__(self, place):
        self.place, self.pipes, self.nets, self.generators = place, {}, {}, {}

    def pipe(self, kind):
        if kind not in self.pipes:
            make = xl_pipeline if kind == "xl" else checkpoints.pipeline
            pipe = make("base" if kind == "xl" else kind, self.place / kind / "vocabulary")
            if kind != "lcm":
                settings = {"clip_sample": False, "timestep_spacing": "leading", "steps_offset": 1}
                pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, **settings)
            self.pipes[kind] = pipe, checkpoints.save(pipe, self.place / kind / "model")
        return self.pipes[kind][0]

    def net(self, kind, name=0):
        """A ControlNet for a kind of model, and its folder."""
        if (kind, name) not in self.nets:
            unet, place = self.pipe(kind).unet, self.place / f"net-{kind}-{name}"
            net = controlnet(unet, seed=name if isinstance(name, int) else 5, **NETS.get(name, {}))
            net.save_pretrained(place)
            self.nets[kind, name] = net, str(place)
        return self.nets[kind, name]

    def generator(self, kind="v1", backend="openvino", **settings):
        key = kind, backend, *settings.items()
        if key not in self.generators:
            self.pipe(kind)
            settings = {"precision": "float32", "jit_compile": False, **settings}
            self.generators[key] = kerasdiff.Generator(self.pipes[kind][1], backend=backend, **settings)
        return self.generators[key]

    def theirs(self, kind, names, pipeline=None, image=None, prompt=PROMPT, **settings):
        """Latents (1, h, w, 4) of diffusers, by a pipeline of `CLASSES`, with ControlNets and their hints."""
        parts, nets = self.pipe(kind).components, [self.net(kind, name)[0] for name in names]
        extra = {"add_watermarker": False} if kind == "xl" else {"requires_safety_checker": False}
        made = CLASSES[pipeline or ("xl" if kind == "xl" else "v1")]
        pipe = made(**parts, controlnet=nets if len(nets) > 1 else nets[0], **extra)
        pipe.set_progress_bar_config(disable=True)
        hints = settings.pop("hints", [Image.fromarray(hint(place)) for place in range(len(nets))])
        named = {"image": hints} if image is None else {"image": image, "control_image": hints}
        arguments = {
            "controlnet_conditioning_scale": list(SCALES[: len(nets)]) if len(nets) > 1 else SCALES[0],
            "num_inference_steps": 3,
            "generator": torch.Generator().manual_seed(3),
            **SIZE,
            **settings,
        }
        for name, value in named.items():
            one = name != "image" or image is None
            arguments[name] = value[0] if one and len(nets) == 1 else value
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = pipe(prompt, output_type="latent", **arguments).images
        return found.permute(0, 2, 3, 1).numpy()

    def controls(self, kind, names, **settings):
        """The same as arguments of ours; a setting is one for all, or a list."""
        return [
            Control(
                self.net(kind, name)[1],
                hint(place),
                **{"scale": SCALES[place]}
                | {key: value[place] if isinstance(value, list) else value for key, value in settings.items()},
            )
            for place, name in enumerate(names)
        ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Made(tmp_path_factory.mktemp("control"))


@pytest.fixture(scope="module")
def generator(made):
    return made.generator()


def hint(seed):
    """A picture of blocks."""
    return np.random.default_rng(seed).integers(0, 256, (8, 12, 3), "uint8").repeat(8, 0).repeat(8, 1)


def drawn(generator, prompt=PROMPT, **arguments):
    return generator.generate(prompt, **{**QUICK, **arguments})


def far(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def decoded(pipe, latents):
    """What diffusers' autoencoder makes of latents (N, h, w, 4), as grey levels."""
    with torch.no_grad():
        scaled = torch.from_numpy(np.ascontiguousarray(latents.transpose(0, 3, 1, 2))) / pipe.vae.config.scaling_factor
        images = pipe.image_processor.postprocess(pipe.vae.decode(scaled).sample, output_type="np")
    return np.round(images * 255).astype(int)


# What is drawn: kind of model, ControlNets, settings of the controls, of diffusers' pipeline, and of both.
CASES = {
    "one": ("v1", [0], {}, {}, {}),
    "two": ("v1", [0, 1], {}, {}, {}),
    "three": ("v1", [0, 1, 2], {}, {}, {}),
    "of one network": ("v1", [0, 0], {}, {}, {}),
    "guess mode": ("v1", [0], {"mode": "control"}, {"guess_mode": True}, {}),
    "guess mode of two": ("v1", [0, 1], {"mode": "control"}, {"guess_mode": True}, {}),
    "guess mode without guidance": ("v1", [0], {"mode": "prompt"}, {"guess_mode": True}, {"guidance_scale": 1.0}),
    "start and end": (
        "v1",
        [0, 1],
        {"start": [0.0, 0.34], "end": [0.67, 1.0]},
        {"control_guidance_start": [0.0, 0.34], "control_guidance_end": [0.67, 1.0]},
        {"negative_prompt": "a blue star"},
    ),
    "pools": ("v1", ["pools"], {}, {}, {}),
    "v2": ("v2", [0], {}, {}, {}),
    "lcm": ("lcm", [0], {"mode": "prompt"}, {"guess_mode": True}, {"guidance_scale": 8.5}),
    "xl": ("xl", [0, 1], {}, {}, {"guidance_scale": 5.0}),
    "xl, guess mode": ("xl", [0], {"mode": "control"}, {"guess_mode": True}, {"guidance_scale": 5.0}),
}


@pytest.mark.parametrize("name", CASES)
def test_images_are_those_of_diffusers(made, name):
    kind, nets, ours, theirs, both = CASES[name]
    expected = made.theirs(kind, nets, **theirs, **both)
    own = {"sampler": None, "rng": "torch"} if kind == "lcm" else {}
    found = drawn(made.generator(kind), controls=made.controls(kind, nets, **ours), **both, **own)
    assert far(found.latents, expected) < 1e-4
    assert np.abs(found.images.astype(int) - decoded(made.pipe(kind), expected)).max() <= 1
    if name in ("one", "lcm"):
        assert far(drawn(made.generator(kind), **both, **own).latents, expected) > 0.01
