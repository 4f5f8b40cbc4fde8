"""Reads and resizes images and masks from outside; whatever cannot be read is one clear line."""

import contextlib
import io
import math
import os
import pathlib
import stat
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from kerasdiff import notices, validation
from kerasdiff.errors import RequestError
from kerasdiff.images.file_types import check_not_raw, plugin_of, without_side_chunks

Source = str | os.PathLike[str] | Image.Image | np.ndarray

MAX_PIXELS = 2**26
# The longest side of a JPEG, so that whatever is read can be saved. It also bounds the tables of a resampling.
MAX_SIDE = 65500
# Four channels of 16 bits: no image within MAX_PIXELS needs more.
_MAX_BYTES = 8 * MAX_PIXELS
RESIZES = ("cover", "fit", "stretch")
# EXIF's orientation -> what turns it upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# From a decoded image and its name to its pixels.
_ReadPixels = Callable[[Image.Image, str], Any]


def read(source: Source, name: str = "image") -> np.ndarray:
    """An image as uint8 (height, width, 3), RGB, rotated by its EXIF orientation.

    Transparent areas become white. 16-bit greyscale is scaled from 0..65535 to 0..255.

    Args:
        source: the path of a PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF file (its first frame or page, with a warning if
            there are more), a PIL image, or an array (height, width) or (height, width, 1, 3 or 4) of uint8, uint16
            or floats between 0 and 1.
        name: used in error messages.

    Raises:
        RequestError: it cannot be read, or has more than `MAX_PIXELS` pixels, which is checked before decoding.
    """
    return _pixels(source, name, _colours)


def read_mask(source: Source, name: str = "mask", *, invert: bool = False) -> np.ndarray:
    """A mask as float32 (height, width): 1, repaint, where the luminance is at least one half, else 0.

    Transparent pixels count as black. `source` may be an array of bool, or of any integers that are all 0 or 1, too;
    other arguments: see `read`. An image with no values but 0 and 1 is read like such an array, and one whose colours
    and transparency say different things as above; either is one warning.

    With `invert`, 1 and 0 are swapped. Black strokes on transparency, without any white, then are what is repainted.
    """
    levels, alpha = _pixels(source, name, _levels)
    if levels.max() == 1:
        _warn(f"{name} has no values but 0 and 1, of 255; 1 is read as white")
        levels = levels * np.uint8(255)
    covered = levels >= 128
    strokes = alpha is not None and bool(np.any(alpha >= 128)) and not covered.any()
    if invert:
        covered = alpha >= 128 if strokes else ~covered
    black_is_opaque = alpha is not None and bool(np.any((alpha == 255) & (levels < 128)))
    if black_is_opaque and covered.any() and not covered.all():
        what = "white and opaque" if not invert else "black and opaque" if strokes else "black or transparent"
        _warn(
            f"{name} has colours and transparency that say different things; what is {what} is repainted, "
            f"{covered.mean():.0%} of it: save it as white on black to be sure"
        )
    return covered.astype("float32")


def prepare(
    pixels: np.ndarray, height: int | None, width: int | None, resize: str | None, multiple: int, name: str
) -> np.ndarray:
    """An image or a mask in a size that the model takes; the same arguments move both alike.

    Args:
        pixels: uint8 (H, W, 3), resampled with Lanczos' filter, or a mask (H, W), which takes the nearest values.
        height: pixels; None, allowed only if `resize` is None, is the image's own. So is `width`.
        resize: None takes the image as it is. "stretch" makes it height x width; "cover" too, but scales both
            sides alike and crops the rest, centred; "fit" makes it as large as fits within height x width (see
            `fit_size`).
        multiple: both sides must be multiples of it.
        name: used in error messages.

    Raises:
        RequestError: `resize` is None and the image's size is not valid, `resize` is unknown, or the size is too large.
    """
    rows, columns = pixels.shape[:2]
    if resize is None:
        height = nearest_multiple(rows, multiple) if height is None else height
        width = nearest_multiple(columns, multiple) if width is None else width
        if (rows, columns) != (height, width):
            raise RequestError(
                f"{name} is {rows} pixels high and {columns} wide, and the nearest valid size is {height} and {width}; "
                "resize it, or give resize='cover' (crops it), 'fit' (keeps all of it) or 'stretch'"
            )
        return pixels
    validation.choice("resize", resize, RESIZES)
    if height is None or width is None:
        raise RequestError(f"resize={resize!r} needs a height and a width")
    if resize == "fit":
        height, width = fit_size(rows, columns, height, width, multiple)
    check_area(f"the resized {name}", height, width)
    return scaled(pixels, height, width, crop=resize == "cover")


