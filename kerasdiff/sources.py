"""Pictures that a request starts from, read and brought to the size of its images."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from kerasdiff import checks, pictures
from kerasdiff.errors import RequestError

T = TypeVar("T")


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
        value = checks.integer(name, getattr(self, f"own_{name}") if value is None else value, 1)
        if value % self.multiple:
            below = value - value % self.multiple
            nearest = f"{below} or {below + self.multiple}" if below else f"{self.multiple}"
            raise RequestError(
                f"{name}={value} is not a multiple of {self.multiple}; the nearest valid size is {nearest}"
            )
        return value


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
    if resize is not None:
        checks.choice("resize", resize, pictures.RESIZES)
    height = None if size.height is None and resize is None else size.check("height", size.height)
    width = None if size.width is None and resize is None else size.check("width", size.width)
    pixels, of_image = _read_all("image", pictures.read, image, prompts, batch_size)
    covers: list[np.ndarray] = []
    of_mask = of_image
    if mask is not None:
        covers, of_mask = _read_all("mask", pictures.read_mask, mask, prompts, batch_size)
    index: list[int] = []
    made: dict[tuple[int, int], int] = {}
    made_of, masks = [], []
    for place, cover in zip(of_image, of_mask, strict=True):
        if (place, cover) not in made:
            made[place, cover] = len(made)
            made_of.append(pictures.prepare(pixels[place], height, width, resize, size.multiple, "image"))
            if mask is not None:
                if covers[cover].shape != pixels[place].shape[:2]:
                    theirs, ours = (" x ".join(map(str, one.shape[1::-1])) for one in (covers[cover], pixels[place]))
                    raise RequestError(f"the mask is {theirs} and the image {ours} pixels; they must be of one size")
                masks.append(pictures.prepare(covers[cover], height, width, resize, size.multiple, "mask"))
        index.append(made[place, cover])
    shapes = dict.fromkeys(f"{picture.shape[1]} x {picture.shape[0]}" for picture in made_of)
    if len(shapes) > 1:
        two = " and ".join([*shapes][:2])
        raise RequestError(f"images are of different sizes, {two}; resize='cover' makes them one")
    return Pictures(np.stack(made_of), np.stack(masks) if masks else None, tuple(index))


def _read_all(name: str, read: Any, value: Any, prompts: int, batch_size: int) -> tuple[list[np.ndarray], list[int]]:
    """Each picture once, and which of them each image of the request takes."""
    several = as_list(value)
    if several is None:
        return [read(value, name)], [0] * (prompts * batch_size)
    if not several:
        raise RequestError(f"{name} is an empty list; give at least one")
    read_all = [read(one, f"{name}[{place}]") for place, one in enumerate(several)]
    return read_all, list(per_image(name, range(len(several)), prompts, batch_size))


def as_list(value: Any) -> list[Any] | None:
    """Several pictures as a list: a list, an array (N, height, width, 3), or a `Result`; None for a single one."""
    if hasattr(value, "images"):
        value = value.images
    if isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim == 4):
        return list(value)
    return None


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
