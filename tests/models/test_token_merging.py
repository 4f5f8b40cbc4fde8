"""Token merging: the matching against NumPy, and where it happens."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from kerasdiff.models import token_merging, unet
from kerasdiff.models.blocks import unet_blocks
from kerasdiff.models.network_configs import UNetConfig
from kerasdiff.models.token_merging import Matching
from kerasdiff.models.token_order import CELL, num_cells, token_order
from kerasdiff.models.unet import SpatialTransformer, UNet
from kerasdiff.runtime import backend
from kerasdiff.runtime.compiled import Compiled, LayerNetwork
from kerasdiff.runtime.values import Values
from kerasdiff.samplers.noise import PhiloxNoise, TorchNoise

SIZES = [(8, 8), (4, 6), (5, 7), (2, 2), (3, 2)]


def drawn(height, width, rows=2, channels=6):
    """Tokens (rows, N, channels) and which of each cell others may be merged into."""
    rng = np.random.default_rng(height * width)
    tokens = rng.standard_normal((rows, height * width, channels), "float32")
    return tokens, rng.integers(CELL, size=(rows, num_cells(height, width)))


def cells_of(height, width):
    """The places of each cell's four tokens."""
    corners = [(row, column) for row in range(0, height - 1, 2) for column in range(0, width - 1, 2)]
    return [[(row + down) * width + column + right for down in (0, 1) for right in (0, 1)] for row, column in corners]


