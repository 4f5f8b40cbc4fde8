"""Memory, plans and warm-up with networks that steer a model."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import kerasdiff
from kerasdiff import Control
from kerasdiff.bench.checkpoint_files import random_controlnet
from kerasdiff.checkpoints.export import write_controlnet
from kerasdiff.diffusion.overrides import Overrides
from kerasdiff.diffusion.planning import blank
from kerasdiff.diffusion.residency import schedule
from kerasdiff.errors import OutOfMemoryError
from kerasdiff.request import make_request
from kerasdiff.runtime import memory
from kerasdiff.runtime.batch_sizer import SHARE, BatchSizer, MicroBatch
from kerasdiff.runtime.compiled import Compiled
from kerasdiff.runtime.program_cache import ProgramCache

HINT = np.random.default_rng(0).integers(0, 256, (64, 64, 3), "uint8")
QUICK = {"height": 64, "width": 64, "num_steps": 2, "seed": 5, "progress": False}
NAMES = ("edges", "depth")


def roomy():
    return BatchSizer(ProgramCache(None), ("test",), lambda: 10**11)


@pytest.fixture
def generator():
    made = kerasdiff.Generator("tiny", precision="float32", backend="openvino")
    made._pipeline.retries.sizer = roomy()
    return made


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two ControlNets of the embedded model."""
    place, config = tmp_path_factory.mktemp("controls"), kerasdiff.Generator("tiny").config
    for name in NAMES:
        write_controlnet(random_controlnet(config), config, place / name)
    return [str(place / name) for name in NAMES]


SIZES = {"text_encoder": 2, "unet": 50, "decoder": 1, "ControlNet edges": 25}
NEEDS = {"text_encoder": 1, "unet": 4, "decoder": 20}


@pytest.mark.parametrize(
    ("room", "sentences"),
    [
        (98, ()),
        (97, ("the text encoder leaves before the decoder",)),
        (90, ("the ControlNet edges leaves before the decoder",)),
        (
            79,
            (
                "the text encoder and decoder leave before the U-Net",
                "the ControlNet edges leaves before the decoder",
            ),
        ),
        (60, ("the text encoder and decoder leave before the U-Net", "the U-Net leaves before the decoder")),
    ],
)
def test_what_steers_a_u_net_stays_beside_it_and_leaves_before_it_does(room, sentences):
    decided = schedule(SIZES, NEEDS, room, {"unet": ("ControlNet edges",)})
    assert decided.sentences == sentences
    assert decided.held["unet"] >= 75


def test_a_control_gives_way_to_the_decoder_and_images_are_the_same(generator, folders, monkeypatch, caplog):
    controls = Control(folders[0], HINT)
    expected = generator.generate("a ring", controls=controls, **QUICK)
    pipeline, held, call = generator._pipeline, {}, Compiled.__call__
    (name,) = pipeline.controls.named
    assert name == "ControlNet edges"
    size = {key: value for key, value in QUICK.items() if key != "progress"}
    request = make_request(generator.config, "a ring", controls=controls, **size)
    costs = {cost.network: cost for cost in pipeline.stage_costs(pipeline.passes(request, Overrides()))}
    sizes = {each: pipeline.residency._size(each) for each in (*costs, name)}
    # All but the ControlNet fit beside the decoder's work; that is made larger than any other.
    cost = costs["decoder"]
    monkeypatch.setattr(type(cost), "need", lambda self, micro_batch: 3 * 10**8)
    total = (sum(sizes.values()) - sizes["text_encoder"] + 3 * 10**8 - 10**4) / SHARE
    pipeline.retries.sizer = BatchSizer(
        ProgramCache(None), ("test",), lambda: int(total - sum(map(pipeline.residency.held, sizes)))
    )

    def noted(compiled, *arguments):
        result = call(compiled, *arguments)
        held[compiled.network.name] = pipeline.residency.held(name)
        return result

    monkeypatch.setattr(Compiled, "__call__", noted)
    plan = generator.plan(height=64, width=64, controls=controls)
    assert plan.leaving == ("the ControlNet edges leaves before the decoder",)
    with caplog.at_level(logging.WARNING, "kerasdiff"):
        again = generator.generate("a ring", controls=controls, **QUICK)
    assert np.array_equal(again.images, expected.images)
    assert plan.leaving[0] in caplog.text
    assert held["unet"] > 0 == held["decoder"]


