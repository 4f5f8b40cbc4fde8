"""The names that occur in PyTorch's files of tensors, and what each stands for here.

Nothing is imported: a name is a text that is looked up in these tables, and any other is an error. What only
accompanies tensors, such as a trainer's callbacks, becomes a value of which nothing is kept.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

_MOST_AXES = 16
_LARGEST, _LARGEST_EMPTY = 2**63, 2**31
_SHOWN = 80


class DamagedFileError(ValueError):
    """What no file that PyTorch wrote is like."""


class ForeignPickleError(ValueError):
    """What a file of tensors does not have: a name or an operation that is not in the tables here."""


# Our name of a type, which is safetensors', and the bytes of a number.
STORAGES = {
    "torch.FloatStorage": ("F32", 4),
    "torch.HalfStorage": ("F16", 2),
    "torch.BFloat16Storage": ("BF16", 2),
    "torch.DoubleStorage": ("F64", 8),
    "torch.LongStorage": ("I64", 8),
    "torch.IntStorage": ("I32", 4),
    "torch.ShortStorage": ("I16", 2),
    "torch.CharStorage": ("I8", 1),
    "torch.ByteStorage": ("U8", 1),
    "torch.BoolStorage": ("BOOL", 1),
    "torch.storage.UntypedStorage": ("", 1),
}
# Of tensors that say their type themselves.
_DTYPES = {
    "torch.float32": ("F32", 4),
    "torch.float16": ("F16", 2),
    "torch.bfloat16": ("BF16", 2),
    "torch.float64": ("F64", 8),
    "torch.int64": ("I64", 8),
    "torch.int32": ("I32", 4),
    "torch.int16": ("I16", 2),
    "torch.int8": ("I8", 1),
    "torch.uint8": ("U8", 1),
    "torch.uint16": ("U16", 2),
    "torch.uint32": ("U32", 4),
    "torch.uint64": ("U64", 8),
    "torch.bool": ("BOOL", 1),
    "torch.float8_e4m3fn": ("F8_E4M3", 1),
    "torch.float8_e5m2": ("F8_E5M2", 1),
    "torch.float8_e4m3fnuz": ("F8_E4M3FNUZ", 1),
    "torch.float8_e5m2fnuz": ("F8_E5M2FNUZ", 1),
}
_BUILTINS = ("set", "frozenset", "bytearray", "object", "dict", "list", "tuple", "int", "long", "float", "bool", "str")
# What stands beside tensors in files of trainers, and is of no use here.
INERT = frozenset(
    {
        *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _BUILTINS),
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
        *("numpy.dtype", "numpy.ndarray", "_codecs.encode", "torch.Size", "torch.device"),
        *("argparse.Namespace", "collections.defaultdict", "collections.Counter", "typing.Any"),
        *(
            f"{where}.callbacks.model_checkpoint.ModelCheckpoint"
            for where in ("pytorch_lightning", "lightning.pytorch")
        ),
        *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
        *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata"),
        *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "String", "Integer", "Float", "Boolean")),
    }
)
_ORDERED, PARAMETERS = "collections.OrderedDict", "torch.nn.modules.container.ParameterDict"
# Kinds of tensors that have no numbers as they are multiplied.
_MEANINGS = {
    "torch._utils._rebuild_qtensor": "of quantised numbers",
    "torch._utils._rebuild_sparse_tensor": "of sparse tensors",
    "torch._utils._rebuild_sparse_csr_tensor": "of sparse tensors",
    "torch._utils._rebuild_meta_tensor_no_storage": "of tensors without values",
    "torch.ComplexFloatStorage": "of complex numbers",
    "torch.ComplexDoubleStorage": "of complex numbers",
}


@dataclasses.dataclass(frozen=True)
class Named:
    """A name of a module's part."""

    path: str


class InertValue:
    """What stands for an object that is of no use here."""

    __slots__ = ()


class ModuleState:
    """What is used of a saved `ParameterDict`: its parameters, by name."""

    __slots__ = ("parameters",)

    def __init__(self) -> None:
        self.parameters: dict[Any, Any] = {}


@dataclasses.dataclass(eq=False)
class Storage:
    """A row of numbers in the file, from the byte `begin`; `dtype` is "" if tensors say it."""

    dtype: str
    itemsize: int
    count: int
    begin: int = -1

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return self.count * self.itemsize


