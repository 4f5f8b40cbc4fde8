"""From generated images to results."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from kerasdiff.diffusion.overrides import Overrides, floats
from kerasdiff.diffusion.pipeline import GeneratedImage
from kerasdiff.errors import KerasdiffError, OutOfMemoryError
from kerasdiff.metadata import Provenance
from kerasdiff.request import Request
from kerasdiff.result import Result
from kerasdiff.runtime import memory

_LOG = logging.getLogger("kerasdiff")


class Collector:
    """Makes results of the images of a request."""

    def __init__(
        self, request: Request, overrides: Overrides, model: str, origin: Provenance, latents: tuple[int, ...]
    ) -> None:
        self._request, self._model, self._origin, self._latents = request, model, origin, latents
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
        request = self._request
        shape = (len(request), request.height, request.width, 3)
        if np.prod(shape, dtype=float) > memory.host_free():
            raise OutOfMemoryError(
                f"{len(request)} images of {request.width} x {request.height} do not fit into memory together, where "
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
