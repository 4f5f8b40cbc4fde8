"""Strict reading of settings in JSON files from strangers."""

import json
import pathlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from kerasdiff.errors import ModelError

_LARGEST_JSON = 64 * 2**20
_Made = TypeVar("_Made")


class JsonSettings:
    """Values of a JSON file, or of a part of one; a ModelError names the one that is of another kind than expected."""

    def __init__(self, path: pathlib.Path, values: dict[str, Any] | None = None) -> None:
        self.path, self._values = path, read_json(path) if values is None else values

    def get(self, name: str, default: Any, kind: type | tuple[type, ...]) -> Any:
        """The value of a key; `default` if it is missing or null. A whole number may be written as 64.0."""
        value = self._values.get(name, default)
        value = value if kind is float else _whole(value)
        kind = (int, float) if kind is float else kind
        kinds = kind if isinstance(kind, tuple) else (kind,)
        fits = isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)
        if value is not None and not fits:
            raise ModelError(f"{self.path}: {name}={value!r:.80} is not of the expected kind")
        return default if value is None else value

    def choice(self, name: str, known: Mapping[Any, _Made], default: Any) -> _Made:
        """What a value stands for; a missing key is the default, and null a value like any other."""
        value = self._values.get(name, default)
        if not isinstance(value, str | None) or value not in known:
            shown = ", ".join(map(repr, known))
            raise ModelError(f"{self.path}: {name}={value!r:.80} is not supported; known: {shown}")
        return known[value]

    def made(self, kind: Callable[..., _Made], **fields: Any) -> _Made:
        """A configuration of these fields; a ModelError of its own names this file too."""
        try:
            return kind(**fields)
        except ModelError as error:
            raise ModelError(f"{self.path}: {error}") from None

    def fields(self, table: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
        """Values by our names of them, from a table of our name -> (key, default)."""
        return {ours: self.get(key, default, type(default)) for ours, (key, default) in table.items()}

    def numbers(
        self, name: str, default: list[int] | int, count: int | None = None, used: Sequence[bool] = ()
    ) -> tuple[int, ...]:
        """Positive whole numbers; with `count`, a single one stands for so many.

        Those that are not `used` may be missing, and are 1 then.
        """
        value = self.get(name, default, (int, list))
        values = [value] * (count or 1) if isinstance(value, int) else list(map(_whole, value))
        if len(used) == len(values):
            values = [number if number or uses else 1 for number, uses in zip(values, used, strict=True)]
        if not values or not all(type(number) is int and number > 0 for number in values):
            raise ModelError(f"{self.path}: {name}={value!r:.80} must hold positive whole numbers")
        if count is not None and len(values) != count:
            raise ModelError(f"{self.path}: {name} has {len(values)} entries, {count} are needed")
        return tuple(values)

    def per_level(self, lists: Mapping[str, Sequence[bool]]) -> "JsonSettings":
        """The same with one value in place of a list per level that has it at all levels that use it."""
        values = dict(self._values)
        for name, used in lists.items():
            value = values.get(name)
            if isinstance(value, list):
                if len(value) != len(used):
                    raise ModelError(f"{self.path}: {name} has {len(value)} entries, {len(used)} are needed")
                counting = [one for one, uses in zip(value, used, strict=True) if uses] or [None]
                if any(one != counting[0] for one in counting):
                    raise ModelError(
                        f"{self.path}: {name}={value!r:.80} is not supported; only the same at all levels is"
                    )
                values[name] = counting[0]
        return JsonSettings(self.path, values)

    def size(self, name: str, default: int) -> int | tuple[int, int]:
        """A number of pixels for the shorter side, or a height and a width."""
        value = self.get(name, default, (int, dict))
        sides = {"shortest_edge": value} if isinstance(value, int) else value
        whole = all(type(side) is int for side in sides.values())
        if not whole or set(sides) not in ({"shortest_edge"}, {"height", "width"}):
            raise ModelError(
                f"{self.path}: {name}={value!r:.80} is not supported; a number, shortest_edge, or height and width are"
            )
        return sides["shortest_edge"] if len(sides) == 1 else (sides["height"], sides["width"])

    def require(self, fixed: Mapping[str, Any], meanings: Mapping[str, str] | None = None) -> None:
        """Refuses values that mean something else than these; `meanings` says what they are a sign of.

        A missing key is as good, null, for what is off also false and 0, and a list in which all are. A tuple has all
        that is as good, the default first; null must be named there.
        """
        for name, expected in fixed.items():
            if name in self._values and not _is_same(self._values[name], expected):
                shown = expected[0] if isinstance(expected, tuple) else expected
                meaning = f" ({meanings[name]})" if meanings and name in meanings else ""
                raise ModelError(
                    f"{self.path}: {name}={self._values[name]!r:.80} is not supported{meaning}; only {shown!r} is"
                )

    def report_unknown(self, known: Iterable[str]) -> None:
        """Logs one warning that names all settings but the `known`, null, and what begins with "_"."""
        unknown = sorted({name for name, value in self._values.items() if value is not None} - set(known))
        shown = ", ".join(f"{name}={self._values[name]!r:.40}" for name in unknown if not name.startswith("_"))
        if shown:
            warnings.warn(f"{self.path} has settings that are not known and not used: {shown:.400}", stacklevel=2)


def written(config: Any, table: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    """The inverse of `JsonSettings.fields`."""
    return {key: getattr(config, ours) for ours, (key, _) in table.items()}


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_same(value: Any, expected: Any, depth: int = 2) -> bool:
    if isinstance(value, list) and value and depth:
        return all(_is_same(one, expected, depth - 1) for one in value)
    if isinstance(expected, tuple):
        return value in expected
    return value is None or value == expected or not (value or expected)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object from a file; raises ModelError if there is something else in it."""
    try:
        if path.stat().st_size > _LARGEST_JSON:
            raise ModelError(f"{path} is too large for a settings file")
        values = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path} holds {type(values).__name__}, not a JSON object")
    return values
