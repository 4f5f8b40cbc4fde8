"""Everything kerasdiff raises by itself.

KerasdiffError
├── RequestError (ValueError)          an argument of a generation is wrong
│   └── jobs.CannotWriteError          a folder of a job cannot be written to, or its disk is full
├── ModelError (ValueError)            a model cannot be found, read or built
├── NonFiniteError (ArithmeticError)   a stage gives infinities or NaNs, in float32 too
└── OutOfMemoryError (MemoryError)     not even one image at a time, in parts, fits into memory
"""

from __future__ import annotations

from typing import Any


class KerasdiffError(Exception):
    """The root: catching it catches every error that kerasdiff raises by itself.

    Attributes:
        finished: a `kerasdiff.Result` of the images that were finished when it failed, or None.

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
    """An argument is wrong; the message says which one, why, and what would be right.

    Example:
        ```python
        try:
            kerasdiff.generate("a red circle", sampler="eular")
        except kerasdiff.RequestError as error:
            print(error)  # sampler='eular' is unknown; did you mean 'euler'? known: ...
        ```
    """


class ModelError(KerasdiffError, ValueError):
    """A model or its weights cannot be found, read or built.

    Example:
        ```python
        try:
            kerasdiff.Generator("no-such-model")
        except kerasdiff.ModelError as error:
            print(error)  # model='no-such-model' is unknown; known: ...
        ```
    """


class NonFiniteError(KerasdiffError, ArithmeticError):
    """A stage gives numbers that are not finite, in float32 too; the message names it.

    Example:
        ```python
        try:
            result = kerasdiff.generate("a red circle", guidance_scale=3)
        except kerasdiff.NonFiniteError as error:
            print(error)  # names the stage
            result = error.finished  # the images before it, or None
        ```
    """


class OutOfMemoryError(KerasdiffError, MemoryError):
    """A stage does not fit into memory; the message says what was tried, what is free and what would help.

    Example:
        ```python
        try:
            result = kerasdiff.generate("a red circle", batch_size=4)
        except kerasdiff.OutOfMemoryError as error:
            print(error)
            result = error.finished  # the images before it, or None
        ```
    """
