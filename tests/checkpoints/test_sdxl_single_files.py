"""Single files of Stable Diffusion XL, in the original layout, against diffusers' own conversions."""

from __future__ import annotations

import dataclasses
import re
import warnings

import numpy as np
import pytest
from checkpoints import diffusers, save, torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from xl_checkpoints import UNETS, original, xl_pipeline

from kerasdiff.checkpoints import export, vae_files
from kerasdiff.checkpoints.formats import ldm
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.convert import convert
from kerasdiff.errors import ModelError
from kerasdiff.models.config import SD_V1, SDXL, SDXL_REFINER
from kerasdiff.models.network_configs import TinyVAEConfig
from kerasdiff.models.networks import names_of
from kerasdiff.models.tokenizer import Tokenizer

UNET, VAE, SECOND = "model.diffusion_model.", "first_stage_model.", "conditioner.embedders.1.model."
SLOW = pytest.mark.slow
LCM = dataclasses.replace(SDXL.defaults, sampler="lcm", spacing=None, recipe="lcm", num_steps=4, guidance_scale=8.5)
ADVICE = "give a file with the whole model"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A function of a kind to diffusers' pipeline, its folder, and a file with its tensors and vocabularies."""
    place, found = tmp_path_factory.mktemp("sdxl"), {}

    def of(kind):
        if kind not in found:
            pipe, path = xl_pipeline(kind, place / "vocabulary"), place / f"{kind}.safetensors"
            folder = save(pipe, place / kind)
            words = {ldm.TOKENIZERS[name]: one.to_json() for name, one in opened(folder).tokenizers.items()}
            save_file(original(pipe), path, words)
            found[kind] = pipe, folder, path
        return found[kind]

    return of


@pytest.fixture(scope="module")
def base(made):
    """The base model's file, with its parameters."""
    path = made("base")[2]
    return path, parameters(opened(path))


@pytest.fixture
def edited(base, tmp_path):
    """Saves a changed copy of the base model's file."""
    with safe_open(base[0], "np") as file:
        words = file.metadata()

    def of(change=lambda tensors: tensors, metadata=None, name="model"):
        path = tmp_path / f"{name}.safetensors"
        tensors = {key: value.contiguous() for key, value in change(load_file(base[0])).items()}
        save_file(tensors, path, {**words, **(metadata or {})})
        return path

    return of


def opened(path, **arguments):
    return open_model(str(path), **arguments)


def parameters(model):
    return {name: np.array(value) for network in names_of(model.config) for name, value in model.parameters(network)}


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert np.array_equal(value, other[name]), name


@pytest.mark.parametrize("kind", UNETS)
def test_names_and_shapes_tell_the_model_of_the_folder(made, warned, kind):
    _, folder, path = made(kind)
    model, theirs = opened(path), opened(folder)
    assert model.config.defaults == LCM if kind == "lcm" else SDXL.defaults
    schedule = dataclasses.replace(theirs.config.schedule, set_alpha_to_one=False)
    assert model.config == dataclasses.replace(theirs.config, schedule=schedule, defaults=model.config.defaults)
    assert [*model.tokenizers] == [*theirs.tokenizers]
    same(parameters(model), parameters(theirs))
    assert warned() == []


class Shapes(dict):
    """Names and shapes in place of a file."""

    where, metadata = "a file", {}

    def shape(self, name):
        return self[name]


