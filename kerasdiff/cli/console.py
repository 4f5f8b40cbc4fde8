"""What programs print: results on stdout, and one line for anything else on stderr."""

import contextlib
import io
import json
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any


class OutputError(Exception):
    """Stdout cannot be written to; the cause is an `OSError`."""


class LineHandler(logging.Handler):
    """Logged messages as lines on what stderr is at that moment, each with the name of its logger."""

    def emit(self, record: logging.LogRecord) -> None:
        print_error(f"{record.name}: {record.getMessage()}")


def print_line(line: str) -> None:
    """Prints a line of results, at once; an OutputError if stdout cannot be written to."""
    try:
        print(line, flush=True)
    except OSError as error:
        raise OutputError from error


def print_json(values: Mapping[str, Any]) -> None:
    """Prints an object as a line of JSON; raises as `print_line` does."""
    print_line(json.dumps(values, allow_nan=False))


def print_error(line: str) -> None:
    """Prints a line on stderr, if that can be written to."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def open_streams() -> None:
    """Opens closed standard streams, or what is printed would go to the first file that is opened."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            if null != number:
                os.close(null)
            setattr(sys, name, os.fdopen(number, "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may have bytes that are not text
            stream.reconfigure(errors="backslashreplace")


def discard_streams() -> None:
    """Discards whatever is still buffered, which would fail once more at the end."""
    with open(os.devnull, "wb") as null:
        for number in (1, 2):
            os.dup2(null.fileno(), number)
