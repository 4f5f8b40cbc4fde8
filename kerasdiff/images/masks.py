"""Masks: fill in the covered pixels, paste the others back."""

import numpy as np

from kerasdiff import validation
from kerasdiff.errors import RequestError
from kerasdiff.images.reader import MAX_SIDE

_GREY = 128


def fill(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Replaces covered pixels by a smooth continuation of the others, whatever they were.

    Pull-push (Gortler et al. 1996, "The Lumigraph", section 3.4): repeated weighted averages at half the size,
    then each level fills its gaps from the next coarser one.

    `pixels` are uint8 (H, W, 3), `mask` is (H, W), 1 where a pixel is covered. If all are, the result is mid grey.

    Raises:
        RequestError: the sizes differ.
    """
    _same_size(pixels=pixels, mask=mask)
    covered = mask >= 0.5
    if covered.all():
        return np.full_like(pixels, _GREY)
    weights = np.where(covered, np.float32(0), np.float32(1))[:, :, None]
    smooth = _pull_push(pixels * weights, weights)
    return np.where(covered[:, :, None], np.rint(smooth).astype("uint8"), pixels)


def paste_back(drawn: np.ndarray, original: np.ndarray, mask: np.ndarray, feather: int = 0) -> np.ndarray:
    """`drawn` where the mask (H, W) is 1, exactly `original` where it is 0; both are uint8 (H, W, 3).

    `feather` is the width in pixels, inside the mask's edge, over which the weight of `drawn` rises from 0 to 1; 0 is a
    hard edge. The border of the image is no edge.

    Raises:
        RequestError: the sizes differ, or `feather` is not an integer between 0 and the largest side of an image.
    """
    _same_size(drawn=drawn, original=original, mask=mask)
    feather = validation.integer("feather", feather, 0, MAX_SIDE)
    covered = mask >= 0.5
    if not feather:
        return np.where(covered[:, :, None], drawn, original)
    # The edge runs half a pixel before the first covered one.
    weights = np.clip((_depth(covered) - 0.5) / feather, 0, 1).astype("float32")[:, :, None]
    return np.rint(original + weights * (drawn.astype("float32") - original)).astype("uint8")


def _same_size(**arrays: np.ndarray) -> None:
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.ndim != (2 if name == "mask" else 3):
            axes = "(height, width)" if name == "mask" else "(height, width, 3)"
            raise RequestError(f"{name} must be an array {axes}, not {validation.kind(array)}")
    sizes = {name: array.shape[:2] for name, array in arrays.items()}
    if len(set(sizes.values())) > 1:
        named = ", ".join(f"{name} {height} x {width}" for name, (height, width) in sizes.items())
        raise RequestError(f"these must have the same height and width: {named}")


def _pull_push(colours: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Colours (H, W, 3) everywhere, from colours times their weights (H, W, 1), which are at most 1."""
    height, width = weights.shape[:2]
    if height == width == 1:
        return colours / weights
    total = _halved(_halved(weights, 0), 1)
    coarse = np.minimum(total, 1)
    scale = np.divide(coarse, total, out=np.zeros_like(total), where=total > 0)
    behind = _pull_push(_halved(_halved(colours, 0), 1) * scale, coarse)
    return colours + (1 - weights) * _doubled(_doubled(behind, 0), 1)[:height, :width]


def _halved(values: np.ndarray, axis: int) -> np.ndarray:
    """Half the size along an axis, rounded up: sums of four with the weights of `_doubled`, zeros beyond the border."""
    values = np.moveaxis(values, axis, 0)
    values = np.pad(values, ((1, 1 + len(values) % 2), (0, 0), (0, 0)))
    sums = 0.75 * (values[1:-1:2] + values[2::2]) + 0.25 * (values[:-2:2] + values[3::2])
    return np.moveaxis(sums, 0, axis)


def _doubled(values: np.ndarray, axis: int) -> np.ndarray:
    """Twice the size along an axis, linear in between."""
    values = np.moveaxis(values, axis, 0)
    before = np.concatenate([values[:1], values[:-1]])
    after = np.concatenate([values[1:], values[-1:]])
    pairs = np.stack([values * 0.75 + before * 0.25, values * 0.75 + after * 0.25], axis=1)
    return np.moveaxis(pairs.reshape(-1, *values.shape[1:]), 0, axis)


def _depth(covered: np.ndarray) -> np.ndarray:
    """The city-block distance of each pixel to the nearest uncovered one, which is 0 for an uncovered pixel."""
    from scipy import ndimage  # takes a second to import, and only a feathered edge needs it

    if covered.all():
        return np.full(covered.shape, np.inf)
    return ndimage.distance_transform_cdt(covered, "taxicab")
