"""Tools for images before and after a generation: resize, outpaint, save, lay out in a grid."""

from __future__ import annotations

import io
import math
import os
import pathlib
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from kerasdiff import validation
from kerasdiff.errors import RequestError
from kerasdiff.images.masks import fill
from kerasdiff.images.reader import MAX_SIDE, Source, check_area, check_side, nearest_multiple, read, scaled
from kerasdiff.images.writer import KINDS, kind_of, write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WEBP_SIDE = 16383
# A `kerasdiff.Result`, an array (N, height, width, 3), or a list of what `read` takes.
Images = Any
# At 10 points a letter takes about a twelfth of an inch.
_TITLE_POINTS, _LETTERS_PER_INCH = 10, 12


def resize(image: Source, width: int | None = None, height: int | None = None, *, multiple: int = 8) -> Image.Image:
    """An image in a size that a model takes, scaled with Lanczos' filter.

    With one side given, the other follows from the aspect ratio, rounded to a multiple of `multiple`. With both
    given, the image is scaled to cover that size and the rest is cropped, centred.

    Raises:
        RequestError: neither side is given, one is no multiple of `multiple`, or the image cannot be read.
    """
    multiple = validation.integer("multiple", multiple, 1, MAX_SIDE)
    for name, side in (("width", width), ("height", height)):
        if side is not None:
            check_side(name, side, multiple)
    pixels = read(image)
    rows, columns = pixels.shape[:2]
    crop = width is not None and height is not None
    if width is None and height is None:
        raise RequestError("resize needs a width, a height or both")
    if height is None:
        height = nearest_multiple(width * rows / columns, multiple)
    if width is None:
        width = nearest_multiple(height * columns / rows, multiple)
    check_area("the resized image", height, width)
    return Image.fromarray(scaled(pixels, height, width, crop))


def outpaint(
    image: Source, left: int = 0, right: int = 0, top: int = 0, bottom: int = 0
) -> tuple[Image.Image, Image.Image]:
    """Adds margins in pixels: a larger image, smoothly continued, and a mask that is white in the margins.

    They are in the modes "RGB" and "L" (0 and 255), for `image` and `mask` of a generation.

    Raises:
        RequestError: a margin is negative, all are 0, or the image cannot be read.
    """
    margins = {"left": left, "right": right, "top": top, "bottom": bottom}
    left, right, top, bottom = (validation.integer(name, value, 0, MAX_SIDE) for name, value in margins.items())
    if not left + right + top + bottom:
        raise RequestError("outpaint adds nothing; give left, right, top or bottom more than 0 pixels")
    pixels = read(image)
    check_area("the outpainted image", pixels.shape[0] + top + bottom, pixels.shape[1] + left + right)
    around = ((top, bottom), (left, right), (0, 0))
    mask = np.pad(np.zeros(pixels.shape[:2], "uint8"), around[:2], constant_values=255)
    return Image.fromarray(fill(np.pad(pixels, around), mask)), Image.fromarray(mask)


def save_images(images: Images, prefix: str | os.PathLike[str], format: str = "png") -> list[pathlib.Path]:  # noqa: A002
    """Writes prefix1.png, prefix2.png, ..., each completely or not at all.

    Images of a `Result` get embedded metadata, as from `Result.save`.

    Args:
        images: a `Result`, an array (N, height, width, 3), or a list of what `read` takes, of any sizes.
        prefix: how the paths begin, with or without a folder.
        format: "png", "jpg", "jpeg" or "webp".

    Raises:
        RequestError: the folder does not exist, the format is unknown, or an image cannot be read or written.
    """
    validation.choice("format", format, [ending.removeprefix(".") for ending in KINDS])
    beginning = validation.path("prefix", prefix)
    pictures = _pictures(images)
    paths = [pathlib.Path(f"{beginning}{number}.{format}") for number in range(1, len(pictures) + 1)]
    if not paths[0].parent.is_dir():
        folder = validation.shown(str(paths[0].parent))
        raise RequestError(f"prefix={validation.shown(beginning)}: there is no folder {folder}; make it first")
    kind = kind_of(paths[0])
    for number, picture in enumerate(pictures, 1):
        check_format_limit(f"image {number}", kind, *picture.shape[:2])
    for index, (picture, path) in enumerate(zip(pictures, paths, strict=True)):
        metadata = images.told(index, kind) if hasattr(images, "told") else {}
        write(Image.fromarray(picture), path, **metadata)
    return paths


