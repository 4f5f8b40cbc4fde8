"""The initial images and masks of a request, read and resized."""

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
# Of all initial images of a request together.
MAX_PIXELS = 2**28


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a request's images in pixels, as far as the request and its model say."""

    # As requested; None is the model's default, or the initial image's size.
    height: Any
    width: Any
    default_height: int
    default_width: int
    multiple: int

    def check(self, name: str, value: Any) -> int:
        """A checked height or width; None is the model's default."""
        return reader.check_side(name, getattr(self, f"default_{name}") if value is None else value, self.multiple)

    def both(self, height: Any, width: Any) -> tuple[int, int]:
        """A checked height and width."""
        height, width = self.check("height", height), self.check("width", width)
        if height * width > reader.MAX_PIXELS:
            raise RequestError(
                f"height={height} and width={width} make {height * width} pixels; an image may have at most "
                f"{reader.MAX_PIXELS}"
            )
        return height, width


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """The initial images and masks of a request, K of each; equal if all pixels are."""

    # uint8 (K, height, width, 3)
    images: np.ndarray
    # float32 (K, height, width), 1 where the image is repainted; None repaints all of it.
    masks: np.ndarray | None
    # Which of the K each image of the request starts from.
    index: tuple[int, ...]

    def only(self, images: Sequence[int]) -> Pictures:
        """Those of some images of the request."""
        used = sorted({self.index[image] for image in images})
        new_index = {old: new for new, old in enumerate(used)}
        masks = None if self.masks is None else self.masks[used]
        return Pictures(self.images[used], masks, tuple(new_index[self.index[image]] for image in images))

    def digests(self, image: int) -> dict[str, str]:
        """SHA-256 of the "image", and of the "mask" if there is one, of one image of the request."""
        return self._digests[self.index[image]]

    @functools.cached_property
    def _digests(self) -> list[dict[str, str]]:
        parts = {"image": self.images} if self.masks is None else {"image": self.images, "mask": self.masks}
        return [{name: _sha256(part[index]) for name, part in parts.items()} for index in range(len(self.images))]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pictures) and (self._digests, self.index) == (other._digests, other.index)

    def __hash__(self) -> int:
        return hash(self.index)


@dataclasses.dataclass(frozen=True, eq=False)
class PictureSets(Sequence[tuple[np.ndarray, ...]]):
    """For each image of a request some pictures, uint8 (h, w, 3) of any size; equal if all pixels are."""

    sets: tuple[tuple[np.ndarray, ...], ...]

    def only(self, images: Sequence[int]) -> PictureSets:
        """Those of some images of the request."""
        return PictureSets(tuple(self.sets[image] for image in images))

    @functools.cached_property
    def digests(self) -> tuple[tuple[str, ...], ...]:
        """SHA-256 of each picture."""
        known = {id(picture): picture for one in self.sets for picture in one}
        digests = {key: _sha256(picture) for key, picture in known.items()}
        return tuple(tuple(digests[id(picture)] for picture in one) for one in self.sets)

    def __getitem__(self, index: Any) -> Any:
        return self.sets[index]

    def __len__(self) -> int:
        return len(self.sets)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PictureSets) and self.digests == other.digests

    def __hash__(self) -> int:
        return hash(tuple(map(len, self.sets)))


def _sha256(pixels: np.ndarray) -> str:
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.astype("uint8").tobytes()).hexdigest()


