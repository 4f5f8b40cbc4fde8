"""From finished images to results."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from kerasdiff.diffusion.overrides import GivenArrays, floats
from kerasdiff.diffusion.pipeline import Finished
from kerasdiff.errors import KerasdiffError, OutOfMemoryError
from kerasdiff.metadata import Provenance
from kerasdiff.request import Request
from kerasdiff.result import Result
from kerasdiff.runtime import memory

_LOG = logging.getLogger("kerasdiff")


class Collecting:
    """Makes results of what a request comes to.

    Args:
        request: what was asked.
        given: arrays instead of prompts and seeds.
        model: its name.
        origin: for receipts.
        latents: shape of one image's, (h, w, C).
    """

    def __init__(
        self, request: Request, given: GivenArrays, model: str, origin: Provenance, latents: tuple[int, ...]
    ) -> None:
        self._request, self._model, self._origin, self._latents = request, model, origin, latents
        arrays = {name: getattr(given, name) for name in ("latents", "prompt_embeds", "negative_prompt_embeds")}
        self._given = {name: _sha256(floats(name, array)) for name, array in arrays.items() if array is not None}

    def each(self, finished: Iterable[Finished]) -> Iterator[Result]:
        """A result of each image as it comes."""
        for one in finished:
            yield self._result([one], one.image[None], one.latents[None])

    def all(self, draw: Callable[[], Iterable[Finished]]) -> Result:
        """One result of all images; of those that are finished if it is interrupted.

        Raises:
            OutOfMemoryError: they do not fit into memory together; nothing was drawn.
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
        finished: list[Finished] = []

        def result() -> Result:
            return self._result(finished, images[: len(finished)], latents[: len(finished)])

        try:
            for one in draw():
                images[one.place], latents[one.place] = one.image, one.latents
                finished.append(one._replace(image=images[one.place], latents=latents[one.place]))
        except KeyboardInterrupt:
            if not finished:
                raise
            _LOG.warning("interrupted: %d of %d images are finished", len(finished), len(request))
        except KerasdiffError as error:
            error.finished = result() if finished else None
            raise
        return result()

    def _result(self, finished: Sequence[Finished], images: np.ndarray, latents: np.ndarray) -> Result:
        places, stopped_after = tuple(one.place for one in finished), finished[-1].stopped_after
        stopped = {} if stopped_after is None else {"callback": _sha256(stopped_after)}
        return Result(
            images,
            latents,
            self._request,
            self._model,
            nsfw=None if finished[0].nsfw is None else [bool(one.nsfw) for one in finished],
            origin=self._origin,
            given={**self._given, **stopped},
            places=None if len(places) == len(self._request) else places,
            stopped_after=stopped_after,
        )


def _sha256(array: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(np.asarray(array, "float32")).tobytes()).hexdigest()
