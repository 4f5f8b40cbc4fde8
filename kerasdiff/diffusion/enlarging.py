"""Enlarges what a first pass gave: its latents, or its image, which is decoded and encoded."""

from collections.abc import Callable

import numpy as np
from PIL import Image

from kerasdiff.adapter_files import UpscalerFile
from kerasdiff.hires import LATENT_UPSCALERS
from kerasdiff.models.config import ModelConfig
from kerasdiff.request import Request

# Image uint8 (height, width, 3) to one of another size.
_PIXELS = {"lanczos": Image.Resampling.LANCZOS, "nearest": Image.Resampling.NEAREST}
# Of a cubic filter: torch takes another one where it is antialiased.
_SHARPNESS = {False: -0.75, True: -0.5}


def enlarge(
    latents: np.ndarray,
    request: Request,
    config: ModelConfig,
    decode: Callable[[np.ndarray, str | None], np.ndarray],
    encode: Callable[[np.ndarray, str | None], np.ndarray],
    upscale: Callable[[UpscalerFile, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Latents (N, h, w, C) of a request's first pass at the size of the second one.

    `decode`, `encode` and `upscale` are those of a `Pipeline`, for upscalers of pixels.
    """
    hires = request.hires
    assert hires is not None
    sizes, factor = hires.sizes(request.height, request.width, config.size_multiple), config.latent_factor
    size, (height, width) = ((tall // factor, wide // factor) for tall, wide in sizes)
    upscaler = hires.upscaler
    if upscaler in LATENT_UPSCALERS:
        latents = resized(latents, *size, *LATENT_UPSCALERS[upscaler])
    else:
        enlarged = []
        for one in latents:
            image = decode(one, request.tile)
            tall, wide = (image.shape[axis] // one.shape[axis] * size[axis] for axis in (0, 1))
            if isinstance(upscaler, UpscalerFile):
                image, resampling = upscale(upscaler, image), Image.Resampling.LANCZOS
            else:
                resampling = _PIXELS[upscaler]
            pixels = Image.fromarray(image).resize((wide, tall), resampling)
            enlarged.append(encode(np.asarray(pixels, "float32") / 127.5 - 1, request.tile))
        latents = np.stack(enlarged)
    top, left = ((have - keep) // 2 for have, keep in zip(size, (height, width), strict=True))
    return latents[:, top : top + height, left : left + width]


def resized(latents: np.ndarray, height: int, width: int, mode: str, antialias: bool = False) -> np.ndarray:
    """Latents (N, h, w, C) at another size, float32, as torch.nn.functional.interpolate does it.

    `mode` is "nearest", "nearest-exact", "bilinear" or "bicubic".
    """
    down, across = (_weights(latents.shape[axis], out, mode, antialias) for axis, out in ((1, height), (2, width)))
    return np.einsum("ab,nbcd,ec->naed", down, latents, across, optimize=True).astype("float32")


def _weights(size: int, out: int, mode: str, antialias: bool) -> np.ndarray:
    """What of `size` values each of `out` is made of, (out, size)."""
    scale = size / out
    weights = np.zeros((out, size))
    if mode.startswith("nearest"):
        nearest = ((np.arange(out) + (0.5 if mode == "nearest-exact" else 0)) * scale).astype(int)
        weights[np.arange(out), np.minimum(nearest, size - 1)] = 1
        return weights
    stretch = max(scale, 1) if antialias else 1
    for row, centre in enumerate((np.arange(out) + 0.5) * scale - 0.5):
        reach = int(np.ceil(2 * stretch))
        places = np.arange(int(np.floor(centre)) - reach + 1, int(np.floor(centre)) + reach + 1)
        shares = _filter((places - centre) / stretch, mode, _SHARPNESS[antialias])
        if antialias:
            shares = shares * ((places >= 0) & (places < size))
        np.add.at(weights[row], np.clip(places, 0, size - 1), shares / shares.sum())
    return weights


def _filter(distance: np.ndarray, mode: str, sharpness: float) -> np.ndarray:
    x = np.abs(distance)
    if mode == "bilinear":
        return np.maximum(0, 1 - x)
    near = ((sharpness + 2) * x - (sharpness + 3)) * x * x + 1
    far = sharpness * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0))
