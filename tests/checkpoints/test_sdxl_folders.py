"""Folders of Stable Diffusion XL against diffusers, which made them."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings

import checkpoints
import numpy as np
import pytest
from checkpoints import diffusers, torch
from fake_hub import lines_of, serve, start_opening
from safetensors.numpy import load_file, save_file
from xl_checkpoints import xl_pipeline

from kerasdiff import info
from kerasdiff.checkpoints import vae_files
from kerasdiff.checkpoints.fingerprint import identity
from kerasdiff.checkpoints.formats.diffusers_config import read_config
from kerasdiff.checkpoints.formats.diffusers_folder import COMPONENTS
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.convert import convert
from kerasdiff.errors import ModelError
from kerasdiff.models.config import SD_V1, SDXL, SDXL_REFINER
from kerasdiff.models.layers import parameters_of
from kerasdiff.models.networks import make_network, names_of
from kerasdiff.models.tokenizer import pad_ids

INDEX, UNET, SCHEDULER = "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"
FOLDERS = {"text_encoder": "text_encoder", "text_encoder_2": "text_encoder_2", "unet": "unet", "vae": "vae"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """kind -> (diffusers' pipeline, its folder)."""
    place, pipes = tmp_path_factory.mktemp("xl"), {}

    def of(kind):
        if kind not in pipes:
            pipe = xl_pipeline(kind, place / kind / "vocabulary")
            pipes[kind] = pipe, checkpoints.save(pipe, place / kind / "model")
        return pipes[kind]

    return of


@pytest.fixture
def settings_of(made, tmp_path):
    """A folder with the settings and the tokenizers of a kind, some settings changed, and no weights."""

    def of(kind="base", changes=None, without=("?",)):
        source = made(kind)[1]
        for path in source.rglob("*"):
            name = path.relative_to(source)
            copy = tmp_path / name
            if path.is_file() and path.suffix in (".json", ".txt") and not str(name).startswith(without):
                copy.parent.mkdir(exist_ok=True)
                copy.write_bytes(path.read_bytes())
        for name, values in (changes or {}).items():
            path = tmp_path / name
            path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
        return tmp_path

    return of


def states(pipe):
    """Component -> its tensors."""
    parts = {name: getattr(pipe, name, None) for name in FOLDERS}
    return {name: part.state_dict() for name, part in parts.items() if part is not None}


def as_torch(name, value, shape):
    """A parameter as torch has it."""
    if name.endswith(".kernel"):
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    return value.reshape(shape)


@pytest.mark.parametrize("kind", ["base", "refiner", "ssd"])
def test_parameters_are_those_of_diffusers_bit_by_bit(made, kind):
    pipe, folder = made(kind)
    model, left = open_model(str(folder)), states(pipe)
    assert {"text_encoder": kind != "refiner", "text_encoder_2": True}.items() <= {
        name: name in names_of(model.config) for name in ("text_encoder", "text_encoder_2")
    }.items()
    for network in names_of(model.config):
        component = COMPONENTS[network]
        tensors = left[component.folder]
        for name, value in model.parameters(network):
            key = next(one.key for one in component.slices(name) if one.key in tensors)
            theirs = tensors.pop(key).numpy()
            np.testing.assert_array_equal(as_torch(name, value, theirs.shape), theirs, err_msg=name)
    assert {key for tensors in left.values() for key in tensors} <= {"text_model.embeddings.position_ids"}


# As published: what tells the models of this family apart.
_TEXT = {"_class_name": "", "hidden_act": "quick_gelu", "hidden_size": 768, "intermediate_size": 3072}
_TEXT |= {"num_attention_heads": 12, "num_hidden_layers": 12, "projection_dim": 768}
_TEXT_2 = {"architectures": ["CLIPTextModelWithProjection"], "hidden_act": "gelu", "hidden_size": 1280}
_TEXT_2 |= {"intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32, "projection_dim": 1280}
_VAE = {"_class_name": "AutoencoderKL", "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}
_VAE |= {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
_VAE |= {"scaling_factor": 0.13025, "force_upcast": True, "sample_size": 1024}
_EULER = {"_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012}
_EULER |= {"beta_schedule": "scaled_linear", "clip_sample": False, "interpolation_type": "linear", "steps_offset": 1}
_EULER |= {"set_alpha_to_one": False, "skip_prk_steps": True, "timestep_spacing": "leading"}
_UNET = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256, "use_linear_projection": True}
_BASE = {
    **_UNET,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
}
_REFINER = {
    **_UNET,
    "attention_head_dim": [6, 12, 24, 24],
    "block_out_channels": [384, 768, 1536, 1536],
    "cross_attention_dim": 1280,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "projection_class_embeddings_input_dim": 2560,
    "sample_size": 128,
    "transformer_layers_per_block": 4,
}
_SSD = {
    **_BASE,
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": [0, [2, 2], [4, 4]],
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
}
_VEGA = {
    **_BASE,
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": [0, [1, 1], [2, 2]],
    "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 0],
}
_PLAIN_SSD = dataclasses.replace(
    SDXL.unet, middle="plain", transformer_depth=(1, 2, 4), up_transformer_depth=(1, (2, 1, 1), (4, 4, 10))
)
_PLAIN_VEGA = dataclasses.replace(SDXL.unet, middle="plain", transformer_depth=(1, 1, 2))


@pytest.mark.parametrize(
    ("unet", "expected"),
    [
        (_BASE, SDXL),
        (_BASE | {"sample_size": 64}, SDXL),
        (_BASE | {"reverse_transformer_layers_per_block": [10, 2, 1]}, SDXL),
        (_REFINER, SDXL_REFINER),
        (_SSD, dataclasses.replace(SDXL, unet=_PLAIN_SSD)),
        (_VEGA, dataclasses.replace(SDXL, unet=_PLAIN_VEGA)),
    ],
    ids=["base", "turbo", "reversed", "refiner", "SSD-1B", "Vega"],
)
def test_published_settings(tmp_path, unet, expected):
    refines = expected is SDXL_REFINER
    absent, clip = [None, None], ["transformers", "CLIPTextModel"]
    index = {"_class_name": f"StableDiffusionXL{'Img2Img' if refines else ''}Pipeline"}
    index |= {"text_encoder": absent if refines else clip, "tokenizer": absent if refines else ["", "CLIPTokenizer"]}
    index |= {"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "tokenizer_2": ["", "CLIPTokenizer"]}
    index |= {"force_zeros_for_empty_prompt": not refines}
    files = {"text_encoder/config.json": _TEXT, "text_encoder_2/config.json": _TEXT_2, "vae/config.json": _VAE}
    files |= {INDEX: index, UNET: unet, SCHEDULER: _EULER, "tokenizer/x.json": {}, "tokenizer_2/x.json": {}}
    for name, values in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(values))
    encoders = {
        name: text and dataclasses.replace(text, mlp_width=4 * text.width)
        for name, text in (("text_encoder", expected.text_encoder), ("text_encoder_2", expected.text_encoder_2))
    }
    size = 8 * unet["sample_size"]
    defaults = dataclasses.replace(expected.defaults, height=size, width=size)
    assert read_config(tmp_path) == dataclasses.replace(expected, **encoders, defaults=defaults)


def test_the_middle_has_the_first_depth_of_its_level(made, settings_of):
    """Where the last level has a depth for each of its blocks."""
    folder = settings_of("ssd", {UNET: {"mid_block_type": "UNetMidBlock2DCrossAttn"}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = diffusers.UNet2DConditionModel.from_config(json.loads((folder / UNET).read_text())).state_dict()
    shapes = parameters_of(make_network("unet", read_config(folder), "float32"))
    assert {name.removeprefix("unet.").rpartition(".")[0] for name in shapes} == {
        name.rpartition(".")[0] for name in theirs
    }


TEXTS = ["a Red circle, above   it's 🎈 naïve 12", "", "word " * 90]


@pytest.mark.parametrize("kind", ["base", "refiner"])
def test_tokenizers_give_the_rows_of_transformers(made, kind):
    """The second one fills rows up with "!"."""
    pipe, folder = made(kind)
    model = open_model(str(folder))
    assert model.tokenizer is next(iter(model.tokenizers.values()))
    assert list(model.tokenizers) == list(model.config.text_encoders)
    for name, ours in model.tokenizers.items():
        theirs = getattr(pipe, name.replace("text_encoder", "tokenizer"))
        expected = theirs(TEXTS, padding="max_length", truncation=True, max_length=77).input_ids
        assert [pad_ids(ours.encode(text), 77, ours.pad_id).tolist() for text in TEXTS] == expected
    assert {name: ours.word(ours.pad_id) for name, ours in model.tokenizers.items()}["text_encoder_2"] == "!"


def same_models(model, other):
    assert other.config == model.config
    assert [one.to_json() for one in other.tokenizers.values()] == [one.to_json() for one in model.tokenizers.values()]
    for network in names_of(model.config):
        for (name, value), (again, found) in zip(model.parameters(network), other.parameters(network), strict=True):
            assert name == again
            np.testing.assert_array_equal(value, found, err_msg=name)


@pytest.mark.parametrize("kind", ["inpainting", "refiner", "ssd"])
def test_what_is_written_is_what_diffusers_wrote(made, tmp_path, kind):
    pipe, folder = made(kind)
    model = open_model(str(folder))
    convert(str(folder), tmp_path / "ours", dtype="float32")
    assert (tmp_path / "ours" / "tokenizer_2.json").exists() == (kind != "refiner")
    same_models(model, open_model(str(tmp_path / "ours")))
    convert(str(tmp_path / "ours"), tmp_path / "theirs", format="diffusers", dtype="float32")
    same_models(model, open_model(str(tmp_path / "theirs")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "theirs", add_watermarker=False)
    assert type(again) is type(pipe)
    for name, tensors in states(pipe).items():
        found = states(again)[name]
        assert tensors.keys() == found.keys()
        assert all(tensors[key].equal(found[key]) for key in tensors), name
    settings = ("force_zeros_for_empty_prompt", "requires_aesthetics_score")
    assert [again.config.get(name) for name in settings] == [pipe.config.get(name) for name in settings]
    for part in ("unet", "vae", "scheduler"):
        ours, theirs = (dict(getattr(one, part).config) for one in (again, pipe))
        named = [name for name in theirs if not name.startswith("_") and (part, name) not in LOST]
        assert {name: _listed(ours.get(name)) for name in named} == {name: _listed(theirs[name]) for name in named}
    assert again.tokenizer_2(TEXTS).input_ids == pipe.tokenizer_2(TEXTS).input_ids


# What is without effect on these models; one depth for all levels is read as those of levels that have transformers.
LOST = {("unet", "mid_block_type"), ("unet", "transformer_layers_per_block"), ("vae", "sample_size")}
LOST |= {("scheduler", name) for name in ("clip_sample", "trained_betas", "rescale_betas_zero_snr")}


def _listed(value):
    return [_listed(one) for one in value] if isinstance(value, list | tuple) else value


def test_keras_cv_has_no_place_for_it(made, tmp_path):
    with pytest.raises(ModelError, match="is Stable Diffusion XL, which KerasCV does not have; choose another format"):
        convert(str(made("base")[1]), tmp_path / "new", format="keras_cv")


ENCODER_2, VAE = "text_encoder_2/config.json", "vae/config.json"


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({INDEX: {"force_zeros_for_empty_prompt": False}}, {"force_zeros_for_empty_prompt": False}),
        ({UNET: {"num_attention_heads": [1, 2]}, ENCODER_2: {"eos_token_id": 2}}, {}),
        ({SCHEDULER: {"steps_offset": 0}}, {"schedule": {"steps_offset": 0}}),
        ({SCHEDULER: {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}},
         {"schedule": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}}),
        ({VAE: {"force_upcast": False}}, {"vae": {"force_upcast": False}}),
        ({INDEX: {"_name_or_path": "stabilityai/sdxl-turbo"}, UNET: {"sample_size": 64}},
         {"defaults": {"recipe": "turbo-xl", "height": 512, "width": 512}}),
    ],
)  # fmt: skip
def test_settings_that_are_read(made, settings_of, warned, changes, found):
    usual = read_config(made("base")[1])
    parts = {name: dataclasses.replace(getattr(usual, name), **values) if isinstance(values, dict) else values
             for name, values in found.items()}  # fmt: skip
    assert read_config(settings_of(changes=changes)) == dataclasses.replace(usual, **parts)
    assert warned() == []


def test_a_latent_consistency_model(settings_of):
    config = read_config(settings_of("lcm"))
    assert (config.unet.time_cond_proj_dim, config.defaults.recipe, config.family) == (256, "lcm", "sdxl")
    assert (config.defaults.num_steps, config.defaults.guidance_scale) == (4, 8.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({UNET: {"projection_class_embeddings_input_dim": 96 + 4 * 32}}, "=224 must be the 96 numbers of a pooled emb"),
        ({UNET: {"addition_time_embed_dim": None}}, "and 5 or 6 times addition_time_embed_dim=0"),
        ({ENCODER_2: {"projection_dim": 90}}, "=288 must be the 90 numbers of a pooled embedding"),
        ({UNET: {"transformer_layers_per_block": [1, [1, 2]]}}, "needs reverse_transformer_layers_per_block beside it"),
        ({UNET: {"transformer_layers_per_block": [1, [1, 2, 3]], "reverse_transformer_layers_per_block": [1, 1]}},
         "transformer_depth=(1, (1, 2, 3)) needs one number per level, or 1 of them"),
        ({UNET: {"transformer_layers_per_block": [1, 2, 10]}}, "transformer_layers_per_block has 3 entries, 2 are"),
        ({UNET: {"encoder_hid_dim_type": "text_proj"}}, "is not supported (as in Kolors, Kandinsky or DeepFloyd IF)"),
        ({INDEX: {"_class_name": "KolorsPipeline"}}, "is Kolors: only Stable Diffusion 1.x, 2.x and XL are supported"),
        ({INDEX: {"_class_name": "StableDiffusionXLInstructPix2PixPipeline"}}, "is an instruct-pix2pix model for SD"),
        ({INDEX: {"scheduler": ["diffusers", "EDMDPMSolverMultistepScheduler"]}}, "is Playground v2.5, or another"),
        ({SCHEDULER: {"_class_name": "EDMEulerScheduler"}, INDEX: {"scheduler": None}}, "config.json is Playground"),
        ({VAE: {"latents_mean": [-1.6, 1.1, 0.6, -0.1]}}, "is not supported (as in Playground v2.5); only None is"),
        ({ENCODER_2: {"hidden_size": 192}}, "the U-Net reads context of width 192, the text encoder gives 256"),
        ({INDEX: {"text_encoder_2": [None, None]}}, "is Stable Diffusion XL without its second text encoder, which"),
        ({INDEX: {"text_encoder": [None, None]}}, "the U-Net reads context of width 192, the text encoder gives 128"),
        ({INDEX: {"tokenizer_2": ["transformers", "T5Tokenizer"]}}, "the tokenizer_2 is 'T5Tokenizer'; only CLIPTok"),
    ],
)  # fmt: skip
def test_what_means_something_else_is_one_line(settings_of, changes, message):
    folder = settings_of(changes=changes)
    with pytest.raises(ModelError) as caught:
        open_model(str(folder))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({INDEX: {"image_encoder": ["transformers", "CLIPVisionModelWithProjection"]}}, "image_encoder is not used, "),
        ({INDEX: {"text_encoder_2": ["transformers", "CLIPTextModel"]}}, "text_encoder_2 is CLIPTextModel of trans"),
        ({SCHEDULER: {"_class_name": "DDIMScheduler", "clip_sample": None}, INDEX: {"scheduler": None}},
         "clip_sample=True is not supported; latents are not clipped"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_one_warning(settings_of, warned, changes, message):
    open_model(str(settings_of(changes=changes)))
    (line,) = warned()
    assert message in line


def test_a_folder_that_lacks_a_component(settings_of):
    folder = settings_of(without=("text_encoder_2", "tokenizer/"))
    with pytest.raises(ModelError, match=r"is not a whole model: it has unet, but not text_encoder_2, tokenizer$"):
        open_model(str(folder))


def test_words_that_the_second_text_encoder_does_not_know(settings_of):
    with pytest.raises(ModelError, match="the second text encoder has 620 words, and 8 of the tokenizer's 628 are bey"):
        open_model(str(settings_of(changes={ENCODER_2: {"vocab_size": 620}})))


def test_parts_of_it_say_what_they_are(made, tmp_path):
    folder, message = made("base")[1], "a part of a model: give the model's folder, "
    for part, kind in (("unet", "a U-Net"), ("text_encoder_2", "a text encoder"), ("vae", "an autoencoder (VAE)")):
        with pytest.raises(ModelError) as caught:
            open_model(folder / part)
        assert str(caught.value) == f"{folder / part} is {kind}, {message}{folder}"
        file = next((folder / part).glob("*.safetensors"))
        shutil.copy(file, tmp_path)
        with pytest.raises(ModelError) as caught:
            open_model(tmp_path / file.name)
        line = str(caught.value)
        assert line.startswith(f"{tmp_path / file.name} is {kind}")
        assert ("give the model, and this as vae=" if part == "vae" else "give the whole model that it belongs") in line


def test_its_identity_and_its_report_have_both_encoders(made, tmp_path):
    folder = shutil.copytree(made("base")[1], tmp_path / "copy")
    before = identity(open_model(folder))
    path = folder / "text_encoder_2" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert identity(open_model(folder)) != before == identity(open_model(made("base")[1]))
    lines = info.model_lines(info.model_info(str(folder)))
    assert lines[-1] == "texts    text_encoder (3 layers, width 64), text_encoder_2 (4 layers, width 128)"


def test_another_autoencoder(made, tmp_path, warned):
    """The fixed one says that it does not need float32; those of other families are taken with a warning."""
    base = made("base")[1]

    def vae(name, **changes):
        folder = shutil.copytree(base / "vae", tmp_path / name)
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**settings, **changes}))
        return folder

    found = {
        name: open_model(base, vae=path).config.vae.force_upcast
        for name, path in {
            "usual": vae("sdxl-vae"),
            "fixed": vae("sdxl-vae-fp16-fix", force_upcast=False),
            "whole model": made("refiner")[1],
            "file": shutil.copy(
                base / "vae" / "diffusion_pytorch_model.safetensors", tmp_path / "sdxl_vae.safetensors"
            ),
        }.items()
    }
    assert found == {"usual": True, "fixed": False, "whole model": True, "file": True}
    assert warned() == []
    for path in (vae("other", scaling_factor=0.18215), tmp_path / "vae-ft-mse-840000.safetensors"):
        if not path.exists():
            shutil.copy(tmp_path / "sdxl_vae.safetensors", path)
        open_model(base, vae=path)
        (line,) = warned()
        assert "seems to be that of Stable Diffusion 1.x or 2.x, whose latents mean other colours than those of" in line
    for model, expected in ((base, "madebyollin/taesdxl"), ("sd-v1-4", "madebyollin/taesd")):
        own = SD_V1.vae if model == "sd-v1-4" else open_model(model).config.vae
        assert vae_files._hub_name("taesd", own) == expected


def test_a_repository_with_variants_shards_and_files_of_pytorch(made, tmp_path):
    """As many are: the U-Net in two files in half precision, and one part that has no safetensors."""
    folder = shutil.copytree(made("base")[1], tmp_path / "repository")
    stem = "diffusion_pytorch_model"
    tensors = load_file(folder / "unet" / f"{stem}.safetensors")
    (folder / "unet" / f"{stem}.safetensors").unlink()
    shards = [f"{stem}-0000{number}-of-00002.fp16.safetensors" for number in (1, 2)]
    placed = {name: shards[index % 2] for index, name in enumerate(sorted(tensors))}
    for shard in shards:
        save_file({name: tensors[name] for name in tensors if placed[name] == shard}, folder / "unet" / shard)
    (folder / "unet" / f"{stem}.safetensors.index.fp16.json").write_text(json.dumps({"weight_map": placed}))
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "model.fp16.safetensors")
    path = folder / "text_encoder_2" / "model.safetensors"
    torch.save(
        {name: torch.tensor(value) for name, value in load_file(path).items()}, path.with_name("pytorch_model.bin")
    )
    path.unlink()
    (folder / "other.safetensors").write_bytes(b"")
    with serve(folder) as (endpoint, asked):
        out, err = lines_of(start_opening(tmp_path, endpoint, "org/name", arguments={"variant": "fp16"}))
    assert out == "org/name (64, 128) False"
    assert "has variant 'fp16' of some networks only; taken for the others: text_encoder_2 (plain), vae (plain)" in err
    got = {name.split("/", 4)[4] for name in asked if name.startswith("GET org/name/resolve")}
    weights = {name for name in got if name.endswith((".safetensors", ".bin"))}
    assert weights == {
        *(f"unet/{shard}" for shard in shards),
        "text_encoder/model.fp16.safetensors",
        "text_encoder_2/pytorch_model.bin",
        f"vae/{stem}.safetensors",
    }
    assert {"tokenizer_2/tokenizer_config.json", "text_encoder_2/config.json"} <= got
    model = open_model(folder)
    read = {name: value.copy() for name, value in model.parameters("text_encoder_2")}
    assert all((read[name] == value).all() for name, value in open_model(made("base")[1]).parameters("text_encoder_2"))
