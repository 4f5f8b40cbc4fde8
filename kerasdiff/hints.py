"""Hints for control networks from pictures: edges, lines, areas of colour. Nothing is downloaded.

ControlNets for edges, lines and scribbles were trained with white strokes on black, and so are these.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from kerasdiff import validation
from kerasdiff.errors import RequestError
from kerasdiff.images import reader
from kerasdiff.images.reader import Source

# Deviations in pixels of the blurs whose gradients are compared, and of those whose difference finds lines.
_EDGE_SCALES = (1.0, 2.0, 4.0)
_LINE_SCALES = (0.7, 4.0)
# Contrast that is none: of shadings and noise.
_SHADING = 0.02
# Mean and deviation of the colours of ImageNet, which networks for depth read as zero and one.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Hint:
    """A way to make a hint.

    Attributes:
        make: from a picture to the hint.
        help: what it shows.
    """

    make: Callable[[Source], np.ndarray]
    help: str


def make_hint(name: str, image: Source) -> np.ndarray:
    """A hint of an entry of `HINTS`, with the defaults of its function, as uint8 (h, w, 3) in the picture's size.

    Example:
        ```python
        picture = np.zeros((64, 64, 3), "uint8")
        picture[16:48, 16:48] = 255
        edges = kerasdiff.hints.make_hint("canny", picture)
        assert edges.shape == (64, 64, 3) and set(np.unique(edges)) == {0, 255}
        ```

    Raises:
        RequestError: the name is unknown, the picture cannot be read, or OpenCV is missing.
    """
    validation.choice("hint", name, HINTS)
    return HINTS[name].make(image)


def canny(image: Source, low: float = 100, high: float = 200) -> np.ndarray:
    """Edges one pixel wide, white on black: the method of Canny (1986), as ControlNets for "canny" were trained.

    Args:
        image: a path, a PIL image or an array, as for `kerasdiff.images.read`; so in the other functions.
        low: an edge goes on while its gradient is above this.
        high: and begins where it is above this, in levels of 0 to 255.

    Raises:
        RequestError: the picture cannot be read, or OpenCV is missing; so in the other functions.
    """
    low, high = (validation.real(name, value, 0) for name, value in (("low", low), ("high", high)))
    return _three(_cv2().Canny(reader.read(image), low, high))


def softedge(image: Source) -> np.ndarray:
    """Edges by their contrast, white on black, soft as those of HED and PiDiNet: for ControlNets for "softedge".

    The geometric mean of gradients at three scales, so that borders of things are brighter than texture.
    """
    return _three(_levels(np.tanh(3 * np.maximum(0, _edges(reader.read(image)) - _SHADING))))


def lineart(image: Source) -> np.ndarray:
    """What is darker than its surroundings, white on black: lines of a drawing, folds and borders of a photograph.

    A difference of Gaussians; for ControlNets for "lineart".
    """
    gray = _luminance(reader.read(image))
    narrow, wide = (_blurred(gray, sigma) for sigma in _LINE_SCALES)
    return _three(_levels(np.tanh(6 * np.maximum(0, wide - narrow - 0.01))))


def scribble(image: Source) -> np.ndarray:
    """Few thick strokes, white on black, as if drawn by hand: for ControlNets for "scribble"."""
    cv2 = _cv2()
    coarse = cv2.GaussianBlur(reader.read(image), (0, 0), 3)
    edges = cv2.Canny(coarse, 20, 50)
    brush, between = (cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)) for side in (5, 7))
    # Both edges of a line become one stroke.
    return _three(cv2.dilate(cv2.morphologyEx(edges, cv2.MORPH_CLOSE, between), brush))


def segmentation(image: Source, colours: int = 12) -> np.ndarray:
    """Areas of one colour each, that of the picture.

    A ControlNet for "seg" reads another thing: the colours that ADE20K gives to kinds of things, such as sky and wall.
    What kind a thing is only a network knows; for that one give a map of these colours.

    Args:
        image: see `canny`.
        colours: at most so many, 2 to 256.
    """
    validation.integer("colours", colours, 2, 256)
    even = _cv2().pyrMeanShiftFiltering(reader.read(image), 12, 24)
    areas = Image.fromarray(even).quantize(colours, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    mode = Image.frombytes("L", areas.size, areas.tobytes()).filter(ImageFilter.ModeFilter(5))
    areas.frombytes(mode.tobytes())
    return np.array(areas.convert("RGB"))


def blur(image: Source, sigma: float = 8) -> np.ndarray:
    """The picture without its details; `sigma` is the deviation of the Gaussian, in pixels."""
    sigma = validation.real("sigma", sigma, 0.1, 1000)
    return _cv2().GaussianBlur(reader.read(image), (0, 0), sigma)


def tile(image: Source, factor: float = 4) -> np.ndarray:
    """The picture as an enlarged small one, for ControlNets for "tile", which draw its details anew.

    Args:
        image: see `canny`.
        factor: by how much it is made smaller, and larger again.
    """
    cv2, pixels = _cv2(), reader.read(image)
    factor = validation.real("factor", factor, 1, 1000)
    height, width = pixels.shape[:2]
    small = cv2.resize(
        pixels, (max(1, round(width / factor)), max(1, round(height / factor))), interpolation=cv2.INTER_AREA
    )
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def gray(image: Source) -> np.ndarray:
    """The luminance, for ControlNets for "recolor" and "brightness"."""
    return _three(np.array(Image.fromarray(reader.read(image)).convert("L")))


def invert(image: Source) -> np.ndarray:
    """The picture as a negative: black lines on white become white ones on black."""
    return np.array(ImageOps.invert(Image.fromarray(reader.read(image))))


def depth(image: Source, model: str | os.PathLike[str], size: int = 256) -> np.ndarray:
    """How near things are, white is near, by a network in an ONNX file: for ControlNets for "depth".

    Args:
        image: see `canny`.
        model: the path of a file such as MiDaS's `model-small.onnx`, which maps (1, 3, size, size), in RGB and
            with the mean and deviation of ImageNet, to inverse depth (1, size, size).
        size: height and width that the network reads: 256 of MiDaS's small one, 384 of its large ones.

    Raises:
        RequestError: `model` cannot be read, or does not map such a picture to depth; see `canny`.
    """
    cv2, pixels = _cv2(), reader.read(image)
    path, size = validation.path("model", model), validation.integer("size", size, 8, 4096)
    small = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_CUBIC) / np.float32(255)
    given = ((small - np.array(_MEAN, "float32")) / np.array(_DEVIATION, "float32")).transpose(2, 0, 1)[None]
    shown = f"the model {validation.shown(os.path.basename(path))}"
    if not os.path.isfile(path):
        raise RequestError(f"{shown} is not a file; give the path of an ONNX file for depth")
    try:
        network = cv2.dnn.readNetFromONNX(path)
        network.setInput(given)
        near = np.squeeze(network.forward())
    except cv2.error as error:
        raise RequestError(
            f"{shown} does not map pictures of {size} x {size} pixels to depth ({validation.line(error.err)}); "
            "give an ONNX file for depth, and the size that it reads"
        ) from None
    if near.ndim != 2 or not np.isfinite(near).all():
        raise RequestError(f"{shown} gives shape {near.shape} or values that are not finite; it must give one map")
    near = cv2.resize(near.astype("float32"), pixels.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    low, high = float(near.min()), float(near.max())
    return _three(_levels((near - low) / max(high - low, 1e-6)))


HINTS = {
    "canny": Hint(canny, "edges, one pixel wide"),
    "softedge": Hint(softedge, "edges by their contrast, soft"),
    "lineart": Hint(lineart, "lines, and what is darker than its surroundings"),
    "scribble": Hint(scribble, "few thick strokes"),
    "segmentation": Hint(segmentation, "areas of one colour, the picture's and not those of ADE20K"),
    "blur": Hint(blur, "the picture without its details"),
    "tile": Hint(tile, "the picture as an enlarged small one"),
    "gray": Hint(gray, "the luminance"),
    "invert": Hint(invert, "a negative: white lines of black ones"),
}
"""Name -> how a hint is made, by its defaults; it can be looked at without OpenCV."""


@functools.cache
def _cv2() -> Any:
    try:
        import cv2
    except ImportError:
        raise RequestError("this hint needs OpenCV, which is not installed: pip install 'kerasdiff[hints]'") from None
    return cv2


def _edges(pixels: np.ndarray) -> np.ndarray:
    """The contrast of the edge at each pixel, float32 (h, w): 1 from black to white."""
    cv2, found = _cv2(), []
    for sigma in _EDGE_SCALES:
        smooth = _blurred(pixels / np.float32(255), sigma)
        # Sobel's operator is eight times a derivative; that of a blurred step has this maximum.
        unit = np.float32(sigma * np.sqrt(2 * np.pi) / 8)
        across, down = (
            cv2.Sobel(smooth, cv2.CV_32F, *order, borderType=cv2.BORDER_REPLICATE) for order in ((1, 0), (0, 1))
        )
        found.append(np.sqrt(across**2 + down**2).max(2) * unit)
    return np.cbrt(np.prod(found, 0))


def _blurred(values: np.ndarray, sigma: float) -> np.ndarray:
    cv2 = _cv2()
    return cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)


def _luminance(pixels: np.ndarray) -> np.ndarray:
    return gray(pixels)[..., 0] / np.float32(255)


def _levels(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(values, 0, 1) * 255).astype("uint8")


def _three(levels: np.ndarray) -> np.ndarray:
    return np.repeat(levels[:, :, None], 3, 2)
