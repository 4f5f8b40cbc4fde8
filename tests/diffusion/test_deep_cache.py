"""DeepCache: the shallow part with features of an earlier evaluation, and when which part runs."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest

import kerasdiff
from kerasdiff.diffusion.approximation import Approximation
from kerasdiff.diffusion.conditioning import Conditioning, ContextTable
from kerasdiff.diffusion.denoise_step import DenoiseStage
from kerasdiff.diffusion.initial_state import from_noise
from kerasdiff.models.config import ScheduleConfig
from kerasdiff.models.footprint import deep_feature_bytes
from kerasdiff.models.layers import ResnetBlock, Upsample, silu
from kerasdiff.models.network_configs import UNetConfig
from kerasdiff.models.unet import UNet, UNetBlock, timestep_embedding
from kerasdiff.runtime.compiled import Compiled, LayerNetwork
from kerasdiff.samplers import run_table, sampling_levels, sampling_table
from kerasdiff.samplers.batched import same_for_all, stack_tables

SMALL = UNetConfig(widths=(32, 64), attention=(True, False), num_heads=(4, 4), context_width=16)
PROMPT = "a red circle on a blue background"


@pytest.fixture(scope="module", params=[("attention", (8, 12)), (None, (7, 13))])
def unet(request):
    """A small network with random weights, and the inputs of two evaluations of it, guided and sharing latents."""
    middle, size = request.param
    unet = UNet(dataclasses.replace(SMALL, middle=middle))
    unet.build()
    rng = np.random.default_rng(0)
    latents, context = rng.standard_normal((2, 1, *size, 4), "float32"), rng.standard_normal((2, 7, 16), "float32")
    times = np.array([[900.0], [10.0]], "float32")
    return unet, *((latents[number], times[number], context) for number in range(2))


def whole(unet, latents, timesteps, context, replaced=None):
    """All layers, plainly, on both halves; what arrives at each join, and one of these replaced by something else."""
    latents, timesteps = np.concatenate([latents] * 2), np.concatenate([timesteps] * 2)
    time = unet.time_linear2(silu(unet.time_linear1(timestep_embedding(timesteps, unet.config.widths[0]))))
    skips, arriving = [unet.conv_in(latents)], {}
    for layer in unet.down:
        skips.append(layer(skips[-1], time, context) if isinstance(layer, UNetBlock) else layer(skips[-1]))
    x = skips[-1]
    for layer in unet.mid:
        x = layer(x, time if isinstance(layer, ResnetBlock) else context)
    for layer in unet.up:
        if isinstance(layer, Upsample):
            x = layer(x, size=skips[-1].shape[1:3])
            continue
        number = len(skips) - 1
        x = x if replaced is None or replaced[0] != number else replaced[1]
        arriving[number] = np.asarray(x)
        x = layer(np.concatenate([x, skips.pop()], axis=-1), time, context)
    return np.asarray(unet.conv_out(silu(unet.norm_out(x)))), arriving


def test_the_shallow_part_is_the_whole_with_deep_features_replaced(unet):
    unet, earlier, now = unet
    expected, arriving = whole(unet, *earlier)
    assert sorted(arriving) == [*range(SMALL.branches)]
    fresh, _ = whole(unet, *now)
    for branch, features in arriving.items():
        predicted, deep = unet(*earlier, branch=branch)
        assert np.allclose(predicted, expected, atol=1e-5)
        assert np.allclose(deep, features, atol=1e-4)
        assert deep_feature_bytes(unet.config, *earlier[0].shape[1:3], 2, branch) == 2 * features.nbytes
        mixed, _ = whole(unet, *now, replaced=(branch, features))
        assert np.allclose(unet(*now, deep=deep, branch=branch), mixed, atol=1e-5)
        assert np.abs(mixed - fresh).max() > 1e-4


def network(latents, timesteps, context, deep=None, branch=None):
    """A stand-in for the U-Net, whose deep features are not those of its other inputs."""
    fresh = keras.ops.cast(timesteps, "float32")[:, None, None, None] / 1000 * keras.ops.sin(latents)
    fresh = fresh + keras.ops.mean(context, axis=(1, 2))[:, None, None, None]
    predicted = keras.ops.tanh(latents) / 2 + (fresh if deep is None else deep)
    return predicted if branch is None or deep is not None else (predicted, fresh)


@pytest.mark.parametrize(("sampler", "interval"), [("euler", 3), ("heun", 2), ("pndm", 5), ("dpmpp_2m", 100)])
def test_a_run_is_the_table_run_by_numpy_with_features_kept(sampler, interval):
    rng = np.random.default_rng(1)
    start, context = rng.standard_normal((2, 4, 4, 4), "float32"), rng.standard_normal((4, 5, 6), "float32")
    guidance = np.linspace([3.0, 5.0], [6.0, 2.0], 9).astype("float32")
    guidance[[0, 1, 5, 8]] = 1  # no guidance, within what one evaluation's features are for, too
    table = sampling_table(sampling_levels(ScheduleConfig(), sampler, 9, spacing="trailing"), sampler, {})
    shift = context.astype("float64").mean((1, 2))[:, None, None, None]
    kept, evaluations = {}, iter(range(len(table)))

    def model(x, timestep):
        row = next(evaluations)
        if row % interval == 0:
            kept["deep"] = timestep / 1000 * np.sin(np.concatenate([x, x])) + shift
        without, conditional = np.split(np.tanh(np.concatenate([x, x])) / 2 + kept["deep"], 2)
        return without + guidance[table.steps[row]].astype("float64")[:, None, None, None] * (conditional - without)

    expected = run_table(table, model, start)
    run, denoise = same_for_all(table, 2), DenoiseStage(LayerNetwork(network), jit_compile=False)
    settings = 0.0, 1, Approximation(interval)
    states = list(
        denoise(from_noise(start, run), Conditioning(ContextTable.same(context, 2)), guidance, run, None, *settings)
    )
    for state, reference in zip(states, expected, strict=True):
        assert np.abs(np.asarray(state.x) - reference).max() / np.abs(reference).max() < 1e-5


class Overflowing(LayerNetwork):
    """A network in half precision that overflows."""

    precision = "float16"

    def __init__(self):
        super().__init__(lambda latents, *inputs, **more: network(latents * np.float32(np.inf), *inputs, **more))

    def in_float32(self):
        return LayerNetwork(network)


def test_after_an_overflow_the_run_begins_anew_with_its_own_features():
    start, context = np.ones((2, 4, 4, 4), "float32"), np.ones((2, 5, 6), "float32")
    run = same_for_all(sampling_table(sampling_levels(ScheduleConfig(), "euler", 4), "euler", {}), 2)

    def last(given):
        denoise = DenoiseStage(given, jit_compile=False)
        for check in denoise.checks():
            settings = 0.0, 1, Approximation(3)
            *_, state = denoise(
                from_noise(start, run), Conditioning(ContextTable.same(context, 2)), None, run, None, *settings
            )
            check.finite = bool(np.isfinite(state.x).all())
        return np.asarray(state.x)

    with pytest.warns(UserWarning, match=r"not finite in float16; it runs in float32"):
        found = last(Overflowing())
    assert np.array_equal(found, last(LayerNetwork(network)))


@pytest.mark.parametrize(
    ("rows", "skipped", "interval", "full"),
    [
        (7, 0, 1, [0, 1, 2, 3, 4, 5, 6]),
        (7, 0, 3, [0, 3, 6]),
        (5, 2, 3, [0, 1, 4]),
        (5, 3, 3, [0, 3]),
        (4, 0, 100, [0]),
        (0, 7, 2, []),
    ],
)
def test_which_rows_are_whole(rows, skipped, interval, full):
    table = sampling_table(sampling_levels(ScheduleConfig(), "euler", max(rows, 1)), "euler", {})
    run = stack_tables([table if rows else None], [0])
    run = run.__class__(**{**vars(run), "skipped": skipped})
    assert np.flatnonzero(Approximation(interval).full_rows(run)).tolist() == full


def test_a_whole_row_is_guided_for_those_that_use_its_features():
    guided, full = (np.array([*map(int, digits)], bool) for digits in ("0010001", "1001010"))
    assert Approximation(3).guided_rows(guided, full).tolist() == [1, 0, 1, 0, 0, 1, 1]
    assert Approximation().guided_rows(guided, np.ones(7, bool)).tolist() == guided.tolist()
    assert Approximation(3).guided_rows(guided[:0], full[:0]).tolist() == []


@pytest.fixture
def ran(monkeypatch):
    """The programs of the U-Net that run, by name."""
    names, original = [], Compiled.__call__

    def call(compiled, *arguments):
        if compiled.network.name == "unet":
            names.append(compiled.name)
        return original(compiled, *arguments)

    monkeypatch.setattr(Compiled, "__call__", call)
    return names


FULL, SHALLOW = "guided 1 full 0", "guided 1 shallow 0"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"num_steps": 7, "sampler": "dpmpp_2m"}, [FULL, SHALLOW, SHALLOW] * 2 + [FULL]),
        ({"num_steps": 3, "sampler": "heun"}, [FULL, SHALLOW, SHALLOW, FULL, SHALLOW]),
        ({"num_steps": 6, "strength": 0.7}, [FULL, FULL, SHALLOW, SHALLOW]),
        ({"num_steps": 4, "guidance_interval": (0.5, 1)}, [FULL, "plain 1 shallow 0", SHALLOW, FULL]),
        ({"num_steps": 3, "guidance_scale": 1}, ["plain 1 full 0", "plain 1 shallow 0", "plain 1 shallow 0"]),
        ({"num_steps": 2, "deep_cache_interval": 1}, ["guided 1", "guided 1"]),
    ],
)
def test_how_often_each_part_is_evaluated(tiny, ran, arguments, expected):
    if "strength" in arguments:
        arguments = {**arguments, "image": np.zeros((128, 128, 3), "uint8")}
    tiny.generate(PROMPT, seed=1, progress=False, **{"deep_cache_interval": 3, **arguments})
    assert ran == expected


def test_a_run_that_is_stopped_ends_between_whole_evaluations_too(tiny, ran):
    arguments = {"num_steps": 7, "seed": 1, "progress": False, "deep_cache_interval": 3}
    result = tiny.generate(PROMPT, callback=lambda step, *_: step < 2, **arguments)
    assert (ran, result.stopped_after) == ([FULL, SHALLOW], 2)


def test_exact_images_are_the_same_bit_for_bit_in_any_batch(tiny):
    picture = np.random.default_rng(5).integers(0, 255, (128, 128, 3), "uint8")
    arguments = {"num_steps": 5, "deep_cache_interval": 3, "exact": True, "image": picture, "progress": False}
    together = tiny.generate(PROMPT, 2, strength=[0.9, 0.5], seed=1, **arguments)
    for row, strength in enumerate([0.9, 0.5]):
        alone = tiny.generate(PROMPT, strength=strength, seed=1 + row, **arguments)
        assert np.array_equal(alone.images[0], together.images[row])


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun"])
def test_no_image_depends_on_its_batch(tiny, sampler):
    """Neither on who else starts where, nor on who else is guided, nor on how a batch is split."""
    strengths, scales = [0.3, 1.0, 0.55], [3.0, [1.0, 1.0, 6.0, 6.0, 1.0, 6.0, 1.0], 1.0]
    scales = [one if isinstance(one, list) else [one] * 7 for one in scales]
    pictures = np.random.default_rng(5).integers(0, 255, (3, 128, 128, 3), "uint8")
    mask = np.zeros((128, 128), bool)
    mask[40:100, 10:64] = True
    arguments = {"num_steps": 7, "sampler": sampler, "deep_cache_interval": 3, "mask": mask, "progress": False}

    def drawn(rows):
        given = {"strength": [strengths[row] for row in rows], "guidance_scale": [scales[row] for row in rows]}
        return tiny.generate(
            PROMPT, len(rows), image=pictures[rows], seed=[4 + row for row in rows], **given, **arguments
        )

    together = drawn([0, 1, 2])
    for row in range(3):
        alone = drawn([row])
        assert np.abs(together.latents[row] - alone.latents[0]).max() / np.abs(alone.latents).max() < 1e-4
        assert np.abs(together[row].astype(int) - alone[0]).max() <= 1


def test_after_warm_up_no_interval_compiles_anything():
    generator = kerasdiff.Generator("tiny", precision="float32")
    generator.warm_up(2, guidance="both", deep_cache_interval=3)
    before = generator.programs
    arguments = {"guidance_interval": (0, 0.5), "num_steps": 6, "seed": 1, "progress": False}
    for interval in (2, 5):
        generator.generate(PROMPT, 2, deep_cache_interval=interval, **arguments)
    assert generator.programs == before
    assert generator.plan(2, deep_cache_interval=4).programs["U-Net 2"] == "ready"
    assert generator.plan(2).programs["U-Net 2"] != "ready"


def test_warm_up_has_both_parts_of_each_kind_of_step(tiny, monkeypatch):
    seen = []
    monkeypatch.setattr("kerasdiff.generator.warm_up", lambda _, request, __: seen.append(request))
    left_out = {"deep_cache_interval": 5, "deep_cache_branch": 1, "token_merging_ratio": 0.25, "clip_skip": 1}
    tiny.warm_up(2, guidance="both", **left_out)
    (request,) = seen
    assert [getattr(request, name) for name in left_out] == [2, 1, 0.25, 1]
    assert request.guidance[:, 0].tolist() == [2, 2, 1, 1]
    with pytest.raises(kerasdiff.RequestError, match="deep_cache_interval=0 is out of range"):
        tiny.warm_up(deep_cache_interval=0)


def test_features_count_in_what_a_batch_takes(tiny):
    size = {"height": 80, "width": 176}  # of which nothing is compiled
    for branch in range(tiny.config.unet.branches):
        with_features, without = (
            tiny.plan(3, **size, **more).memory["U-Net"]
            for more in ({"deep_cache_interval": 2, "deep_cache_branch": branch}, {})
        )
        assert with_features - without == deep_feature_bytes(tiny.config.unet, 10, 22, 6, branch)
