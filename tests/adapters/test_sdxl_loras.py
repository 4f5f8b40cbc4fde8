"""LoRA files for Stable Diffusion XL: both text encoders, numbers of the original layout, and diffusers' weights."""

from __future__ import annotations

import copy
import re
import warnings

import lycoris
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from xl_checkpoints import xl_pipeline

from kerasdiff import info
from kerasdiff.adapter_files import Lora
from kerasdiff.adapters import lora_names
from kerasdiff.adapters.library import AdapterLibrary
from kerasdiff.adapters.lora_file import read_lora
from kerasdiff.checkpoints.formats import ldm
from kerasdiff.checkpoints.formats.diffusers_folder import COMPONENTS
from kerasdiff.errors import ModelError
from kerasdiff.models.config import SD_V1, SD_V2, SDXL, SDXL_REFINER, ModelConfig
from kerasdiff.models.layers import parameters_of
from kerasdiff.models.network_configs import TextEncoderConfig, UNetConfig
from kerasdiff.models.networks import make_network

NETWORKS = ("unet", "text_encoder", "text_encoder_2")
_TEXT = {"vocab_size": 628, "skipped_layers": 1, "final_norm": False}
SMALL = ModelConfig(
    text_encoder=TextEncoderConfig(width=64, num_layers=3, num_heads=1, mlp_width=131, **_TEXT),
    text_encoder_2=TextEncoderConfig(
        width=128, num_layers=4, num_heads=2, mlp_width=259, activation="gelu", projection=96, **_TEXT
    ),
    unet=UNetConfig(
        widths=(64, 128),
        layers_per_level=1,
        attention=(False, True),
        num_heads=(1, 2),
        context_width=192,
        transformer_depth=(1, 2),
        pooled_width=96,
        time_id_width=32,
    ),
)


def shapes_of(config, network):
    return parameters_of(make_network(network, config, "float32"))


def in_torch(name, value):
    """A parameter in torch's layout."""
    if not name.endswith(".kernel"):
        return value
    return value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)


class Model:
    """A small pipeline of diffusers, and our shapes of its networks."""

    def __init__(self, folder):
        self.pipe = xl_pipeline("base", folder)
        self.shapes = {network: shapes_of(SMALL, network) for network in NETWORKS}
        self.library = AdapterLibrary(SMALL, self.shapes.__getitem__)

    def names(self, network, in_ldm=False):
        """Our names of kernels -> the layer's name in diffusers or in the original layout."""
        source = ldm.slices(network, SMALL) if in_ldm else COMPONENTS[network].slices
        beginning = re.compile(
            r"(model\.diffusion_model|cond_stage_model\.transformer|conditioner\.embedders\.\d\.\w+)\."
        )
        for name in self.shapes[network]:
            if name.endswith(".kernel"):
                yield name, beginning.sub("", next(iter(source(name))).key.removesuffix(".weight"))

    def weights(self, pipe):
        """A pipeline's weights by our names, in torch's layout."""
        found = {}
        for network, shapes in self.shapes.items():
            state = getattr(pipe, network).state_dict()
            for name in shapes:
                key = next(each.key for each in COMPONENTS[network].slices(name) if each.key in state)
                found[name] = state[key].numpy().copy()
        return found

    def merged(self, *loras):
        """The weights that some LoRAs change, in torch's layout."""
        stack, weights, found = self.library.stack(loras), self.weights(self.pipe), {}
        for network, shapes in self.shapes.items():
            for name, patch in stack.patches(network, shapes).items():
                weight = weights[name].reshape(in_torch(name, np.empty(shapes[name])).shape)
                ours = weight.T if weight.ndim == 2 else weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight
                found[name] = in_torch(name, patch(ours if name.endswith(".kernel") else weight))
        return found


@pytest.fixture(scope="module")
def xl(tmp_path_factory):
    return Model(tmp_path_factory.mktemp("xl"))


def pairs(model, network, seed=0, convolutions=True, in_ldm=False):
    """A layer's name, and random factors of the right shapes."""
    generator = np.random.default_rng(seed)
    for name, layer in model.names(network, in_ldm):
        outputs, inputs, *kernel = in_torch(name, np.empty(model.shapes[network][name])).shape
        if not kernel or convolutions:
            down = generator.normal(0, 0.1, (2, inputs, *kernel)).astype("float32")
            yield layer, down, generator.normal(0, 0.1, (outputs, 2, *(1 for _ in kernel))).astype("float32")