# What the published U-Nets have instead of the small one's settings.
_FULL = {"block_out_channels": (320, 640, 1280), "attention_head_dim": [5, 10, 20], "layers_per_block": 2}
_FULL |= {"addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 96 + 6 * 256}
_FULL |= {"down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2)}
_FULL |= {"up_block_types": (*("CrossAttnUpBlock2D",) * 2, "UpBlock2D"), "transformer_layers_per_block": [1, 2, 10]}
_WIDE = {"block_out_channels": (384, 768, 1536, 1536), "attention_head_dim": [6, 12, 24, 24], "layers_per_block": 2}
_WIDE |= {"addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 96 + 5 * 256}
_WIDE |= {"down_block_types": ("DownBlock2D", *("CrossAttnDownBlock2D",) * 2, "DownBlock2D")}
_WIDE |= {"up_block_types": ("UpBlock2D", *("CrossAttnUpBlock2D",) * 2, "UpBlock2D")}
_SSD = {"transformer_layers_per_block": [1, [2, 2], [4, 4]], "mid_block_type": "UNetMidBlock2D"}
_SSD |= {"reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1]}
_VEGA = {"transformer_layers_per_block": [1, [1, 1], [2, 2]], "mid_block_type": "UNetMidBlock2D"}
_VEGA |= {"reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 1]}


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("base", _FULL, SDXL.unet),
        ("refiner", _WIDE | {"transformer_layers_per_block": 4}, SDXL_REFINER.unet),
        (
            "base",
            _FULL | _SSD,
            dataclasses.replace(
                SDXL.unet, middle="plain", transformer_depth=(1, 2, 4), up_transformer_depth=(1, (2, 1, 1), (4, 4, 10))
            ),
        ),
        ("base", _FULL | _VEGA, dataclasses.replace(SDXL.unet, middle="plain", transformer_depth=(1, 1, 2))),
    ],
    ids=["base", "refiner", "SSD-1B", "Vega"],
)
def test_the_published_shapes_tell_the_published_networks(made, kind, settings, expected):
    pipe = made(kind)[0]
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**{**pipe.unet.config, **settings})
    parts = dataclasses.make_dataclass("Pipe", ["unet", "vae", "text_encoder", "text_encoder_2", "components"])
    full = parts(unet, pipe.vae, pipe.components.get("text_encoder"), pipe.text_encoder_2, pipe.components)
    found = ldm.read_config(Shapes({name: tuple(value.shape) for name, value in original(full).items()})).unet
    assert found == dataclasses.replace(expected, pooled_width=96, context_width=found.context_width)


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=SLOW if kind == "inpainting" else ()) for kind in UNETS])
def test_there_and_back_is_bit_equal(made, tmp_path, warned, caplog, kind):
    """From a single file to diffusers' layout, ours, and a single file again, which diffusers opens too."""
    pipe, _, path = made(kind)
    folder = convert(path, tmp_path / "folder", format="diffusers", dtype="float32")
    native = convert(folder, tmp_path / "native", format="kerasdiff", dtype="float32")
    back = convert(native, tmp_path / "back.safetensors", dtype="float32")
    file = load_file(back)
    same(file, {key: value for key, value in load_file(path).items() if not key.endswith("logit_scale")})
    with safe_open(path, "np") as first, safe_open(back, "np") as last:
        recipe = {"kerasdiff.recipe": "lcm"} if kind == "lcm" else {}
        assert last.metadata() == {"format": "pt", **first.metadata(), **recipe}
    assert dataclasses.replace(opened(back).config, schedule=SDXL.schedule) == opened(path).config
    assert not any("keep" in line or "no place" in line for line in caplog.messages)
    assert warned() == []
    if kind != "lcm":  # whose input for guidance diffusers does not read from such files
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            again = type(pipe).from_single_file(str(back), config=str(folder), local_files_only=True)
        for name, part in pipe.components.items():
            if isinstance(part, torch.nn.Module):
                same(getattr(again, name).state_dict(), part.state_dict())


@pytest.mark.parametrize(
    ("names", "metadata", "predicts", "zero_snr", "size"),
    [
        (["v_pred"], {}, "v_prediction", False, (1024, 1024)),
        ([], {"prediction_type": "v"}, "v_prediction", False, (1024, 1024)),
        ([], {"prediction_type": "epsilon", "resolution": "832x1216"}, "epsilon", False, (1216, 832)),
        (["v_pred"], {"prediction_type": "epsilon", "resolution": "many"}, "v_prediction", False, (1024, 1024)),
        (["v_pred", "ztsnr"], {"resolution": "768x512"}, "v_prediction", True, (512, 768)),
    ],
)
def test_what_a_file_says_of_sampling(edited, tmp_path, caplog, names, metadata, predicts, zero_snr, size):
    said = {f"modelspec.{name}": value for name, value in metadata.items()}
    path = edited(lambda tensors: {**tensors, **{name: torch.zeros(0) for name in names}}, said)
    config = opened(path).config
    assert config.schedule.prediction_type == predicts
    assert config.schedule.rescale_betas_zero_snr is zero_snr
    height, width = size
    spacing = "trailing" if zero_snr else "leading"
    assert config.defaults == dataclasses.replace(SDXL.defaults, height=height, width=width, spacing=spacing)
    if zero_snr:
        assert opened(convert(path, tmp_path / "again.safetensors", dtype="float32")).config == config
        assert not any("keep" in line or "no place" in line for line in caplog.messages)


def test_a_file_of_pytorch_is_the_same_model(base, tmp_path, warned):
    torch.save({"state_dict": load_file(base[0])}, tmp_path / "base.ckpt")
    model = opened(tmp_path / "base.ckpt")
    assert model.config == opened(base[0]).config
    found = dict(model.parameters("text_encoder_2"))
    assert found
    assert all(np.array_equal(value, base[1][name]) for name, value in found.items())
    (line,) = warned()
    assert line.endswith("only prompt_embeds can be used")


def test_a_turbo_says_so_in_its_title(edited):
    path = edited(metadata={"modelspec.title": "A model of SDXL Lightning 4 steps"})
    assert opened(path).config.defaults.recipe == "lightning-4"


