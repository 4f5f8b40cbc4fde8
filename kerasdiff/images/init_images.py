"""Pictures that a request starts from, read and brought to the size of its images."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from kerasdiff import validation
from kerasdiff.errors import RequestError
from kerasdiff.images import reader

T = TypeVar("T")
# Of all pictures of a request together.
MAX_PIXELS = 2**28


@dataclasses.dataclass(frozen=True)
class Size:
    """What a request and its model say about the size of images, in pixels.

    Attributes:
        height, width: asked for; None is the model's own, or a picture's.
        own_height, own_width: the model's own.
        multiple: what both must be multiples of.
    """

    height: Any
    width: Any
    own_height: int
    own_width: int
    multiple: int

    def check(self, name: str, value: Any) -> int:
        """A height or width, or the model's own if it is None."""
        most = reader.MAX_SIDE - reader.MAX_SIDE % self.multiple
        value = validation.integer(name, getattr(self, f"own_{name}") if value is None else value, 1, most)
        if value % self.multiple:
            below = value - value % self.multiple
            nearest = f"{below} or {below + self.multiple}" if below else f"{self.multiple}"
            raise RequestError(
                f"{name}={value} is not a multiple of {self.multiple}; the nearest valid size is {nearest}"
            )
        return value

    def both(self, height: Any, width: Any) -> tuple[int, int]:
        """A height and a width, which are not too many pixels together."""
        height, width = self.check("height", height), self.check("width", width)
        if height * width > reader.MAX_PIXELS:
            raise RequestError(
                f"height={height} and width={width} make {height * width} pixels; an image may have at most "
                f"{reader.MAX_PIXELS}"
            )
        return height, width


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """What the images of a request start from. Equal if all pixels are.

    Attributes:
        images: uint8 (K, height, width, 3).
        masks: float32 (K, height, width), 1 where it is drawn anew; None to draw all of it.
        index: which of the K each image of the request starts from.
    """

    images: np.ndarray
    masks: np.ndarray | None
    index: tuple[int, ...]

    def only(self, places: Sequence[int]) -> Pictures:
        """Those that some of the images start from."""
        used = sorted({self.index[place] for place in places})
        now = {place: index for index, place in enumerate(used)}
        masks = None if self.masks is None else self.masks[used]
        return Pictures(self.images[used], masks, tuple(now[self.index[place]] for place in places))

    def digests(self, image: int) -> dict[str, str]:
        """SHA-256 of what one image of the request starts from: "image", and "mask" if there is one."""
        return self._digests[self.index[image]]

    @functools.cached_property
    def _digests(self) -> list[dict[str, str]]:
        parts = {"image": self.images} if self.masks is None else {"image": self.images, "mask": self.masks}
        return [{name: _sha256(part[place]) for name, part in parts.items()} for place in range(len(self.images))]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pictures) and (self._digests, self.index) == (other._digests, other.index)

    def __hash__(self) -> int:
        return hash(self.index)


def _sha256(pixels: np.ndarray) -> str:
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.astype("uint8").tobytes()).hexdigest()


def make_pictures(image: Any, mask: Any, size: Size, resize: str | None, prompts: int, batch_size: int) -> Pictures:
    """Reads pictures and masks, each once, and brings them to one size.

    Raises:
        RequestError: one cannot be read, or is not of the size that it must be.
    """
    if resize is None:
        height = None if size.height is None else size.check("height", size.height)
        width = None if size.width is None else size.check("width", size.width)
    else:
        validation.choice("resize", resize, reader.RESIZES)
        height, width = size.both(size.height, size.width)
    read_image, of_image = _reader("image", reader.read, image, prompts, batch_size)
    read_mask, of_mask = read_image, of_image
    if mask is not None:
        read_mask, of_mask = _reader("mask", reader.read_mask, mask, prompts, batch_size)
    pairs = list(zip(of_image, of_mask, strict=True))
    index = {pair: place for place, pair in enumerate(dict.fromkeys(pairs))}
    made: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    for place, cover in index:
        pixels = read_image(place)
        made.append(reader.prepare(pixels, height, width, resize, size.multiple, "image"))
        if mask is not None:
            covered = read_mask(cover)
            if covered.shape != pixels.shape[:2]:
                theirs, ours = (_size(one) for one in (covered, pixels))
                raise RequestError(f"the mask is {theirs} and the image {ours} pixels; they must be of one size")
            masks.append(reader.prepare(covered, height, width, resize, size.multiple, "mask"))
        _check_together(made, len(index))
    return Pictures(np.stack(made), np.stack(masks) if masks else None, tuple(index[pair] for pair in pairs))


def _reader(
    name: str, read: Callable[[Any, str], np.ndarray], value: Any, prompts: int, batch_size: int
) -> tuple[Callable[[int], np.ndarray], list[int]]:
    """What reads a picture by its place, and the place that each image of the request takes.

    The last picture is kept: who asks in the order of the images reads each one once.
    """
    several = as_list(name, value)
    if several is None:
        return functools.lru_cache(maxsize=1)(lambda _: read(value, name)), [0] * (prompts * batch_size)
    if not several:
        raise RequestError(f"{name} is an empty list; give at least one")
    places = per_image(name, range(len(several)), prompts, batch_size)
    return functools.lru_cache(maxsize=1)(lambda place: read(several[place], f"{name}[{place}]")), places


def _check_together(made: Sequence[np.ndarray], count: int) -> None:
    """What can be said against pictures of a request as soon as the last one of `made` is there."""
    if made[-1].shape != made[0].shape:
        raise RequestError(
            f"images are of different sizes, {_size(made[0])} and {_size(made[-1])}; resize='cover' makes them one"
        )
    height, width = made[0].shape[:2]
    if count * height * width > MAX_PIXELS:
        raise RequestError(
            f"image and mask make {count} pictures of {_size(made[0])} pixels; together they may have at most "
            f"{MAX_PIXELS}: draw them in several calls"
        )


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[1]} x {picture.shape[0]}"


def as_list(name: str, value: Any) -> list[Any] | None:
    """Several pictures as a list: a list, an array (N, height, width, 3), or a `Result`; None for a single one.

    Raises:
        RequestError: there are more than `kerasdiff.validation.MOST`.
    """
    with validation.reading(name):
        found = getattr(value, "images", value)
        if not isinstance(found, list | tuple) and not (isinstance(found, np.ndarray) and found.ndim == 4):
            return None
        if len(found) <= validation.MOST:
            return list(found)
    raise RequestError(f"{name} has {len(found)} entries; it may have at most {validation.MOST}")


def per_image(name: str, values: Sequence[T], prompts: int, batch_size: int) -> list[T]:
    """One value an image, from one for all, one a prompt or one an image.

    Raises:
        RequestError: there are more or fewer.
    """
    count = prompts * batch_size
    if len(values) == 1:
        return [values[0]] * count
    if len(values) == prompts:
        return [value for value in values for _ in range(batch_size)]
    if len(values) != count:
        raise RequestError(
            f"{name} has {len(values)} entries for {prompts} prompts and {count} images; give one, one a prompt or "
            "one an image"
        )
    return list(values)