def kohya(model, in_ldm=(True, False, False), prefixes=("lora_unet", "lora_te1", "lora_te2"), alpha=1.5, **options):
    tensors = {}
    for network, prefix, original in zip(NETWORKS, prefixes, in_ldm, strict=True):
        for layer, down, up in pairs(model, network, in_ldm=original, **options):
            name = f"{prefix}_{layer.replace('.', '_')}"
            alphas = {f"{name}.alpha": np.array(alpha, "float32")} if alpha else {}
            tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, **alphas}
    return tensors


def dotted(model, layer="{network}.{name}", down=".lora_A.weight", up=".lora_B.weight", in_ldm=False, **options):
    tensors = {}
    for network in NETWORKS:
        for name, low, high in pairs(model, network, in_ldm=in_ldm and network == "unet", **options):
            name = layer.format(network=network, name=name)
            tensors |= {name + down: low, name + up: high}
    return tensors


def renamed(tensors, *pairs_of_names):
    for old, new in pairs_of_names:
        tensors = {re.sub(old, new, key): value for key, value in tensors.items()}
    return tensors


def compare(model, theirs, ours):
    """Whether what diffusers has is the model's own weights with our changes."""
    for name, value in model.weights(model.pipe).items():
        expected = ours.get(name, value).reshape(theirs[name].shape)
        tolerance = 1e-6 * max(1, np.abs(theirs[name]).max())
        np.testing.assert_allclose(expected, theirs[name], rtol=0, atol=tolerance, err_msg=name)


def test_two_loras_at_once_are_those_of_diffusers(xl, tmp_path):
    """With names of the original layout and of diffusers, and a strength for each part of the model."""
    # It leaves out the biases of no layer, and takes for an attention what is none in the layers that know the time.
    first = {key: value for key, value in kohya(xl).items() if "emb" not in key}
    second = dotted(xl, seed=1, convolutions=False)
    save_file(first, tmp_path / "first.safetensors")
    save_file(second, tmp_path / "second.safetensors")
    pipe = copy.deepcopy(xl.pipe)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("first", "second"):
            pipe.load_lora_weights(tmp_path / f"{name}.safetensors", adapter_name=name)
        weights = [{"unet": 0.7, "text_encoder": 0.4, "text_encoder_2": 0.4}, -0.5]
        pipe.set_adapters(["first", "second"], weights)
        pipe.fuse_lora(components=[*NETWORKS])
        pipe.unload_lora_weights()
    files = [str(tmp_path / f"{name}.safetensors") for name in ("first", "second")]
    ours = xl.merged(Lora(files[0], 0.7, 0.4), Lora(files[1], -0.5, -0.5))
    assert {name.partition(".")[0] for name in ours} == {*NETWORKS}
    assert sum(name.endswith("text_projection.kernel") for name in ours) == 1
    compare(xl, xl.weights(pipe), ours)
    # Every layer that knows the sizes has a name there, too.
    save_file(kohya(xl), tmp_path / "all.safetensors")
    kernels = {name for shapes in xl.shapes.values() for name in shapes if name.endswith(".kernel")}
    assert set(xl.merged(Lora(str(tmp_path / "all.safetensors")))) == kernels
    assert {key.rpartition("_label_emb_0_")[2] for key in kohya(xl) if "label_emb" in key and "down" in key} == {
        "0.lora_down.weight",
        "2.lora_down.weight",
    }


SPELLINGS = {
    "kohya's with diffusers' names": lambda model: kohya(model, (False, False, False), alpha=None),
    "rotations of kohya": lambda model: kohya(model, prefixes=("oft_unet", "oft_te1", "oft_te2"), alpha=None),
    "peft": lambda model: dotted(model, "base_model.model.{network}.{name}"),
    "diffusers of before 2024": lambda model: renamed(
        dotted(model, down=".lora.down.weight", up=".lora.up.weight"),
        (r"\.to_(q|k|v|out)(\.0)?\.lora\.", r".processor.to_\1_lora."),
        (r"self_attn\.(q|k|v|out)_proj\.lora\.", r"self_attn.to_\1_lora."),
        (r"\.(fc\d)\.lora\.", r".\1.lora_linear_layer."),
    ),
    "ComfyUI": lambda model: renamed(
        dotted(model, in_ldm=True),
        (r"^unet\.", "diffusion_model."),
        (r"^text_encoder\.", "text_encoders.clip_l.transformer."),
        (r"^text_encoder_2\.", "text_encoders.clip_g.transformer."),
    ),
}


