"""Strict reading of settings in JSON files from strangers."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from kerasdiff.errors import ModelError

_LARGEST_JSON = 64 * 2**20


class JsonSettings:
    """Values of a JSON file, or of a part of one; a ModelError names the one that is of another kind than expected."""

    def __init__(self, path: pathlib.Path, values: dict[str, Any] | None = None) -> None:
        self.path, self._values = path, read_json(path) if values is None else values

    def get(self, name: str, default: Any, kind: type | tuple[type, ...]) -> Any:
        """The value of a key; `default` if it is missing or null."""
        value = self._values.get(name, default)
        kind = (int, float) if kind is float else kind
        fits = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
        if value is not None and not fits:
            raise ModelError(f"{self.path}: {name}={value!r:.80} is not of the expected kind")
        return default if value is None else value

    def fields(self, table: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
        """Values by our names of them, from a table of our name -> (key, default)."""
        return {ours: self.get(key, default, type(default)) for ours, (key, default) in table.items()}

    def numbers(self, name: str, default: list[int] | int, count: int | None = None) -> tuple[int, ...]:
        """Positive whole numbers; with `count`, a single one stands for so many."""
        value = self.get(name, default, (int, list))
        values = [value] * (count or 1) if isinstance(value, int) else value
        if not values or not all(type(number) is int and number > 0 for number in values):
            raise ModelError(f"{self.path}: {name}={value!r:.80} must hold positive whole numbers")
        if count is not None and len(values) != count:
            raise ModelError(f"{self.path}: {name} has {len(values)} entries, {count} are needed")
        return tuple(values)

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

    def require(self, fixed: Mapping[str, Any]) -> None:
        """Refuses other values than these; a missing key is as good."""
        for name, expected in fixed.items():
            value = self._values.get(name, expected)
            if value != expected and not (expected is None and value is False):
                raise ModelError(f"{self.path}: {name}={value!r:.80} is not supported; only {expected!r} is")


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
