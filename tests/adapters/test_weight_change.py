"""Every kind of change against the library that trains it: LyCORIS, peft and diffusers."""

import itertools

import numpy as np
import peft
import pytest
import torch
from diffusers import UNet2DConditionModel
from lycoris.modules import (
    ButterflyOFTModule,
    DiagOFTModule,
    FullModule,
    GLoRAModule,
    IA3Module,
    LoConModule,
    LohaModule,
    LokrModule,
    NormModule,
)

from kerasdiff.adapters import weight_change
from kerasdiff.adapters.weight_change import changed, kind_of, measured
from kerasdiff.errors import ModelError

LAYERS = {
    "linear": lambda: torch.nn.Linear(48, 64),
    "1x1": lambda: torch.nn.Conv2d(48, 64, 1),
    "3x3": lambda: torch.nn.Conv2d(32, 64, 3),
}
ALL = tuple(LAYERS)


def is_close(ours, theirs):
    theirs = theirs.detach().numpy() if torch.is_tensor(theirs) else theirs
    assert ours.dtype == theirs.dtype == np.float32
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max()


def randoms(*shapes, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(shape, dtype=np.float32) for shape in shapes]


def module_of(kind, layer, rank=4, alpha=3.0, **options):
    """A LyCORIS module with random values, and its tensors as it saves them."""
    torch.manual_seed(rank)
    original = LAYERS[layer]() if isinstance(layer, str) else layer
    module = kind("module", original, lora_dim=rank, alpha=alpha, **options)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    state = {key: value.detach().numpy().copy() for key, value in module.state_dict().items()}
    return module, state, original.weight.detach().numpy().copy()


# Kind, layer, rank, options, our name.
ADDED = [
    *((LoConModule, layer, rank, {}, "LoCon" if layer == "3x3" else "LoRA") for layer in ALL for rank in (1, 4)),
    (LoConModule, "3x3", 5, {"use_tucker": True}, "LoCon"),
    *((LohaModule, layer, rank, {}, "LoHa") for layer in ALL for rank in (1, 4)),
    (LohaModule, "3x3", 5, {"use_tucker": True}, "LoHa"),
    *((LokrModule, layer, rank, {}, "LoKr") for layer in ALL for rank in (1, 2)),
    *((LokrModule, layer, 2, {"decompose_both": True}, "LoKr") for layer in ALL),
    *((LokrModule, layer, 1, {"factor": 4}, "LoKr") for layer in ALL),
    *((LokrModule, layer, 4, {"full_matrix": True}, "LoKr") for layer in ALL),
    (LokrModule, "3x3", 2, {"use_tucker": True, "decompose_both": True}, "LoKr"),
]


def added(module):
    """What the forward pass of LyCORIS adds: its merging multiplies LoHa and LoKr by alpha / rank twice."""
    if isinstance(module, LoConModule):
        return module.get_diff_weight()[0]
    return module.get_weight(module.shape)


@pytest.mark.parametrize(("kind", "layer", "rank", "options", "name"), ADDED)
def test_added_changes_are_those_of_lycoris(kind, layer, rank, options, name):
    for alpha in (3.0, 0.0):
        module, state, weight = module_of(kind, layer, rank, alpha, **options)
        delta = added(module)
        assert is_close(changed(state, np.zeros_like(weight), 1.0), delta)
        assert is_close(changed(state, weight, -0.7), torch.tensor(weight) - 0.7 * delta)
    assert kind_of(state) == name
    assert measured(state)[1] == (None if "full_matrix" in options else rank)


@pytest.mark.parametrize("on_out", [True, False])
@pytest.mark.parametrize(
    ("kind", "layer"), [*itertools.product((LoConModule,), ALL), (LohaModule, "3x3"), (LokrModule, "linear")]
)
def test_dora_is_that_of_lycoris_on_both_axes(kind, layer, on_out):
    module, state, weight = module_of(kind, layer, weight_decompose=True, wd_on_out=on_out)
    theirs = module.apply_weight_decompose(torch.tensor(weight) + added(module))
    assert is_close(changed(state, weight, 1.0), theirs)
    # Other strengths lie on a line from the weight.
    assert is_close(changed(state, weight, 0.3), torch.tensor(weight) * 0.7 + theirs * 0.3)
    assert kind_of(state) == "DoRA"


