"""What is remembered from one process to the next: empty files below `KERASDIFF_CACHE`, or `~/.cache/kerasdiff`.

Where none can be written, nothing is remembered, and that is no error.
"""

from __future__ import annotations

import os
import pathlib

from kerasdiff.errors import ModelError

# The variable that keeps a process from adding anything; workers that share a cache have it from the second one on.
READ_ONLY = "KERASDIFF_CACHE_READ_ONLY"
_DEFAULT_GB = 20.0


def is_there(name: str) -> bool:
    """Whether a marker was left before."""
    try:
        return (folder() / name).exists()
    except (OSError, RuntimeError):
        return False


def leave(name: str) -> bool:
    """Leaves a marker; whether it is the first, of several processes as well."""
    try:
        (folder() / name).parent.mkdir(parents=True, exist_ok=True)
        (folder() / name).touch(exist_ok=False)
    except (OSError, RuntimeError):
        return not is_there(name)
    return True


def folder() -> pathlib.Path:
    """Where things are kept between processes; RuntimeError where no home folder is known."""
    return pathlib.Path(os.environ.get("KERASDIFF_CACHE") or "~/.cache/kerasdiff").expanduser()


def is_read_only() -> bool:
    """Whether nothing is to be added to the cache."""
    return os.environ.get(READ_ONLY, "") not in ("", "0")


def limit() -> float:
    """Bytes that the cache of weights may take; 0 is no cache of anything.

    Raises:
        ModelError: `KERASDIFF_CACHE_GB` is no number of gigabytes.
    """
    text = os.environ.get("KERASDIFF_CACHE_GB", "")
    try:
        gigabytes = float(text) if text else _DEFAULT_GB
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < 1e9:
        raise ModelError(f"KERASDIFF_CACHE_GB={text!r} is not a number of gigabytes; 0 switches the cache off")
    return gigabytes * 1e9
