"""Warnings to users, which a block can suppress without the filters of the whole process."""

import contextlib
import contextvars
import warnings
from collections.abc import Iterator

_is_suppressed = contextvars.ContextVar("is_suppressed", default=False)


def warn(message: str, stacklevel: int = 1) -> None:
    """As `warnings.warn`, unless this thread is in a block of `suppressed`."""
    if not _is_suppressed.get():
        warnings.warn(message, stacklevel=stacklevel + 1)


@contextlib.contextmanager
def suppressed() -> Iterator[None]:
    """Suppresses warnings; not `warnings.catch_warnings`, which puts back what another thread had set."""
    token = _is_suppressed.set(True)
    try:
        yield
    finally:
        _is_suppressed.reset(token)
