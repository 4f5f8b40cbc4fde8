"""ControlNets of small models against diffusers, and what must hold of them in any run."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import checkpoints
import lora_files
import numpy as np
import pytest
from checkpoints import decoded, diffusers, far, torch
from control_checkpoints import controlnet
from PIL import Image
from test_t2i_adapters import numbered
from xl_checkpoints import xl_pipeline

import kerasdiff
from kerasdiff import Control
from kerasdiff.diffusion.control_stage import ControlStage
from kerasdiff.walk import make_walk

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


# What is drawn: kind of model, ControlNets, settings of the controls, of diffusers' pipeline, and of both.
CASES = {
    "one": ("v1", [0], {}, {}, {}),
    "two": ("v1", [0, 1], {}, {}, {}),
    "three": ("v1", [0, 1, 2], {}, {}, {}),
    "of one network": ("v1", [0, 0], {}, {}, {}),
    "guess mode": ("v1", [0], {"mode": "control"}, {"guess_mode": True}, {}),
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
    "xl": ("xl", [0], {}, {}, {"guidance_scale": 5.0}),
    "xl, guess mode of two": ("xl", [0, 1], {"mode": "control"}, {"guess_mode": True}, {"guidance_scale": 5.0}),
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


def as_theirs(latents):
    return torch.from_numpy(np.ascontiguousarray(latents.transpose(0, 3, 1, 2)))


@pytest.fixture
def noise(generator, monkeypatch):
    """Our noise, from which diffusers' pipelines start; they encode pictures to their means."""
    ours = generator.initial_latents(1, seed=3, **SIZE)
    for name in ("img2img", "inpaint"):
        module = getattr(diffusers.pipelines.controlnet, f"pipeline_controlnet_{name}")
        monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: as_theirs(ours))
    distribution = diffusers.models.autoencoders.vae.DiagonalGaussianDistribution
    monkeypatch.setattr(distribution, "sample", lambda self, generator=None: self.mean)


PICTURE, MASK = hint(9), np.zeros((64, 96), bool)
MASK[16:40, 24:64] = True


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "HeunDiscreteScheduler"])
def test_image_to_image_is_that_of_diffusers(made, generator, noise, scheduler):
    """With shares of its own steps; of Heun's method diffusers counts evaluations."""
    limits = (0.0, 0.5) if scheduler == "DDIMScheduler" else (0.0, 1.0)
    pipe, arguments = made.pipe("v1"), {"strength": 0.6, "guidance_scale": 4.0}
    own, pipe.scheduler = pipe.scheduler, getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    try:
        limited = {"control_guidance_start": limits[0], "control_guidance_end": limits[1]}
        picture = Image.fromarray(PICTURE)
        steps = {"num_inference_steps": 7, **limited, **arguments}
        expected = made.theirs("v1", [0], "image", picture, **steps)
    finally:
        pipe.scheduler = own
    steered = {"controls": made.controls("v1", [0], start=limits[0], end=limits[1]), "image": PICTURE}
    sampled = {"sampler": scheduler, "spacing": "leading", "rng": "philox", "num_steps": 7}
    assert far(drawn(generator, **steered, **sampled, **arguments).latents, expected) < 1e-4


@pytest.mark.parametrize("kind", ["v1", "inpainting"])
def test_inpainting_is_that_of_diffusers(made, noise, kind):
    """The hint is the picture itself, with -1 where the mask covers it."""
    theirs = torch.from_numpy(np.where(MASK[..., None], -1, PICTURE / 255).astype("float32")).permute(2, 0, 1)[None]
    arguments = {"strength": 0.7, "guidance_scale": 4.0}
    given = {"mask_image": Image.fromarray(MASK), "hints": [theirs], "num_inference_steps": 5}
    expected = made.theirs(kind, [0], "mask", Image.fromarray(PICTURE), **given, **arguments)
    controls = [Control(made.net(kind)[1])]
    own = {"image": PICTURE, "mask": MASK, "rng": "philox", "num_steps": 5, "spacing": "leading"}
    ours = drawn(made.generator(kind), controls=controls, **own, **arguments)
    assert far(ours.latents, expected) < 1e-4
    assert np.array_equal(ours[0][~MASK], PICTURE[~MASK])


