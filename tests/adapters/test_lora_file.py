"""LoRA files of every program: the same changes whatever they are called, and one line for what cannot be used."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import math
import re
import warnings

import checkpoints
import lycoris
import numpy as np
import peft
import pytest
import torch
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from fake_hub import line_of, serve, start
from peft.utils.other import get_pattern_key
from safetensors.numpy import save_file

from kerasdiff.adapters import lora_names
from kerasdiff.adapters.file_search import find_lora
from kerasdiff.adapters.lora_file import read_lora
from kerasdiff.adapters.lora_metadata import _Pattern
from kerasdiff.adapters.weight_change import changed
from kerasdiff.checkpoints.formats import ldm
from kerasdiff.checkpoints.formats.diffusers_folder import COMPONENTS
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.errors import ModelError

NETWORKS = ("unet", "text_encoder")


def in_torch(name, shape):
    if not name.endswith(".kernel"):
        return shape
    return shape[::-1] if len(shape) == 2 else (shape[3], shape[2], *shape[:2])


class Model:
    """A small model: its pipeline of diffusers, and what our checkpoint says of it."""

    def __init__(self, kind, folder):
        self.pipe = checkpoints.pipeline(kind, folder / "vocabulary")
        checkpoint = open_model(checkpoints.save(self.pipe, folder / "model"))
        self.config = checkpoint.config
        self.shapes = {network: checkpoint.shapes(network) for network in NETWORKS}

    def layers(self, network):
        """Our names of kernels -> torch's shape, and the layer's name in diffusers and in LDM."""
        in_diffusers, in_ldm = COMPONENTS[network].slices, ldm.slices(network, self.config)
        rest = re.compile(r"\.weight$|^model\.diffusion_model\.|^cond_stage_model\.transformer\.")
        for name, shape in self.shapes[network].items():
            if name.endswith(".kernel"):
                names = [rest.sub("", next(iter(source(name))).key) for source in (in_diffusers, in_ldm)]
                yield name, in_torch(name, shape), *names

    def changes(self, path, weights=None):
        """What a file makes of weights, or of ones, by our names."""
        lora, found = read_lora(path), {}
        for network, shapes in self.shapes.items():
            for name, change in lora.changes(network, shapes, self.config).items():
                tensors = {suffix: read() for suffix, read in change.tensors.items()}
                assert all(values.dtype == np.float32 for values in tensors.values())
                weight = np.ones(in_torch(name, shapes[name]), "float32") if weights is None else weights[name]
                found[name] = changed(tensors, weight, 1.0)
        return found

    def check(self, path):
        return read_lora(path).fit(self.shapes, self.config).unused

    def weights(self, pipe):
        """The weights of a pipeline by our names."""
        found = {}
        for network, shapes in self.shapes.items():
            state = getattr(pipe, network).state_dict()
            for name, shape in shapes.items():
                key = next(each.key for each in COMPONENTS[network].slices(name) if each.key in state)
                found[name] = state[key].numpy().reshape(in_torch(name, shape))
        return found


@pytest.fixture(scope="module")
def v1(tmp_path_factory):
    return Model("v1", tmp_path_factory.mktemp("v1"))


@pytest.fixture(scope="module")
def v2(tmp_path_factory):
    return Model("v2", tmp_path_factory.mktemp("v2"))


def pairs(model, networks=NETWORKS, convolutions=False, seed=0, alphas=(0.5, 1.5, 2.5, 3.5)):
    """Our name, names elsewhere, and random factors and alpha for each layer; ranks differ from layer to layer."""
    generator = np.random.default_rng(seed)
    for network in networks:
        for index, (_, shape, in_diffusers, in_ldm) in enumerate(model.layers(network)):
            rank, kernel = 1 + index % 3, shape[2:]
            if not kernel or convolutions:
                down = generator.standard_normal((rank, *shape[1:])).astype("float16")
                up = generator.standard_normal((shape[0], rank, *(1,) * len(kernel))).astype("float16")
                yield network, in_diffusers, in_ldm, down, up, np.array(alphas[index % len(alphas)], "float16")


def kohya(model, prefixes=("lora_unet", "lora_te"), in_ldm=False, **options):
    tensors = {}
    for network, diffusers_name, ldm_name, down, up, alpha in pairs(model, **options):
        name = ldm_name if in_ldm else diffusers_name
        layer = f"{prefixes[NETWORKS.index(network)]}_{name.replace('.', '_')}"
        tensors |= {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up, f"{layer}.alpha": alpha}
    return tensors


def dotted(model, layer="{network}.{name}", down=".lora_A.weight", up=".lora_B.weight", in_ldm=False, **options):
    """Without alphas: the up matrix has the scale."""
    tensors = {}
    for network, diffusers_name, ldm_name, low, high, alpha in pairs(model, **options):
        name = layer.format(network=network, name=ldm_name if in_ldm else diffusers_name)
        scaled = np.float32(high) * np.float32(alpha) / np.float32(len(low))
        tensors |= {name + down: low, name + up: scaled}
    return tensors


def in_old_diffusers(model):
    """As in files of before 2024: attention's layers are called after their processor."""
    tensors = dotted(model, down=".lora.down.weight", up=".lora.up.weight")
    renamed = {}
    for key, value in tensors.items():
        key = re.sub(r"\.to_(q|k|v|out)(\.0)?\.lora\.", r".processor.to_\1_lora.", key)
        key = re.sub(r"\.(fc\d)\.lora\.", r".\1.lora_linear_layer.", key)
        renamed[re.sub(r"self_attn\.(q|k|v|out)_proj\.lora\.", r"self_attn.to_\1_lora.", key)] = value
    assert any("processor.to_out_lora.down.weight" in key for key in renamed)
    assert any("self_attn.to_q_lora.up.weight" in key for key in renamed)
    return renamed


