"""The exceptions of kerasdiff.

KerasdiffError
├── RequestError (ValueError)          an argument of a generation is wrong
│   └── batch.CannotWriteError         a folder of a job cannot be written to, or its disk is full
├── ModelError (ValueError)            a model cannot be found, read or built
├── NonFiniteError (ArithmeticError)   a stage gives infinities or NaNs, in float32 too
└── OutOfMemoryError (MemoryError)     not even one image at a time, in parts, fits into memory
"""

from __future__ import annotations

from typing import Any


class KerasdiffError(Exception):
    """The base class: catching it catches every error that kerasdiff itself raises.

    `finished` is a `kerasdiff.Result` of the images that were finished before the error, or None.

    Example:
        ```python
        try:
            kerasdiff.generate("a red circle", batch_size=4).save("out.png")
        except kerasdiff.KerasdiffError as error:
            if error.finished is not None:
                error.finished.save("out.png")
            print(error)
        ```
    """

    finished: Any = None


class RequestError(KerasdiffError, ValueError):
    """An argument is wrong; the message says which one, why, and what would be right."""


class ModelError(KerasdiffError, ValueError):
    """A model or its weights cannot be found, read or built."""


class NonFiniteError(KerasdiffError, ArithmeticError):
    """A stage gives numbers that are not finite, in float32 too; the message names it."""


class OutOfMemoryError(KerasdiffError, MemoryError):
    """A stage does not fit into memory; the message says what was tried, what is free and what would help."""
