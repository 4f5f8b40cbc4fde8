"""Everything kerasdiff raises by itself.

KerasdiffError
├── RequestError (ValueError)   an argument of a generation is wrong
└── ModelError (ValueError)     a model cannot be found, read or built
"""

from __future__ import annotations


class KerasdiffError(Exception):
    """The root: catching it catches every error that kerasdiff raises by itself."""


class RequestError(KerasdiffError, ValueError):
    """An argument is wrong; the message says which one, why, and what would be right."""


class ModelError(KerasdiffError, ValueError):
    """A model or its weights cannot be found, read or built."""
