"""The compiled step against NumPy, and how often it is traced and on how large a batch."""

from __future__ import annotations

from itertools import pairwise

import keras
import numpy as np
import pytest

from kerasdiff.diffusion.conditioning import Conditioning, ContextTable
from kerasdiff.diffusion.denoise_step import DenoiseStage
from kerasdiff.diffusion.initial_state import from_noise
from kerasdiff.models.config import ScheduleConfig
from kerasdiff.runtime.compiled import Compiled, LayerNetwork
from kerasdiff.samplers import SAMPLERS, make_table, run_table, sampling_levels, sampling_table
from kerasdiff.samplers.batched import same_for_all
from kerasdiff.samplers.sigmas import SIGMA
from kerasdiff.samplers.update import M0, M1, M2, M3, NOISE, D, Update, X

SCHEDULE = ScheduleConfig()
SHAPE = (2, 4, 4, 4)


def network(latents, timesteps, context):
    """A stand-in for the U-Net, smooth and dependent on each input."""
    time = keras.ops.cast(timesteps, "float32")[:, None, None, None] / 1000
    return keras.ops.tanh(latents) * time + keras.ops.mean(context, axis=(1, 2))[:, None, None, None]


def table_of(sampler, num_steps, spacing="trailing"):
    if sampler == "everything":
        levels = sampling_levels(SCHEDULE, "euler", num_steps, spacing=spacing)
        return make_table(uses_everything(levels), levels, SIGMA)
    return sampling_table(sampling_levels(SCHEDULE, sampler, num_steps, spacing=spacing), sampler, {})


def uses_everything(levels):
    """Not a sampler, but rows that touch every memory and the noise."""
    for sigma, sigma_next in pairwise(levels.sigmas):
        yield Update(
            sigma,
            0.5 * X + 0.1 * M0 - 0.2 * M1 + 0.3 * M2 - 0.4 * M3 + 0.2 * D + 0.01 * sigma_next * NOISE,
            keep=(D, M0 + 0.5 * X, M1, M2),
        )


def carry_out(denoise, noise, context, guidance, table, *more):
    """States of a batch of which every image starts from noise and does the same."""
    run = same_for_all(table, len(noise))
    conditioning = Conditioning(ContextTable.same(context, len(noise)))
    return list(denoise(from_noise(noise, run), conditioning, guidance, run, Fresh(), *more))


class Fresh:
    """The noise of `fresh`, as a run asks for it: by the row of each image."""

    def fresh(self, rows):
        return fresh(rows[0])


def fresh(row):
    return np.random.default_rng(100 + row).standard_normal(SHAPE, "float32")


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("sampler", [*SAMPLERS, "everything"])
def test_the_compiled_step_is_the_table_run_by_numpy(sampler, jit_compile):
    rng = np.random.default_rng(0)
    start = rng.standard_normal(SHAPE, "float32")
    context = rng.standard_normal((4, 5, 6), "float32")
    # One weight a step and image; in the fourth step there is no guidance.
    guidance = np.linspace([3.0, 5.0], [6.0, 2.0], 12).astype("float32")
    guidance[3] = 1
    table = table_of(sampler, 12)
    rows = iter(range(len(table)))

    def guided(x, timestep):
        time = timestep / 1000
        shift = context.astype("float64").mean((1, 2))[:, None, None, None]
        without, conditional = np.tanh(x) * time + shift[:2], np.tanh(x) * time + shift[2:]
        scale = guidance[table.steps[next(rows)]].astype("float64")
        return without + scale[:, None, None, None] * (conditional - without)

    expected = run_table(table, guided, start, fresh)
    denoise = DenoiseStage(LayerNetwork(network), jit_compile)
    states = carry_out(denoise, start, context, guidance, table)
    assert len(states) == len(expected) == len(table)
    assert denoise.traces == 2  # with guidance and without
    for state, reference in zip(states, expected, strict=True):
        error = np.abs(np.asarray(state.x) - reference).max() / np.abs(reference).max()
        assert error < 1e-5


