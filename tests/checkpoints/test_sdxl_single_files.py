"""Single files of Stable Diffusion XL, in the original layout, against diffusers' own conversions."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
from checkpoints import torch
from diffusers.loaders import single_file_utils
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from xl_checkpoints import UNETS, original, xl_pipeline

from kerasdiff.checkpoints.formats.diffusers_folder import renamed
from kerasdiff.checkpoints.formats.ldm_text import clip_path
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.convert import convert
from kerasdiff.errors import ModelError
from kerasdiff.models.config import SDXL, SDXL_REFINER, ModelConfig
from kerasdiff.models.network_configs import TextEncoderConfig, UNetConfig, VAEConfig
from kerasdiff.models.networks import names_of

UNET, VAE, SECOND = "model.diffusion_model.", "first_stage_model.", "conditioner.embedders.1.model."
ENCODER = TextEncoderConfig(
    vocab_size=628, width=64, num_layers=3, num_heads=1, mlp_width=131, skipped_layers=1, final_norm=False
)
BASE = ModelConfig(
    text_encoder=ENCODER,
    unet=UNetConfig(
        widths=(64, 128),
        layers_per_level=1,
        attention=(False, True),
        num_heads=(1, 2),
        context_width=192,
        gelu="erf",
        transformer_epsilon=1e-6,
        transformer_depth=(1, 2),
        pooled_width=96,
        time_id_width=32,
    ),
    vae=VAEConfig(
        widths=(32, 64, 64, 64), layers_per_level=1, norm_epsilon=1e-6, scaling_factor=0.13025, force_upcast=True
    ),
    schedule=SDXL.schedule,
    defaults=SDXL.defaults,
    text_encoder_2=dataclasses.replace(
        ENCODER, width=128, num_layers=4, num_heads=2, mlp_width=259, activation="gelu", projection=96
    ),
    force_zeros_for_empty_prompt=True,
)


def changed(unet, **fields):
    return dataclasses.replace(BASE, unet=dataclasses.replace(BASE.unet, **unet), **fields)


CONFIGS = {
    "base": BASE,
    "inpainting": changed({"in_channels": 9}),
    "refiner": changed(
        {"context_width": 128, "num_time_ids": 5, "transformer_depth": (2, 2)},
        text_encoder=None,
        force_zeros_for_empty_prompt=False,
    ),
    "lcm": changed(
        {"time_cond_proj_dim": 256},
        defaults=dataclasses.replace(SDXL.defaults, sampler="lcm", recipe="lcm", num_steps=4, guidance_scale=8.5),
    ),
    "ssd": changed(
        {
            "layers_per_level": 2,
            "middle": "plain",
            "transformer_depth": (1, (3, 2)),
            "up_transformer_depth": (1, (1, 2, 3)),
        }
    ),
}
ADVICE = "give a file with the whole model"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function of a kind to diffusers' pipeline and a file with its tensors."""
    place, found = tmp_path_factory.mktemp("sdxl"), {}

    def of(kind):
        if kind not in found:
            path, pipe = place / f"{kind}.safetensors", xl_pipeline(kind, place / "vocabulary")
            save_file(original(pipe), path)
            found[kind] = pipe, path
        return found[kind]

    return of


@pytest.fixture
def edited(made, tmp_path):
    """Saves a changed copy of the base model's file."""

    def of(change=lambda tensors: tensors, metadata=None, name="model"):
        path = tmp_path / f"{name}.safetensors"
        tensors = change(load_file(made("base")[1]))
        save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata)
        return path

    return of


@pytest.fixture(autouse=True)
def words(warned):
    """Warnings but for the one that the small vocabulary gets."""
    return lambda: [line for line in warned() if "only prompt_embeds can be used" not in line]


def opened(path, **arguments):
    return open_model(str(path), **arguments)


def parameters(model):
    return {name: np.array(value) for network in names_of(model.config) for name, value in model.parameters(network)}


def states(pipe):
    """Network -> the names and values that it has in diffusers."""
    encoders = {name: pipe.components.get(name) for name in ("text_encoder", "text_encoder_2")}
    found = {name: module.state_dict() for name, module in encoders.items() if module is not None}
    vae = pipe.vae.state_dict()
    for half, other in (("decoder", "encoder"), ("encoder", "decoder")):
        found[half] = {key.removeprefix(f"{half}."): value for key, value in vae.items() if not key.startswith(other)}
    return {**found, "unet": pipe.unet.state_dict()}