class Calls:
    """What ControlNets were asked, in the order in which they were."""

    def __init__(self, monkeypatch):
        self.encode, self.residuals = [], []
        for name, found in vars(self).items():
            monkeypatch.setattr(ControlStage, name, self._spied(getattr(ControlStage, name), found))

    @staticmethod
    def _spied(own, found):
        def method(stage, *arguments):
            found.append((stage, *arguments))
            return own(stage, *arguments)

        return method


@pytest.fixture
def calls(monkeypatch):
    return Calls(monkeypatch)


@pytest.mark.parametrize("nothing", [{"scale": 0}, {"start": 0.5, "end": 0.5}])
def test_what_never_acts_changes_no_bit(made, generator, calls, nothing):
    plain = drawn(generator)
    found = drawn(generator, controls=made.controls("v1", [0], **nothing))
    assert np.array_equal(found.latents, plain.latents)
    assert np.array_equal(found.images, plain.images)
    assert calls.encode == calls.residuals == []


def test_numbers_compile_nothing_and_only_what_acts_is_run(made, generator, calls):
    third = 1 / 3
    drawn(generator, controls=made.controls("v1", [0, 1]))
    assert len(calls.residuals) == 6
    names = [compiled.name for compiled in generator._pipeline.compiled]
    assert "hint" in names
    assert "control 1 with others" in names
    before = generator.programs, generator.traces
    for settings, runs in (
        ({"scale": [0.2, 7.0], "mode": ["balanced", "prompt"]}, 6),
        ({"start": [third, 0.0], "end": [2 * third, 1.0]}, 4),
        ({"start": [0.0, 2 * third], "end": [third, 1.0]}, 2),
        ({"start": 0.9}, 0),
    ):
        calls.residuals.clear()
        drawn(generator, controls=made.controls("v1", [0, 1], **settings))
        assert len(calls.residuals) == runs
    assert (generator.programs, generator.traces) == before


def test_each_image_has_its_hint_and_its_scale(made, generator, calls):
    net = made.net("v1")[1]

    def of(places, **arguments):
        hints, scales = [hint(place) for place in places], [(1.0, 0.4, 0.0)[place] for place in places]
        prompts, seeds = [PROMPT] * len(places), [3 + place for place in places]
        return drawn(generator, prompts, seed=seeds, controls=[Control(net, hints, scales)], **arguments)

    together, alone = of([0, 1, 2]), of([0, 1, 2], exact=True)
    assert np.abs(together.latents - alone.latents).max() < 1e-4
    assert np.array_equal(alone.latents[2], drawn(generator, seed=5).latents[0])
    calls.encode.clear()
    same = of([0], exact=True)
    assert np.array_equal(same.latents[0], alone.latents[0])


def test_a_hint_is_encoded_once(made, generator, calls):
    net = made.net("v1")[1]
    hints = [hint(0), hint(1), hint(0), hint(0)]
    drawn(generator, [PROMPT] * 4, controls=[Control(net, hints), Control(net, hint(1))], exact=True)
    assert len(calls.encode) == 2
    assert {encoded.shape for _, encoded, _ in calls.encode} == {(64, 96, 3)}
    calls.encode.clear()
    settings = {name: value for name, value in QUICK.items() if name != "progress"}
    walk = make_walk(generator.config, [PROMPT, "a star"], 3, controls=[Control(net, hint(0))], **settings)
    assert len([*generator.each(walk, progress=False)]) == 3
    assert len(calls.encode) == 1