SPELLINGS = {
    "kohya": kohya,
    "first text encoder of a newer program": lambda model: kohya(model, ("lora_unet", "lora_te1")),
    "LDM's names": lambda model: kohya(model, in_ldm=True),
    "kohya's of rotations": lambda model: kohya(model, ("oft_unet", "oft_te")),
    "LyCORIS": lambda model: kohya(model, ("lycoris", "lycoris")),
    "a layer that is 1 x 1": lambda model: {
        key: value[..., None, None] if "attn" in key and value.ndim == 2 else value
        for key, value in kohya(model).items()
    },
    "whole alphas": lambda model: {
        key: np.array(2 * value, "int64") if key.endswith("alpha") else value * {"n": 0.5, "p": 1}[key[-8]]
        for key, value in kohya(model).items()
    },
    "diffusers": dotted,
    "peft": lambda model: dotted(model, "base_model.model.{name}"),
    "peft with an adapter's name": lambda model: dotted(
        model, "base_model.model.{name}", ".lora_A.default.weight", ".lora_B.default.weight"
    ),
    "diffusers of before 2024": in_old_diffusers,
    "linear layers": lambda model: dotted(
        model, down=".lora_linear_layer.down.weight", up=".lora_linear_layer.up.weight"
    ),
    "ComfyUI": lambda model: {
        **dotted(model, "diffusion_model.{name}", networks=["unet"], in_ldm=True),
        **{
            key.replace("text_encoder.", "text_encoders.clip_l.transformer."): value
            for key, value in dotted(model).items()
            if key.startswith("text_encoder.")
        },
    },
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_gives_the_same_changes(v1, tmp_path, spelling):
    save_file(kohya(v1), tmp_path / "kohya.safetensors")
    save_file(SPELLINGS[spelling](v1), tmp_path / "other.safetensors")
    expected, found = (v1.changes(tmp_path / f"{name}.safetensors") for name in ("kohya", "other"))
    assert len(expected) == len(list(pairs(v1)))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)
    assert v1.check(tmp_path / "other.safetensors") is None
    assert read_lora(tmp_path / "other.safetensors").changes("decoder", {}, v1.config) == {}
    assert read_lora(tmp_path / "other.safetensors").ranks == (1, 2, 3)