def their_name(network, name):
    path, leaf = renamed(name)
    if network.startswith("text_encoder") and path != "text_projection":
        path = clip_path(path)
    return f"{path}.{leaf}"


def as_ours(value, name):
    """A tensor of torch as Keras has it."""
    if name.endswith(".kernel"):
        return value.permute(2, 3, 1, 0) if value.ndim == 4 else value.T
    return value


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert np.array_equal(value, other[name]), name


@pytest.mark.parametrize("kind", UNETS)
def test_names_and_shapes_tell_the_configuration_and_every_parameter(made, words, kind):
    pipe, path = made(kind)
    model = opened(path)
    assert model.config == CONFIGS[kind]
    theirs, found = states(pipe), parameters(model)
    for name, value in found.items():
        network = name.partition(".")[0]
        state = {key.removeprefix("text_model."): value for key, value in theirs[network].items()}
        expected = as_ours(state[their_name(network, name)], name).numpy()
        assert np.array_equal(value, expected.reshape(value.shape)), name
    # The autoencoder's two halves have a convolution each that the other does not use.
    assert len(found) == sum(map(len, theirs.values())) - 4
    assert words() == []


@pytest.mark.parametrize("kind", UNETS)
def test_there_and_back_is_bit_equal(made, tmp_path, words, kind):
    pipe, path = made(kind)
    again = convert(path, tmp_path / "again.safetensors", dtype="float32")
    native = convert(path, tmp_path / "native", format="kerasdiff", dtype="float32")
    back = convert(native, tmp_path / "back.safetensors", dtype="float32")
    expected = {key: value for key, value in load_file(path).items() if not key.endswith("logit_scale")}
    for file in (again, back):
        same(load_file(file), expected)
    with safe_open(again, "np") as file:
        assert file.metadata() == {"format": "pt", **({"kerasdiff.recipe": "lcm"} if kind == "lcm" else {})}
    # diffusers' own functions give back what the pipeline has.
    file, theirs = load_file(again), states(pipe)
    unet = single_file_utils.convert_ldm_unet_checkpoint(dict(file), dict(pipe.unet.config))
    assert set(theirs["unet"]) - set(unet) == ({"time_embedding.cond_proj.weight"} if kind == "lcm" else set())
    same(unet, {key: theirs["unet"][key] for key in unet})
    vae = single_file_utils.convert_ldm_vae_checkpoint(dict(file), dict(pipe.vae.config))
    same(vae, pipe.vae.state_dict())
    prefix = "conditioner.embedders.0.model." if kind == "refiner" else SECOND
    text = single_file_utils.convert_open_clip_checkpoint(pipe.text_encoder_2, dict(file), prefix=prefix)
    plain = lambda state: {key.removeprefix("text_model."): value for key, value in state.items()}  # noqa: E731
    same(plain(text), plain(theirs["text_encoder_2"]))
    if kind != "refiner":
        text = single_file_utils.convert_ldm_clip_checkpoint(dict(file))
        same(plain(text), plain(theirs["text_encoder"]))
    assert words() == []


@pytest.mark.parametrize(
    ("names", "metadata", "expected"),
    [
        ([], {}, ("epsilon", False, "leading", 1024, 1024)),
        (["v_pred"], {}, ("v_prediction", False, "leading", 1024, 1024)),
        (["v_pred", "ztsnr"], {}, ("v_prediction", True, "trailing", 1024, 1024)),
        ([], {"prediction_type": "v"}, ("v_prediction", False, "leading", 1024, 1024)),
        ([], {"prediction_type": "epsilon", "resolution": "832x1216"}, ("epsilon", False, "leading", 1216, 832)),
        (
            ["v_pred"],
            {"prediction_type": "epsilon", "resolution": "many"},
            ("v_prediction", False, "leading", 1024, 1024),
        ),
    ],
)
def test_what_a_file_says_of_sampling(edited, tmp_path, words, names, metadata, expected):
    said = {f"modelspec.{name}": value for name, value in metadata.items()}
    path = edited(lambda tensors: {**tensors, **{name: torch.zeros(0) for name in names}}, said)
    again = convert(path, tmp_path / "again.safetensors", dtype="float32")
    for file in (path, again):
        config = opened(file).config
        schedule, defaults = config.schedule, config.defaults
        found = (
            schedule.prediction_type,
            schedule.rescale_betas_zero_snr,
            defaults.spacing,
            defaults.height,
            defaults.width,
        )
        assert found == expected
        assert (defaults.sampler, defaults.guidance_scale) == ("euler", 5.0)
    assert words() == []


