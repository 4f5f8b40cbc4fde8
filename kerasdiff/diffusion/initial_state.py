"""Where a run starts, and what holds it on the way: noise, a picture, or a picture and a mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from kerasdiff.images.init_images import Pictures
from kerasdiff.images.masks import fill
from kerasdiff.runtime import backend
from kerasdiff.samplers.batched import BatchTable

# Pictures (K, height, width, 3) in -1 to 1 to the means of their latents (K, h, w, C).
Encoder = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Start:
    """What `Denoise` takes besides texts and a run.

    Attributes:
        x: float32 (N, h, w, C) at the run's initial noise levels.
        condition: what a U-Net for inpainting sees behind x, float32 (N, h, w, 1 + C), or None.
        hold: between rows, what is not covered becomes what the picture has there at these noise levels, or None.
        finish: the same for the latents of the whole run, which have no noise, or None.
    """

    x: np.ndarray
    condition: np.ndarray | None = None
    hold: Callable[[Any, np.ndarray], Any] | None = None
    finish: Callable[[np.ndarray], np.ndarray] | None = None


def from_noise(noise: np.ndarray, run: BatchTable) -> Start:
    """Pure noise, as in text to image; `noise` is unit-variance float32 (N, h, w, C)."""
    return Start((noise * _each(run.initial_scales)).astype("float32"))


def from_pictures(
    pictures: Pictures, whole: np.ndarray, encode: Encoder, noise: np.ndarray, run: BatchTable, conditioned: bool
) -> Start:
    """Pictures taken to the run's noise levels (Meng et al. 2021, SDEdit, arXiv:2108.01073).

    With masks, where `whole` is true the run starts from pure noise instead, and nothing of what is covered is
    looked at. A U-Net with 4 channels is then held between rows: what is not covered is the picture with noise
    (Lugmayr et al. 2022, RePaint, arXiv:2201.09865, without resampling, as in diffusers); one with 9 sees the picture.

    Args:
        pictures: what images start from.
        whole: bool (N,): where all steps are done.
        encode: the encoder.
        noise: unit-variance float32 (N, h, w, C).
        run: of N images.
        conditioned: whether the U-Net has channels for a mask and a picture.
    """
    index = list(pictures.index)
    scaled = pictures.images.astype("float32") / 127.5 - 1
    if pictures.masks is None:
        return Start(_noised(encode(scaled)[index], noise, run))
    pure = whole & np.any(run.steps >= 0, axis=0)
    factor = pictures.images.shape[1] // noise.shape[1]
    if conditioned:
        kept = encode(scaled * (1 - pictures.masks[..., None]))[index]
        # As these models were trained: the pixel in each cell's corner.
        cells = pictures.masks[:, ::factor, ::factor, None][index]
        picture = encode(scaled)[index] if not np.all(pure) else kept
        x = np.where(_each(pure), from_noise(noise, run).x, _noised(picture, noise, run))
        return Start(x.astype("float32"), np.concatenate([cells, kept], axis=-1))
    latents = np.empty_like(noise)
    for hidden in {*pure.tolist()}:
        used = sorted({index[image] for image in np.flatnonzero(pure == hidden)})
        encoded = encode(_hidden(pictures, used) if hidden else scaled[used])
        for image in np.flatnonzero(pure == hidden):
            latents[image] = encoded[used.index(index[image])]
    x = np.where(_each(pure), from_noise(noise, run).x, _noised(latents, noise, run)).astype("float32")
    # Every cell that holds a covered pixel is drawn anew.
    count, height, width = pictures.masks.shape
    blocks = pictures.masks.reshape(count, height // factor, factor, width // factor, factor)
    covered = blocks.max(axis=(2, 4))[index][..., None]
    return Start(
        x,
        hold=_holding(covered, latents, noise),
        finish=lambda drawn: np.where(covered, drawn, latents).astype("float32"),
    )


def _hidden(pictures: Pictures, used: list[int]) -> np.ndarray:
    """Pictures in -1 to 1, with what is covered painted over by what is not."""
    assert pictures.masks is not None
    filled = [fill(pictures.images[place], pictures.masks[place]) for place in used]
    return np.stack(filled).astype("float32") / 127.5 - 1


def _noised(latents: np.ndarray, noise: np.ndarray, run: BatchTable) -> np.ndarray:
    return (latents + _each(run.initial_sigmas) * noise).astype("float32")


def _holding(masks: np.ndarray, latents: np.ndarray, noise: np.ndarray) -> Callable[[Any, np.ndarray], Any]:
    covered, others = backend.tensor(masks), backend.tensor(1 - masks)
    picture, grain = backend.tensor(latents), backend.tensor(noise)

    def hold(x: Any, levels: np.ndarray) -> Any:
        return covered * x + others * (picture + backend.tensor(_each(levels).astype("float32")) * grain)

    return hold


def _each(values: np.ndarray) -> np.ndarray:
    """(N,) as (N, 1, 1, 1)."""
    return values[:, None, None, None]
