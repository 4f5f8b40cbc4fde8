"""The stage of a ControlNet: a hint is encoded once per run, and read in every step."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from kerasdiff.diffusion.stage import Expected, Stage
from kerasdiff.runtime.compiled import Compiled

# What comes behind x, preconditioning, text, hint and scales, where it is there.
OTHERS = ("guidance_embedding", "pooled", "time_ids")


@dataclasses.dataclass(frozen=True)
class EncodeHint:
    """Hints from 0 to 1 (K, height, width, 3) to float32 (K, h, w, C); to be traced."""

    tile: str | None = None

    def __call__(self, controlnet: Any, hints: Any) -> Any:
        from keras import ops

        from kerasdiff.models.layers import wrapping

        with wrapping(self.tile):
            return ops.cast(controlnet.encode(hints), "float32")


@dataclasses.dataclass(frozen=True)
class ControlStep:
    """What a ControlNet adds to a U-Net's step, float32, times scales; to be traced.

    `others` are the names of further inputs, and behind those come the residuals of other networks, to which its own
    are added. `halves` says that it runs on the conditional rows only, and the others get zeros. Of a `count` of
    residuals only the first ones are made, with no more of the network than they need.
    """

    others: tuple[str, ...]
    slices: int = 1
    tile: str | None = None
    halves: bool = False
    count: int | None = None

    def __call__(self, controlnet: Any, x: Any, preconditioning: Any, text: Any, hint: Any, scales: Any, *more: Any):
        from keras import ops

        from kerasdiff.models.layers import attention_slices, wrapping

        given, before = dict(zip(self.others, more, strict=False)), more[len(self.others) :]
        if "guidance_embedding" in given:
            given["guidance"] = given.pop("guidance_embedding")
        seen = preconditioning[:, 0][:, None, None, None] * x
        with attention_slices(self.slices), wrapping(self.tile):
            residuals = controlnet(seen, preconditioning[:, 1], text, hint, **given)
        made = []
        for index, residual in enumerate(residuals[: self.count]):
            residual = scales[index][:, None, None, None] * ops.cast(residual, "float32")
            if self.halves:
                residual = ops.concatenate([ops.zeros_like(residual[: x.shape[0]]), residual])
            made.append(residual if not before else before[index] + residual)
        return tuple(made)


class ControlStage(Stage):
    """A ControlNet, compiled once for each batch size and picture size."""

    name = "ControlNet"

    def __init__(self, width: int, *arguments: Any, reads: tuple[str, ...] = OTHERS) -> None:
        """`width` is that of an encoded hint, and `reads` are those of `OTHERS` that the network takes.

        Other arguments are as of a `Stage`.
        """
        super().__init__(*arguments)
        self._width, self._reads = width, reads

    def encode(self, hint: np.ndarray, tile: str | None = None) -> np.ndarray:
        """A hint from 0 to 1 (height, width, 3) to what each step reads of it, float32 (h, w, C)."""
        name = f"hint, tile {tile}" if tile else "hint"
        return np.asarray(self.function(name, EncodeHint(tile))(hint[None]))[0]

    def residuals(
        self,
        given: Any,
        text: Any,
        hint: Any,
        scales: np.ndarray,
        before: tuple[Any, ...] = (),
        slices: int = 1,
        tile: str | None = None,
        halves: bool = False,
        count: int | None = None,
    ) -> tuple[Any, ...]:
        """What it adds to a step with the inputs `given`; `text` and what is beside it are as `TextInputs`.

        `scales` is float32 (residuals, rows); `before` is what other networks add; `halves` and `count` are as of a
        `ControlStep`.
        """
        beside = {"guidance_embedding": given.guidance_embedding, "pooled": text.pooled, "time_ids": text.time_ids}
        others = tuple(name for name in self._reads if beside[name] is not None)
        arguments = [
            given.x,
            given.preconditioning,
            text.text,
            hint,
            scales,
            *(beside[name] for name in others),
            *before,
        ]
        made = self._step(others, bool(before), slices, tile, halves, count)(*arguments)
        return tuple(made) if isinstance(made, tuple | list) else (made,)  # of one result some backends make no tuple

    def expected(
        self, given: Any, others_add: bool, slices: int = 1, tile: str | None = None, halves: bool = False
    ) -> Expected:
        """The program for inputs of the shapes `given`, as `StepInputs` has them; `halves` where there are any."""
        (batch, *size, _), (rows, *text) = given.x, given.text
        halves = halves and rows > batch
        rows -= batch if halves else 0
        beside = {name: getattr(given, name) for name in self._reads if getattr(given, name) is not None}
        beside |= {name: (rows, *shape[1:]) for name, shape in beside.items() if name != "guidance_embedding"}
        hint, scales = (batch, *size, self._width), (len(given.residuals), rows)
        shapes = given.x, given.preconditioning, (rows, *text), hint, scales, *beside.values()
        shapes = *shapes, *(given.residuals if others_add else ())
        step = self._step(tuple(beside), others_add, slices, tile, halves)
        return Expected(step, tuple((*shape, "float32") for shape in shapes))

    def _step(
        self,
        others: tuple[str, ...],
        others_add: bool,
        slices: int,
        tile: str | None,
        halves: bool,
        count: int | None = None,
    ) -> Compiled:
        traced = ControlStep(others, slices, tile, halves, count)
        name = f"control {slices}{' on half' if halves else ''}{' with others' if others_add else ''}"
        name += "" if count is None else f" first {count}"
        lasting = [2, 3, *(5 + place for place, other in enumerate(others) if other != "guidance_embedding")]
        return self.function(f"{name} tile {tile}" if tile else name, traced, lasting)
