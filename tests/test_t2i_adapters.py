"""T2I-Adapters beside diffusers: their networks, their files, and what small models draw with them."""

from __future__ import annotations

import functools
import json
import pathlib
import re
import warnings

import checkpoints
import numpy as np
import pytest
import safetensors.torch
from checkpoints import diffusers, torch
from control_checkpoints import controlnet, t2i_adapter
from PIL import Image
from torch_networks import built
from xl_checkpoints import xl_pipeline

import kerasdiff
from kerasdiff.checkpoints.formats.t2i_adapter_file import open_t2i_adapter
from kerasdiff.diffusion.stage import Overflow
from kerasdiff.diffusion.t2i_adapter_run import LoadedT2IAdapter
from kerasdiff.errors import ModelError, RequestError
from kerasdiff.models.control_configs import ControlModel, T2IAdapterConfig
from kerasdiff.models.layers import values_from
from kerasdiff.models.networks import make_network
from kerasdiff.runtime import precision as precisions
from kerasdiff.runtime.program_cache import ProgramCache

CONFIGS = {
    "full": T2IAdapterConfig(channels=(32, 64, 64)),
    "light": T2IAdapterConfig("light_adapter", (32, 64), 3, in_channels=1),
    "xl": T2IAdapterConfig("full_adapter_xl", (64, 128, 192, 192), downscale_factor=16),
}


def theirs_of(config: T2IAdapterConfig, seed: int = 0, gain: float = 1.0):
    """diffusers' network of a configuration, with random weights."""
    settings = {name: getattr(config, name) for name in ("channels", "num_res_blocks", "downscale_factor")}
    return t2i_adapter(seed, config.adapter_type, gain, in_channels=config.in_channels, **settings)


