"""Where a run starts, and what of it is known: noise, a picture, or a picture and a mask."""

import dataclasses
from typing import Any

import numpy as np

from kerasdiff.diffusion.vae_stage import PictureCache
from kerasdiff.images.init_images import Pictures
from kerasdiff.images.masks import fill
from kerasdiff.samplers.batched import BatchTable


class KnownRegion:
    """What a mask leaves uncovered, which stays the picture's (Lugmayr et al. 2022, RePaint, arXiv:2201.09865).

    Without RePaint's resampling, as in diffusers. `covered`, (N, h, w, 1), is 1 where something is generated; `noise`
    has unit variance and the shape of the pictures' latents (N, h, w, C); all are float32.
    """

    def __init__(self, covered: np.ndarray, latents: np.ndarray, noise: np.ndarray) -> None:
        self._covered, self._uncovered, self._latents, self._noise = covered, 1 - covered, latents, noise

    def blend(self, x: Any, levels: np.ndarray) -> Any:
        """x between two rows, with the picture at the same noise levels (N,) where nothing is covered."""
        known = self._latents + _each(levels).astype("float32") * self._noise
        return self._covered * x + self._uncovered * known

    def blend_final(self, latents: np.ndarray) -> np.ndarray:
        """The same for the latents of the whole run, which have no noise."""
        return np.where(self._covered, latents, self._latents).astype("float32")


@dataclasses.dataclass(frozen=True, eq=False)
class InitialState:
    """Where a run starts."""

    x: np.ndarray  # float32 (N, h, w, C) at the run's initial noise levels
    # What a U-Net with more channels sees behind x, float32: of one for inpainting (N, h, w, 1 + C), of one for editing
    # (3 N, h, w, C).
    concat: np.ndarray | None = None
    known: KnownRegion | None = None  # what of x is known at each noise level


def from_noise(noise: np.ndarray, run: BatchTable) -> InitialState:
    """Pure noise, as in text to image; `noise` is unit-variance float32 (N, h, w, C)."""
    return InitialState((noise * _each(run.initial_scales)).astype("float32"))


def from_latents(latents: np.ndarray, noise: np.ndarray, run: BatchTable) -> InitialState:
    """Latents of a picture, taken to the run's noise levels; both are float32 (N, h, w, C)."""
    return InitialState((latents + _each(run.initial_sigmas) * noise).astype("float32"))


def from_noisy(latents: np.ndarray, run: BatchTable) -> InitialState:
    """Latents that another run left at the run's noise levels, as diffusers scales them: float32 (N, h, w, C)."""
    return InitialState((latents / _each(run.first_scales)).astype("float32"))


def from_pictures(
    pictures: Pictures,
    from_start: np.ndarray,
    encoder: PictureCache,
    noise: np.ndarray,
    run: BatchTable,
    concatenates: bool,
) -> InitialState:
    """Pictures taken to the run's noise levels (Meng et al. 2021, SDEdit, arXiv:2108.01073).

    With masks, where all steps are done the run starts from pure noise instead, and the covered part of the picture is
    ignored. A U-Net with 4 channels then has a `KnownRegion`; one with 9 channels sees the picture (`concatenates`).
    `from_start`, bool (N,), is where all steps are done; `noise` is unit-variance float32 (N, h, w, C).
    """
    index = list(pictures.index)
    scaled = pictures.images.astype("float32") / 127.5 - 1
    if pictures.masks is None:
        return from_latents(encoder.encode(scaled)[index], noise, run)
    pure = from_start & np.any(run.steps >= 0, axis=0)
    factor = pictures.images.shape[1] // noise.shape[1]
    if concatenates:
        masked = encoder.encode(scaled * (1 - pictures.masks[..., None]))[index]
        # As these models were trained: the pixel in each cell's corner.
        cells = pictures.masks[:, ::factor, ::factor, None][index]
        picture = encoder.encode(scaled)[index] if not np.all(pure) else masked
        x = np.where(_each(pure), from_noise(noise, run).x, from_latents(picture, noise, run).x)
        return InitialState(x, np.concatenate([cells, masked], axis=-1))
    latents = np.empty_like(noise)
    for filled in {*pure.tolist()}:
        used = sorted({index[image] for image in np.flatnonzero(pure == filled)})
        encoded = encoder.encode(_filled(pictures, used) if filled else scaled[used])
        for image in np.flatnonzero(pure == filled):
            latents[image] = encoded[used.index(index[image])]
    x = np.where(_each(pure), from_noise(noise, run).x, from_latents(latents, noise, run).x)
    # Every cell that holds a covered pixel is generated.
    count, height, width = pictures.masks.shape
    blocks = pictures.masks.reshape(count, height // factor, factor, width // factor, factor)
    covered = blocks.max(axis=(2, 4))[index][..., None]
    return InitialState(x, known=KnownRegion(covered, latents, noise))


def from_edited(
    pictures: Pictures, encoder: PictureCache, scaling_factor: float, noise: np.ndarray, run: BatchTable
) -> InitialState:
    """Pure noise, beside pictures that are edited (Brooks et al. 2022, InstructPix2Pix, arXiv:2211.09800).

    Each is there three times, at first as zeros, and without the scale that other latents have.
    """
    latents = encoder.encode(pictures.images.astype("float32") / 127.5 - 1)[list(pictures.index)] / scaling_factor
    concat = np.concatenate([np.zeros_like(latents), latents, latents]).astype("float32")
    return dataclasses.replace(from_noise(noise, run), concat=concat)


def _filled(pictures: Pictures, used: list[int]) -> np.ndarray:
    """Pictures in -1 to 1, with what is covered painted over by what is not."""
    assert pictures.masks is not None
    filled = [fill(pictures.images[index], pictures.masks[index]) for index in used]
    return np.stack(filled).astype("float32") / 127.5 - 1


def _each(values: np.ndarray) -> np.ndarray:
    """(N,) as (N, 1, 1, 1)."""
    return values[:, None, None, None]
