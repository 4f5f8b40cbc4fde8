"""Files of tensors that `torch.save` wrote, without PyTorch and without running anything: where each tensor lies.

Both forms are read, the zip archive and the older one of pickles in a row; the first bytes decide, and there is no
second try. This is the border to files of strangers: see docs/reliability.md.
"""

from __future__ import annotations

import dataclasses
import itertools
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from kerasdiff.runtime import torch_zip
from kerasdiff.runtime.torch_objects import DamagedFileError, ForeignPickleError, ModuleState, Storage, StoredTensor
from kerasdiff.runtime.torch_pickle import unpickle

# How both forms begin; pickles of another kind, and archives of tar, begin otherwise.
ZIP = b"PK\x03\x04"
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + b"\x80\x02M\xe9\x03."
_MOST_TENSORS, _MOST_VALUES, _DEEPEST, _LONGEST_NAME = 100_000, 500_000, 6, 1000
# How many bytes tensors may have in sum for each byte of the file's numbers, as they may share them.
_MOST_SHARED, _ALWAYS = 4, 2**20
# Where a trainer has the tensors, beside what it needs itself.
_WRAPPER = "state_dict"


@dataclasses.dataclass(frozen=True)
class TensorPlace:
    """Where a tensor is in a file: from one byte to another; strides are in bytes, None if it has no gaps."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    strides: tuple[int, ...] | None = None


def read_places(data: Any) -> tuple[dict[str, str], dict[str, TensorPlace]]:
    """The short texts and numbers beside the tensors of a file, and where its tensors are, by their dotted names.

    Tensors are taken from `state_dict`, if there is one.

    Raises:
        DamagedFileError: the file is damaged, or other than `torch.save` writes it.
        ForeignPickleError: it has more than tensors, or others than plain ones.
    """
    try:
        value, storages = _legacy(data) if data[: len(LEGACY)] == LEGACY else _archive(data)
    except struct.error:
        raise DamagedFileError("it breaks off") from None
    if not _is_mapping(value):
        raise ForeignPickleError("it has no tensors with names")
    texts = {key: str(one) for key, one in value.items() if type(key) is str and type(one) in (str, int, float)}
    inner = value.get(_WRAPPER)
    tensors: dict[str, StoredTensor] = {}
    for name, tensor in _leaves(inner if _is_mapping(inner) else value):
        if name in tensors:
            raise DamagedFileError(f"duplicate tensor {name[:80]!r}")
        if len(tensors) >= _MOST_TENSORS:
            raise DamagedFileError(f"it has more than {_MOST_TENSORS} tensors")
        tensors[name] = tensor
    held = sum(storage.nbytes for storage in storages)
    if sum(tensor.nbytes for tensor in tensors.values()) > _MOST_SHARED * held + _ALWAYS:
        raise ForeignPickleError("its tensors share numbers, and would take far more memory than the file")
    return texts, {name: _place(tensor) for name, tensor in tensors.items()}


def _is_mapping(value: Any) -> bool:
    return isinstance(value, dict)


def _leaves(mapping: Mapping[Any, Any]) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors in nested mappings; what is of no use is left out."""
    seen = itertools.count()  # a mapping may be in many others, and in itself
    yield from _inside(mapping, "", 1, seen)


def _inside(
    mapping: Mapping[Any, Any], prefix: str, depth: int, seen: Iterator[int]
) -> Iterator[tuple[str, StoredTensor]]:
    if depth > _DEEPEST:
        raise DamagedFileError(f"its mappings are nested more than {_DEEPEST} times")
    for key, value in mapping.items():
        if next(seen) >= _MOST_VALUES:
            raise DamagedFileError(f"its mappings have more than {_MOST_VALUES} values")
        if type(value) is ModuleState:
            value = value.parameters
        if type(key) is not str or not (type(value) is StoredTensor or _is_mapping(value)):
            continue
        name = prefix + key
        if len(name) > _LONGEST_NAME:
            raise DamagedFileError("a name is too long")
        if type(value) is StoredTensor:
            yield name, value
        else:
            yield from _inside(value, f"{name}.", depth + 1, seen)


def _place(tensor: StoredTensor) -> TensorPlace:
    begin = tensor.storage.begin + tensor.offset * tensor.itemsize
    strides = tuple(stride * tensor.itemsize for stride in tensor.strides)
    last = sum((side - 1) * stride for side, stride in zip(tensor.shape, strides, strict=True))
    end = begin + last + tensor.itemsize if tensor.nbytes else begin
    return TensorPlace(tensor.dtype, tensor.shape, begin, end, strides)


class _Storages:
    """The storages that a pickle names: each has one type and one count of numbers."""

    def __init__(self) -> None:
        self.found: dict[str, Storage] = {}

    def __call__(self, key: str, dtype: str, itemsize: int, count: int) -> Storage:
        storage = self.found.get(key)
        if storage is None:
            storage = self.found[key] = Storage(dtype, itemsize, count)
            self.place(key, storage)
        elif (storage.dtype, storage.count) != (dtype, count):
            raise DamagedFileError(f"storage {key[:80]!r} is described in two ways")
        return storage

    def place(self, key: str, storage: Storage) -> None:
        """Says where a new storage begins, as far as that is known."""


class _OfArchive(_Storages):
    def __init__(self, records: Mapping[str, torch_zip.Record]) -> None:
        super().__init__()
        self._records = records

    def place(self, key: str, storage: Storage) -> None:
        record = self._records.get(key)
        if record is None:
            raise DamagedFileError(f"storage {key[:80]!r} is missing")
        if record.size != storage.nbytes:
            raise DamagedFileError(f"storage {key[:80]!r} has {record.size} bytes, and should have {storage.nbytes}")
        storage.begin = record.begin


def _archive(data: Any) -> tuple[Any, list[Storage]]:
    pickle, records = torch_zip.read_archive(data)
    storages = _OfArchive(records)
    value, end = unpickle(pickle, 0, storages)
    if end != len(pickle):
        raise DamagedFileError("something follows its pickle")
    return value, list(storages.found.values())


def _legacy(data: Any) -> tuple[Any, list[Storage]]:
    """The older form: after the beginning a pickle about the machine, the object, the keys of storages, and these."""
    none, storages = _Storages(), _Storages()
    machine, place = unpickle(data, len(LEGACY), none)
    value, place = unpickle(data, place, storages)
    keys, place = unpickle(data, place, none)
    if not _is_mapping(machine) or none.found or type(keys) is not list:
        raise DamagedFileError("its pickles are not those of torch.save")
    if machine.get("little_endian") is not True:
        raise DamagedFileError("its numbers are big-endian; save it again on a usual machine")
    if not all(type(key) is str for key in keys) or sorted(keys) != sorted(storages.found):
        raise DamagedFileError("its storages are others than its tensors need")
    for key in keys:
        storage = storages.found[key]
        if place + 8 > len(data) or struct.unpack_from("<q", data, place)[0] != storage.count:
            raise DamagedFileError(f"storage {key[:80]!r} is not where it should be")
        storage.begin = place + 8
        place = storage.begin + storage.nbytes
    if place != len(data):
        raise DamagedFileError("it is shorter or longer than its tensors")
    return value, list(storages.found.values())
