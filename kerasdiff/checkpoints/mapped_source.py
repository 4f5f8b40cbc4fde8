"""From another format's tensors to our parameters: each is found, checked and used exactly once.

A format is a function from one of our names to the places where its value may be. Everything is
checked by names and shapes before a single value is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from kerasdiff.errors import ModelError
from kerasdiff.runtime.safetensors_map import DTYPES, TensorFiles

_SHOWN = 5
LEAVES = {"kernel": "weight", "gamma": "weight", "embeddings": "weight", "beta": "bias", "bias": "bias"}


@dataclasses.dataclass(frozen=True)
class TensorSlice:
    """Where a value is: a tensor, or one of `parts` equal parts of its rows."""

    key: str
    part: int = 0
    parts: int = 1


class MappedSource:
    """Parameters of one network from foreign tensors.

    Args:
        tensors: the file or files.
        expected: our names and shapes, from `parameters_of`.
        places: our name -> where its value may be, the first that exists is taken.
        ignored: tensors that may be left over.

    Raises:
        ModelError: tensors are missing, left over, or of another shape or kind; the first few are named.
    """

    def __init__(
        self,
        tensors: TensorFiles,
        expected: dict[str, tuple[int, ...]],
        places: Callable[[str], Iterable[TensorSlice]],
        ignored: Callable[[str], bool],
    ) -> None:
        self._tensors = tensors
        self._places: dict[str, TensorSlice] = {}
        self._last: str | None = None
        problems: list[str] = []
        used: dict[str, int] = {}
        for name, shape in expected.items():
            candidates = list(places(name))
            place = next((one for one in candidates if one.key in tensors), None)
            if place is None:
                problems.append(f"{candidates[0].key} is missing")
                continue
            problem = self._problem(place, name, shape)
            if problem is not None:
                problems.append(problem)
            self._places[name] = place
            used[place.key] = used.get(place.key, 0) + 1
            if used[place.key] > place.parts:
                problems.append(f"{place.key} would be used twice")
        problems += [f"{key} is not part of this model" for key in tensors if key not in used and not ignored(key)]
        if problems:
            more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            raise ModelError(f"{tensors.where} does not fit the model: {'; '.join(problems[:_SHOWN])}{more}")

    def _problem(self, place: TensorSlice, name: str, shape: tuple[int, ...]) -> str | None:
        dtype, found = self._tensors.dtype(place.key), self._tensors.shape(place.key)
        if dtype not in DTYPES:
            return f"{place.key} holds {dtype}, not floating-point numbers"
        if not found or found[0] % place.parts:
            return f"{place.key} has shape {list(found)}"
        rows = (found[0] // place.parts, *found[1:])
        if _turned_shape(rows, name, len(shape)) != shape:
            return f"{place.key} has shape {list(found)}, which does not make {list(shape)}"
        return None

    def __call__(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        place = self._places[name]
        # What was read before is copied by now, and its pages would count as ours.
        if self._last is not None:
            self._tensors.release(self._last)
        self._last = place.key
        values = self._tensors.read(place.key)
        rows = values.shape[0] // place.parts
        return _turned(values[place.part * rows : (place.part + 1) * rows], name, len(shape))


def _turned(values: np.ndarray, name: str, dimensions: int) -> np.ndarray:
    """A value as Keras has it: kernels go from (out, in, ...) to (..., in, out)."""
    if not name.endswith(".kernel"):
        return values
    if dimensions == 2 and values.ndim == 4 and values.shape[2:] == (1, 1):
        values = values[:, :, 0, 0]
    if dimensions == 2 and values.ndim == 2:
        return values.T
    if dimensions == 4 and values.ndim == 4:
        return values.transpose(2, 3, 1, 0)
    return values


def _turned_shape(shape: tuple[int, ...], name: str, dimensions: int) -> tuple[int, ...]:
    return _turned(np.broadcast_to(np.float32(0), shape), name, dimensions).shape