def test_images_that_wait_are_not_steered(made, generator):
    """And shares are of each image's own steps."""
    steered = {"controls": made.controls("v1", [0], end=0.5), "num_steps": 6, "rng": "philox"}
    pictures, strengths = [hint(7), hint(8)], [0.9, 0.34]
    both = drawn(generator, [PROMPT] * 2, image=pictures, strength=strengths, seed=[3, 4], **steered)
    for place, latents in enumerate(both.latents):
        given = {"image": pictures[place], "strength": strengths[place], "seed": 3 + place}
        assert np.abs(drawn(generator, **given, **steered).latents[0] - latents).max() < 1e-4


@pytest.mark.parametrize("mode", ["balanced", "control"])
def test_texts_that_are_joined_and_texts_that_change(made, generator, mode):
    """The same text twice, each half, is that text; and a run in two halves is one whose text changes behind step 1."""
    controls, syntax = made.controls("v1", [0], mode=mode), {"prompt_syntax": "a1111"}
    once = drawn(generator, controls=controls)
    twice = drawn(generator, f"{PROMPT} :0.5 AND {PROMPT} :0.5", controls=controls, **syntax)
    assert far(twice.latents, once.latents) < 1e-4
    halves = {"controls": made.controls("v1", [0], mode=mode, start=0.25, end=0.75), "num_steps": 4}
    whole = drawn(generator, f"[{PROMPT}:a blue star:1]", **halves, **syntax)
    first = drawn(generator, denoising_end=0.5, **halves)
    second = drawn(generator, "a blue star", latents=first.latents, denoising_start=0.5, **halves)
    assert far(second.latents, whole.latents) < 1e-4
    assert far(drawn(generator, **halves).latents, whole.latents) > 1e-3


def test_without_guidance_there_is_no_other_half(made, generator):
    """In all rows, or in some: those are as a run without guidance has them."""
    modes = [made.controls("v1", [0], mode=mode) for mode in ("prompt", "control")]
    plain = [drawn(generator, controls=one, guidance_scale=1.0).latents for one in modes]
    assert np.array_equal(*plain)
    guided = [drawn(generator, controls=one, guidance_scale=[1.0, 1.0, 4.0]).latents for one in modes]
    assert far(*guided) > 1e-3
    assert far(guided[1], plain[1]) > 1e-3


def test_a_second_pass_has_the_hint_in_its_size(made, generator, calls):
    controls = made.controls("v1", [0])
    found = drawn(generator, controls=controls, num_steps=2, hires={"scale": 1.5, "steps": 1})
    assert found.images.shape[1:3] == (96, 144)
    sizes = [encoded for _, encoded, _ in calls.encode]
    assert [one.shape for one in sizes] == [(64, 96, 3), (96, 144, 3)]
    again = np.asarray(Image.fromarray(np.round(255 * sizes[1]).astype("uint8")).resize((96, 64), Image.BOX))
    assert np.abs(again - 255 * sizes[0]).mean() < 12
    plain = drawn(generator, num_steps=2, hires={"scale": 1.5, "steps": 1})
    assert far(found.latents, plain.latents) > 1e-3


def cut(own, stage, given, text, hint, scales, before, *rest):
    """All that a ControlNet adds, of which some is taken."""
    whole = own(stage, given, text, hint, scales, (), *rest[:-1], None)
    return tuple(np.asarray(one) + np.asarray(other) for one, other in zip(before, whole, strict=False))


def test_a_shallow_row_makes_only_what_it_uses(made, generator, monkeypatch):
    settings = {"controls": made.controls("v1", [0, 1]), "num_steps": 4, "deep_cache_interval": 2}
    found = drawn(generator, **settings).latents
    assert "control 1 with others first 1" in [compiled.name for compiled in generator._pipeline.compiled]
    own = ControlStage.residuals
    monkeypatch.setattr(ControlStage, "residuals", lambda stage, *given: cut(own, stage, *given))
    assert far(drawn(generator, **settings).latents, found) < 1e-5
    monkeypatch.undo()
    assert far(drawn(generator, **settings | {"deep_cache_interval": 1}).latents, found) > 1e-3


