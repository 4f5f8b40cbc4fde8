"""From another format's tensors to our parameters: each is found and checked, and used exactly once.

A format is a function from one of our names to the tensors that may hold its value. All names and shapes are checked
before any value is read.
"""

import collections
import dataclasses
import warnings
from collections.abc import Callable, Iterable

import numpy as np

from kerasdiff.checkpoints import recognition
from kerasdiff.errors import ModelError
from kerasdiff.runtime.safetensors_map import DTYPES, TensorFiles

_SHOWN = 5
LEAVES = {"kernel": "weight", "gamma": "weight", "embeddings": "weight", "beta": "bias", "bias": "bias"}


@dataclasses.dataclass(frozen=True)
class TensorSlice:
    """A tensor of a file, or one of `parts` equal parts of its rows; `turned` is a kernel as Keras has it."""

    key: str
    part: int = 0
    parts: int = 1
    turned: bool = False


class MappedSource:
    """Parameters of one network from foreign tensors, for the names and shapes of `parameters_of`.

    `slices` gives what may hold the value of a name; the first that exists is taken. A ModelError names the first few
    tensors that are missing or of another shape or kind, or says what architecture it is whose tensors are left over.
    Others that are left over without being `ignored` are in `left_over`.
    """

    rereadable = True

    def __init__(
        self,
        tensors: TensorFiles,
        expected: dict[str, tuple[int, ...]],
        slices: Callable[[str], Iterable[TensorSlice]],
        ignored: Callable[[str], bool],
    ) -> None:
        self._tensors = tensors
        self._slices: dict[str, TensorSlice] = {}
        self._last: str | None = None
        problems: list[str] = []
        used: collections.Counter[str] = collections.Counter()
        for name, shape in expected.items():
            candidates = list(slices(name))
            chosen = next((candidate for candidate in candidates if candidate.key in tensors), None)
            if chosen is None:
                problems.append(f"{candidates[0].key} is missing")
                continue
            problem = self._problem(chosen, name, shape)
            if problem is not None:
                problems.append(problem)
            self._slices[name] = chosen
            used[chosen.key] += 1
            if used[chosen.key] > chosen.parts:
                problems.append(f"{chosen.key} would be used twice")
        self.left_over = [key for key in tensors if key not in used and not ignored(key)]
        recognition.refuse_left_over(tensors.where, self.left_over)
        if problems:
            problems += [f"{key} is not part of this model" for key in self.left_over]
            more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
            raise ModelError(f"{tensors.where} does not fit the model: {'; '.join(problems[:_SHOWN])}{more}")

    def _problem(self, tensor: TensorSlice, name: str, shape: tuple[int, ...]) -> str | None:
        dtype, stored = self._tensors.dtype(tensor.key), self._tensors.shape(tensor.key)
        if dtype not in DTYPES:
            return f"{tensor.key} holds {dtype}, not floating-point numbers"
        if not stored or stored[0] % tensor.parts:
            return f"{tensor.key} has shape {list(stored)}"
        rows = np.broadcast_to(np.float32(0), (stored[0] // tensor.parts, *stored[1:]))
        if _transposed(rows.T if tensor.turned else rows, name, len(shape)).shape != shape:
            return f"{tensor.key} has shape {list(stored)}, which does not make {list(shape)}"
        return None

    def __call__(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        tensor = self._slices[name]
        # What was read before is copied by now, and its pages would count as ours.
        if self._last is not None:
            self._tensors.release(self._last)
        self._last = tensor.key
        values = self._tensors.read(tensor.key)
        rows = values.shape[0] // tensor.parts
        values = values[tensor.part * rows : (tensor.part + 1) * rows]
        return _transposed(values.T if tensor.turned else values, name, len(shape))


def _transposed(values: np.ndarray, name: str, dimensions: int) -> np.ndarray:
    """A value as Keras has it: kernels go from (out, in, ...) to (..., in, out); sides of 1 at the end do not count."""
    lengths = values.shape
    while len(lengths) > dimensions and lengths[-1] == 1:
        lengths = lengths[:-1]
    if name.endswith(".kernel") and len(lengths) == 2:
        lengths += (1,) * (dimensions - 2)
    values = values.reshape(lengths)
    if not name.endswith(".kernel") or values.ndim != dimensions:
        return values
    return values.T if dimensions == 2 else values.transpose(2, 3, 1, 0)


class LeftOverReport:
    """One warning for each network about tensors that a model's files have and it does not use."""

    def __init__(self) -> None:
        self._reported: set[tuple[str, str]] = set()

    def __call__(self, where: str, keys: Iterable[str]) -> None:
        """Warns how many these are and the first few, without those that were reported before."""
        new = sorted({(where, key) for key in keys} - self._reported)
        self._reported.update(new)
        if new:
            shown = ", ".join(f"{key:.80}" for _, key in new[:_SHOWN])
            more = f" and {len(new) - _SHOWN} more" if len(new) > _SHOWN else ""
            warnings.warn(f"{where} has tensors that are not used ({len(new)}): {shown}{more}", stacklevel=2)
