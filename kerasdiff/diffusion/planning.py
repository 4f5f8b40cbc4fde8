"""What a request would take now, without generating anything."""

import dataclasses
from collections.abc import Sequence

from kerasdiff.diffusion import sampling_loop
from kerasdiff.diffusion.overrides import Overrides
from kerasdiff.diffusion.pipeline import Pass, Pipeline
from kerasdiff.diffusion.residency import Schedule
from kerasdiff.plan import Plan
from kerasdiff.request import Request
from kerasdiff.runtime import memory
from kerasdiff.runtime.batch_sizer import MicroBatch


def plan(pipeline: Pipeline, request: Request) -> Plan:
    """How a request without pictures would be carried out now."""
    counts, plans, passes = [len(request)], [], pipeline.passes(request, Overrides())
    shared = pipeline.residency.planned(pipeline.stage_costs(passes), pipeline.retries.sizer.free)
    for one in passes:
        cost, retries = pipeline.residency.making_room(one.cost, shared), pipeline.retries
        batches = [batch for count in counts for batch in retries.batches(cost, count, request.exact, warn=False)]
        plans.append(_plan(pipeline, one, [batch.micro_batch for batch in batches], shared))
        counts = [len(batch.indices) for batch in batches]
    return dataclasses.replace(plans[0], second_pass=plans[1]) if len(plans) > 1 else plans[0]


def _plan(pipeline: Pipeline, one: Pass, micro_batches: Sequence[MicroBatch], shared: Schedule) -> Plan:
    request, cost = one.request, one.cost
    # With `hires` it is the second pass's images that are upscaled.
    upscaled = pipeline.image_size(request) if request.upscale is not None and request.hires is None else None
    height, width = upscaled or (request.height, request.width)
    shape = sampling_loop.latent_shape(pipeline.config, request)
    decoding = pipeline.residency.making_room(pipeline.costs.decode(*shape[:2]), shared)
    tiles = pipeline.retries.sizer.largest(decoding)
    stages = pipeline.conditioner.stages.values()
    programs = {stage.name: stage.expected(request.clip_skip).state for stage in stages}
    programs |= {f"U-Net {size.images}": cost.expected(size).state for size in micro_batches}
    programs["decoder"] = pipeline.decoder.expected(shape, tiles.parts, request.tile).state
    networks = {stage.name: name for name, stage in pipeline.conditioner.stages.items()}
    needs = {stage: pipeline.costs.text(name).work for stage, name in networks.items()}
    # What programs keep of weights counts with these.
    needs |= {"U-Net": pipeline.residency.besides_kept(cost).need(micro_batches[0]), "decoder": decoding.need(tiles)}
    networks |= {"U-Net": "unet", "decoder": "decoder"}
    others = pipeline.weight_bytes - sum(network.nbytes for network in pipeline.networks.known.values())
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
