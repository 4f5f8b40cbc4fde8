"""How a scene is framed: the sizes and crops that the tiny model in SDXL's shape is told, and what they do to pictures.

A crop moves the window over the scene, which is larger than it: what was in the middle is further up or left. A picture
whose original is smaller than its target was enlarged, and is blurred: it is its latents that are enlarged, as the
embedded model's autoencoder gives any picture sharp edges.
"""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
from keras import ops
from scipy import ndimage

from kerasdiff.training import scenes
from kerasdiff.training.scenes import IMAGE_SIZE, PALETTE, Scene

# Pixels.
LARGEST_CROP = 64
# Of originals' sides, as parts of the target's.
SMALLEST_ORIGINAL, LARGEST_ORIGINAL = 0.25, 2.0


@dataclasses.dataclass(frozen=True)
class Framing:
    """Height and width, or top and left, as in a request."""

    original_size: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE)
    crop: tuple[int, int] = (0, 0)
    target_size: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE)

    @property
    def time_ids(self) -> tuple[int, ...]:
        """As the U-Net takes them."""
        return (*self.original_size, *self.crop, *self.target_size)


def random_framing(rng: np.random.Generator) -> Framing:
    """Half of the pictures are not cropped, and six of ten are as large as they were.

    One in five has another target than it truly has, so that the network also draws for other sizes; what blurs is an
    original smaller than the target.
    """
    sides = (IMAGE_SIZE, IMAGE_SIZE) if rng.random() < 0.8 else 8 * rng.integers(8, 33, size=2)
    crops = rng.integers(LARGEST_CROP + 1, size=2) * (rng.random(2) < 0.5)
    top, left = crops if rng.random() < 0.65 else (0, 0)
    kind = rng.random()
    if kind < 0.6:
        scales = np.ones(2)
    elif kind < 0.7:
        scales = rng.uniform(1, LARGEST_ORIGINAL, size=1).repeat(2)
    else:
        scales = np.exp(rng.uniform(np.log(SMALLEST_ORIGINAL), 0, size=1 if kind < 0.92 else 2))
    original = (max(1, round(side * scale)) for side, scale in zip(sides, np.broadcast_to(scales, 2), strict=True))
    return Framing(_pair(original), (int(top), int(left)), _pair(sides))


def _pair(sides: Iterable[int]) -> tuple[int, int]:
    height, width = map(int, sides)
    return height, width


def render(scene: Scene, framing: Framing) -> np.ndarray:
    """The image of a scene as it is cropped: uint8 (128, 128, 3)."""
    top, left = framing.crop
    moved = [dataclasses.replace(thing, x=thing.x - left, y=thing.y - top) for thing in scene.things]
    return scenes.render(dataclasses.replace(scene, things=tuple(moved)))


def enlarged(latents: np.ndarray, framing: Framing) -> np.ndarray:
    """Latents (h, w, C) of an image as those of its original, which may have been smaller, enlarged again."""
    pairs = zip(latents.shape, framing.original_size, framing.target_size, strict=False)
    small = tuple(max(1, round(side * min(1, original / target))) for side, original, target in pairs)
    if small == latents.shape[:2]:
        return latents
    reduced = ops.image.resize(latents, small, interpolation="bilinear", antialias=True)
    return ops.convert_to_numpy(ops.image.resize(reduced, latents.shape[:2], interpolation="bicubic"))


def centre(picture: np.ndarray) -> tuple[float, float]:
    """Where the things in a picture, uint8 (h, w, 3), are on average: down and right, in pixels; NaN without any."""
    pixels = picture.astype("float32")
    # Of the palette, as a thing may cover much of the rim.
    ground = _ground(pixels)
    away = np.linalg.norm(pixels - ground, axis=-1)
    cover = ndimage.binary_opening(away > 60, np.ones((3, 3)))
    if not cover.any():
        return np.nan, np.nan
    down, right = np.nonzero(cover)
    return float(down.mean()), float(right.mean())


def _ground(pixels: np.ndarray) -> np.ndarray:
    """The colour of the palette that most of the pixels are nearest to."""
    colours = np.array(list(PALETTE.values()), "float32")
    nearest = np.argmin(np.linalg.norm(pixels[:, :, None] - colours, axis=-1), axis=-1)
    most = np.bincount(nearest.ravel(), minlength=len(colours)).argmax()
    return np.median(pixels[nearest == most], axis=0)


def detail(picture: np.ndarray) -> float:
    """The part of a picture's energy in frequencies above a quarter of the highest; a blurred one has less."""
    grey = picture.astype("float32").mean(-1)
    spectrum = np.abs(np.fft.fft2((grey - grey.mean()) * np.hanning(len(grey))[:, None] * np.hanning(grey.shape[1])))
    rows, columns = (np.fft.fftfreq(side) for side in grey.shape)
    high = np.hypot(rows[:, None], columns) > 0.125
    return float((spectrum[high] ** 2).sum() / max((spectrum**2).sum(), 1e-6))


def shift(centres: Mapping[int, np.ndarray]) -> tuple[float, float]:
    """By how many pixels things move for one pixel of crop, and the correlation of both; `centres` are by crop.

    Where nothing is left in a picture, its centre is NaN and does not count.
    """
    crops = np.concatenate([np.full(len(found), crop) for crop, found in centres.items()])
    moved = -np.concatenate(list(centres.values()))
    seen = np.isfinite(moved)
    slope, _ = np.polyfit(crops[seen], moved[seen], 1)
    return float(slope), float(np.corrcoef(crops[seen], moved[seen])[0, 1])