def scaled(pixels: np.ndarray, height: int, width: int, crop: bool) -> np.ndarray:
    """An image uint8 (H, W, 3) or a mask (H, W) as height x width: stretched, or scaled to cover and cropped."""
    image = Image.fromarray(pixels)
    method = Image.Resampling.LANCZOS if pixels.ndim == 3 else Image.Resampling.NEAREST
    if crop:
        return np.array(ImageOps.fit(image, (width, height), method))
    return np.array(image.resize((width, height), method))


def fit_size(height: int, width: int, box_height: int, box_width: int, multiple: int) -> tuple[int, int]:
    """(height, width): the largest valid size within a box for an image of height x width.

    Both sides are multiples of `multiple`. One is the box's, rounded down; the other is the valid size with the
    nearest aspect ratio: 1000 x 1500 in a box of 512 x 512 with multiples of 8 is 344 x 512.

    Raises:
        RequestError: a side of the box is smaller than `multiple`.
    """
    validation.integer("multiple", multiple, 1, MAX_SIDE)
    for name, side in {"height": height, "width": width}.items():
        validation.integer(name, side, 1, MAX_SIDE)
    for name, side in {"box_height": box_height, "box_width": box_width}.items():
        validation.integer(name, side, multiple, MAX_SIDE)
    box_height, box_width = box_height - box_height % multiple, box_width - box_width % multiple
    if box_width * height <= box_height * width:
        return _other_side(box_width, height, width, box_height, multiple), box_width
    return box_height, _other_side(box_height, width, height, box_width, multiple)


def nearest_multiple(size: float, multiple: int) -> int:
    """The nearest multiple of a size, and at least one multiple; of two the larger."""
    return max(1, math.floor(size / multiple + 0.5)) * multiple


def check_side(name: str, value: Any, multiple: int) -> int:
    """A height or width that is a multiple of `multiple`, and not too large."""
    value = validation.integer(name, value, 1, MAX_SIDE - MAX_SIDE % multiple)
    if value % multiple:
        below = value - value % multiple
        nearest = f"{below} or {below + multiple}" if below else multiple
        raise RequestError(f"{name}={value} is not a multiple of {multiple}; the nearest valid size is {nearest}")
    return value


def check_area(name: str, height: int, width: int) -> None:
    """Checks the number of pixels: at least one, and no more than memory should be spent on."""
    if height < 1 or width < 1:
        raise RequestError(f"{name} is {height} pixels high and {width} wide; it must have at least one pixel")
    if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
        raise RequestError(
            f"{name} is {height} pixels high and {width} wide; it may have at most {MAX_PIXELS} pixels, "
            f"and {MAX_SIDE} along a side: make it smaller first"
        )


def _other_side(side: int, other: int, along: int, limit: int, multiple: int) -> int:
    """The multiple up to `limit` with which `side` is nearest in aspect ratio to other : along."""
    below = side * other // along // multiple * multiple
    sizes = {min(max(size, multiple), limit) for size in (below, below + multiple)}
    return min(sorted(sizes, reverse=True), key=lambda size: abs(math.log(size * along / (side * other))))


def _pixels(source: Any, name: str, read_pixels: _ReadPixels) -> Any:
    if isinstance(source, str | os.PathLike):
        return _from_file(source, name, read_pixels)
    if isinstance(source, Image.Image):
        with _explained(f"{name}: this PIL image", "cannot be read"):
            return read_pixels(source, name)
    if isinstance(source, np.ndarray):
        array = np.asarray(source)  # a subclass may compute differently
        return read_pixels(_from_array(array, name, mask=read_pixels is _levels), name)
    raise RequestError(f"{name} must be a path, a PIL image or a NumPy array, not {validation.kind(source)}")


def _from_file(source: str | os.PathLike[str], name: str, read_pixels: _ReadPixels) -> Any:
    path = pathlib.Path(validation.path(name, source))
    shown = f"{name}: {validation.shown(str(path))}"
    if str(path).lower().startswith(("http:/", "https:/")):
        raise RequestError(f"{shown} is a link; download the image and give the path of the file")

    def opened(plugin: type[ImageFile.ImageFile], file: IO[bytes]) -> tuple[Any, bool]:
        """The pixels, and whether there are more frames or pages."""
        with plugin(file) as image:
            check_not_raw(image, path.name, shown)
            pixels, several = read_pixels(image, name), False
            with contextlib.suppress(Exception):  # of what is not read
                several = getattr(image, "is_animated", False)
            return pixels, several

    try:
        _check_file(path, shown)
        with path.open("rb") as file:
            kind, plugin = plugin_of(file, shown)
            problem = f"is a corrupt or incomplete {kind} file, or one that Pillow cannot read; get it again"
            with _explained(shown, problem):
                try:
                    pixels, several = opened(plugin, file)
                except RequestError:
                    raise
                except Exception:
                    if kind != "PNG":
                        raise
                    file.seek(0)
                    pixels, several = opened(plugin, io.BytesIO(without_side_chunks(file.read())))
    except OSError as error:
        raise RequestError(
            f"{shown} cannot be read: {error.strerror or validation.reason(error)}; check the path"
        ) from error
    if several:
        _warn(f"{shown} has more than one frame or page; the first one is read")
    return pixels