def test_what_a_file_cannot_say_is_in_its_metadata(made, tmp_path, caplog):
    model = opened(made("base")[1])
    config = dataclasses.replace(
        model.config,
        force_zeros_for_empty_prompt=False,
        unet=dataclasses.replace(model.config.unet, num_time_ids=3, time_id_width=64),
    )
    from kerasdiff.checkpoints.export import write_single_file
    from kerasdiff.checkpoints.resolve import TINY_FOLDER
    from kerasdiff.models.tokenizer import Tokenizer

    words = Tokenizer.load(TINY_FOLDER / "tokenizer.json")
    path = tmp_path / "again.safetensors"
    write_single_file(dataclasses.replace(model, config=config, tokenizer_2=words), path)
    again = opened(path)
    assert again.config == config
    assert [one.vocabulary.get_vocab_size() for one in again.tokenizers.values()] == [
        49408,
        words.vocabulary.get_vocab_size(),
    ]
    (line,) = (line for line in caplog.messages if "no place" in line)
    assert "no place for num_time_ids=3, time_id_width=64, force_zeros_for_empty_prompt=False of base" in line


def test_each_text_encoder_has_its_own_padding(made):
    first, second = opened(made("base")[1]).tokenizers.values()
    assert (first.encode("a")[-1], second.encode("a")[-1]) == (49407, 49407)
    assert first.ends != second.ends
    (only,) = opened(made("refiner")[1]).tokenizers.items()
    assert (only[0], only[1].ends) == ("text_encoder_2", second.ends)


def transformers_names(pipe):
    """The second text encoder as transformers names it."""
    names = {
        key if "." in key and key.startswith("text_") else f"text_model.{key}": value
        for key, value in pipe.text_encoder_2.state_dict().items()
    }

    def change(tensors):
        rest = {key: value for key, value in tensors.items() if not key.startswith(SECOND)}
        return rest | {f"conditioner.embedders.1.transformer.{key}": value for key, value in names.items()}

    return change


def renaming(*pairs):
    def change(tensors):
        for pattern, new in pairs:
            tensors = {re.sub(pattern, new, name): value for name, value in tensors.items()}
        return tensors

    return change


def with_projection_of_rows(tensors):
    projection = tensors.pop(f"{SECOND}text_projection")
    return {**tensors, f"{SECOND}text_projection.weight": projection.T}


def with_rest(tensors):
    names = ("conditioner.embedders.0.transformer.text_model.embeddings.position_ids", "denoiser.sigmas")
    names += ("conditioner.embedders.0.transformer.text_projection.weight", "conditioner.embedders.0.logit_scale")
    return {**tensors, **{name: torch.ones(1) for name in names}}


