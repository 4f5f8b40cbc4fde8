"""Where not all networks fit into memory at once, stages give way to each other, and images stay the same."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import kerasdiff
from kerasdiff.diffusion import residency
from kerasdiff.diffusion.overrides import Overrides
from kerasdiff.diffusion.residency import schedule
from kerasdiff.request import make_request
from kerasdiff.runtime import memory
from kerasdiff.runtime.batch_sizer import SHARE, BatchSizer, MicroBatch
from kerasdiff.runtime.compiled import Compiled
from kerasdiff.runtime.program_cache import ProgramCache

SIZES = {"text_encoder": 2, "text_encoder_2": 14, "unet": 50, "decoder": 1}
NEEDS = {"text_encoder": 1, "text_encoder_2": 1, "unet": 4, "decoder": 20}


@pytest.mark.parametrize(
    ("room", "sentences", "held"),
    [
        (87, (), 67),
        (86, ("the text encoder leaves before the decoder",), 67),
        (74, ("the text encoder 2 leaves before the decoder",), 67),
        (67, ("the text encoder 2 leaves before the U-Net", "the U-Net leaves before the decoder"), 53),
        (54, ("the text encoders and decoder leave before the U-Net", "the U-Net leaves before the decoder"), 50),
    ],
)
def test_what_leaves_before_what_follows_from_what_fits(room, sentences, held):
    decided = schedule(SIZES, NEEDS, room)
    assert all(decided.held[name] + need <= room for name, need in NEEDS.items())
    assert (decided.sentences, max(decided.held.values())) == (sentences, held)


def test_where_nothing_fits_all_others_leave():
    decided = schedule(SIZES, NEEDS, 0)
    assert decided.held == SIZES
    assert decided.leaving == {
        "text_encoder": ("decoder",),
        "text_encoder_2": ("text_encoder",),
        "unet": ("text_encoder_2",),
        "decoder": ("unet",),
    }


@pytest.fixture(params=["tensorflow", "openvino"])
def generator(request):
    pytest.importorskip(request.param)
    made = kerasdiff.Generator("tiny", precision="float32", backend=request.param)
    made._pipeline.retries.sizer = BatchSizer(ProgramCache(None), ("test",), lambda: 10**11)
    return made


def limited(generator, size):
    """A sizer for a machine on which the U-Net's stage fits by itself, and little more."""
    pipeline = generator._pipeline
    passes = pipeline.passes(generator_request(generator, size), Overrides())
    costs = {cost.network: cost for cost in pipeline.stage_costs(passes)}
    sizes = {name: pipeline.residency._size(name) for name in costs}
    most = max(sizes["unet"] + costs["unet"].work, sizes["decoder"] + costs["decoder"].work)
    assert sum(sizes.values()) + min(costs["unet"].work, costs["decoder"].work) > most
    total = most / SHARE + 10**5
    return BatchSizer(ProgramCache(None), ("test",), lambda: int(total - sum(map(pipeline.residency.held, sizes))))


def generator_request(generator, size):
    return make_request(generator.config, "a ring", **size, **QUICK)


QUICK = {"num_steps": 2, "seed": 5}


def test_stages_give_way_and_images_are_the_same(generator, monkeypatch, caplog):
    size = {"height": 128, "width": 128}
    expected = generator.generate("a ring", **size, **QUICK, progress=False)
    pipeline, beside, call = generator._pipeline, {}, Compiled.__call__

    def noted(compiled, *arguments):
        result = call(compiled, *arguments)
        known = pipeline.networks.known
        beside[compiled.network.name] = {name for name in known if pipeline.residency.held(name)}
        return result

    monkeypatch.setattr(Compiled, "__call__", noted)
    pipeline.retries.sizer = limited(generator, size)
    told = generator.plan(**size).leaving
    assert told
    assert all(line in str(generator.plan(**size)) for line in told)
    with caplog.at_level(logging.WARNING, "kerasdiff"):
        for _ in range(2):
            again = generator.generate("a ring", **size, **QUICK, progress=False)
            assert np.array_equal(again.images, expected.images)
            assert np.array_equal(again.latents, expected.latents)
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == ["; ".join(told)]
    assert any(len(names) < 3 for names in beside.values())
    for name, gone in pipeline.residency._schedule.leaving.items():
        assert not beside[name] & {*gone}
    pipeline.retries.sizer = BatchSizer(ProgramCache(None), ("test",), lambda: 10**11)
    generator.generate("a ring", **size, **QUICK, progress=False)
    assert beside["decoder"] == {"text_encoder", "unet", "decoder"}


def test_what_does_not_fit_is_loaded_when_it_is_needed(monkeypatch, tiny):
    monkeypatch.setattr(memory, "free", lambda: 10**6)
    made = kerasdiff.Generator("tiny", precision="float32", backend="tensorflow")
    assert made._pipeline.weight_bytes == 0
    made._pipeline.retries.sizer = BatchSizer(ProgramCache(None), ("test",), lambda: 10**11)  # or it decodes in tiles
    assert np.array_equal(made.decode(np.zeros((1, 16, 16, 4))), tiny.decode(np.zeros((1, 16, 16, 4))))
    assert [name for name, network in made.networks.known.items() if network.nbytes] == ["decoder"]
    monkeypatch.undo()
    fits = kerasdiff.Generator("tiny", precision="float32", backend="tensorflow")
    assert fits._pipeline.weight_bytes == 4 * fits.num_parameters


def test_a_text_encoder_counts_with_what_its_program_takes_until_it_is_ready(generator):
    pipeline = generator._pipeline
    generator.release()
    weights = pipeline.networks.network("text_encoder").weight_bytes
    kept = {"tensorflow": 0.35, "openvino": 1.35}[generator.execution.backend]
    assert pipeline.residency.pending_bytes("text_encoder") == int(kept * weights)
    assert pipeline.costs.text("text_encoder", 10**9).need(MicroBatch()) > 10**9
    generator.encode_text(["a ring"])
    assert pipeline.residency.pending_bytes("text_encoder") == 0


def test_programs_make_room_for_one_of_another_kind_and_idle_ones_keep_weights_alone(generator, monkeypatch):
    generator.generate("a ring", height=128, width=128, **QUICK, progress=False)
    pipeline = generator._pipeline
    request = make_request(generator.config, "a ring", guidance_scale=1, **QUICK)
    passes = pipeline.passes(request, Overrides())
    costs, need = pipeline.stage_costs(passes), passes[0].cost.need(MicroBatch())
    idle = []
    monkeypatch.setattr(residency, "_LARGE", 0)
    monkeypatch.setattr(Compiled, "idle", lambda compiled: idle.append(compiled.network.name))
    pipeline.residency.enter("decoder")
    assert {*idle} == {"text_encoder", "unet"}
    for free, left in ((int(need / SHARE) + 1, 1), (int(need / SHARE) - 1, 0)):
        pipeline.residency.decide(costs, free)
        assert pipeline.residency._programs("unet") == left