@dataclasses.dataclass(frozen=True, eq=False)
class StoredTensor:
    """A view of a storage that lies within it; offset and strides count numbers."""

    storage: Storage
    dtype: str
    itemsize: int
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of its numbers."""
        return math.prod(self.shape) * self.itemsize


def named(path: str) -> Named:
    """A name that is known; ForeignPickleError for any other."""
    if path in _KNOWN:
        return Named(path)
    if len(path) > _SHOWN:
        path = f"{path[:_SHOWN]}..."
    meaning = f" ({_MEANINGS[path]})" if path in _MEANINGS else ""
    raise ForeignPickleError(f"it names {path}{meaning}, which is no part of a file of plain tensors")


def fill(target: dict[Any, Any], pairs: Iterable[Any]) -> None:
    """Puts pairs into a mapping, whose keys are texts, numbers or names, each once."""
    for key, value in pairs:
        if type(key) not in (str, int, Named):
            raise DamagedFileError("a key is neither a text nor a number")
        if key in target:
            raise DamagedFileError(f"duplicate name {str(key)[:_SHOWN]!r}")
        target[key] = value


def _ordered(arguments: tuple[Any, ...]) -> Any:
    found: collections.OrderedDict[Any, Any] = collections.OrderedDict()
    if arguments:  # as Python 2 saved it
        pairs = arguments[0]
        if len(arguments) != 1 or type(pairs) is not list:
            raise DamagedFileError("an OrderedDict is made of what is no list")
        if any(type(pair) not in (list, tuple) or len(pair) != 2 for pair in pairs):
            raise DamagedFileError("an OrderedDict is made of what are no pairs")
        fill(found, pairs)
    return found


def _tensor_v1(arguments: tuple[Any, ...]) -> StoredTensor:
    if len(arguments) != 4:
        raise DamagedFileError("a tensor is described wrongly")
    return _tensor(arguments)


def _tensor_v2(arguments: tuple[Any, ...]) -> StoredTensor:
    if len(arguments) not in (6, 7):
        raise DamagedFileError("a tensor is described wrongly")
    _check_extras(arguments[4], arguments[5], *arguments[6:])
    return _tensor(arguments)


def _tensor_v3(arguments: tuple[Any, ...]) -> StoredTensor:
    if len(arguments) not in (7, 8) or type(arguments[6]) is not Named or arguments[6].path not in _DTYPES:
        raise DamagedFileError("a tensor is described wrongly")
    _check_extras(arguments[4], arguments[5], *arguments[7:])
    return _tensor(arguments, _DTYPES[arguments[6].path])


def _parameter(arguments: tuple[Any, ...]) -> StoredTensor:
    if len(arguments) != 3 or type(arguments[0]) is not StoredTensor:
        raise DamagedFileError("a parameter is described wrongly")
    _check_extras(arguments[1], arguments[2])
    return arguments[0]


def _check_extras(requires_grad: Any, hooks: Any, metadata: Any = None) -> None:
    """ForeignPickleError if a tensor is more than its numbers: hooks are code, metadata says that they are negated."""
    if type(requires_grad) is not bool:
        raise DamagedFileError("a tensor is described wrongly")
    for extra in (hooks, metadata):
        if extra is not None and (type(extra) not in (dict, collections.OrderedDict) or extra):
            raise ForeignPickleError("it has a tensor with hooks or metadata")


def _tensor(arguments: tuple[Any, ...], dtype: tuple[str, int] | None = None) -> StoredTensor:
    storage, offset, shape, strides = arguments[:4]
    if type(storage) is not Storage or type(shape) is not tuple or type(strides) is not tuple:
        raise DamagedFileError("a tensor is described wrongly")
    if (dtype is None) != bool(storage.dtype):
        raise DamagedFileError("a tensor has two types, or none")
    numbers = (offset, *shape, *strides)
    if not all(type(number) is int and 0 <= number < _LARGEST for number in numbers):
        raise DamagedFileError("a tensor's shape is not of whole numbers")
    if len(shape) != len(strides) or len(shape) > _MOST_AXES:
        raise DamagedFileError("a tensor has other strides than axes, or too many")
    kind, itemsize = dtype or (storage.dtype, storage.itemsize)
    count, there = math.prod(shape), storage.nbytes // itemsize
    last = offset + sum((side - 1) * stride for side, stride in zip(shape, strides, strict=True)) if count else offset
    if last > there or (count and last == there):
        raise DamagedFileError("a tensor lies outside of its storage")
    if not count and math.prod(side or 1 for side in shape) >= _LARGEST_EMPTY:
        raise DamagedFileError("an empty tensor has sides that no array can have")
    if count > there:
        raise ForeignPickleError("it has a tensor that repeats its numbers (expand), which takes more than there is")
    # What is never looked at may be any number, too large for an array's.
    strides = tuple(stride if side > 1 and count else 0 for side, stride in zip(shape, strides, strict=True))
    return StoredTensor(storage, kind, itemsize, offset, shape, strides)


CALLS: dict[str, Callable[[tuple[Any, ...]], Any]] = {
    _ORDERED: _ordered,
    "torch._utils._rebuild_tensor": _tensor_v1,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
}
_KNOWN = frozenset({*STORAGES, *_DTYPES, *INERT, *CALLS, PARAMETERS})
