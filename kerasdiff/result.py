"""The result of a generation: images, and how to regenerate them."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import pathlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from kerasdiff import validation
from kerasdiff.diffusion.overrides import Overrides, floats
from kerasdiff.errors import KerasdiffError, OutOfMemoryError, RequestError
from kerasdiff.images.animation import write_animation
from kerasdiff.images.tools import check_format_limit, grid
from kerasdiff.images.writer import FORMATS, KINDS, encode, kind_of, numbered, write
from kerasdiff.metadata import Provenance, Receipt, save_arguments
from kerasdiff.request import Request
from kerasdiff.runtime import memory

if TYPE_CHECKING:
    from kerasdiff.diffusion.pipeline import GeneratedImage

_LOG = logging.getLogger("kerasdiff")


@dataclasses.dataclass(frozen=True, repr=False)
class Result:
    """Images of one request; `len`, indexing, iteration and `np.asarray` act on them.

    Attributes:
        images: uint8 (N, height, width, 3), of the second pass's size if the request has one (`hires`), and larger if
            it has an upscaler.
        latents: float32 (N, height / 8, width / 8, 4), the decoder's input.
        request: the request with every default filled in.
        nsfw: whether the model's safety filter flagged each image; None if it did not run.
        origin: model, precision and versions, for the metadata; None if unknown.
        given: name and SHA-256 of each array that replaced a prompt or a seed.
        places: indices of these images in the request; None if they are all.
        stopped_after: the step after which a callback stopped the run, `latents` and `images` being that step's
            latents and prediction; None for a whole run.
    """

    images: np.ndarray
    latents: np.ndarray
    request: Request
    model: str
    nsfw: list[bool] | None = None
    origin: Provenance | None = None
    given: Mapping[str, str] = dataclasses.field(default_factory=dict)
    places: tuple[int, ...] | None = None
    stopped_after: int | None = None

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each image."""
        return tuple(self.request.seeds[index] for index in self._places)

    @property
    def _places(self) -> Sequence[int]:
        return range(len(self.request)) if self.places is None else self.places

    def only(self, *places: int) -> Result:
        """A result with only these images, by index, each with its metadata."""
        chosen = list(places)
        return dataclasses.replace(
            self,
            images=self.images[chosen],
            latents=self.latents[chosen],
            nsfw=None if self.nsfw is None else [self.nsfw[index] for index in chosen],
            places=tuple(self._places[index] for index in chosen),
        )

    def receipt(self, place: int) -> Receipt:
        """The metadata that `save` embeds in the file of an image, by its index.

        Raises:
            RequestError: the origin of the image is unknown.
        """
        if self.origin is None:
            raise RequestError("there is no metadata: the origin of these images is unknown")
        nsfw = None if self.nsfw is None else self.nsfw[place]
        return self.origin.receipt(self.request, self._places[place], self.given, nsfw)

    def __repr__(self) -> str:
        count, height, width, _ = self.images.shape
        images = f"{count} image{'' if count == 1 else 's'} of {height} x {width} by {self.model}"
        return f"<Result: {images}, seeds {', '.join(map(str, self.seeds))}>"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index]

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.images)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.images, dtype=dtype, copy=copy)

    def save(self, path: str | os.PathLike[str], *, metadata: bool = True) -> list[pathlib.Path]:
        """Writes each image: `path` itself for one, path_1, path_2, ... for several.

        Each file embeds AUTOMATIC1111's text, the whole request for `kerasdiff.replay`, and the note that the image
        was generated, unless `metadata` is False. A file is written completely or not at all.

        Raises:
            RequestError: the path does not end in .png, .jpg, .jpeg or .webp, its folder does not exist, or the
                images are too large for the format.
        """
        path, metadata = pathlib.Path(validation.path("path", path)), validation.boolean("metadata", metadata)
        kind = kind_of(path)
        check_format_limit("an image", kind, *self.images.shape[1:3])
        paths = numbered(path, len(self))
        for index, (image, target) in enumerate(zip(self.images, paths, strict=True)):
            write(Image.fromarray(image), target, **(self.told(index, kind) if metadata else {}))
        return paths

    def encode(self, format: str = "png", *, metadata: bool = True) -> list[bytes]:  # noqa: A002
        """The bytes of the files that `save` would write, for a server's response, an archive or a bucket.

        Raises:
            RequestError: a format other than "png", "jpg" and "webp", or images that are too large for it.
        """
        metadata = validation.boolean("metadata", metadata)
        kind = KINDS[f".{validation.choice('format', format, FORMATS)}"]
        check_format_limit("an image", kind, *self.images.shape[1:3])
        return [
            encode(Image.fromarray(image), kind, **(self.told(index, kind) if metadata else {}))
            for index, image in enumerate(self.images)
        ]

    def told(self, place: int, kind: str) -> dict[str, Any]:
        """An image's metadata as arguments of `PIL.Image.Image.save`; empty, with a warning, if it cannot be written.

        `place` is the index of the image, `kind` is "PNG", "JPEG" or "WEBP".
        """
        if self.origin is None:
            return {}
        try:
            return save_arguments(self.receipt(place), kind)
        except RequestError as error:  # the image itself must not be lost
            warnings.warn(f"saved without metadata: {error}", stacklevel=3)
            return {}

    def grid(self, columns: int | None = None) -> Image.Image:
        """All images in one grid, without margins; leftover cells are white. `columns` None is nearly square.

        Raises:
            RequestError: `columns` is not an integer of at least 1, or the grid is too large.
        """
        if columns is not None:
            columns = min(validation.integer("columns", columns, 1), len(self))
        return grid(self.images, cols=columns)

    def save_grid(self, path: str | os.PathLike[str], columns: int | None = None) -> pathlib.Path:
        """Writes `grid(columns)` to one file, without metadata; see `save` for paths and errors."""
        path = pathlib.Path(validation.path("path", path))
        kind, sheet = kind_of(path), self.grid(columns)
        check_format_limit("the grid", kind, sheet.height, sheet.width)
        return write(sheet, path)

    def save_animation(self, path: str | os.PathLike[str], fps: float = 12.0) -> pathlib.Path:
        """Writes the images in their order as one animation: .gif, .webp, or .mp4, which needs ffmpeg on the PATH.

        It repeats for ever, and has no metadata. A GIF has 256 colours per image, and at most 50 images a second.

        Raises:
            RequestError: another extension, `fps` out of range, no ffmpeg, or the file cannot be written.
        """
        return write_animation(self.images, path, fps)

    def _repr_png_(self) -> bytes:
        """The grid, which a notebook shows for a result."""
        return encode(self.grid(), "PNG")


