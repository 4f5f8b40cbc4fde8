"""Checks of single arguments: each returns the value, or raises one line on what is wrong and what would be right."""

from __future__ import annotations

import contextlib
import difflib
import math
import numbers
import os
import re
import reprlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from kerasdiff.errors import RequestError

# Entries of a list, unless it says otherwise, and characters of a text.
MOST = 100_000
# Characters of a value in a message, and of a name that may be misspelt.
_SHOWN, _NAME = 60, 100
# To Python these are integers.
_NO_NUMBERS = (bool, np.timedelta64)
_REPR = reprlib.Repr()
_REPR.maxother = _SHOWN


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """An integer within bounds."""
    if not isinstance(value, numbers.Integral) or isinstance(value, _NO_NUMBERS):
        raise RequestError(f"{name} must be an integer, not {kind(value)}")
    number = int(value)
    if number < low or (high is not None and number > high):
        allowed = f"at least {low}" if high is None else f"between {low} and {high}"
        raise RequestError(f"{name}={shown(number)} is out of range; it must be {allowed}")
    return number


def real(name: str, value: Any, low: float | None = None, high: float | None = None) -> float:
    """A finite number within bounds."""
    if not isinstance(value, numbers.Real) or isinstance(value, _NO_NUMBERS):
        raise RequestError(f"{name} must be a number, not {kind(value)}")
    try:
        number = float(value)
    except OverflowError:  # of an integer or a fraction
        raise RequestError(f"{name}={shown(value)} is too large; floats end at 1.8e308") from None
    if not math.isfinite(number):
        raise RequestError(f"{name}={number} is not finite; give a number")
    if (low is not None and number < low) or (high is not None and number > high):
        allowed = f"at least {low:g}" if high is None else f"between {low:g} and {high:g}"
        raise RequestError(f"{name}={plain(number)} is out of range; it must be {allowed}")
    return number


def reals(
    name: str, values: Any, low: float | None = None, high: float | None = None, most: int = MOST
) -> tuple[float, ...]:
    """Finite numbers within bounds, at least one."""
    entries = unwrapped(name, values, most)
    if not isinstance(entries, list):
        raise RequestError(f"{name} must be a list of numbers, not {kind(values)}")
    if not entries:
        raise RequestError(f"{name} is an empty list; give at least one number")
    return tuple(real(f"{name}[{index}]", value, low, high) for index, value in enumerate(entries))


def text(name: str, value: Any) -> str:
    """A text of at most `MOST` characters."""
    if not isinstance(value, str):
        raise RequestError(f"{name} must be a string, not {kind(value)}")
    if len(value) > MOST:
        raise RequestError(f"{name} has {len(value)} characters; it may have at most {MOST}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{name} has half of a surrogate pair at character {error.start}, which is no text; leave it out"
        ) from None
    return str(value)


def texts(name: str, value: Any) -> tuple[str, ...]:
    """A text or several, at least one."""
    entries = unwrapped(name, value)
    if isinstance(entries, str):
        return (text(name, entries),)
    if not isinstance(entries, list):
        raise RequestError(f"{name} must be a string or a list of strings, not {kind(value)}")
    if not entries:
        raise RequestError(f"{name} is an empty list; give at least one string")
    return tuple(text(f"{name}[{index}]", entry) for index, entry in enumerate(entries))


def boolean(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        raise RequestError(f"{name} must be True or False, not {kind(value)}")
    return bool(value)


def choice(name: str, value: Any, known: Iterable[str]) -> str:
    """One of the known names; otherwise the message has the nearest one."""
    names = sorted(known)
    if isinstance(value, str) and value in names:
        return str(value)
    near = nearest(value, names)
    hint = f"did you mean {near!r}? " if near else ""
    raise RequestError(f"{name}={shown(value)} is unknown; {hint}known: {', '.join(names)}")


def nearest(value: Any, names: Iterable[str]) -> str | None:
    """The known name that `value` may be a misspelling of, if there is one."""
    if not isinstance(value, str) or len(value) > _NAME:
        return None
    return next(iter(difflib.get_close_matches(value.lower(), names, n=1)), None)


def path(name: str, value: Any) -> str:
    """The path of a file, whether or not it exists."""
    if not isinstance(value, str | os.PathLike):
        raise RequestError(f"{name} must be a path, not {kind(value)}")
    with reading(name):
        decoded = os.fsdecode(value)
        os.fsencode(decoded)
    if "\0" in decoded:
        raise RequestError(f"{name}={shown(decoded)} is not a path: it has a zero character")
    return decoded


def unwrapped(name: str, value: Any, most: int = MOST) -> Any:
    """A list, tuple or array as a new list, a 0-d array as its value; anything else unchanged.

    Whatever has `tolist` is an array: NumPy's, a tensor, a column of a table. An array of dates is not, because its
    list would be one of plain numbers. The number of entries is checked before they are read.
    """
    several = isinstance(value, list | tuple)
    with reading(name):
        of_dates = isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "mM"
        if not several and (not hasattr(value, "tolist") or of_dates):
            return value
        # Those of the nested lists that `tolist` makes, counting an axis of length 0 as one.
        shape = getattr(value, "shape", None)
        count = len(value) if shape is None else math.prod(max(1, side) for side in shape)
        if count <= most:
            return list(value) if several else value.tolist()
    raise RequestError(f"{name} has {count} entries; it may have at most {most}")


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns any error from the code of a user's object into a RequestError of one line."""
    try:
        yield
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(f"{name} cannot be read: {reason(error)}") from error


@contextlib.contextmanager
def advising(advice: str) -> Iterator[None]:
    """Adds to the message of a RequestError what to do."""
    try:
        yield
    except RequestError as error:
        raise RequestError(f"{error}; {advice}") from None


def reason(error: BaseException) -> str:
    """The message of an error on one short line; its type if there is none."""
    try:
        said = str(error)
    except Exception:  # of a foreign class
        said = ""
    return line(said or type(error).__name__)


def kind(value: Any) -> str:
    """The type and value of an object, for a message."""
    return "None" if value is None else f"{line(type(value).__name__, _SHOWN)} ({shown(value)})"


def shown(value: Any) -> str:
    """Any value as one short line, for a message."""
    try:
        said = repr(value[:_SHOWN]) if isinstance(value, str | bytes | bytearray) else _REPR.repr(value)
    except Exception:  # of a foreign class, or a number with more digits than Python writes
        said = f"<{type(value).__name__}>"
    return line(said, _SHOWN)


def plain(number: float) -> str:
    """A number as people write it: 7, not 7.0."""
    return str(number).removesuffix(".0")


def line(message: str, most: int = 2 * _SHOWN) -> str:
    """A text as one line of at most `most` printable characters."""
    joined = re.sub(r"\s*\n\s*", " ", message[: 10 * most])
    printable = "".join(letter if letter.isprintable() else " " for letter in joined)
    return printable if len(printable) <= most else f"{printable[: most - 3]}..."
