"""Attention in slices: the same numbers, with less in memory at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest

from kerasdiff.errors import RequestError
from kerasdiff.models import layers
from kerasdiff.models.layers import attend, attention_slices
from kerasdiff.runtime import backend
from kerasdiff.runtime.compiled import Compiled, LayerNetwork

# Tokens that look, tokens that are looked at, heads, slices, causal.
CASES = [
    (12, 12, 2, 4, False),
    (10, 7, 3, 4, False),
    (7, 12, 1, 2, False),
    (11, 11, 2, 3, True),
    (3, 3, 1, 8, True),
    (1, 5, 1, 4, False),
]


@pytest.fixture
def every_attention(monkeypatch):
    """Small attentions are sliced too; gives what is held back for each slice behind the first."""
    held = []
    original = backend.after

    def after(x, done):
        held.append((tuple(x.shape), tuple(done.shape)))
        return original(x, done)

    monkeypatch.setattr(layers, "_FEW_SCORES", 0)
    monkeypatch.setattr(backend, "after", after)
    return held


def tokens(*shapes, dtype="float32"):
    rng = np.random.default_rng(0)
    return [keras.ops.cast(rng.standard_normal(shape), dtype) for shape in shapes]


def run(tensors, heads, count, causal=False, jit_compile=None):
    """Attention as a layer would call it, as a graph and compiled by XLA."""

    def function(_, *tensors):
        return attend(*tensors, heads, causal)

    with attention_slices(count):
        if jit_compile is None:
            result = function(None, *tensors)
        else:
            result = Compiled("attend", function, LayerNetwork(None), jit_compile)(*tensors)
    return keras.ops.convert_to_numpy(keras.ops.cast(result, "float32"))


def by_hand(queries, keys, values, heads, causal):
    """The same in float64."""
    queries, keys, values = (
        np.reshape(tensor, (2, -1, heads, 4)).astype("float64").transpose(0, 2, 1, 3)
        for tensor in (queries, keys, values)
    )
    scores = queries @ keys.transpose(0, 1, 3, 2) / 2
    if causal:
        scores[:, :, *np.triu_indices(scores.shape[-1], 1)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = weights / weights.sum(-1, keepdims=True) @ values
    return mixed.transpose(0, 2, 1, 3).reshape(2, -1, heads * 4)


@pytest.mark.parametrize("jit_compile", [None, False, True])
@pytest.mark.parametrize(("looking", "seen", "heads", "count", "causal"), CASES)
def test_slices_give_the_same(every_attention, looking, seen, heads, count, causal, jit_compile):
    tensors = tokens((2, looking, 4 * heads), (2, seen, 4 * heads), (2, seen, 4 * heads))
    whole = run(tensors, heads, 1, causal, jit_compile)
    assert every_attention == []
    sliced = run(tensors, heads, count, causal, jit_compile)
    assert np.abs(sliced - whole).max() <= 1e-5
    assert np.abs(sliced - by_hand(*tensors, heads, causal)).max() <= 1e-5
    assert len(every_attention) == min(count, looking) - 1


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 4e-3), ("bfloat16", 3e-2)])
def test_half_precision_stays_what_it_is(every_attention, dtype, tolerance, jit_compile):
    tensors = tokens((1, 9, 8), (1, 9, 8), (1, 9, 8), dtype=dtype)
    whole, sliced = (run(tensors, 2, count, jit_compile=jit_compile) for count in (1, 4))
    assert np.abs(sliced - whole).max() <= tolerance
    with attention_slices(4):
        assert attend(*tensors, 2).dtype == dtype


def test_slices_differ_by_one_row_at_most_and_wait_for_the_one_before(every_attention):
    run(tokens((1, 10, 6), (1, 7, 6), (1, 7, 6)), 3, 4)
    assert every_attention == [((1, 3, rows, 2), (1, 3, before, 2)) for rows, before in ((3, 2), (2, 3), (3, 2))]


@pytest.mark.parametrize(("looking", "slices"), [(2047, 1), (2048, 4)])
def test_few_scores_are_not_sliced(monkeypatch, looking, slices):
    held = []
    monkeypatch.setattr(backend, "after", lambda x, done: held.append(x) or x)
    run(tokens((1, looking, 2), (1, 2048, 2), (1, 2048, 2)), 1, 4)
    assert len(held) == slices - 1


def test_slices_end_with_their_block(every_attention):
    tensors = tokens((1, 8, 4), (1, 8, 4), (1, 8, 4))
    with attention_slices(4):
        with attention_slices(2):
            attend(*tensors, 1)
        assert len(every_attention) == 1
        attend(*tensors, 1)
        assert len(every_attention) == 1 + 3
    attend(*tensors, 1)
    assert len(every_attention) == 1 + 3


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (0, "attention_slices=0 is out of range; it must be at least 1"),
        (2.0, r"attention_slices must be an integer, not float \(2.0\)"),
    ],
)
def test_wrong_numbers_of_slices_are_refused(count, message):
    with pytest.raises(RequestError, match=message), attention_slices(count):
        pass


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_zero_that_holds_back_changes_nothing(jit_compile):
    """Not even where what is waited for is not finite."""
    x = tokens((3, 4))[0]
    for value in (1.0, np.inf, -np.inf, np.nan):
        done = np.full((2, 2), -2.0, "float32")
        done[1, 0] = value
        held = Compiled("after", lambda _, x, done: backend.after(x, 2 * done), LayerNetwork(None), jit_compile)(
            x, done
        )
        np.testing.assert_array_equal(held, x)


SHAPES = {"unet": ((2, 8, 12, 4), (2,), (4, 77, 128)), "decoder": ((1, 10, 12, 4),)}
# The U-Net has one transformer on the way down, one in the middle and two on the way up, each with two.
ATTENTIONS = {"unet": 8, "decoder": 1}


@pytest.mark.parametrize("name", ["unet", "decoder"])
def test_networks_give_the_same(tiny, every_attention, name):
    network = tiny.networks.network(name)
    arrays = [keras.ops.convert_to_numpy(array) for array in tokens(*SHAPES[name])]

    def result(slices):
        with attention_slices(slices):
            stage = Compiled(f"{name} {slices}", lambda layer, *tensors: layer(*tensors), network, False)
            return np.asarray(stage(*arrays))

    whole, sliced = result(1), result(4)
    assert len(every_attention) == 3 * ATTENTIONS[name]
    assert whole.std() > 0.1
    assert np.abs(sliced - whole).max() <= 1e-5 * np.abs(whole).max()


PEAK = """
import json, pathlib, re, sys
import numpy as np
from kerasdiff.runtime import backend
from kerasdiff.runtime.values import Values
from kerasdiff.models.layers import attend, attention_slices