@pytest.mark.parametrize("constraint", [0, 0.01])
@pytest.mark.parametrize("layer", ALL)
@pytest.mark.parametrize(("kind", "name"), [(DiagOFTModule, "OFT"), (ButterflyOFTModule, "BOFT")])
def test_rotations_are_those_of_lycoris(kind, name, layer, constraint):
    for rank, rescaled in ((4, False), (8, True)):
        module, state, weight = module_of(kind, layer, rank, constraint=constraint, rescaled=rescaled)
        assert is_close(changed(state, weight, 1.0), module.get_merged_weight()[0])
        if not rescaled:
            assert is_close(changed(state, weight, 0.6), module.get_merged_weight(0.6)[0])
            continue
        # LyCORIS rescales in full at every strength, so that 0 would not give the weight.
        module.rescaled = False
        theirs = module.get_merged_weight(0.6)[0] * (1 + 0.6 * (module.rescale - 1))
        assert is_close(changed(state, weight, 0.6), theirs)
    assert (kind_of(state), measured(state)[1]) == (name, None)


def test_full_size_and_rank():
    module, state, weight = module_of(LoConModule, torch.nn.Linear(5120, 1280), 32, weight_decompose=True)
    theirs = module.apply_weight_decompose(torch.tensor(weight) + added(module))
    assert is_close(changed(state, weight, 1.0), theirs)
    del state["dora_scale"]
    assert is_close(changed(state, np.zeros_like(weight), 1.0), added(module))


def kohya_rotation(blocks, weight, alpha, multiplier):
    """sd-scripts, networks/oft.py, in its own words: norms, Cayley's transform, and one block for some of the rows."""
    number, size, _ = blocks.shape
    skew = blocks - blocks.transpose(0, 2, 1)
    norm = np.sqrt((skew**2).sum())
    skew = skew * ((min(norm, alpha * len(weight)) + 1e-8) / (norm + 1e-8))
    turn = (np.eye(size) + skew) @ np.linalg.inv(np.eye(size) - skew)
    turn = multiplier * (turn - np.eye(size)) + np.eye(size)
    return np.einsum("knm,knp->kmp", turn, weight.reshape(number, size, -1)).reshape(weight.shape).astype(np.float32)


@pytest.mark.parametrize("alpha", [1e-3, 10])
def test_oft_of_kohya_and_the_rotations_that_lycoris_2_saved(alpha):
    blocks, weight = randoms((4, 12, 12), (48, 32))
    alpha = np.float32(alpha)
    theirs = kohya_rotation(blocks.astype(float), weight, alpha, 0.8)
    assert is_close(changed({"oft_blocks": blocks, "alpha": alpha}, weight, 0.8), theirs)
    skew = blocks - blocks.swapaxes(1, 2)
    turns = np.linalg.solve(np.eye(12) - skew, np.eye(12) + skew).astype(np.float32)
    assert is_close(changed({"oft_diag": turns}, weight, 0.8), changed({"oft_blocks": blocks}, weight, 0.8))


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("layer", ALL)
def test_glora_is_that_of_lycoris_and_of_its_older_layout(layer, rank):
    module, state, weight = module_of(GLoRAModule, layer, rank)
    assert is_close(changed(state, weight, 0.6), module.get_merged_weight(0.6)[0])
    assert (kind_of(state), measured(state)[1]) == ("GLoRA", rank)
    if layer != "3x3":
        older = {key.translate(str.maketrans("12", "21")): value for key, value in state.items()}
        assert is_close(changed(older, weight, 0.6), changed(state, weight, 0.6))


@pytest.mark.parametrize("on_input", [True, False])
@pytest.mark.parametrize("layer", ALL)
def test_ia3_is_that_of_lycoris(layer, on_input):
    module, state, weight = module_of(IA3Module, layer, train_on_input=on_input)
    assert is_close(changed(state, weight, 0.6), module.get_merged_weight(0.6)[0])
    assert kind_of(state) == "IA3"


