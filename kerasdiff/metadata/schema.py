"""Reads the fields of a dataclass from JSON, each checked against its declared type."""

import contextlib
import dataclasses
import math
import types
import typing
from collections.abc import Collection, Mapping
from typing import Any

from kerasdiff._version import __version__
from kerasdiff.errors import RequestError
from kerasdiff.guidance import GuidanceScale
from kerasdiff.samplers.noise import MAX_SEED

# Declared -> what JSON may have there. An int is exact as a float's value, and bool is no int here.
_KINDS: dict[Any, tuple[type, ...]] = {
    str: (str,),
    bool: (bool,),
    int: (int,),
    float: (int, float),
    types.NoneType: (types.NoneType,),
    Any: (str, bool, int, float, types.NoneType),
}
_GUIDANCE = float | tuple[float, ...] | tuple[tuple[float, ...], ...]


def read_fields(
    cls: type, values: Any, version: str, without: Collection[str], optional: Collection[str] = ()
) -> dict[str, Any]:
    """Name and value of every field of a dataclass but those of `without`; lists have become tuples.

    Those of `optional` may be missing, and have their default then.
    """
    if not isinstance(values, dict):
        raise RequestError(f"the metadata is damaged: its {cls.__name__.lower()} is not a JSON object")
    hints = {name: hint for name, hint in typing.get_type_hints(cls).items() if name not in without}
    strange = [f"does not have {name}" for name in hints if name not in values and name not in optional]
    strange += [f"has {name!r:.40}" for name in values if name not in hints]
    if strange:
        raise RequestError(
            f"the metadata was written by kerasdiff {version}, and kerasdiff {__version__} cannot read it: "
            f"it {', '.join(strange[:5])}; use kerasdiff {version}"
        )
    restored = {}
    for name in values:
        try:
            restored[name] = _restored(values[name], hints[name])
        except (TypeError, RequestError):
            raise RequestError(f"the metadata is damaged: its {name} is of a wrong kind or out of range") from None
    return restored


def _restored(value: Any, hint: Any) -> Any:
    """A JSON value as its declared type has it, as deep as the type goes; a TypeError if it does not fit."""
    if hint is GuidanceScale:
        return GuidanceScale.from_plain(_restored(value, _GUIDANCE))
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        fields = typing.get_type_hints(hint)
        needed = {field.name for field in dataclasses.fields(hint) if field.default is dataclasses.MISSING}
        if needed <= set(value) <= set(fields):
            return hint(**{name: _restored(one, fields[name]) for name, one in value.items()})  # type: ignore[operator]
    inside = typing.get_args(hint)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        for one in inside:
            with contextlib.suppress(TypeError):
                return _restored(value, one)
    elif typing.get_origin(hint) is tuple and isinstance(value, list):
        hints = inside[:1] * len(value) if Ellipsis in inside else inside
        if len(hints) == len(value):
            return tuple(map(_restored, value, hints))
    elif typing.get_origin(hint) is Mapping and isinstance(value, dict):
        return {key: _restored(one, inside[1]) for key, one in value.items()}
    elif hint is Any and isinstance(value, list):  # an option of a sampler
        return _restored(value, tuple[float, ...])
    elif type(value) in _KINDS.get(hint, ()) and _within_range(value):
        return value
    raise TypeError


def _within_range(value: Any) -> bool:
    if isinstance(value, int):
        return abs(value) <= MAX_SEED
    return not isinstance(value, float) or math.isfinite(value)