@pytest.mark.parametrize("name", CONFIGS)
def test_features_are_those_of_diffusers(name):
    config, theirs = CONFIGS[name], theirs_of(CONFIGS[name])
    ours = built(make_network("t2i_adapter", ControlModel(t2i_adapter=config), "float32"), theirs)
    torch.manual_seed(1)
    hint = torch.rand(2, config.in_channels, 80, 112)  # 5 x 7 positions of an adapter for SDXL, whose halves are odd
    with torch.no_grad():
        expected = [each.permute(0, 2, 3, 1).numpy() for each in theirs(hint)]
    found = ours(hint.permute(0, 2, 3, 1).numpy())
    assert [(each.shape[3], -(-80 // each.shape[1])) for each in expected] == [
        (width, -(-80 // -(-80 // pixels))) for width, pixels in config.features
    ]
    for our, their in zip(found, expected, strict=True):
        assert np.abs(their).mean() > 0.01
        np.testing.assert_allclose(our, their, atol=1e-5)


def numbered() -> list[np.ndarray]:
    """Features of a network whose values, and hint, are the same numbers on every backend."""
    with values_from(lambda name, shape: np.random.default_rng(len(name)).normal(size=shape, scale=0.1)):
        network = make_network("t2i_adapter", ControlModel(t2i_adapter=CONFIGS["full"]), "float32")
        network.build()
    return [np.array(each) for each in network(hint(0)[None] / np.float32(255))]


# What U-Nets that have places for these features have in diffusers.
LEVELS = ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]
SD1 = {
    "block_out_channels": (32, 64, 64),
    "down_block_types": LEVELS,
    "up_block_types": [kind.replace("Down", "Up") for kind in reversed(LEVELS)],
}
XL = {
    "block_out_channels": (64, 128, 192),
    "down_block_types": LEVELS[::-1],
    "up_block_types": [kind.replace("Down", "Up") for kind in LEVELS],
    "transformer_layers_per_block": 1,
    "attention_head_dim": [1, 2, 3],
}
QUICK = {"height": 80, "width": 112, "num_steps": 4, "seed": 3, "rng": "torch", "progress": False, "sampler": "ddim"}
PROMPT = "a red circle"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("adapters")


@pytest.fixture(scope="module")
def pipes(place):
    """Small pipelines of diffusers, Stable Diffusion 1.x and XL."""
    made = {
        "sd1": checkpoints.pipeline("v1", place / "vocabulary", **SD1),
        "xl": xl_pipeline("base", place / "vocabulary", **XL),
    }
    for name, pipe in made.items():
        pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
        pipe.set_progress_bar_config(disable=True)
        checkpoints.save(pipe, place / name)
    return made


@pytest.fixture(scope="module")
def generators(place, pipes):
    return {
        name: kerasdiff.Generator(place / name, precision="float32", jit_compile=False, backend="openvino")
        for name in pipes
    }


@pytest.fixture(scope="module")
def adapters(place, pipes):
    """Adapters of diffusers, with their folders."""
    made = {name: theirs_of(config, number, 12.0) for number, (name, config) in enumerate(CONFIGS.items())}
    made["other"] = theirs_of(CONFIGS["full"], 7, 12.0)
    for name, adapter in made.items():
        adapter.save_pretrained(place / f"{name} adapter")
    return {name: (adapter, place / f"{name} adapter") for name, adapter in made.items()}


@pytest.fixture(scope="module")
def models(generators):
    """The models that adapters are made for."""
    return {name: generators["xl" if name == "xl" else "sd1"].config for name in CONFIGS}


def original(theirs) -> dict[str, torch.Tensor]:
    """An adapter's tensors with the names of its authors."""
    light = theirs.config.adapter_type == "light_adapter"
    depth = theirs.config.num_res_blocks

    def name(key: str) -> str:
        key = key.removeprefix("adapter.")
        found = re.fullmatch(r"body\.(\d+)\.(?:resnets\.(\d+)\.)?(.*)", key)
        if found is None or (light and found[2] is None):
            return key
        number, index, rest = int(found[1]), int(found[2] or 0), found[3]
        return f"body.{number}.body.{index}.{rest}" if light else f"body.{depth * number + index}.{rest}"

    return {name(key): value for key, value in theirs.state_dict().items()}


@pytest.mark.parametrize("name", CONFIGS)
def test_every_layout_of_a_file_is_the_same_network(name, models, tmp_path):
    theirs = theirs_of(CONFIGS[name])
    theirs.save_pretrained(tmp_path / "folder")
    state = theirs.state_dict()
    safetensors.torch.save_file(state, tmp_path / "diffusers.safetensors")
    bare = {key.removeprefix("adapter."): value for key, value in state.items()}
    safetensors.torch.save_file(bare, tmp_path / "bare.safetensors")
    torch.save(original(theirs), tmp_path / "original.pth")
    prefixed = {f"adapter.{key}": value for key, value in original(theirs).items()}
    safetensors.torch.save_file(prefixed, tmp_path / "prefixed.safetensors")
    expected = {key: value.numpy() for key, value in state.items()}
    for path in sorted(tmp_path.iterdir()):
        found = open_t2i_adapter(path, models[name])
        assert found.config == ControlModel(t2i_adapter=CONFIGS[name])
        values = dict(found.parameters("t2i_adapter"))
        assert len(values) == len(expected)
        for key, value in expected.items():
            ours = f"t2i_adapter.{key}".replace(".weight", ".kernel")
            np.testing.assert_array_equal(values[ours], value.transpose(2, 3, 1, 0) if value.ndim == 4 else value)


def saved(path, tensors) -> pathlib.Path:
    safetensors.torch.save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


def test_what_does_not_fit_is_refused_by_name(models, tmp_path):
    full, light, xl = (original(theirs_of(CONFIGS[name])) for name in ("full", "light", "xl"))
    path = saved(tmp_path / "xl.safetensors", xl)
    with pytest.raises(ModelError, match=r"is a T2I-Adapter for Stable Diffusion XL, and this model is "):
        open_t2i_adapter(path, models["full"])
    path = saved(tmp_path / "full.safetensors", full)
    with pytest.raises(ModelError, match=r"for Stable Diffusion 1.x, and this model is Stable Diffusion .*: its feat"):
        open_t2i_adapter(path, models["xl"])
    for tensors, why in (
        (full | {"body.0.skep.weight": torch.zeros(32, 32, 1, 1)}, r"not supported \(it has body.0.skep"),
        ({"style_embedding": torch.zeros(1, 8, 8)}, r"not supported \(it has style_embedding"),
        (full | {"conv_in.weight": torch.zeros(32, 7, 3, 3)}, r"not supported \(channels 7 and \[32"),
        (
            light | {"body.2.out_conv.weight": torch.zeros(32, 16, 1, 1)},
            r"not supported \(channels 64 and \[32, 64, 32",
        ),
        (full | {"body.3.block2.weight": torch.zeros(64, 64, 3, 3)}, "body.3.block2.weight has shape"),
    ):
        path = saved(tmp_path / "other.safetensors", tensors)
        with pytest.raises(ModelError, match=why):
            dict(open_t2i_adapter(path, models["full"]).parameters("t2i_adapter"))
    assert open_t2i_adapter(saved(tmp_path / "none.safetensors", {"a": torch.zeros(1)}), models["full"]) is None
    assert open_t2i_adapter(tmp_path, models["full"]) is None
    for settings, why in (
        ({"adapter_type": "half_adapter"}, "unknown adapter_type 'half_adapter'"),
        ({"in_channels": 4}, "in_channels=4 is not supported"),
        ({"num_res_blocks": 10**6}, "num_res_blocks=1000000 is out of range"),
        ({"adapter_type": "full_adapter_xl", "channels": [32, 32, 64, 96]}, "must be equal from the third on"),
        ({"adapter_type": "light_adapter", "channels": [30]}, "width 30 is not a multiple of 4"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({"_class_name": "T2IAdapter", **settings}))
        with pytest.raises(ModelError, match=f"config.json: .*{why}"):
            open_t2i_adapter(tmp_path, models["full"])


def hint(seed: int, shape=(80, 112)) -> np.ndarray:
    """Squares of some colours."""
    squares = np.random.default_rng(seed).integers(0, 256, (shape[0] // 8, shape[1] // 8, 3), "uint8")
    return squares.repeat(8, axis=0).repeat(8, axis=1)


def expected(pipe, adapter, images, prompt=PROMPT, seeds=(3,), net=None, **settings) -> np.ndarray:
    """Latents (B, h, w, 4) of diffusers with an adapter, or a list of them."""
    xl = "text_encoder_2" in pipe.components
    kind = "ControlNet" if net is not None else "XLAdapter" if xl else "Adapter"
    made = pipe.components | ({"adapter": adapter} if net is None else {"controlnet": net})
    if not xl:
        made |= {"requires_safety_checker": False}
        made.pop("image_encoder")
    steered = getattr(diffusers, f"StableDiffusion{kind}Pipeline")(**made)
    steered.set_progress_bar_config(disable=True)
    generator = [torch.Generator().manual_seed(seed) for seed in seeds]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = steered(
            prompt,
            image=images,
            num_inference_steps=QUICK["num_steps"],
            generator=generator,
            output_type="latent",
            guidance_scale=7.5,
            **{"height": QUICK["height"], "width": QUICK["width"]} | settings,
        ).images
    return found.permute(0, 2, 3, 1).numpy()


def picture(name: str, seed: int = 0) -> Image.Image:
    """A hint as an adapter of diffusers reads it."""
    return Image.fromarray(hint(seed)).convert("L" if CONFIGS[name].in_channels == 1 else "RGB")


def drawn(generator, *controls, prompt=PROMPT, **settings) -> np.ndarray:
    return generator.generate(prompt, **QUICK | settings, guidance_scale=7.5, controls=[*controls]).latents


@pytest.mark.parametrize("name", ["full", "light"])
def test_images_are_those_of_diffusers(name, pipes, generators, adapters):
    adapter, folder = adapters[name]
    found = drawn(generators["sd1"], kerasdiff.Control(str(folder), hint(0), 0.8))
    assert np.abs(found - drawn(generators["sd1"])).max() > 0.1
    theirs = expected(pipes["sd1"], adapter, picture(name), adapter_conditioning_scale=0.8)
    np.testing.assert_allclose(found, theirs, atol=1e-4)


def test_several_adapters_add_up_and_each_image_has_hints_of_its_own(pipes, generators, adapters):
    (first, one), (second, other) = adapters["full"], adapters["other"]
    prompts, both = [PROMPT, "a blue square"], [[hint(0), hint(1)], [hint(2), hint(3)]]
    controls = (kerasdiff.Control(str(one), both[0], 0.9), kerasdiff.Control(str(other), both[1], 0.4))
    found = drawn(generators["sd1"], *controls, prompt=prompts, seed=[3, 4])
    theirs = expected(
        pipes["sd1"],
        diffusers.MultiAdapter([first, second]),
        [[Image.fromarray(each) for each in of_one] for of_one in both],
        prompts,
        (3, 4),
        adapter_conditioning_scale=[0.9, 0.4],
    )
    np.testing.assert_allclose(found, theirs, atol=1e-4)


def test_images_of_stable_diffusion_xl_with_an_end_and_an_odd_side_are_those_of_diffusers(pipes, generators, adapters):
    adapter, folder = adapters["xl"]
    image = hint(0)[:72]
    control = kerasdiff.Control(str(folder), image, 1.0, end=0.5)
    found = drawn(generators["xl"], control, height=72)
    filled = np.pad(image, [(0, 8), (0, 0), (0, 0)], "edge").transpose(2, 0, 1)[None].astype("float32") / 255
    factor = {"adapter_conditioning_factor": 0.5, "adapter_conditioning_scale": 1.0}
    theirs = expected(pipes["xl"], adapter, torch.from_numpy(filled), height=72, **factor)
    np.testing.assert_allclose(found, theirs, atol=1e-4)
    whole = drawn(generators["xl"], kerasdiff.Control(str(folder), image), height=72)
    assert np.abs(found - whole).max() > 1e-2


def test_an_adapter_and_a_controlnet_act_together(place, pipes, generators, adapters):
    pipe, (adapter, folder) = pipes["sd1"], adapters["light"]
    net = controlnet(pipe.unet)
    net.save_pretrained(place / "net")
    found = drawn(
        generators["sd1"],
        kerasdiff.Control(str(folder), hint(0), 0.7),
        kerasdiff.Control(str(place / "net"), hint(1), 0.6),
    )
    with torch.no_grad():
        pixels = torch.from_numpy(np.array(picture("light"), "float32") / 255)[None, None]
        features = [torch.cat([0.7 * each] * 2) for each in adapter(pixels)]

    def add(unet, given, named):
        return given, named | {"down_intrablock_additional_residuals": [each.clone() for each in features]}

    hook = pipe.unet.register_forward_pre_hook(add, with_kwargs=True)
    try:
        theirs = expected(pipe, None, Image.fromarray(hint(1)), net=net, controlnet_conditioning_scale=0.6)
    finally:
        hook.remove()
    np.testing.assert_allclose(found, theirs, atol=1e-4)


def test_scale_and_steps_compile_nothing_and_scale_0_is_none(generators, adapters):
    generator, folder = generators["sd1"], str(adapters["full"][1])
    several = {"batch_size": 2, "seed": [3, 3]}
    plain = drawn(generator, **several)
    np.testing.assert_array_equal(drawn(generator, kerasdiff.Control(folder, hint(0), 0), **several), plain)
    first = drawn(generator, kerasdiff.Control(folder, hint(0)), **several)
    name = f"T2I-Adapter {adapters['full'][1].name}"
    assert generator._pipeline.residency.held(name) > 0 == generator._pipeline.residency.lacking(name)
    programs = count(generator)
    half = drawn(generator, kerasdiff.Control(folder, hint(0), [1, 0]), **several)
    np.testing.assert_allclose(half, [first[0], plain[1]], atol=1e-5)
    late = drawn(generator, kerasdiff.Control(folder, hint(1), 0.4, start=0.5), **several)
    assert np.abs(late - plain).max() > 1e-3
    nearly = kerasdiff.Control(folder, hint(1), 0.4, end=0.1)  # of four steps none
    np.testing.assert_allclose(drawn(generator, nearly, **several), plain, atol=1e-5)
    assert count(generator) == programs


def count(generator) -> int:
    """How many programs there are."""
    pipeline = generator._pipeline
    compiled = [*pipeline.compiled, *(each for network in pipeline.controls.opened for each in network.compiled)]
    return sum(each.programs for each in {id(each): each for each in compiled}.values())


def test_modes_are_those_of_controlnets(generators, adapters):
    control = kerasdiff.Control(str(adapters["full"][1]), hint(0), mode="prompt")
    with pytest.raises(RequestError, match="full adapter is a T2I-Adapter, and has no mode 'prompt'; leave it out"):
        drawn(generators["sd1"], control)


def test_the_hint_may_be_the_own_image_and_is_black_where_a_mask_covers_it(generators, adapters):
    folder, mask = str(adapters["full"][1]), np.zeros((80, 112), "uint8")
    mask[:, 56:] = 255
    given = {"image": hint(0), "mask": mask, "strength": 0.5}
    own = drawn(generators["sd1"], kerasdiff.Control(folder), **given)
    black = kerasdiff.Control(folder, np.where(mask[..., None], np.uint8(0), hint(0)))
    np.testing.assert_array_equal(own, drawn(generators["sd1"], black, **given))
    assert np.abs(own - drawn(generators["sd1"], **given)).max() > 0.01


def test_a_stage_overflows_to_float32_and_wraps_where_a_picture_does(models, tmp_path):
    def stage(gain: float, precision: str):
        theirs_of(CONFIGS["full"], gain=gain).save_pretrained(tmp_path / f"{gain}")
        opened = open_t2i_adapter(tmp_path / f"{gain}", models["full"])
        execution = precisions.choose(precision, False, False, "tensorflow")
        made = LoadedT2IAdapter(opened, execution, ProgramCache(None), Overflow())
        return functools.partial(made.stage, config=made.config)

    image = hint(0, (64, 96)) / np.float32(255)
    features = stage(1.0, "float32")
    moved, still = (features(np.roll(image, shift, axis=1), tile="x") for shift in (32, 0))
    for pixels, one, other in zip((8, 16, 32), moved, still, strict=True):
        np.testing.assert_allclose(one, np.roll(other, 32 // pixels, axis=1), atol=1e-5)
    assert np.abs(features(image)[0] - still[0]).max() > 1e-3
    with pytest.warns(UserWarning, match="the T2I-Adapter gives numbers that are not finite in mixed_float16"):
        found = stage(1e7, "mixed_float16")(image)
    np.testing.assert_allclose(found[0], stage(1e7, "float32")(image)[0], rtol=1e-3)