class ResultBuilder:
    """Makes results of the images of a request, as they are generated."""

    def __init__(
        self,
        request: Request,
        overrides: Overrides,
        model: str,
        origin: Provenance,
        latents: tuple[int, ...],
        size: tuple[int, int],
    ) -> None:
        """`latents` is the shape of an image's latents, `size` its height and width."""
        self._request, self._model, self._origin, self._latents, self._size = request, model, origin, latents, size
        self._given = {
            name: _sha256(floats(name, array)) for name, array in vars(overrides).items() if array is not None
        }

    def each(self, images: Iterable[GeneratedImage]) -> Iterator[Result]:
        """A result of each image as it comes."""
        for image in images:
            assert image.image is not None
            yield self._result([image], image.image[None], image.latents[None])

    def all(self, generated: Iterable[GeneratedImage]) -> Result:
        """One result of all images; of those that are finished if it is interrupted.

        Raises:
            OutOfMemoryError: they do not fit into memory together; nothing was generated.
        """
        request, (height, width) = self._request, self._size
        shape = (len(request), height, width, 3)
        if np.prod(shape, dtype=float) > memory.host_free():
            raise OutOfMemoryError(
                f"{len(request)} images of {width} x {height} do not fit into memory together, where "
                f"{memory.host_free() / 1e9:.1f} GB are free; take them one by one from Generator.stream, or write "
                "them to --output_dir"
            )
        images, latents = np.empty(shape, "uint8"), np.empty((len(request), *self._latents), "float32")
        finished: list[GeneratedImage] = []
        try:
            for image in generated:
                images[image.index], latents[image.index] = image.image, image.latents
                finished.append(dataclasses.replace(image, image=images[image.index], latents=latents[image.index]))
        except KeyboardInterrupt:
            if not finished:
                raise
            _LOG.warning("interrupted: %d of %d images are finished", len(finished), len(request))
        except KerasdiffError as error:
            count = len(finished)
            error.finished = self._result(finished, images[:count], latents[:count]) if finished else None
            raise
        return self._result(finished, images[: len(finished)], latents[: len(finished)])

    def _result(self, finished: Sequence[GeneratedImage], images: np.ndarray, latents: np.ndarray) -> Result:
        indices, stopped_after = tuple(image.index for image in finished), finished[-1].stopped_after
        stopped = {} if stopped_after is None else {"callback": _sha256(stopped_after)}
        return Result(
            images,
            latents,
            self._request,
            self._model,
            nsfw=None if finished[0].nsfw is None else [bool(image.nsfw) for image in finished],
            origin=self._origin,
            given={**self._given, **stopped},
            places=None if len(indices) == len(self._request) else indices,
            stopped_after=stopped_after,
        )


def _sha256(array: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(np.asarray(array, "float32")).tobytes()).hexdigest()
