"""What `Generator.plan` says beforehand is what happens."""

from __future__ import annotations

import pytest

import kerasdiff
from kerasdiff.runtime.batch_sizer import BatchSizer
from kerasdiff.runtime.compiled import Compiled
from kerasdiff.runtime.program_cache import ProgramCache


@pytest.fixture
def generator():
    made = kerasdiff.Generator("tiny", precision="float32")
    made._pipeline.retries.sizer = BatchSizer(ProgramCache(None), ("test",), lambda: 10**11)
    return made


@pytest.mark.parametrize("batch_size", [1, 5, 32, 33, 70])
def test_chunks_are_what_the_u_net_is_called_with(generator, monkeypatch, batch_size):
    plan = generator.plan(batch_size)
    seen, original = [], Compiled.__call__

    def call(compiled, *arguments):
        if compiled.network.name == "unet":
            seen.append(arguments[0].shape[0])
        return original(compiled, *arguments)

    monkeypatch.setattr(Compiled, "__call__", call)
    generator.generate("a ring", batch_size, num_steps=1, seed=1, progress=False)
    assert tuple(seen) == plan.chunks
    assert plan.chunk == seen[0]
    assert sum(plan.chunks) >= batch_size


def test_programs_are_new_then_kept_then_ready(tmp_path, monkeypatch):
    monkeypatch.setenv("KERASDIFF_CACHE", str(tmp_path))  # other tests compile these shapes too
    generator = kerasdiff.Generator("tiny", precision="float32")
    size = {"batch_size": 3, "height": 80, "width": 112}
    generator.warm_up()
    assert generator.plan(**size).programs == {"text encoder": "ready", "U-Net 3": "new", "decoder": "new"}
    generator.warm_up(**size)
    assert set(generator.plan(**size).programs.values()) == {"ready"}
    other = kerasdiff.Generator("tiny", precision="float32")
    assert set(other.plan(**size).programs.values()) == {"kept"}
    before = generator.traces
    generator.generate("a ring", 3, height=80, width=112, num_steps=2, seed=1, progress=False)
    assert generator.traces == before
    assert generator.plan(**size, guidance=False).programs["U-Net 3"] == "new"


def test_warm_up_readies_every_chunk_of_a_plan(generator, monkeypatch):
    monkeypatch.setattr(generator._pipeline.costs, "max_batch", 4)
    assert generator.plan(11).chunks == (4, 4, 3)
    generator.warm_up(11)
    before = generator.programs
    generator.generate("a ring", 11, num_steps=2, seed=1, progress=False)
    assert generator.programs == before


def test_memory_is_told_stage_by_stage(generator):
    one, eight = generator.plan(1), generator.plan(8)
    assert one.memory["U-Net"] < eight.memory["U-Net"] < 8 * one.memory["U-Net"]  # what a first run takes is the same
    ready = kerasdiff.Generator("tiny", precision="float32")
    ready.warm_up(8)
    assert ready.plan(8).memory["U-Net"] < eight.memory["U-Net"]
    assert eight.memory["decoder"] == one.memory["decoder"]
    assert eight.memory["images"] == 8 * 128 * 128 * 3
    # text encoder, U-Net and decoder in float32
    assert one.memory["weights"] == 4 * generator.num_parameters
    assert one.peak < eight.peak
    assert one.free > 0


def test_it_reads_well(generator):
    generator.warm_up()
    text = str(generator.plan(70))
    assert text.splitlines()[0] == "70 images of 128 x 128: 2 x 32 + 6 at once"
    assert "GB expected (weights " in text
    generator._pipeline.retries.sizer = BatchSizer(ProgramCache(None), ("test",), lambda: 10**6)
    text = str(generator.plan(1))
    assert "attention in " in text
    assert "decoding in 2 x 2 tiles" in text


@pytest.mark.parametrize(
    "arguments", [{"batch_size": 0}, {"height": 100}, {"guidance": 2}, {"exact": "yes"}, {"width": "64"}]
)
def test_wrong_arguments_are_told(generator, arguments):
    with pytest.raises(kerasdiff.RequestError, match=next(iter(arguments))):
        generator.plan(**arguments)
