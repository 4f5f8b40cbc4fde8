"""What is remembered from one process to the next: empty files below `KERASDIFF_CACHE`, or `~/.cache/kerasdiff`.

Where none can be written, nothing is remembered, and that is no error.
"""

from __future__ import annotations

import os
import pathlib


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