def by_hand(tokens, chosen, height, width, merged):
    """Of one picture: tokens after merging, by place, and the place whose value each token gets back."""
    destinations = [cell[pick] for cell, pick in zip(cells_of(height, width), chosen, strict=True)]
    unit = tokens.astype("float64") / np.linalg.norm(tokens, axis=1, keepdims=True)
    sources = [place for place in range(len(tokens)) if place not in destinations]
    nearest = {place: max(destinations, key=lambda other: unit[place] @ unit[other]) for place in sources}
    closest = sorted(sources, key=lambda place: -unit[place] @ unit[nearest[place]])[:merged]
    groups = {place: [place] for place in range(len(tokens)) if place not in closest}
    for place in closest:
        groups[nearest[place]].append(place)
    means = {place: tokens[group].astype("float64").mean(axis=0) for place, group in groups.items()}
    back = [nearest[place] if place in closest else place for place in range(len(tokens))]
    return means, back


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_order_of_tokens_is_destinations_first(height, width):
    _, chosen = drawn(height, width)
    order = token_order(chosen, height, width)
    assert order.dtype == np.float32
    for row, picks in zip(order, chosen, strict=True):
        assert sorted(row) == [*range(height * width)]
        expected = [cell[pick] for cell, pick in zip(cells_of(height, width), picks, strict=True)]
        assert row[: len(picks)].tolist() == expected


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.75])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_merging_is_the_bipartite_matching_of_numpy(height, width, ratio):
    tokens, chosen = drawn(height, width)
    length = height * width
    order, merged = token_order(chosen, height, width), int(ratio * length)
    # Twice as many rows as orders: both halves of guidance.
    doubled = np.concatenate([tokens, 2 + tokens[::-1]])
    matched = Matching(doubled, order, num_cells(height, width), merged)
    flat = np.asarray(matched.merge(doubled.reshape(-1, 6)))
    assert flat.shape == (4 * matched.length, 6)
    assert matched.length == length - min(merged, length - num_cells(height, width))
    back = np.asarray(matched.unmerge(flat)).reshape(doubled.shape)
    for row in range(4):
        means, places = by_hand(doubled[row], chosen[row % 2], height, width, merged)
        assert len(means) == matched.length
        assert np.allclose(back[row], [means[place] for place in places], atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_equal_tokens_come_back_exactly(dtype):
    rng = np.random.default_rng(3)
    values = rng.standard_normal((2, 4, 1, 4, 1, 8)).astype("float32")
    tokens = np.tile(values, (1, 1, 2, 1, 2, 1)).reshape(2 * 64, 8)  # each cell has one value
    tokens = keras.ops.cast(tokens, dtype)
    order = token_order(rng.integers(CELL, size=(2, 16)), 8, 8)
    for merged in (16, 32, 48):
        matched = Matching(keras.ops.reshape(tokens, (2, 64, 8)), order, 16, merged)
        there = matched.merge(tokens)
        assert there.dtype == tokens.dtype
        assert np.array_equal(matched.unmerge(there), tokens)


@pytest.mark.parametrize("runs", ["oneDNN", "XLA", "OpenVINO"])
def test_a_graph_merges_as_operations_do(runs):
    tokens, chosen = drawn(6, 8)
    order = token_order(chosen, 6, 8)

    def merged(_, tokens, order):
        matched = Matching(tokens, order, 12, 20)
        flat = matched.merge(keras.ops.reshape(tokens, (-1, 6)))
        return flat, matched.unmerge(2 * flat)

    if runs == "OpenVINO":
        module = backend.of("openvino")
        found = module.load(module.trace(merged, [], [tokens, order], False))(Values([]), [tokens, order])
    else:
        found = Compiled("merged", merged, LayerNetwork(None), runs == "XLA")(tokens, order)
    for one, expected in zip(found, merged(None, keras.ops.convert_to_tensor(tokens), order), strict=True):
        assert np.allclose(one, expected, atol=1e-5)


def test_attention_over_equal_tokens_is_that_over_one_of_each():
    config = UNetConfig(widths=(32,), attention=(True,), num_heads=(4,), context_width=16, norm_groups=8)
    *_, block = (block for block in unet_blocks(config) if block.num_heads)
    transformer = SpatialTransformer(block, config)
    transformer.build()
    rng = np.random.default_rng(4)
    x = np.repeat(np.repeat(rng.standard_normal((2, 3, 5, 32)).astype("float32"), 2, 1), 2, 2)
    context = rng.standard_normal((2, 7, 16), "float32")
    order = token_order(rng.integers(CELL, size=(2, 15)), 6, 10)
    expected = np.asarray(transformer(x, context))
    with token_merging.token_merging(0.75, order):
        merged = np.asarray(transformer(x, context))
    assert np.abs(expected).max() > 1
    assert np.allclose(merged, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("attention", "tokens"), [((True, True), 3 * [64]), ((False, True), 4 * [16]), ((False, False), [16])]
)
def test_tokens_are_merged_at_the_finest_level_with_attention_and_nowhere_else(monkeypatch, attention, tokens):
    config = UNetConfig(
        widths=(32, 64), layers_per_level=1, attention=attention, num_heads=(4, 4), context_width=16, norm_groups=8
    )
    network, found = UNet(config), []
    network.build()

    def noted(x, height, width):
        found.append(height * width)
        return token_merging.matching(x, height, width)

    monkeypatch.setattr(unet, "matching", noted)
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((1, 8, 8, 4), "float32"), np.array([500.0], "float32")
    inputs = *inputs, rng.standard_normal((2, 7, 16), "float32")
    without = np.asarray(network(*inputs))
    assert found == tokens
    side = 8 >> config.finest_attention
    order = token_order(rng.integers(CELL, size=(1, side**2 // CELL)), side, side)
    with token_merging.token_merging(0.0, None):
        assert np.array_equal(network(*inputs), without)
    with token_merging.token_merging(0.5, order):
        assert 1e-4 < np.abs(np.asarray(network(*inputs)) - without).max() < 1
    assert np.array_equal(network(*inputs), without)


def test_a_ratio_of_less_than_one_token_or_no_cell_merges_nothing():
    tokens = np.ones((2 * 7, 3), "float32")
    with token_merging.token_merging(0.5, np.ones((2, 7), "float32")):
        assert token_merging.matching(tokens, 1, 7) is None
    with token_merging.token_merging(0.01, np.ones((1, 14), "float32")):
        assert token_merging.matching(tokens, 2, 7) is None
    assert token_merging.matching(tokens, 2, 7) is None


def test_choices_follow_from_seed_and_row_and_leave_noise_alone():
    noise = PhiloxNoise([5, 2**64 - 1, 5], (4, 4, 4))
    chosen = noise.choices([0, 3, 1], 1000, CELL)
    assert chosen.shape == (3, 1000)
    assert sorted({*chosen.flat}) == [0, 1, 2, 3]
    assert np.all(np.abs(np.bincount(chosen[0]) - 250) < 80)
    assert np.array_equal(PhiloxNoise([5], (8, 8, 4)).choices([1], 1000, CELL)[0], chosen[2])
    assert not np.array_equal(chosen[0], chosen[2])
    torch = TorchNoise([5], (4, 4, 4))
    assert np.array_equal(torch.choices([0], 1000, CELL)[0], chosen[0])
    assert np.array_equal(torch.initial(), TorchNoise([5], (4, 4, 4)).initial())


def test_images_with_merged_tokens_repeat_and_do_not_depend_on_their_batch(tiny):
    arguments = {"num_steps": 4, "progress": False, "sampler": "euler_a"}
    tiny.warm_up(2, token_merging_ratio=0.5)
    assert tiny.plan(2, token_merging_ratio=0.5).programs["U-Net 2"] == "ready"
    before = tiny.programs
    together, again = (tiny.generate("a ring", 2, seed=7, token_merging_ratio=0.5, **arguments) for _ in range(2))
    assert tiny.programs == before
    assert np.array_equal(together.images, again.images)
    alone = tiny.generate("a ring", seed=8, token_merging_ratio=0.5, **arguments)
    assert np.abs(together[1].astype(int) - alone[0]).mean() < 0.1
