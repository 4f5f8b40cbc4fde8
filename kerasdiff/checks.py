"""Checks of single arguments: each gives the value back, or one line that says what was wrong and what is right."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import Any

from kerasdiff.errors import RequestError


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """A whole number within bounds."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise RequestError(f"{name} must be a whole number, not {kind(value)}")
    number = int(value)
    if number < low or (high is not None and number > high):
        allowed = f"at least {low}" if high is None else f"between {low} and {high}"
        raise RequestError(f"{name}={number} is out of range; it must be {allowed}")
    return number


def real(name: str, value: Any, low: float | None = None, high: float | None = None) -> float:
    """A finite number within bounds."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise RequestError(f"{name} must be a number, not {kind(value)}")
    number = float(value)
    if not math.isfinite(number):
        raise RequestError(f"{name}={value} is not finite")
    if (low is not None and number < low) or (high is not None and number > high):
        allowed = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
        raise RequestError(f"{name}={number:g} is out of range; it must be {allowed}")
    return number


def reals(name: str, values: Any) -> tuple[float, ...]:
    """Finite numbers, at least one."""
    if hasattr(values, "tolist"):
        values = values.tolist()
    if not isinstance(values, list | tuple):
        raise RequestError(f"{name} must be a list of numbers, not {kind(values)}")
    if not values:
        raise RequestError(f"{name} is an empty list; give at least one number")
    return tuple(real(f"{name}[{index}]", value) for index, value in enumerate(values))


def boolean(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise RequestError(f"{name} must be True or False, not {kind(value)}")
    return value


def choice(name: str, value: Any, known: Iterable[str]) -> str:
    """One of the known names; if it is not, the message has the nearest one."""
    names = sorted(known)
    if value in names:
        return value
    near = difflib.get_close_matches(str(value).lower(), names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise RequestError(f"{name}={value!r} is unknown; {hint}known: {', '.join(names)}")


def kind(value: Any) -> str:
    """What a value is, in a message."""
    return "None" if value is None else f"{type(value).__name__} ({value!r:.40})"