CHANGES = {
    "without text_model": lambda pipe: renaming(
        (r"embedders\.0\.transformer\.text_model\.", "embedders.0.transformer.")
    ),
    "the second with transformers' names": transformers_names,
    "a projection of rows": lambda pipe: with_projection_of_rows,
    "the rest of a CLIP": lambda pipe: with_rest,
    "an autoencoder's other names": lambda pipe: renaming((re.escape(VAE), "vae.")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_names(made, edited, words, change):
    pipe, path = made("base")
    model = opened(edited(CHANGES[change](pipe)))
    assert model.config == BASE
    same(parameters(model), parameters(opened(path)))
    assert words() == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_other_types(made, edited, dtype):
    expected = parameters(opened(made("base")[1]))
    model = opened(edited(lambda tensors: {name: value.to(dtype) for name, value in tensors.items()}))
    assert model.config == BASE
    for name, value in parameters(model).items():
        assert np.array_equal(value.astype("float32"), torch.from_numpy(expected[name]).to(dtype).float().numpy()), name


def without(*beginnings):
    return lambda tensors: {name: value for name, value in tensors.items() if not name.startswith(beginnings)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(VAE), "has no autoencoder: give an autoencoder as vae= (--vae), or a file with the whole model"),
        (without(UNET), f"has no U-Net (nothing begins with {UNET}): {ADVICE}"),
        (
            without(SECOND),
            "has no text encoder 2 (nothing begins with conditioner.embedders.1.transformer.text_model. or "
            f"{SECOND}): {ADVICE}",
        ),
        (without("conditioner.embedders.0.", VAE), "has no text encoder (nothing begins with conditioner.embedders.0."),
        (
            without("conditioner."),
            "has no text encoder and no text encoder 2 (nothing begins with conditioner.embedders.0.",
        ),
        (
            without("conditioner.", VAE),
            "is the U-Net of Stable Diffusion XL, not a whole model: text encoders and autoencoder",
        ),
        (without(VAE, UNET), f"has no U-Net (nothing begins with {UNET}): {ADVICE}"),
        (without(f"{SECOND}text_projection"), f"it has no {SECOND}text_projection"),
        (
            lambda tensors: {**tensors, f"{UNET}label_emb.0.0.weight": torch.zeros(256, 95)},
            "label_emb.0.0.weight reads 95 numbers, which are not those of a pooled text (96) and of 6 sizes",
        ),
        (
            renaming((r"(middle_block\.1\.transformer_blocks)\.1\.", r"\1.7.")),
            "has a U-Net of another make: 8 transformer blocks in its middle, and before it 2",
        ),
        (
            lambda tensors: {**tensors, f"{UNET}input_blocks.0.0.weight": torch.zeros(64, 8, 3, 3)},
            "a U-Net with 8 input channels is not supported: it is an instruct-pix2pix model",
        ),
    ],
)
def test_what_is_no_whole_model_is_said_in_one_line(edited, change, message):
    with pytest.raises(ModelError) as caught:
        opened(edited(change))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_autoencoder_may_come_from_elsewhere(made, edited, tmp_path, words):
    whole, bare = opened(made("base")[1]), edited(without(VAE), name="bare")
    expected, numbers = parameters(whole), dataclasses.asdict(whole.config.vae)
    only = edited(lambda tensors: {key: value for key, value in tensors.items() if key.startswith(VAE)}, name="only")
    made("base")[0].vae.save_pretrained(tmp_path / "folder")
    pieces = load_file(only)
    fixed = tmp_path / "sdxl-vae-fp16-fix.safetensors"
    save_file({key.removeprefix(VAE): value for key, value in pieces.items()}, fixed)
    for vae in (only, fixed, tmp_path / "folder" / "diffusion_pytorch_model.safetensors", made("base")[1]):
        model = opened(bare, vae=vae)
        assert dataclasses.asdict(model.config.vae) == {**numbers, "force_upcast": vae != fixed}
        assert model.config.vae == dataclasses.replace(whole.config.vae, force_upcast=vae != fixed)
        same(parameters(model), expected)
    assert words() == []
    save_file({key: value for key, value in pieces.items() if "first_stage_model.encoder" not in key}, only)


def test_autoencoders_of_another_family_are_told(made, edited, tmp_path, words):
    folder = tmp_path / "vae"
    vae = made("base")[0].vae
    vae.register_to_config(scaling_factor=0.18215)
    vae.save_pretrained(folder)
    vae.register_to_config(scaling_factor=0.13025)
    opened(made("base")[1], vae=folder)
    (line,) = words()
    assert (
        "seems to be that of Stable Diffusion 1.x and 2.x, whose latents mean other colours than those of base" in line
    )


def test_taesd_is_that_of_the_family(made):
    from kerasdiff.checkpoints import vae_files
    from kerasdiff.models.config import SD_V1

    names = [vae_files._hub_name("taesd", config.vae) for config in (SD_V1, BASE, SDXL_REFINER)]
    assert names == ["madebyollin/taesd", "madebyollin/taesdxl", "madebyollin/taesdxl"]