def test_every_spelling_gives_the_same_changes(xl, tmp_path):
    save_file(kohya(xl, alpha=None), tmp_path / "kohya.safetensors")
    expected = xl.merged(Lora(str(tmp_path / "kohya.safetensors")))
    for spelling, tensors in SPELLINGS.items():
        path = tmp_path / f"{spelling}.safetensors"
        save_file(tensors(xl), path)
        found = xl.merged(Lora(str(path)))
        assert found.keys() == expected.keys(), spelling
        for name, value in expected.items():
            np.testing.assert_array_equal(found[name], value, err_msg=f"{spelling}: {name}")


def test_names_of_open_clip_for_the_second_text_encoder(tmp_path, xl):
    """Where queries, keys and values are one matrix."""
    rng = np.random.default_rng(0)
    up, down = rng.normal(size=(384, 2)).astype("float32"), rng.normal(size=(2, 128)).astype("float32")
    layer, path = "lora_te2_transformer_resblocks_1_attn_in_proj", tmp_path / "file.safetensors"
    save_file({f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": down}, path)
    before, after = xl.weights(xl.pipe), xl.merged(Lora(str(path)))
    names = [f"text_encoder_2.layers.1.{part}_proj.kernel" for part in "qkv"]
    assert [*after] == names
    change = np.concatenate([after[name] - before[name] for name in names])
    np.testing.assert_allclose(change, up @ down, atol=1e-5)


KINDS = ({"algo": "loha"}, {"algo": "lokr", "factor": 4}, {"algo": "lora", "dora_wd": True})


@pytest.mark.parametrize("options", KINDS, ids=("LoHa", "LoKr", "DoRA"))
def test_files_of_lycoris(xl, tmp_path, options):
    pipe, tensors = copy.deepcopy(xl.pipe), {}
    for network, prefix in (("unet", "lora_unet"), ("text_encoder_2", "lora_te2")):
        torch.manual_seed(0)
        layers = [".*blocks.1.*attn1.to_q", ".*1.self_attn.*", ".*1.mlp.*", ".*add_embed.*linear_1", ".*mid.*conv1"]
        lycoris.LycorisNetwork.apply_preset({"target_module": [], "target_name": layers})
        # Its merging multiplies some kinds by alpha / rank twice.
        made = lycoris.create_lycoris(getattr(pipe, network), 1.0, 3, 3, **options)
        made.apply_to()
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        made.save_weights(tmp_path / "part.safetensors", torch.float32, {})
        tensors |= renamed(load_file(tmp_path / "part.safetensors"), ("^lycoris", prefix))
        made.restore()
        made.merge_to(1.0)
    path = tmp_path / "file.safetensors"
    save_file(tensors, path)
    ours = xl.merged(Lora(str(path)))
    assert {name.partition(".")[0] for name in ours} == {"unet", "text_encoder_2"}
    assert "unet.add_embedding.linear_1.kernel" in ours
    compare(xl, xl.weights(pipe), ours)


# Of kohya's files for the base model -> our layer.
PUBLISHED = {
    "unet": {
        "input_blocks_0_0": "conv_in",
        "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
        "input_blocks_4_1_transformer_blocks_0_attn1_to_k": (
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k"
        ),
        "input_blocks_8_1_transformer_blocks_9_ff_net_0_proj": (
            "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj"
        ),
        "middle_block_1_proj_in": "mid_block.attentions.0.proj_in",
        "middle_block_2_emb_layers_1": "mid_block.resnets.1.time_emb_proj",
        "output_blocks_2_1_transformer_blocks_9_attn2_to_out_0": (
            "up_blocks.0.attentions.2.transformer_blocks.9.attn2.to_out.0"
        ),
        "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
        "output_blocks_5_1_transformer_blocks_1_attn2_to_v": (
            "up_blocks.1.attentions.2.transformer_blocks.1.attn2.to_v"
        ),
        "output_blocks_5_2_conv": "up_blocks.1.upsamplers.0.conv",
        "output_blocks_8_0_skip_connection": "up_blocks.2.resnets.2.conv_shortcut",
        "time_embed_2": "time_embedding.linear_2",
        "label_emb_0_2": "add_embedding.linear_2",
        "out_2": "conv_out",
    },
    "text_encoder": {"text_model_encoder_layers_11_mlp_fc2": "layers.11.fc2"},
    "text_encoder_2": {
        "text_model_encoder_layers_31_self_attn_out_proj": "layers.31.out_proj",
        "text_projection": "text_projection",
    },
}
# How many layers kohya's script says that it trains.
COUNTS = {
    "unet": (
        722,
        r"(\w+_\d|middle_block)_1_(transformer_blocks_\d_(attn\d_to_(q|k|v|out_0)|ff_net_(0_proj|2))|proj_(in|out))",
    ),
    "text_encoder": (72, r"text_model_encoder_layers_\d+_(self_attn_\w+_proj|mlp_fc\d)"),
    "text_encoder_2": (192, r"text_model_encoder_layers_\d+_(self_attn_\w+_proj|mlp_fc\d)"),
}


def test_names_at_full_size():
    for network, meant in PUBLISHED.items():
        shapes = shapes_of(SDXL, network)
        table = lora_names.layers(network, tuple(shapes), SDXL)
        found = {name: [layer.path for layer in table[name]] for name in meant}
        assert found == {name: [f"{network}.{path}"] for name, path in meant.items()}
        count, names = COUNTS[network]
        originals = {layer[0].path for name, layer in table.items() if re.fullmatch(names, name)}
        assert len(originals) == count
        paths = {name.rpartition(".")[0] for name in shapes}
        assert {layer.path for layers in table.values() for layer in layers} == paths
        shared = [name for name, layers in table.items() if len(layers) > 1]
        assert all(name.endswith("_attn_in_proj") for name in shared)


def pair(layer, inputs, outputs=64):
    down, up = np.ones((2, inputs), "float32"), np.ones((outputs, 2), "float32")
    return {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}


def attention(width):
    return pair("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", width)


ONLY, FIRST, SECOND = (f"{name}_text_model_encoder_layers_0_mlp_fc1" for name in ("lora_te", "lora_te1", "lora_te2"))
BASE, REFINER = "Stable Diffusion XL", "the refiner of Stable Diffusion XL"
# What a file has, what it is for, how that is known, and the models that take it.
FOR_OTHERS = [
    (attention(768), "Stable Diffusion 1.x", "its attention reads 768 numbers a token", (SD_V1,)),
    (attention(1024), "Stable Diffusion 2.x", "its attention reads 1024 numbers a token", (SD_V2,)),
    (attention(2048), BASE, "its attention reads 2048 numbers a token", (SDXL,)),
    (attention(1280), REFINER, "its attention reads 1280 numbers a token", (SDXL_REFINER,)),
    (pair(ONLY, 768), "Stable Diffusion 1.x", "it changes a text encoder of width 768", (SD_V1,)),
    (pair(FIRST, 768), f"Stable Diffusion 1.x or {BASE}", "it changes a text encoder of width 768", (SD_V1, SDXL)),
    (
        pair(SECOND, 1280),
        BASE,
        f"1 of its 1 layers belong to the second text encoder of {BASE}",
        (SDXL, SDXL_REFINER),
    ),
]
NAMES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": BASE, "sdxl_refiner": REFINER}


def test_a_lora_for_another_family_is_refused_with_both_names(tmp_path):
    path = tmp_path / "file.safetensors"
    for tensors, family, reason, models in FOR_OTHERS:
        save_file(tensors, path)
        lora = read_lora(path)
        assert lora.family == family
        for config in (SD_V1, SD_V2, SDXL, SDXL_REFINER):
            if config in models:
                assert lora.changes("unet", {}, config) == {}
                continue
            with pytest.raises(ModelError) as caught:
                lora.changes("unet", {}, config)
            said = f"{path} is a LoRA for {family}, and this model is {NAMES[config.family]}: {reason}"
            assert str(caught.value).partition(" (")[0] == said


def test_info_tells_the_family(tmp_path):
    save_file(attention(2048) | pair(FIRST, 768) | pair(SECOND, 1280), tmp_path / "a.safetensors")
    lines = info.lora_lines(info.lora_info(str(tmp_path / "a.safetensors")))
    assert "for      Stable Diffusion XL" in lines


def test_what_a_model_lacks_is_said_of_it(xl, tmp_path):
    path = tmp_path / "file.safetensors"
    layer = "lora_te2_text_model_encoder_layers_{}_mlp_fc1"
    save_file({**pair(layer.format(0), 128, 259), **pair(layer.format(9), 128, 259)}, path)
    fit = read_lora(path).fit(xl.shapes, SMALL)
    assert (fit.tensors, fit.used) == (4, 2)
    assert fit.unused == (
        f"{path} has tensors that are not used: 2 name layers that the model does not have "
        f"({layer.format(9)}.lora_down.weight)"
    )