def _check_file(path: pathlib.Path, shown: str) -> None:
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise RequestError(f"{shown} is a folder or a device; give the path of an image file")
    if not facts.st_size:
        raise RequestError(f"{shown} is an empty file; get it again")
    if facts.st_size > _MAX_BYTES:
        raise RequestError(f"{shown} has {facts.st_size} bytes; an image file may have at most {_MAX_BYTES}")


@contextlib.contextmanager
def _explained(shown: str, problem: str) -> Iterator[None]:
    try:
        yield
    except RequestError:
        raise
    except Image.DecompressionBombError as error:
        raise RequestError(
            f"{shown} has too many pixels; at most {MAX_PIXELS} are read, or PIL.Image.MAX_IMAGE_PIXELS if that is "
            "lower: make it smaller first"
        ) from error
    # Decoders of broken files raise anything: SyntaxError, struct.error, ValueError, TypeError, ...
    except Exception as error:
        raise RequestError(f"{shown} {problem} ({validation.reason(error)})") from error


def _from_array(array: np.ndarray, name: str, mask: bool) -> Image.Image:
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[2] in (1, 3, 4)):
        raise RequestError(
            f"{name} has shape {validation.shown(array.shape)}; it must be (height, width), or (height, width, "
            "channels) with 1, 3 or 4"
        )
    check_area(name, *array.shape[:2])
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if mask and array.dtype.kind in "biu" and array.min() >= 0 and array.max() <= 1:
        array = array.astype("uint8") * np.uint8(255)
    return Image.fromarray(_eight_bits(array, name))


def _eight_bits(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return np.rint(array / np.float32(257)).astype("uint8")
    if array.dtype.kind != "f":
        raise RequestError(f"{name} has dtype {array.dtype!s:.40}; it must be uint8, uint16 or floats within 0 to 1")
    if not np.all(np.isfinite(array)):
        raise RequestError(f"{name} has values that are not finite; floats must lie within 0 to 1")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        hint = "; divide it by 255, or give uint8" if low >= 0 and high <= 255 else ""
        raise RequestError(f"{name} has values from {low:g} to {high:g}; floats must lie within 0 to 1{hint}")
    return np.rint(array.astype(np.promote_types(array.dtype, "float32")) * 255).astype("uint8")


def _colours(image: Image.Image, name: str) -> np.ndarray:
    """Pixels in mode "RGB", where transparent areas become white."""
    image = _upright(image, name)
    if image.mode.startswith(("I", "F")):
        image = Image.fromarray(_eight_bits(_deep_values(image, name), name))
    return np.array(_on_ground(image, "white").convert("RGB"))


def _levels(image: Image.Image, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Luminance, where transparent areas become black, and opacity, both uint8; None if all is opaque."""
    image = _upright(image, name)
    if image.mode.startswith(("I", "F")):
        values = _deep_values(image, name)
        zeros_and_ones = values.dtype.kind in "iu" and values.max() == 1
        image = Image.fromarray(values.astype("uint8") if zeros_and_ones else _eight_bits(values, name))
    levels = np.array(_on_ground(image, "black").convert("L"))
    alpha = np.array(image.convert("RGBA").getchannel("A")) if image.has_transparency_data else None
    return levels, None if alpha is None or alpha.min() == 255 else alpha


def _upright(image: Image.Image, name: str) -> Image.Image:
    """The decoded image with the side up that its metadata says; damaged metadata says nothing."""
    check_area(name, image.height, image.width)
    image.load()
    turn = None
    with contextlib.suppress(Exception):
        turn = _TURNS.get(image.getexif()[ExifTags.Base.Orientation])
    return image if turn is None else image.transpose(turn)


def _deep_values(image: Image.Image, name: str) -> np.ndarray:
    """The values of an image with one channel of more than 8 bits."""
    values = np.asarray(image)
    if image.mode == "I":  # it has 32 bits
        if values.min() < 0 or values.max() > 65535:
            raise RequestError(f"{name} has values from {values.min()} to {values.max()}; 0 to 65535 can be read")
        values = values.astype("uint16")
    return values


def _on_ground(image: Image.Image, colour: str) -> Image.Image:
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, colour), image)


def _warn(message: str) -> None:
    notices.warn(message, stacklevel=3)