def test_slices_of_attention_and_seamless_hints(made, generator, calls):
    drawn(generator, controls=made.controls("v1", [0]), num_steps=2, tile="xy", token_merging_ratio=0.4)
    (stage, encoded, tile), (_, *arguments) = calls.encode[0], calls.residuals[0]
    assert arguments[5:7] == [1, "xy"] == [1, tile]
    whole, sliced = stage.residuals(*arguments), stage.residuals(*arguments[:5], 2, *arguments[6:])
    for one, other in zip(whole, sliced, strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=1e-4)
    rolled = stage.encode(np.roll(encoded, (8, 24), (0, 1)), tile)
    np.testing.assert_allclose(rolled, np.roll(stage.encode(encoded, tile), (1, 3), (0, 1)), atol=1e-4)


def test_what_overflows_in_half_precision_is_computed_again(made, tmp_path):
    """With the U-Net, to which it is told apart by nothing."""
    net, _ = made.net("v1", 3)
    with torch.no_grad():
        net.controlnet_mid_block.weight *= 1e7
    net.save_pretrained(tmp_path / "net")
    controls = [Control(str(tmp_path / "net"), hint(0), 1e-7)]
    half, full = (made.generator("v1", "tensorflow", precision=one) for one in ("mixed_float16", "float32"))
    with pytest.warns(UserWarning, match="U-Net gives numbers that are not finite in mixed_float16") as told:
        found = drawn(half, controls=controls)
    assert len(told) == 1
    expected = drawn(full, controls=controls).latents
    assert far(found.latents, expected) < 0.02
    assert far(drawn(full).latents, expected) > 1e-4


def test_loras_are_the_models_alone(made, generator, tmp_path):
    networks, controls = generator._pipeline.networks, made.controls("v1", [0])
    shapes = {"unet": networks.network("unet").shapes}
    lora = lora_files.write_lora(tmp_path / "lora.safetensors", shapes, 1, networks=["unet"])
    network = generator._pipeline.controls.open(controls[0])._networks.network("controlnet")
    seen, looked_at = [], (network, networks.network("unet"))
    found = drawn(
        generator,
        controls=controls,
        loras=str(lora),
        callback=lambda *_: seen.append([each.values is each.base_values for each in looked_at]),
    )
    assert seen == [[True, False]] * 3
    assert far(found.latents, drawn(generator, controls=controls).latents) > 1e-3


ON_JAX = """
import sys
sys.path[:0] = sys.argv[4:]
import numpy as np
from test_control_images import drawn, steered
from test_t2i_adapters import numbered
import kerasdiff
generator = kerasdiff.Generator(sys.argv[1], precision="float32", backend="jax")
np.savez(sys.argv[3], steered(generator, sys.argv[2]), *numbered())
"""


def steered(generator, net):
    """Latents with a ControlNet and two hints, each in some steps, one beside both texts."""
    controls = [Control(net, hint(0), mode="control", end=0.7), Control(net, hint(1), start=0.3)]
    return drawn(generator, controls=controls).latents


@pytest.mark.parametrize("backend", ["tensorflow", pytest.param("tensorflow with XLA", marks=pytest.mark.slow), "jax"])
def test_other_backends_draw_the_same(made, generator, backend, tmp_path):
    net = made.net("v1")[1]
    expected = steered(generator, net)
    if backend == "jax":
        paths = [os.path.dirname(file) for file in (__file__, checkpoints.__file__, lora_files.__file__)]
        command = [sys.executable, "-W", "ignore", "-c", ON_JAX, made.pipes["v1"][1], net]
        path = tmp_path / "found.npz"
        subprocess.run([*map(str, command), path, *paths], check=True, env={**os.environ, "KERAS_BACKEND": "jax"})
        found, *features = np.load(path).values()
        for here, there in zip(numbered(), features, strict=True):
            assert far(here, there) < 1e-5
    else:
        xla = {"jit_compile": True} if backend.endswith("XLA") else {}
        found = steered(made.generator("v1", "tensorflow", **xla), net)
    assert far(found, expected) < 1e-4
