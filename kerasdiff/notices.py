"""Warnings to users, which a block can keep back without the filters of the whole process."""

import contextlib
import contextvars
import warnings
from collections.abc import Iterator

_kept_back = contextvars.ContextVar("kept_back", default=False)


def warn(message: str, stacklevel: int = 1) -> None:
    """As `warnings.warn`, unless this thread is in a block of `kept_back`."""
    if not _kept_back.get():
        warnings.warn(message, stacklevel=stacklevel + 1)


@contextlib.contextmanager
def kept_back() -> Iterator[None]:
    """Keeps warnings back; not `warnings.catch_warnings`, which puts back what another thread had set."""
    token = _kept_back.set(True)
    try:
        yield
    finally:
        _kept_back.reset(token)