def test_names_of_ldm_are_those_that_diffusers_reads(v1, v2, tmp_path):
    """Its own translation of LDM's names, of attention and convolutions, gives a file that changes the same."""
    for number, model in enumerate((v1, v2)):
        tensors = kohya(model, networks=["unet"], in_ldm=True, convolutions=True)
        skipped = ("time_embed", "input_blocks_0_0.", "out_2.")  # which it translates for SDXL alone
        tensors = {key: value for key, value in tensors.items() if not any(name in key for name in skipped)}
        path, translated = tmp_path / f"{number}.safetensors", tmp_path / f"{number}-translated.safetensors"
        save_file(tensors, path)
        state = {key: torch.from_numpy(value) for key, value in tensors.items()}
        found, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(state, unet_config=model.pipe.unet.config)
        ending = re.compile(r"(_lora|\.lora)?(\.down\.weight)?\.alpha$")
        scales = {ending.sub(".alpha", key): np.array(value, "float32") for key, value in alphas.items()}
        save_file({key: value.numpy() for key, value in found.items()} | scales, translated)
        expected, ours = model.changes(translated), model.changes(path)
        # It takes an upsampler that follows no attention for an attention.
        assert ours.keys() - expected.keys() <= {"unet.up_blocks.0.upsamplers.0.conv.kernel"}
        assert len(ours) == len(tensors) / 3
        for name, value in expected.items():
            np.testing.assert_array_equal(ours[name], value, err_msg=name)


def compare(model, before, after, ours):
    """Whether a file changes what a library changed, and nothing else."""
    for name, value in before.items():
        tolerance = 1e-6 * max(1, np.abs(after[name]).max())
        np.testing.assert_allclose(ours.get(name, value), after[name], rtol=0, atol=tolerance, err_msg=name)
    assert len(ours) > 10


def test_a_file_of_kohya_as_diffusers_fuses_it(v1, tmp_path):
    # It takes a convolution of 1 x 1 only as such, not the layers that know the time, and mixes up alphas that differ.
    tensors = {
        key: value[..., None, None] if "_proj_" in key and "lora_unet" in key and value.ndim else value
        for key, value in kohya(v1, alphas=[1.5]).items()
        if "time_" not in key
    }
    save_file(tensors, tmp_path / "file.safetensors")
    pipe, before = copy.deepcopy(v1.pipe), v1.weights(v1.pipe)
    before = {name: value.copy() for name, value in before.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.load_lora_weights(tmp_path / "file.safetensors")
        pipe.fuse_lora()
        pipe.unload_lora_weights()
    compare(v1, before, v1.weights(pipe), v1.changes(tmp_path / "file.safetensors", before))


def train(network, **options):
    """A network with an adapter of peft that has random values."""
    made = peft.LoraConfig(r=3, lora_alpha=5, init_lora_weights=False, **options)
    network.add_adapter(made)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(len(name))).abs_()
    return network