def test_full_changes_and_those_of_norms_are_those_of_lycoris():
    for layer in ALL:
        module, _, weight = module_of(FullModule, layer)
        theirs, their_bias = module.get_merged_weight(0.6)
        assert is_close(changed({"diff": module.weight.detach().numpy()}, weight, 0.6), theirs)
        bias = module.org_module[0].bias.detach().numpy()
        assert is_close(changed({"diff_b": module.bias.detach().numpy()}, bias, 0.6), their_bias)
    for layer in (torch.nn.LayerNorm(48), torch.nn.GroupNorm(4, 48)):
        module, state, weight = module_of(NormModule, layer)
        theirs, their_bias = module.get_merged_weight(0.6)
        assert is_close(changed({"w_norm": state["w_norm"]}, weight, 0.6), theirs)
        assert is_close(changed({"b_norm": state["b_norm"]}, layer.bias.detach().numpy(), 0.6), their_bias)
    assert [kind_of({key: weight}) for key in ("diff", "diff_b", "w_norm", "b_norm")] == ["full"] * 2 + ["norm"] * 2


@pytest.mark.parametrize("dora", [False, True])
def test_lora_and_dora_are_those_of_peft(dora):
    for layer, rank in itertools.product(ALL, (1, 4)):
        torch.manual_seed(rank)
        model = torch.nn.Sequential(LAYERS[layer]())
        weight = model[0].weight.detach().numpy().copy()
        config = peft.LoraConfig(r=rank, lora_alpha=3, target_modules=["0"], init_lora_weights=False, use_dora=dora)
        peft.inject_adapter_in_model(config, model)
        parts = {"down": model[0].lora_A, "up": model[0].lora_B}
        state = {f"lora_{key}.weight": part["default"].weight.detach().numpy() for key, part in parts.items()}
        state["alpha"] = np.float32(3)
        if dora:
            magnitudes = model[0].lora_magnitude_vector["default"].weight
            magnitudes.data += torch.rand_like(magnitudes)
            state["dora_scale"] = magnitudes.detach().numpy().reshape(-1)
        model[0].merge()
        assert is_close(changed(state, weight, 1.0), model[0].base_layer.weight)


def test_a_fused_unet_of_diffusers_is_changed_alike():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(32,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        cross_attention_dim=24,
        attention_head_dim=8,
    )
    block = "down_blocks.0.attentions.0."
    modules = {
        "down_blocks.0.resnets.0.conv1": (4, 2),
        f"{block}proj_in": (2, 8),
        f"{block}transformer_blocks.0.attn2.to_k": (8, 2),
    }
    weights = {name: unet.get_submodule(name).weight.detach().numpy().copy() for name in modules}
    state, alphas, file = {}, {}, {}
    for name, (rank, alpha) in modules.items():
        outputs, *inputs = weights[name].shape
        down, up = randoms((rank, *inputs), (outputs, rank, *[1 for _ in inputs[1:]]))
        file[name] = {"lora_down.weight": down, "lora_up.weight": up, "alpha": np.array(alpha, np.float32)}
        state |= {f"unet.{name}.lora_A.weight": torch.tensor(down), f"unet.{name}.lora_B.weight": torch.tensor(up)}
        alphas[f"unet.{name}.alpha"] = float(alpha)
    unet.load_lora_adapter(state, prefix="unet", network_alphas=alphas)
    unet.fuse_lora(lora_scale=0.6)
    for name, weight in weights.items():
        fused = unet.get_submodule(name).base_layer.weight
        assert is_close(changed(file[name], weight, 0.6), fused)


def lora(rank=2, outputs=6, inputs=8, **more):
    up, down = randoms((outputs, rank), (rank, inputs))
    return {"lora_up.weight": up, "lora_down.weight": down} | {key: np.float32(value) for key, value in more.items()}


def test_alpha_and_scale():
    weight = randoms((6, 8))[0]
    tensors = lora()
    delta = tensors["lora_up.weight"] @ tensors["lora_down.weight"]
    for more, factor in (({}, 1), ({"alpha": 0}, 1), ({"alpha": 3}, 1.5), ({"alpha": 3, "scale": 0.25}, 0.25)):
        assert is_close(changed(lora(**more), weight, 2.0), weight + np.float32(2 * factor) * delta)
    assert is_close(changed({**lora(), "alpha": np.float32([3])}, weight, 1.0), weight + np.float32(1.5) * delta)
    halves = dict(zip(("lokr_w1", "lokr_w2"), randoms((2, 2), (3, 4)), strict=True))
    both_full = changed({**halves, "alpha": np.float32(7)}, weight, 1.0)
    assert is_close(both_full, weight + np.kron(*halves.values()))


