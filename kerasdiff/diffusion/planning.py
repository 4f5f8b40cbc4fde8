"""What a request would take now, without generating anything."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from kerasdiff import validation
from kerasdiff.control_entries import make_entries
from kerasdiff.controls import Control
from kerasdiff.diffusion import sampling_loop
from kerasdiff.diffusion.overrides import Overrides
from kerasdiff.diffusion.passes import Pass
from kerasdiff.diffusion.pipeline import Pipeline
from kerasdiff.diffusion.residency import Schedule
from kerasdiff.models.config import ModelConfig
from kerasdiff.plan import Plan
from kerasdiff.request import Request, make_request
from kerasdiff.run_bounds import all_of_it
from kerasdiff.runtime import memory
from kerasdiff.runtime.batch_sizer import MicroBatch

# What stands in for any hint: the size of the images is its own.
_BLANK = np.zeros((8, 8, 3), "uint8")


def blank(controls: Any, **changed: Any) -> dict[str, Any]:
    """Arguments for controls whose hints need not be known; `changed` are fields of theirs."""
    changed |= {"image": _BLANK, "hint": None}
    entries = [dataclasses.replace(one, **changed) for one in make_entries("controls", controls, Control)]
    return {"controls": entries, "resize": "cover"} if entries else {}


def request_to_plan(config: ModelConfig, guidance: Any, hires: Any, controls: Any, **arguments: Any) -> Request:
    """A request without pictures, of which `Generator.plan` tells: arguments as there, which are checked."""
    return make_request(
        config,
        "",
        guidance_scale=2.0 if validation.boolean("guidance", guidance) else 1.0,
        seed=0,
        hires=hires,
        refiner_strength=all_of_it(config, hires),
        **blank(controls),
        **arguments,
    )


def plan(pipeline: Pipeline, request: Request) -> Plan:
    """How a request without pictures would be carried out now."""
    counts, plans, passes = [len(request)], [], pipeline.passes(request, Overrides())
    for one in passes:
        model, retries = one.model, one.model.retries
        shared = model.residency.planned(model.stage_costs(passes), retries.sizer.free)
        cost = model.residency.making_room(one.cost, shared)
        batches = [batch for count in counts for batch in retries.batches(cost, count, request.exact, warn=False)]
        plans.append((model, _plan(pipeline, one, [batch.micro_batch for batch in batches], shared)))
        counts = [len(batch.indices) for batch in batches]
    (_, first), *later = plans
    more: dict[str, Any] = {"second_pass" if model is pipeline else "refiner": one for model, one in later}
    return dataclasses.replace(first, **more)


def _plan(pipeline: Pipeline, one: Pass, micro_batches: Sequence[MicroBatch], shared: Schedule) -> Plan:
    request, cost, model = one.request, one.cost, one.model
    # With `hires` it is the second pass's images that are upscaled.
    upscaled = pipeline.image_size(request) if request.upscale is not None and request.hires is None else None
    height, width = upscaled or (request.height, request.width)
    shape = sampling_loop.latent_shape(pipeline.config, request)
    decoding = pipeline.residency.making_room(pipeline.costs.decode(*shape[:2]), shared)
    tiles = pipeline.retries.sizer.largest(decoding)
    stages = model.conditioner.stages.values()
    programs = {stage.name: stage.expected(request.clip_skip).state for stage in stages}
    programs |= {f"U-Net {size.images}": cost.expected(size).state for size in micro_batches}
    for size in micro_batches:
        steering = model.controls.expected(request, cost.shapes(size), size.parts)
        programs |= {f"{name} {size.images}": expected.state for name, expected in steering.items()}
    networks = {stage.name: name for name, stage in model.conditioner.stages.items()}
    needs = {stage: model.costs.text(name).work for stage, name in networks.items()}
    # What programs keep of weights counts with these.
    needs["U-Net"] = model.residency.besides_kept(cost).need(micro_batches[0])
    networks["U-Net"] = "unet"
    if model is pipeline:
        programs["decoder"] = pipeline.decoder.expected(shape, tiles.parts, request.tile).state
        needs["decoder"], networks["decoder"] = decoding.need(tiles), "decoder"
    # What steers it is in the schedule.
    others = model.beside_bytes - sum(network.nbytes for network in model.controls.used(request).values())
    return Plan(
        len(request),
        request.height,
        request.width,
        tuple(micro_batch.images for micro_batch in micro_batches),
        micro_batches[0].parts,
        tiles.parts,
        {
            "weights": others + max(shared.held.values()),
            **needs,
            "images": len(request) * height * width * 3,
        },
        memory.free(),
        programs,
        memory.total(),
        upscaled,
        stages={name: others + shared.held[networks[name]] + need for name, need in needs.items()},
        leaving=shared.sentences,
    )