def megabytes(field):
    return int(re.search(rf"{field}:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024

def run(length, count):
    rng = np.random.default_rng(0)
    tensors = [backend.tensor(rng.standard_normal((1, length, 16), "float32")) for _ in range(3)]
    with attention_slices(count):
        made = backend.trace(lambda values, *tensors: attend(*tensors, 2), [], tensors, sys.argv[1] == "xla")
    return np.asarray(backend.load(made)(Values([]), tensors))

run(1536, 8)  # makes threads and compilers
before, peaks, results = megabytes("VmRSS"), [], []
for count in (8, 1):  # the smaller one first, as TensorFlow keeps memory that it once had
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    results.append(run(4096, count))
    peaks.append(megabytes("VmHWM") - before)
print(json.dumps([*peaks, float(np.abs(results[0] - results[1]).max())]))
"""


@pytest.mark.parametrize(("name", "compiler"), [("tensorflow", "graph"), ("tensorflow", "xla"), ("jax", "xla")])
def test_slices_take_less_memory(name, compiler):
    # With more threads than slices, all of them would be computed at once if none waited.
    environment = {**os.environ, "KERAS_BACKEND": name, "TF_NUM_INTEROP_THREADS": "16"}
    command = [sys.executable, "-W", "ignore", "-c", PEAK, compiler]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    sliced, whole, difference = json.loads(done.stdout.splitlines()[-1])
    scores = 2 * 4096 * 4096 * 4 / 2**20
    assert whole > scores
    assert sliced < 0.6 * scores
    assert difference <= 1e-5
