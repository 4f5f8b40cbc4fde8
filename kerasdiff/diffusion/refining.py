"""Runs that go on from another one's latents: those of a refiner, and those that are given noisy latents."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from kerasdiff.models.config import ModelConfig
from kerasdiff.request import Request, first_step
from kerasdiff.run_bounds import cut, refines, table
from kerasdiff.runtime import memory
from kerasdiff.runtime.batch_sizer import SHARE, StageCost
from kerasdiff.samplers import experts

# What of a request is about the model that begins, or was done when it ended.
_FIRST: dict[str, Any] = {
    "loras": (),
    "embeddings": (),
    "recipe": None,
    "all_steps": False,
    "hires": None,
    "controls": None,
    "image_prompts": None,
    "denoising_start": None,
    "denoising_end": None,
    "refiner_strength": None,
}


@dataclasses.dataclass(frozen=True)
class Continuation(Request):
    """A request's run from step `begin` on, with latents to start from.

    They are finished and get noise again (`renoised`), or are as noisy as the step's beginning. Its noise goes on after
    so many `rows`, of which some are `noisy`.
    """

    begin: int = 0
    renoised: bool = False
    rows: int = 0
    noisy: int = 0

    @property
    def first_steps(self) -> tuple[int, ...]:
        """The same for all images."""
        return (self.begin,) * len(self)

    @property
    def shares(self) -> tuple[float, ...]:
        """All of the timesteps."""
        return (1.0,) * len(self)

    @property
    def prompt_steps(self) -> tuple[int, int | None]:
        """Those of the whole run, or of a second one."""
        return (self.run_steps, self.num_steps) if self.renoised else (self.num_steps, None)

    @property
    def counted_from(self) -> np.ndarray | None:
        """The step of each image that changes in its prompts are counted from; None is its first one."""
        return None if self.renoised else np.array(super().first_steps)


def continued(config: ModelConfig, request: Request) -> Request:
    """A request whose images go on from noisy latents, if it is one (`denoising_start`), as a `Continuation`."""
    start = request.denoising_start
    return request if start is None else _after(config, request, start, {"denoising_start": None})


def refinement(config: ModelConfig, request: Request) -> Continuation | None:
    """The pass of a request through a model's refiner; None if there is none."""
    refiner, end, strength = config.refiner, request.denoising_end, request.refiner_strength
    if refiner is None or not refines(config, request):
        return None
    changed = _FIRST | {"deep_cache_branch": min(request.deep_cache_branch, refiner.unet.branches - 1)}
    if not refiner.force_zeros_for_empty_prompt:
        changed["negative_prompts"] = tuple(text or "" for text in request.negative_prompts)
    if end is not None:
        return _after(refiner, request, end, changed)
    assert strength is not None
    before = table(config, request, whole=True)
    changed |= {"begin": first_step(request.num_steps, strength), "renoised": True}
    return _continuation(request, changed, 1 + len(before), int(np.count_nonzero(before.noisy)))


def _after(config: ModelConfig, request: Request, share: float, changed: dict[str, Any]) -> Continuation:
    """The run of a model from where a share of the noise levels has been passed."""
    plain = dataclasses.replace(request, recipe=changed.get("recipe", request.recipe))
    whole, timestep = table(config, plain, whole=True), cut(config, share)
    rows, changed = experts.evaluations(whole, timestep), changed | {"begin": experts.next_step(whole, timestep)}
    return _continuation(request, changed, rows, int(np.count_nonzero(whole.noisy[:rows])))


def _continuation(request: Request, changed: dict[str, Any], rows: int, noisy: int) -> Continuation:
    fields = {field.name: getattr(request, field.name) for field in dataclasses.fields(Request)}
    return Continuation(**{**fields, **changed, "rows": rows, "noisy": noisy})


def give_way(coming: Any, other: Any, cost: StageCost) -> None:
    """Unloads the U-Net of one of two pipelines, and what steers it, where there is no room for the one that comes."""
    lacking = coming.residency.lacking("unet")
    for name in (*other.controls.named, "unet") if lacking else ():
        if other.residency.held(name) and lacking + cost.work > SHARE * memory.free():
            other.residency.release(name)