def grid(images: Images, rows: int | None = None, cols: int | None = None) -> Image.Image:
    """All images in one grid, row by row, without margins; leftover cells are white.

    Without `rows` and `cols` the grid is nearly square. Other arguments: see `save_images`.

    Raises:
        RequestError: the images differ in size, `rows` times `cols` is too small, or the grid is too large.
    """
    pictures = _pictures(images)
    rows, cols = _layout(len(pictures), rows, cols)
    height, width = pictures[0].shape[:2]
    for number, picture in enumerate(pictures, 1):
        if picture.shape[:2] != (height, width):
            raise RequestError(
                f"image 1 is {height} pixels high and {width} wide, image {number} is {picture.shape[0]} high and "
                f"{picture.shape[1]} wide; a grid needs one size: see kerasdiff.images.resize"
            )
    check_area("the grid", rows * height, cols * width)
    sheet = np.full((rows, height, cols, width, 3), 255, "uint8")
    for index, picture in enumerate(pictures):
        sheet[index // cols, :, index % cols] = picture
    return Image.fromarray(sheet.reshape(rows * height, cols * width, 3))


def plot_gallery(
    images: Images, titles: Sequence[str] | None = None, cols: int | None = None, scale: float = 3.0
) -> Figure:
    """Images of any sizes with titles, as a matplotlib figure that pyplot does not manage.

    Long titles are broken into lines. `cols` None is nearly square; `scale` is inches per image. Other arguments: see
    `save_images`.

    Raises:
        RequestError: the number of titles is wrong.
    """
    from matplotlib import figure as matplotlib_figure  # slow, and nothing else here needs it

    class Gallery(matplotlib_figure.Figure):
        """A figure that a notebook shows even if matplotlib was not set up for it."""

        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png")
            return buffer.getvalue()

    pictures = _pictures(images)
    if titles is None:
        titles = [""] * len(pictures)
    if not isinstance(titles, list | tuple) or not all(isinstance(title, str) for title in titles):
        raise RequestError("titles must be a list of strings, one per image")
    if len(titles) != len(pictures):
        raise RequestError(f"titles has {len(titles)} entries for {len(pictures)} images; give one per image")
    rows, cols = _layout(len(pictures), None, cols)
    scale = validation.real("scale", scale, 0.1, 100)
    figure = Gallery(figsize=(cols * scale, rows * scale), layout="constrained")
    every = figure.subplots(rows, cols, squeeze=False).ravel()
    for axes in every:
        axes.set_axis_off()
    for axes, picture, title in zip(every, pictures, titles, strict=False):
        axes.imshow(picture)
        # Dollar signs of a prompt do not mark a formula.
        lines = textwrap.fill(title, max(1, round(scale * _LETTERS_PER_INCH)))
        axes.set_title(lines, fontsize=_TITLE_POINTS, parse_math=False)
    return figure


def check_format_limit(name: str, kind: str, height: int, width: int) -> None:
    """Checks the size of an image in pixels against the limit of a format, by Pillow's name of it."""
    if kind == "WEBP" and max(height, width) > _WEBP_SIDE:
        raise RequestError(f"{name} has a side of more than {_WEBP_SIDE} pixels, WebP's limit; save as png")


def _pictures(images: Any) -> list[np.ndarray]:
    """Every image as uint8 (height, width, 3)."""
    if not isinstance(images, list | tuple):
        with validation.reading("images"):
            images = np.asarray(images) if hasattr(images, "__array__") else np.zeros(0)
        if images.ndim != 4:
            raise RequestError("images must be a Result, an array (N, height, width, 3), or a list of images")
    if not len(images):
        raise RequestError("there are no images; give at least one")
    return [read(image, f"images[{index}]") for index, image in enumerate(images)]


def _layout(count: int, rows: int | None, cols: int | None) -> tuple[int, int]:
    """Rows and columns for `count` images; none is empty unless both are given."""
    rows = None if rows is None else validation.integer("rows", rows, 1, MAX_SIDE)
    cols = None if cols is None else validation.integer("cols", cols, 1, MAX_SIDE)
    if rows is not None and cols is not None:
        if rows * cols < count:
            raise RequestError(f"rows={rows} times cols={cols} is too small for {count} images; leave one of them out")
        return rows, cols
    if rows is not None:
        return min(rows, count), math.ceil(count / rows)
    cols = math.ceil(math.sqrt(count)) if cols is None else min(cols, count)
    return math.ceil(count / cols), cols