def make_pictures(
    image: Any,
    mask: Any,
    size: Size,
    resize: str | None,
    prompts: int,
    batch_size: int,
    *,
    invert_mask: bool = False,
    whole: bool = False,
    name: str = "image",
) -> Pictures:
    """Reads initial images and masks, each once, and brings them to one size; `name` is what messages call the images.

    A mask that covers nothing is a RequestError, and so is one that covers all of its image, unless `whole` allows it.
    """
    if resize is None:
        height = None if size.height is None else size.check("height", size.height)
        width = None if size.width is None else size.check("width", size.width)
    else:
        validation.choice("resize", resize, reader.RESIZES)
        height, width = size.both(size.height, size.width)
    read_image, of_image = _reader(name, reader.read, image, prompts, batch_size)
    # Without a mask the images alone are the pairs.
    read_mask, of_mask = read_image, of_image
    if mask is not None:
        read = functools.partial(reader.read_mask, invert=invert_mask)
        read_mask, of_mask = _reader("mask", read, mask, prompts, batch_size)
    pairs = list(zip(of_image, of_mask, strict=True))
    index = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
    made: list[np.ndarray] = []
    masks: list[np.ndarray] = []
    for image_number, mask_number in index:
        pixels = read_image(image_number)
        made.append(reader.prepare(pixels, height, width, resize, size.multiple, name))
        if mask is not None:
            covered = read_mask(mask_number)
            if covered.shape != pixels.shape[:2]:
                raise RequestError(
                    f"the mask is {_size(covered)} and the image {_size(pixels)} pixels; their sizes must be the same"
                )
            masks.append(reader.prepare(covered, height, width, resize, size.multiple, "mask"))
            named = "mask" if len({*of_mask}) == 1 else f"mask[{mask_number}]"
            check_covered(named, covered, masks[-1], invert_mask, whole)
        if made[-1].shape != made[0].shape:
            several = "images" if name == "image" else f"the pictures of {name}"
            raise RequestError(
                f"{several} are of different sizes, {_size(made[0])} and {_size(made[-1])}; give resize='cover'"
            )
        if len(index) * made[0].shape[0] * made[0].shape[1] > MAX_PIXELS:
            both = "image and mask make" if name == "image" else f"{name} makes"
            raise RequestError(
                f"{both} {len(index)} pictures of {_size(made[0])} pixels; together they may have at most "
                f"{MAX_PIXELS}: split them over several calls"
            )
    return Pictures(np.stack(made), np.stack(masks) if masks else None, tuple(index[pair] for pair in pairs))


def check_covered(name: str, mask: np.ndarray, prepared: np.ndarray, inverted: bool, whole: bool) -> None:
    """Refuses a mask with which nothing, or all of the image, would be redrawn; `prepared` is what resizing made."""
    some = bool(prepared.any())
    if some and (whole or not prepared.all()):
        return
    amount = "everything" if some else "nothing"
    if mask.any() and not mask.all():
        raise RequestError(
            f"{name} covers {amount} once it is resized from {_size(mask)} to {_size(prepared)}; crop the image and "
            "the mask beforehand"
        )
    redrawn, kept = ("black", "white") if inverted else ("white", "black")
    seen = {"black": "dark or transparent", "white": "light"}[redrawn if some else kept]
    advice = "leave it out to redraw all of the image" if some else f"paint what is to be redrawn {redrawn}"
    raise RequestError(
        f"{name} covers {amount}: what is {redrawn} is redrawn ({kept} with invert_mask={not inverted}), and all of "
        f"its {_size(mask)} pixels are {seen}; {advice}"
    )


def _reader(
    name: str, read: Callable[[Any, str], np.ndarray], value: Any, prompts: int, batch_size: int
) -> tuple[Callable[[int], np.ndarray], list[int]]:
    """A function that reads a picture by number, and the number for each image of the request.

    The last picture is cached, so that reading in the order of the images reads each one once.
    """
    several = as_list(name, value)
    if several is not None and not several:
        raise RequestError(f"{name} is an empty list; give at least one")
    numbers = per_image(name, range(len(several or [value])), prompts, batch_size)

    @functools.lru_cache(maxsize=1)
    def read_number(number: int) -> np.ndarray:
        return read(value, name) if several is None else read(several[number], f"{name}[{number}]")

    return read_number, numbers


def _size(picture: np.ndarray) -> str:
    return f"{picture.shape[1]} x {picture.shape[0]}"


def as_list(name: str, value: Any) -> list[Any] | None:
    """Several pictures as a list: a list, an array (N, height, width, 3), or a `Result`; None for a single one."""
    with validation.reading(name):
        images = getattr(value, "images", value)
        if not isinstance(images, list | tuple) and not (isinstance(images, np.ndarray) and images.ndim == 4):
            return None
        if len(images) <= validation.MOST:
            return list(images)
    raise RequestError(f"{name} has {len(images)} entries; it may have at most {validation.MOST}")


def per_image(name: str, values: Sequence[T], prompts: int, batch_size: int) -> list[T]:
    """One value per image, from one for all, one per prompt or one per image."""
    count = prompts * batch_size
    if len(values) == 1:
        return [values[0]] * count
    if len(values) == prompts:
        return [value for value in values for _ in range(batch_size)]
    if len(values) != count:
        raise RequestError(
            f"{name} has {len(values)} entries for {prompts} prompts and {count} images; give one, one per "
            "prompt or one per image"
        )
    return list(values)