def test_what_a_file_cannot_say_is_in_its_metadata(base, tmp_path, caplog):
    model = opened(base[0])
    unet = dataclasses.replace(model.config.unet, num_time_ids=3, time_id_width=64)
    config = dataclasses.replace(model.config, force_zeros_for_empty_prompt=False, unet=unet)
    path = tmp_path / "again.safetensors"
    export.write_single_file(dataclasses.replace(model, config=config), path)
    assert opened(path).config == config
    (line,) = (line for line in caplog.messages if "no place" in line)
    assert "no place for num_time_ids=3, time_id_width=64, force_zeros_for_empty_prompt=False of base" in line


def test_each_text_encoder_has_its_padding_where_a_file_says_nothing(base):
    model = opened(base[0])
    found = [ldm.usual_tokenizer(name, model.config) for name in model.tokenizers]
    assert [one.word(one.pad_id) for one in found] == ["<|endoftext|>", "!"]
    wide = {name: dataclasses.replace(one, vocab_size=49408) for name, one in model.config.text_encoders.items()}
    config = dataclasses.replace(model.config, **wide)
    other = dataclasses.replace(model, config=config, tokenizer=found[0], tokenizer_2=Tokenizer.clip())
    wanted = zip(found, wide, strict=True)
    assert [export.has_tokenizer(other, usual, name) for usual, name in wanted] == [True, False]


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
def test_other_names(made, base, edited, warned, change):
    path, expected = base
    model = opened(edited(CHANGES[change](made("base")[0])))
    assert model.config == opened(path).config
    same(parameters(model), expected)
    assert warned() == []


def test_other_types(base, edited):
    """Tensors in turn of each type that files come in."""
    types = (torch.float16, torch.bfloat16, torch.float8_e4m3fn)
    kinds = {}

    def change(tensors):
        kinds.update({name: types[index % 3] for index, name in enumerate(sorted(tensors))})
        return {name: value.to(kinds[name]) for name, value in tensors.items()}

    model = opened(edited(change))
    assert model.config == opened(base[0]).config
    for network in names_of(model.config):
        find = ldm.slices(network, model.config)
        for name, value in model.parameters(network):
            dtype = next(kinds[one.key] for one in find(name) if one.key in kinds)
            expected = torch.from_numpy(base[1][name]).to(dtype).float().numpy()
            assert np.array_equal(value.astype("float32"), expected), name


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
            "is a U-Net of Stable Diffusion XL, not a whole model: text encoders and autoencoder",
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


def test_an_autoencoder_may_come_from_elsewhere(made, base, edited, tmp_path, warned):
    path, expected = base
    whole, bare = opened(path).config.vae, edited(without(VAE), name="bare")
    only = edited(lambda tensors: {key: value for key, value in tensors.items() if key.startswith(VAE)}, name="only")
    fixed = tmp_path / "sdxl-vae-fp16-fix.safetensors"
    save_file({key.removeprefix(VAE): value for key, value in load_file(only).items()}, fixed)
    bits = tmp_path / "diffusers.safetensors"
    save_file(made("base")[0].vae.state_dict(), bits)
    for vae in (only, fixed, bits, path, made("base")[1]):
        model = opened(bare, vae=vae)
        assert model.config.vae == dataclasses.replace(whole, force_upcast=vae != fixed)
        found = {name: value for half in vae_files._HALVES for name, value in model.parameters(half)}
        assert all(np.array_equal(value, expected[name]) for name, value in found.items())
    assert warned() == []


def test_half_an_autoencoder_is_not_enough(base, edited, tmp_path):
    levels = {f"{half}_block_out_channels": (8,) * 4 for half in ("encoder", "decoder")}
    small = diffusers.AutoencoderTiny(**levels).state_dict()
    save_file({key: value for key, value in small.items() if key.startswith("decoder.")}, tmp_path / "half.safetensors")
    bare = edited(without(VAE))
    with pytest.raises(ModelError) as caught:
        opened(bare, vae=tmp_path / "half.safetensors")
    assert str(caught.value).startswith(f"{bare} has no encoder for pictures: give an autoencoder as vae= (--vae)")
    assert isinstance(opened(base[0], vae=tmp_path / "half.safetensors").config.vae, TinyVAEConfig)


def test_autoencoders_of_another_family_are_told(made, base, models, tmp_path, warned):
    vae = made("base")[0].vae
    vae.register_to_config(scaling_factor=0.18215)
    vae.save_pretrained(tmp_path / "vae")
    vae.register_to_config(scaling_factor=0.13025)
    opened(base[0], vae=tmp_path / "vae")
    (line,) = warned()
    assert (
        "seems to be that of Stable Diffusion 1.x or 2.x, whose latents mean other colours than those of base" in line
    )
    opened(models.single_file("v1"), vae=base[0])
    (line,) = warned()
    assert "to be that of Stable Diffusion XL, whose latents mean other colours than those of v1" in line


def test_taesd_is_that_of_the_family(base):
    names = [vae_files._hub_name("taesd", config.vae) for config in (SD_V1, opened(base[0]).config, SDXL_REFINER)]
    assert names == ["madebyollin/taesd", "madebyollin/taesdxl", "madebyollin/taesdxl"]