def test_linear_and_1x1_take_each_others_tensors():
    flat, weight = lora(), randoms((6, 8))[0]
    square = {key: tensor[:, :, None, None] for key, tensor in flat.items()}
    wanted = changed(flat, weight, 0.5)
    for tensors, shape in itertools.product((flat, square), ((6, 8), (6, 8, 1, 1))):
        assert np.array_equal(changed(tensors, weight.reshape(shape), 0.5), wanted.reshape(shape))
    assert kind_of(square) == "LoRA"


@pytest.mark.parametrize("inputs", [5, 8, 9])
def test_of_a_first_convolution_with_more_inputs_the_first_are_changed(inputs):
    (weight,) = randoms((6, inputs, 3, 3))
    first = weight[:, :4]
    up, down, diff, lengths = randoms((6, 2, 1, 1), (2, 4, 3, 3), (6, 4, 3, 3), (1, 4, 1, 1))
    pair = {"lora_up.weight": up, "lora_down.weight": down}
    flat = {**pair, "lora_down.weight": down.reshape(2, 36)}
    for tensors in (pair, flat, {"diff": diff}, {**pair, "dora_scale": lengths}):
        result = changed(tensors, weight, 0.5)
        assert np.array_equal(result[:, :4], changed(tensors, first, 0.5))
        assert np.array_equal(result[:, 4:], weight[:, 4:])


EVERY = [
    *((*entry[:3], entry[3]) for entry in ADDED),
    *((LoConModule, layer, 2, {"weight_decompose": True}) for layer in ALL),
    *((kind, layer, 4, {"rescaled": True}) for kind in (DiagOFTModule, ButterflyOFTModule) for layer in ALL),
    *((kind, layer, 4, {}) for kind in (GLoRAModule, IA3Module) for layer in ALL),
]


@pytest.mark.parametrize(("kind", "layer", "rank", "options"), EVERY)
def test_strength_0_gives_the_weight_back_and_nothing_given_is_written_to(kind, layer, rank, options):
    _, state, weight = module_of(kind, layer, rank, **options)
    before = {key: tensor.copy() for key, tensor in state.items()}, weight.copy()
    weight.flags.writeable = False
    for strength in (0, 1, 0.5):
        result = changed(state, weight, strength)
        assert result.dtype == np.float32
        assert result.flags.writeable
        assert not np.shares_memory(result, weight)
        assert np.array_equal(result, weight) == (strength == 0)
    assert all(np.array_equal(state[key], tensor) for key, tensor in before[0].items())
    assert set(state) <= set(weight_change.SUFFIXES)


def huge(*shape):
    """An array of any size in four bytes."""
    return np.broadcast_to(np.float32(0), shape)


