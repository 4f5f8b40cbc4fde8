"""What a request would take now, without generating anything."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from kerasdiff.diffusion import sampling_loop
from kerasdiff.diffusion.overrides import Overrides
from kerasdiff.diffusion.passes import Pass
from kerasdiff.diffusion.pipeline import Pipeline
from kerasdiff.plan import Plan
from kerasdiff.request import Request
from kerasdiff.runtime import memory
from kerasdiff.runtime.batch_sizer import MicroBatch


def plan(pipeline: Pipeline, request: Request) -> Plan:
    """How a request without pictures would be carried out now."""
    counts, plans = [len(request)], []
    for one in pipeline.passes(request, Overrides()):
        batches = [
            batch for count in counts for batch in one.model.retries.batches(one.cost, count, request.exact, warn=False)
        ]
        plans.append((one.model, _plan(pipeline, one, [batch.micro_batch for batch in batches])))
        counts = [len(batch.indices) for batch in batches]
    (_, first), *later = plans
    more: dict[str, Any] = {"second_pass" if model is pipeline else "refiner": one for model, one in later}
    return dataclasses.replace(first, **more)


def _plan(pipeline: Pipeline, one: Pass, micro_batches: Sequence[MicroBatch]) -> Plan:
    request, cost, model = one.request, one.cost, one.model
    # With `hires` it is the second pass's images that are upscaled.
    upscaled = pipeline.image_size(request) if request.upscale is not None and request.hires is None else None
    height, width = upscaled or (request.height, request.width)
    shape = sampling_loop.latent_shape(pipeline.config, request)
    decoding = pipeline.costs.decode(*shape[:2])
    tiles = pipeline.retries.sizer.largest(decoding)
    stages = model.conditioner.stages.values()
    programs = {stage.name: stage.expected(request.clip_skip).state for stage in stages}
    programs |= {f"U-Net {size.images}": cost.expected(size).state for size in micro_batches}
    if model is pipeline:
        programs["decoder"] = pipeline.decoder.expected(shape, tiles.parts, request.tile).state
    return Plan(
        len(request),
        request.height,
        request.width,
        tuple(micro_batch.images for micro_batch in micro_batches),
        micro_batches[0].parts,
        tiles.parts,
        {
            "weights": pipeline.weight_bytes,
            "U-Net": cost.need(micro_batches[0]),
            "decoder": decoding.need(tiles),
            "images": len(request) * height * width * 3,
        },
        memory.free(),
        programs,
        memory.total(),
        upscaled,
    )