UNET = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "proj_in", "ff.net.0.proj"]
TEXT = ["q_proj", "fc1"]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_q": 7, "^mid_block.*.to_k": 0.25, "attn1.to_v": 1}},
        {"use_dora": True},
    ],
    ids=lambda options: ",".join(options) or "plain",
)
def test_files_that_diffusers_and_peft_write(v1, tmp_path, options):
    before = {name: value.copy() for name, value in v1.weights(v1.pipe).items()}
    pipe = copy.deepcopy(v1.pipe)
    train(pipe.unet, target_modules=UNET, **options)
    train(pipe.text_encoder, target_modules=TEXT, use_dora="use_dora" in options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.save_lora_weights(
            tmp_path,
            unet_lora_layers=peft.get_peft_model_state_dict(pipe.unet, save_embedding_layers=False),
            text_encoder_lora_layers=peft.get_peft_model_state_dict(pipe.text_encoder, save_embedding_layers=False),
            unet_lora_adapter_metadata=pipe.unet.peft_config["default"].to_dict(),
            text_encoder_lora_adapter_metadata=pipe.text_encoder.peft_config["default"].to_dict(),
        )
        pipe.fuse_lora()
        pipe.unload_lora_weights()
    path = find_lora(str(tmp_path))
    assert path.name == "pytorch_lora_weights.safetensors"
    compare(v1, before, v1.weights(pipe), v1.changes(path, before))
    assert v1.check(path) is None
    assert 5 in read_lora(path).summary["alphas"]


@pytest.mark.parametrize(
    "pattern", ["to_q", "^to_q", "^a.*q", "a.*b.*to_q", "b.*.*q", ".*", "a.*", r"b\.to_q", "o_q", "a.*x.*q", "^b.to_q"]
)
def test_patterns_mean_what_they_mean_to_peft(pattern):
    for name in ("a.b.to_q", "to_q", "a.b", "ab.to_q", "b.a.to_qq"):
        expected = get_pattern_key([pattern], name) == pattern
        assert _Pattern.of(pattern, "x").means(name) == expected, (pattern, name)


def test_a_folder_that_peft_writes(v1, tmp_path):
    before = {name: value.copy() for name, value in v1.weights(v1.pipe).items()}
    pipe = copy.deepcopy(v1.pipe)
    options = {"alpha_pattern": {"to_q": 7}, "target_modules": UNET, "init_lora_weights": False}
    model = peft.get_peft_model(pipe.unet, peft.LoraConfig(r=3, lora_alpha=5, **options))
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    pipe.unet = model.merge_and_unload()
    path = find_lora(str(tmp_path))
    assert path.name == "adapter_model.safetensors"
    compare(v1, before, v1.weights(pipe), v1.changes(path, before))
    config = tmp_path / "adapter_config.json"
    settings = json.loads(config.read_text())
    for change, message in (
        ({"lora_alpha": "5"}, "lora_alpha=5 is not a number"),
        ({"lora_alpha": math.nan}, "lora_alpha=nan is not a number"),
        ({"alpha_pattern": [1]}, r"alpha_pattern=\[1\] is not supported"),
        ({"alpha_pattern": {"(a+)+$": 1}}, r"the pattern \(a\+\)\+\$ is not supported"),
    ):
        config.write_text(json.dumps({**settings, **change}))
        with pytest.raises(ModelError, match=message):
            v1.changes(path)


@pytest.mark.parametrize("algorithm", ["lora", "full", "ia3"])
def test_files_that_lycoris_writes(v1, tmp_path, algorithm):
    torch.manual_seed(0)
    before = {name: value.copy() for name, value in v1.weights(v1.pipe).items()}
    pipe = copy.deepcopy(v1.pipe)
    lycoris.LycorisNetwork.apply_preset({"target_name": [".*attn.*", ".*resnets.*", ".*proj_.*"]})
    network = lycoris.create_lycoris(pipe.unet, 1.0, 3, 2, algo=algorithm, train_norm=True, factor=4)
    network.apply_to()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    path = tmp_path / "file.safetensors"
    network.save_weights(path, torch.float32, {"ss_network_module": "lycoris.kohya"})
    network.restore()
    network.merge_to(1.0)
    compare(v1, before, v1.weights(pipe), v1.changes(path, before))
    assert v1.check(path) is None


def test_no_two_layers_share_a_name(v1, v2):
    for model in (v1, v2):
        for network, shapes in model.shapes.items():
            table = lora_names.layers(network, tuple(shapes), model.config)
            paths = {name.rpartition(".")[0] for name in shapes}
            assert {layer.path for meant in table.values() for layer in meant} == paths
            shared = [name for name, meant in table.items() if len(meant) > 1]
            assert all(name.endswith("_attn_in_proj") and len(table[name]) == 3 for name in shared)
            assert all(lora_names.foreign(f"lora_unet_{name}") is None for name in table)


def test_queries_keys_and_values_in_one_matrix(v2, tmp_path):
    generator = np.random.default_rng(0)
    up, down = generator.standard_normal((192, 2), "float32"), generator.standard_normal((2, 64), "float32")
    bias = generator.standard_normal(192, "float32")
    layer = "lora_te_transformer_resblocks_1_attn_in_proj"
    path = tmp_path / "file.safetensors"
    save_file({f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": down, f"{layer}.diff_b": bias}, path)
    found = v2.changes(path)
    for part, name in enumerate(("q", "k", "v")):
        rows = slice(64 * part, 64 * (part + 1))
        np.testing.assert_allclose(found[f"text_encoder.layers.1.{name}_proj.kernel"], 1 + up[rows] @ down, rtol=1e-5)
        np.testing.assert_allclose(found[f"text_encoder.layers.1.{name}_proj.bias"], 1 + bias[rows], rtol=1e-5)
    assert len(found) == 6


def test_norms_biases_and_convolutions(v1, tmp_path):
    tensors = {
        "lora_unet_conv_in.lora_down.weight": np.ones((2, 4, 3, 3), "float32"),
        "lora_unet_conv_in.lora_up.weight": np.ones((32, 2, 1, 1), "float32"),
        "lora_unet_conv_in.diff_b": np.full(32, 2, "float32"),
        "lora_unet_mid_block_resnets_0_norm1.w_norm": np.full(64, 3, "float32"),
        "lora_unet_mid_block_resnets_0_norm1.b_norm": np.full(64, 4, "float32"),
        "lora_te_text_model_final_layer_norm.w_norm": np.full(64, 5, "float32"),
        "lora_te_text_model_embeddings_token_embedding.diff": np.full((628, 64), 6, "float32"),
        "lora_unet_down_blocks_0_resnets_0_conv1.on_input": np.array(True),
        "lora_unet_down_blocks_0_resnets_0_conv1.weight": np.full(32, 6, "float32"),
    }
    save_file(tensors, tmp_path / "file.safetensors")
    found = v1.changes(tmp_path / "file.safetensors")
    assert {name: float(value.max()) for name, value in found.items()} == {
        "unet.conv_in.kernel": 3,
        "unet.conv_in.bias": 3,
        "unet.mid_block.resnets.0.norm1.gamma": 4,
        "unet.mid_block.resnets.0.norm1.beta": 5,
        "text_encoder.final_layer_norm.gamma": 6,
        "text_encoder.token_embedding.embeddings": 7,
        "unet.down_blocks.0.resnets.0.conv1.kernel": 7,
    }
    assert read_lora(tmp_path / "file.safetensors").kind == "IA3, LoCon, full, norm"


LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
QUERY = LAYER.replace("attn2_to_k", "attn1_to_q")
PAIR = {
    f"{LAYER}.lora_down.weight": np.ones((2, 64), "float32"),
    f"{LAYER}.lora_up.weight": np.ones((64, 2), "float32"),
}


def renamed(old, new, tensors=None):
    return {key.replace(old, new): value for key, value in (tensors or PAIR).items()}


# Tensors beside a LoRA that fits, and what is said of them.
LEFT_OVER = [
    (
        renamed(LAYER, "lora_te2_text_model_encoder_layers_0_mlp_fc1"),
        "2 belong to the second text encoder of Stable Diffusion XL (lora_te2_text_model_encoder_layers_0_mlp_fc1",
    ),
    (renamed("mid_block", "down_blocks_9"), "2 name layers that the model does not have (lora_unet_down_blocks_9_"),
    (renamed("attentions_0", "motion_modules_0"), "2 belong to a video model or AnimateDiff (lora_unet_mid_block_mo"),
    (renamed(LAYER, "lora_unet_middle_block_1_transformer_blocks_0_attn2_to_k"), "2 are layers that it has under diff"),
    ({f"{LAYER}.diff_b": np.ones(64, "float32")}, "1 name biases that the model does not have"),
    ({f"{LAYER}.scalar": np.ones(1, "float32")}, "1 have endings that are not known"),
    ({f"{LAYER}_x.alpha": np.array(1.0)}, "1 scale layers that the file does not have"),
    ({"x.weight": np.ones(3)}, "1 are whole weights, no changes (x.weight)"),
    (
        {"bundle_emb.cat.string_to_param.*": np.ones((2, 64))},
        "1 are embeddings, which embeddings= takes (bundle_",
    ),
]


def test_tensors_that_are_not_used_are_named_in_one_line(v1, tmp_path):
    path = tmp_path / "file.safetensors"
    for tensors, message in LEFT_OVER:
        save_file({**PAIR, **tensors}, path)
        said = v1.check(path)
        assert said.startswith(f"{path} has tensors that are not used: {message}")
        assert len(v1.changes(path)) == 1
    save_file({**PAIR, **{key: value for tensors, _ in LEFT_OVER for key, value in tensors.items()}}, path)
    said = v1.check(path)
    assert "\n" not in said
    assert sum(int(number) for number in re.findall(r"(?:: |; )(\d+) ", said)) == sum(len(t) for t, _ in LEFT_OVER)
    save_file(renamed("mid_block", "down_blocks_9"), path)
    with pytest.raises(ModelError, match=r"changes nothing in this model; of its 2 tensors, 2 name layers that the"):
        v1.check(path)
    assert v1.changes(path) == {}


def pair(layer, inputs=64, outputs=64, rank=2):
    down, up = np.ones((rank, inputs), "float32"), np.ones((outputs, rank), "float32")
    return {f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}


def attention(width):
    return pair("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", width)


ONES = np.ones(3, "float32")
# Message -> tensors, and metadata if it matters.
REFUSED = [
    (
        r"LoRA for Stable Diffusion XL, and this model is Stable Diffusion 1\.x: its attention reads 2048 numbers",
        attention(2048),
    ),
    ("is a LoRA for the refiner of Stable Diffusion XL, and this model is", attention(1280)),
    (
        r"LoRA for Stable Diffusion XL, and .*: 1 of its 1 layers belong to the second text encoder .* \(lora_te2",
        pair("lora_te2_text_model_encoder_layers_0_mlp_fc1"),
    ),
    (
        "for Stable Diffusion XL, and .*: 1 of its 2 layers belong to the size",
        pair(QUERY) | pair("lora_unet_label_emb_0_0"),
    ),
    (
        "LoRA for Stable Diffusion XL, and .*: 1 of its 1 layers belong to the deep transformers",
        pair("lora_unet_input_blocks_7_1_transformer_blocks_8_attn1_to_q"),
    ),
    ("LoRA for Flux or one of its kind", pair("lora_unet_double_blocks_0_img_attn_proj")),
    ("LoRA for Flux or one of its kind", pair("transformer.single_transformer_blocks.0.attn.to_q")),
    ("LoRA for Stable Diffusion 3", pair("lora_unet_joint_blocks_0_x_block_attn_qkv")),
    (r"LoRA for a diffusion transformer \(", pair("transformer.transformer_blocks.0.attn.to_q")),
    ("LoRA for a video model", pair("diffusion_model.blocks.0.self_attn.q")),
    ("LoRA for a video model", pair("down_blocks.0.motion_modules.0.temporal_transformer.proj_in")),
    ("LoRA for an IP-Adapter", pair("3.to_q")),
    ("is a LoRA for Stable Diffusion 2.x, and this model is Stable Diffusion 1.x: its", attention(1024)),
    ("a model of another size than this one: texts", pair("lora_te_text_model_encoder_layers_0_mlp_fc1", 768)),
    (
        rf"does not fit this model: {QUERY}: lora_down.weight \(2, 32\), lora_up.weight \(64, 2\) do not fit a weight",
        pair(QUERY, 32),
    ),
    ("is a Control-LoRA, not a LoRA", PAIR | {"lora_controlnet": ONES}),
    ("is a ControlLLLite, not a LoRA", pair("lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q")),
    ("is an IP-Adapter, not a LoRA", PAIR | {"image_proj.proj.weight": ONES}),
    ("is not a LoRA: it is a model, which model= takes", {"model.diffusion_model.out.2.weight": ONES}),
    ("is not a LoRA: it is a textual inversion", {"<cat>": np.ones((1, 768))}),
    ("is not a LoRA: it is an autoencoder", {"decoder.conv_in.weight": ONES}),
    (r"none of its 2 tensors has a name of one \(a, b\)", {"a": ONES, "b": ONES}),
    (f"{LAYER}: lora_up.weight is missing beside", {f"{LAYER}.lora_down.weight": np.ones((2, 64))}),
    (f"{LAYER}: .* do not fit together", PAIR | {f"{LAYER}.lora_up.weight": np.ones((64, 3))}),
    (f"{LAYER}: .* are of more than one kind", PAIR | {f"{LAYER}.diff": np.ones((64, 64))}),
    (f"{LAYER}.lora_up.weight twice, in two spellings", PAIR | {f"{LAYER}.lora_B.weight": np.ones((64, 3))}),
    (f"{LAYER}.lora_up.weight holds I32, not floating", PAIR | {f"{LAYER}.lora_up.weight": np.ones((64, 2), "int32")}),
    (r"alpha has shape \[2\], which it cannot have", PAIR | {f"{LAYER}.alpha": np.ones(2)}),
    (r"lora_up.weight has shape \[0, 2\], which", PAIR | {f"{LAYER}.lora_up.weight": np.ones((0, 2))}),
    ("lora_up.weight has numbers that are not finite", PAIR | {f"{LAYER}.lora_up.weight": np.full((64, 2), np.nan)}),
    ("alpha has numbers that are not finite", PAIR | {f"{LAYER}.alpha": np.array(np.inf)}),
]


@pytest.mark.parametrize(("message", "tensors"), REFUSED, ids=[message[:40] for message, _ in REFUSED])
def test_what_is_no_lora_for_this_model_is_refused_in_one_line(v1, tmp_path, message, tensors):
    path = tmp_path / "file.safetensors"
    save_file(tensors, path)
    with pytest.raises(ModelError, match=message) as caught:
        v1.changes(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_lora_of_1_x_says_so_when_it_meets_2_x(v2, tmp_path):
    path = tmp_path / "file.safetensors"
    save_file(attention(768), path)
    assert read_lora(path).family == "Stable Diffusion 1.x"
    config = dataclasses.replace(
        v2.config,
        unet=dataclasses.replace(v2.config.unet, context_width=1024),
        text_encoder=dataclasses.replace(v2.config.text_encoder, width=1024),
    )
    with pytest.raises(ModelError, match=r"LoRA for Stable Diffusion 1\.x, and this model is Stable Diffusion 2\.x"):
        read_lora(path).fit(v2.shapes, config)


def test_metadata_alone_tells_a_lora_for_sdxl(v1, tmp_path):
    path = tmp_path / "file.safetensors"
    tensors = pair("lora_te1_text_model_encoder_layers_0_mlp_fc1")
    for key, xl, other in (
        ("ss_base_model_version", "sdxl_base_v1-0", "sd_v1"),
        ("modelspec.architecture", "stable-diffusion-xl-v1-base/lora", "stable-diffusion-v1/lora"),
    ):
        save_file(tensors, path, {key: xl})
        with pytest.raises(ModelError, match=r"LoRA for Stable Diffusion XL, and .* 1\.x: its metadata says so"):
            v1.changes(path)
        save_file(tensors, path, {key: other})
        assert read_lora(path).family is None


def test_what_a_file_says_of_itself_is_short_and_printable(tmp_path):
    path = tmp_path / "file.safetensors"
    tags = {"1_a": {"cat, \x1b[31m": 5, "dog ": 3, "bad": "x"}, "2_b": {"dog": 3} | {f"tag{n}": 1 for n in range(9)}}
    told = {
        "ss_output_name": "cats\n\x00\x07" + "x" * 10**6,
        "ss_sd_model_name": "v1-5.safetensors",
        "ss_training_comment": "None",
        "ss_tag_frequency": json.dumps(tags),
        "ss_network_module": "networks.lora",
    }
    save_file(PAIR | {f"{LAYER}.alpha": np.array(1.5)}, path, told)
    lora = read_lora(path)
    name = lora.summary["name"]
    assert (len(name), name[:10], name.isprintable()) == (60, "cats   xxx", True)
    assert lora.summary == {
        "kind": "LoRA",
        "family": None,
        "layers": 1,
        "ranks": [2],
        "alphas": [1.5],
        "name": name,
        "base model": "v1-5.safetensors",
        "module": "networks.lora",
        "tags": {"dog": 6, "cat,  [31m": 5, "tag0": 1, "tag1": 1, "tag2": 1},
    }
    assert lora.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    length = int.from_bytes(path.read_bytes()[:8], "little")
    assert lora.data_sha256 == hashlib.sha256(path.read_bytes()[8 + length :]).hexdigest()
    for frequency in ("[" * 10**5, "[1]", '{"a": [1]}', "nonsense", '{"a": {"b": 1e999}}'):
        save_file(PAIR, path, {"ss_tag_frequency": frequency})
        assert read_lora(path).summary["tags"] == {}


def test_a_file_that_changes_is_noticed(v1, tmp_path):
    path = tmp_path / "file.safetensors"
    save_file(PAIR, path)
    changes = read_lora(path).changes("unet", v1.shapes["unet"], v1.config)
    save_file(PAIR | pair("lora_unet_conv_in"), path)
    with pytest.raises(ModelError, match="has changed since it was opened"):
        next(iter(changes.values())).tensors["lora_up.weight"]()


def test_files_and_folders_that_are_meant(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, called in (("one/cat", "feline"), ("two/a", "x"), ("two/b", "x"), ("dogs/deep/big_dog", "hound")):
        path = tmp_path / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(PAIR, path, {"ss_output_name": called})
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "pytorch_lora_weights.bin").write_bytes(b"PK")
    (tmp_path / "pickle" / "other.pt").write_bytes(b"PK")
    (tmp_path / "none").mkdir()
    (tmp_path / "one" / "damaged.safetensors").write_bytes(bytes(20))
    (tmp_path / "one" / "large.safetensors").write_bytes(b"\xff" * 20)
    for reference, found in {
        "one/cat.safetensors": "one/cat",
        "one/cat": "one/cat",
        "one/feline": "one/cat",
        "dogs/big_dog": "dogs/deep/big_dog",
        "dogs/deep": "dogs/deep/big_dog",
        "dogs/hound": "dogs/deep/big_dog",
    }.items():
        assert find_lora(reference) == tmp_path / f"{found}.safetensors"
    for reference in ("pickle", "pickle/pytorch_lora_weights"):
        assert find_lora(reference) == tmp_path / "pickle" / "pytorch_lora_weights.bin"
    for reference, message in {
        "two": "two has several files: give one of them, a.safetensors, b.safetensors",
        "none": "has no .safetensors file, and none of PyTorch's",
        "one/catt": "there is no LoRA 'one/catt'; did you mean 'cat'\\? give a file, a folder, or",
        "cat": "there is no LoRA 'cat'; give a",
        "no\0thing": "there is no LoRA",
        "x" * 5000: "there is no LoRA",
    }.items():
        with pytest.raises(ModelError, match=message):
            find_lora(reference)


# Finds LoRAs on the hub and says where, in one line.
FIND = """
import sys
from kerasdiff.adapters.file_search import find_lora
from kerasdiff.adapters.lora_file import read_lora
from kerasdiff.errors import ModelError
for name in sys.argv[1:]:
    try:
        path = find_lora(name)
        print(path.name, sorted(each.name for each in path.parent.iterdir()), read_lora(path).kind, end="|")
    except ModelError as error:
        print("ModelError", error, end="|")
print()
"""


def test_names_on_the_hub(tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    save_file(PAIR, folder / "any.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    (folder / "other.bin").write_bytes(bytes(10))

    def found(home, endpoint, *names, **environment):
        return line_of(start(tmp_path / home, endpoint, "-c", FIND, *names, **environment)).split("|")[:-1]

    only = "any.safetensors ['adapter_config.json', 'any.safetensors'] LoRA"
    with serve(folder) as (endpoint, asked):
        single, file, missing = found("1", endpoint, "org/name", "org/name/any.safetensors", "org/name/no.safetensors")
        assert (single, file) == (only, only)
        assert missing == (
            f"ModelError org/name has no file no.safetensors at {endpoint}; a path to a file needs no download"
        )
        assert not any("other.bin" in line for line in asked)
        assert found("1", endpoint, "org/name", HF_HUB_OFFLINE="1") == [only]
        save_file(PAIR, folder / "more.safetensors")
        (several,) = found("2", endpoint, "org/name")
        assert several == (
            "ModelError org/name has 2 files that may be meant: give one of them, org/name/any.safetensors, "
            "org/name/more.safetensors"
        )
        save_file(PAIR, folder / "pytorch_lora_weights.safetensors")
        assert found("3", endpoint, "org/name")[0].startswith("pytorch_lora_weights.safetensors")
