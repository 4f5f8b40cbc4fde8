"""The compiled step against NumPy, and how often it is traced and on how large a batch."""

from __future__ import annotations

from itertools import pairwise

import keras
import numpy as np
import pytest

from kerasdiff.engine.denoise import Denoise
from kerasdiff.models.config import ScheduleConfig
from kerasdiff.samplers import SAMPLERS, SPACINGS, make_table, run_table
from kerasdiff.samplers.rows import M0, M1, M2, M3, NOISE, D, Row, X
from kerasdiff.samplers.schedules import sigmas_at

SCHEDULE = ScheduleConfig()
SHAPE = (2, 4, 4, 4)


def network(latents, timesteps, context):
    """A stand-in for the U-Net, smooth and dependent on each input."""
    time = keras.ops.cast(timesteps, "float32")[:, None, None, None] / 1000
    return keras.ops.tanh(latents) * time + keras.ops.mean(context, axis=(1, 2))[:, None, None, None]


def table_of(sampler, num_steps, spacing="trailing"):
    sigmas = np.append(sigmas_at(SCHEDULE, SPACINGS[spacing](num_steps, 1000)), 0)
    return make_table(sampler, sigmas, SCHEDULE)


def uses_everything(sigmas):
    """Not a sampler, but rows that touch every memory and the noise."""
    for sigma, sigma_next in pairwise(sigmas):
        yield Row(
            sigma,
            0.5 * X + 0.1 * M0 - 0.2 * M1 + 0.3 * M2 - 0.4 * M3 + 0.2 * D + 0.01 * sigma_next * NOISE,
            keep=(D, M0 + 0.5 * X, M1, M2),
        )


def fresh(row):
    return np.random.default_rng(100 + row).standard_normal(SHAPE, "float32")


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("sampler", [*SAMPLERS.values(), uses_everything])
def test_the_compiled_step_is_the_table_run_by_numpy(sampler, jit_compile):
    rng = np.random.default_rng(0)
    start = rng.standard_normal(SHAPE, "float32")
    context = rng.standard_normal((4, 5, 6), "float32")
    scale = np.array([3.0, 5.0], "float32")
    table = table_of(sampler, 12)

    def guided(x, timestep):
        time = timestep / 1000
        shift = context.astype("float64").mean((1, 2))[:, None, None, None]
        without, conditional = np.tanh(x) * time + shift[:2], np.tanh(x) * time + shift[2:]
        return without + scale[:, None, None, None] * (conditional - without)

    expected = run_table(table, guided, start, fresh)
    states = list(Denoise(network, jit_compile)(start, context, scale, table, fresh))
    assert len(states) == len(expected) == 12
    for state, reference in zip(states, expected, strict=True):
        error = np.abs(np.asarray(state) - reference).max() / np.abs(reference).max()
        assert error < 1e-5


def test_samplers_and_step_counts_share_one_trace():
    denoise = Denoise(network, jit_compile=False)
    start, context, scale = np.ones(SHAPE, "float32"), np.ones((4, 5, 6), "float32"), np.ones(2, "float32")
    for sampler in (*SAMPLERS.values(), uses_everything):
        for num_steps in (1, 3, 10):
            list(denoise(start, context, scale, table_of(sampler, num_steps), fresh))
    assert denoise.traces == 1


def test_without_guidance_the_network_sees_half_the_batch():
    seen = []

    def counting(latents, timesteps, context):
        seen.append((latents.shape[0], context.shape[0]))
        return network(latents, timesteps, context)

    denoise = Denoise(counting, jit_compile=False)
    start, scale = np.ones(SHAPE, "float32"), np.full(2, 3.0, "float32")
    list(denoise(start, np.ones((4, 5, 6), "float32"), scale, table_of(SAMPLERS["euler"], 2), fresh))
    list(denoise(start, np.ones((2, 5, 6), "float32"), None, table_of(SAMPLERS["euler"], 2), fresh))
    assert seen == [(4, 4), (2, 2)]