@pytest.mark.parametrize("sampler", ["ddim", "euler", "unipc"])
def test_a_start_without_any_signal_stays_finite_in_float32(sampler):
    schedule = ScheduleConfig(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    table = sampling_table(sampling_levels(schedule, sampler, 8, spacing="trailing"), sampler, {})
    start = np.random.default_rng(3).standard_normal(SHAPE, "float32")
    states = carry_out(
        DenoiseStage(LayerNetwork(network), jit_compile=False), start, np.zeros((2, 5, 6), "float32"), None, table
    )
    expected = run_table(table, lambda x, timestep: np.tanh(x) * timestep / 1000, start)
    assert np.allclose(states[-1].x, expected[-1], rtol=1e-4, atol=1e-5)


def test_samplers_and_step_counts_share_one_trace():
    denoise = DenoiseStage(LayerNetwork(network), jit_compile=False)
    start, context = np.ones(SHAPE, "float32"), np.ones((4, 5, 6), "float32")
    for sampler in (*SAMPLERS, "everything"):
        for num_steps in (1, 3, 10):
            guidance = np.full((num_steps, 2), 3.0, "float32")
            carry_out(denoise, start, context, guidance, table_of(sampler, num_steps))
    assert denoise.traces == 1


def test_without_guidance_the_network_sees_half_the_batch():
    seen = []

    def counting(latents, timesteps, context):
        seen.append((latents.shape[0], context.shape[0]))
        return network(latents, timesteps, context)

    denoise = DenoiseStage(LayerNetwork(counting), jit_compile=False)
    start, guidance = np.ones(SHAPE, "float32"), np.full((2, 2), 3.0, "float32")
    carry_out(denoise, start, np.ones((4, 5, 6), "float32"), guidance, table_of("euler", 2))
    carry_out(denoise, start, np.ones((2, 5, 6), "float32"), None, table_of("euler", 2))
    assert seen == [(4, 4), (2, 2)]


def test_a_step_without_guidance_runs_on_the_conditional_half_alone(monkeypatch):
    denoise = DenoiseStage(LayerNetwork(network), jit_compile=False)
    ran = []
    run = Compiled.__call__
    monkeypatch.setattr(Compiled, "__call__", lambda one, *a: ran.append((one.name, a[2])) or run(one, *a))
    start = np.ones(SHAPE, "float32")
    context = np.arange(4 * 5 * 6, dtype="float32").reshape(4, 5, 6)
    # Heun's second evaluation of a step is at the next one's noise level, and takes the next one's weight.
    guidance = np.array([[1, 1], [3, 1], [1, 1]], "float32")
    carry_out(denoise, start, context, guidance, table_of("heun", 3))
    assert [kind for kind, _ in ran] == ["plain 1", "guided 1", "guided 1", "plain 1", "plain 1"]
    for kind, used in ran:
        assert np.array_equal(used, context if kind == "guided 1" else context[2:])


def test_guidance_rescaled_has_the_deviation_of_the_conditional_prediction():
    rng = np.random.default_rng(2)
    without, conditional = rng.standard_normal((2, *SHAPE))
    scale, guided = np.array([3.0, 7.0]).reshape(2, 1, 1, 1), []

    def stored(latents, timesteps, context):
        return keras.ops.convert_to_tensor(np.concatenate([without, conditional]).astype("float32"))

    # With a single step of Euler from sigma to 0 the result is D = x - sigma * prediction.
    table = table_of("euler", 1)
    sigma = table.initial_scale
    start = rng.standard_normal(SHAPE).astype("float32")
    for rescale in (0.0, 0.7, 1.0):
        denoise, weights = DenoiseStage(LayerNetwork(stored), jit_compile=False), scale.reshape(1, 2).astype("float32")
        (state,) = carry_out(denoise, start, np.zeros((4, 1, 1), "float32"), weights, table, rescale)
        assert np.array_equal(state.x, state.denoised)
        guided.append((start * sigma - np.asarray(state.x)) / sigma)
    plain = without + scale * (conditional - without)
    axes = (1, 2, 3)
    factor = conditional.std(axes, keepdims=True) / plain.std(axes, keepdims=True)
    assert np.allclose(guided[0], plain, atol=1e-4)
    assert np.allclose(guided[1], 0.7 * plain * factor + 0.3 * plain, atol=1e-4)
    assert np.allclose(guided[2].std(axes), conditional.std(axes), atol=1e-4)