BAD = {
    "none": ({}, "no known kind"),
    "two kinds": ({**lora(), "diff": huge(6, 8)}, "more than one kind"),
    "a stranger": ({**lora(), "bm.weight": huge(2, 2)}, "bm.weight has no meaning in LoRA"),
    "half": ({"lora_up.weight": huge(6, 2)}, "lora_down.weight is missing beside lora_up.weight (6, 2)"),
    "ranks": (
        {"lora_up.weight": huge(6, 3), "lora_down.weight": huge(2, 8)},
        "lora_up.weight (6, 3), lora_down.weight (2, 8) do not fit together",
    ),
    "another weight": (lora(outputs=7), "lora_up.weight (7, 2), lora_down.weight (2, 8) do not fit a weight of (6, 8)"),
    "empty": (lora(rank=0), "do not fit together"),
    "no axes": ({"lora_up.weight": huge(), "lora_down.weight": huge(2, 8)}, "do not fit together"),
    "five axes": ({"diff": huge(6, 8, 1, 1, 1)}, "do not fit together"),
    "alpha of many": ({**lora(), "alpha": huge(3)}, "alpha must be a number, not (3,)"),
    "alpha of nothing": (lora(alpha=np.nan), "alpha must be a number, not nan"),
    "both differences": ({"diff": huge(6, 8), "diff_b": huge(6)}, "do not fit together"),
    "a large product": ({"lora_up.weight": huge(2**30, 2), "lora_down.weight": huge(2, 2**30)}, "do not fit a weight"),
    "a large core": (
        {"lora_up.weight": huge(6, 2**30), "lora_mid.weight": huge(2**30, 1, 3, 3), "lora_down.weight": huge(1, 8)},
        "do not fit together",
    ),
    "large hadamard": (
        {f"hada_w{n}_{side}": huge(*shape) for n in (1, 2) for side, shape in (("a", (2**30, 2)), ("b", (2, 2**30)))},
        "do not fit a weight",
    ),
    "a large hadamard core": (
        {
            **{f"hada_w{n}_{side}": huge(*shape) for n in (1, 2) for side, shape in (("a", (2**30, 6)), ("b", (1, 8)))},
            **{f"hada_t{n}": huge(2**30, 1, 1, 1) for n in (1, 2)},
        },
        "do not fit together",
    ),
    "unlike hadamard": (
        {
            **{f"hada_w1_{side}": huge(*shape) for side, shape in (("a", (6, 2)), ("b", (2, 8)))},
            **{f"hada_w2_{side}": huge(*shape) for side, shape in (("a", (8, 2)), ("b", (2, 6)))},
        },
        "do not fit together",
    ),
    "a large kron": ({"lokr_w1": huge(2**20, 2**20), "lokr_w2": huge(2**20, 2**20)}, "do not fit a weight"),
    "a large half": (
        {"lokr_w1_a": huge(2**30, 1), "lokr_w1_b": huge(1, 2**30), "lokr_w2": huge(1, 1)},
        "do not fit a weight",
    ),
    "a half twice": (
        {"lokr_w1": huge(2, 2), "lokr_w1_a": huge(2, 1), "lokr_w1_b": huge(1, 2), "lokr_w2": huge(3, 4)},
        "do not fit together",
    ),
    "blocks": ({"oft_blocks": huge(2, 3, 4)}, "do not fit together"),
    "blocks of another": ({"oft_blocks": huge(2, 4, 4)}, "do not fit a weight"),
    "flat blocks": ({"oft_blocks": huge(3, 3)}, "no known kind"),
    "stages": ({"oft_blocks": huge(2**30, 3, 2, 2)}, "do not fit together"),
    "wild blocks": ({"oft_blocks": np.float32([np.triu(np.full((3, 3), 2000))] * 2)}, "values that are too large"),
    "rescale": ({"oft_blocks": huge(2, 3, 3), "rescale": huge(5)}, "do not fit together"),
    "both blocks": ({"oft_blocks": huge(2, 3, 3), "oft_diag": huge(2, 3, 3)}, "do not fit together"),
    "ia3": ({"weight": huge(7), "on_input": huge()}, "do not fit a weight"),
    "half of ia3": ({"on_input": huge()}, "weight is missing"),
    "glora": (
        {"a1.weight": huge(8, 2), "a2.weight": huge(2, 8), "b1.weight": huge(6, 2), "b2.weight": huge(3, 8)},
        "do not fit together",
    ),
    "lengths": ({**lora(), "dora_scale": huge(5)}, "do not fit a weight"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused_before_anything_is_computed(case):
    tensors, message = BAD[case]
    with pytest.raises(ModelError) as caught:
        changed(tensors, huge(6, 8), 1.0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_kernel_of_another_size_is_not_taken_apart():
    up, down = huge(6, 2, 1, 1), huge(2, 72, 1, 1)
    with pytest.raises(ModelError, match=r"do not fit a weight of \(6, 8, 3, 3\)"):
        changed({"lora_up.weight": up, "lora_down.weight": down}, huge(6, 8, 3, 3), 1.0)


def test_longer_suffixes_come_first():
    suffixes = weight_change.SUFFIXES
    assert next(suffix for suffix in suffixes if "layer.lora_down.weight".endswith(suffix)) == "lora_down.weight"
    assert len(set(suffixes)) == len(suffixes)