def test_plan_and_warm_up_know_all_that_a_request_with_controls_needs(generator, folders):
    size = {"height": 64, "width": 64}
    controls = [Control(folder, mode=mode) for folder, mode in zip(folders, ("balanced", "control"), strict=True)]
    plain, plan = generator.plan(**size), generator.plan(**size, controls=controls)
    weights = sum(network.members[0].weight_bytes for network in generator._pipeline.controls.opened)
    assert plan.memory["weights"] - plain.memory["weights"] >= weights
    assert plan.memory["U-Net"] > plain.memory["U-Net"]
    assert plan.peak > plain.peak
    assert [plan.programs[f"ControlNet {name} 1"] for name in NAMES] != ["ready", "ready"]
    assert generator.traces == 0
    generator.warm_up(**size, controls=controls, guidance="both")
    plan = generator.plan(**size, controls=controls)
    assert {*plan.programs.values()} == {"ready"}
    ready = generator.programs, generator.traces
    for changed in ({"scale": 0.5}, {"start": 0.6}, {"end": 0.4}, {"scale": -1, "start": 0.2, "end": 0.8}):
        both = [
            Control(folders[0], HINT, **changed),
            Control(folders[1], HINT, mode="control"),
        ]
        generator.generate("a ring", controls=both, **{**QUICK, "num_steps": 3}, guidance_scale=[[1.0, 2.0, 2.0]])
        assert (generator.programs, generator.traces) == ready


def test_weights_of_controls_count_and_are_released_with_the_model(generator, folders):
    pipeline = generator._pipeline
    generator.generate("a ring", controls=Control(folders[0], HINT), **QUICK)
    (network,) = pipeline.controls.opened
    held = pipeline.residency.held("ControlNet edges")
    assert held == int(1.35 * network.members[0].weight_bytes)
    assert pipeline.residency.lacking("ControlNet edges") == 0
    # Beside a U-Net that lacks memory it stays, or the two would be loaded for ever.
    assert pipeline.release(but="unet")
    assert not pipeline.release(but="unet")
    assert generator.release()
    assert pipeline.residency.held("ControlNet edges") == network.nbytes == 0
    # A program of another kind that is to come takes its place beside the U-Net's.
    controls = blank(Control(folders[0]))
    generator.generate("a ring", **QUICK | {"controls": Control(folders[0], HINT)})
    request = make_request(generator.config, "a ring", height=64, width=64, guidance_scale=1, **controls)
    pipeline.residency.decide(pipeline.stage_costs(pipeline.passes(request, Overrides())), 0)
    assert [pipeline.residency._programs(name) for name in ("ControlNet edges", "unet")] == [0, 0]
    # Where room is short, what only other requests use leaves first.
    generator.generate("a ring", controls=Control(folders[0], HINT), **QUICK)
    costs = pipeline.stage_costs(
        pipeline.passes(make_request(generator.config, "a ring", height=64, width=64), Overrides())
    )
    pipeline.residency.decide(costs, 0)
    assert pipeline.residency.held("ControlNet edges") == 0


def test_more_controls_than_fit_are_refused_in_one_line(generator, folders, monkeypatch):
    request = make_request(generator.config, "a ring", height=64, width=64, **blank([Control(one) for one in folders]))
    (one,) = generator._pipeline.passes(request, Overrides())
    assert one.cost.lacking > 0
    need = one.cost.need(MicroBatch(1, one.cost.max_parts))
    monkeypatch.setattr(memory, "total", lambda: need - 1)
    with pytest.raises(OutOfMemoryError) as caught:
        generator.generate("a ring", controls=[Control(folder, HINT) for folder in folders], **QUICK)
    text = str(caught.value)
    assert text.startswith("the U-Net with ControlNet edges and ControlNet depth takes about 0.")
    assert text.endswith("; use fewer controls, or generate smaller images")
    assert "\n" not in text


def test_running_out_of_memory_in_a_control_is_told_of_it(generator, folders, monkeypatch, caplog):
    call, failures = Compiled.__call__, []

    def fail(compiled, *arguments):
        if compiled.network.name == "controlnet" and compiled.name != "hint" and len(arguments[0]) > 1:
            failures.append(len(arguments[0]))
            raise MemoryError("cannot allocate memory")
        return call(compiled, *arguments)

    monkeypatch.setattr(Compiled, "__call__", fail)
    with caplog.at_level(logging.WARNING, "kerasdiff"):
        found = generator.generate("a ring", 2, controls=Control(folders[0], HINT), **QUICK)
    assert len(found.images) == 2
    assert failures == [2]
    assert "out of memory in the U-Net with ControlNet edges with 2 images at once" in caplog.text
