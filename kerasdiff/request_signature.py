"""The arguments of a request in the signature and the docstring of a function that takes them as `**arguments`."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable
from typing import Any, TypeVar

from kerasdiff.request_arguments import ARGUMENTS, DEFAULTS, TYPES

_Function = TypeVar("_Function", bound=Callable[..., Any])
# In a docstring, the entry of `**arguments` and the lines that continue it.
_ENTRY = re.compile(r"^( *)\*\*arguments:.*\n(?:\1 +.*\n)*", re.MULTILINE)


def with_request_arguments(function: _Function) -> _Function:
    """Shows the arguments that a function takes as `**arguments` in its signature and its docstring, for `help`."""
    signature = inspect.signature(function)
    named = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    listed = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=DEFAULTS[name], annotation=annotation)
        for name, annotation in TYPES.items()
    ]
    function.__signature__ = signature.replace(parameters=[*named, *listed])  # type: ignore[attr-defined]
    function.__doc__ = _ENTRY.sub(_described, function.__doc__ or "")
    return function


def _described(entry: re.Match[str]) -> str:
    """The entries of all arguments in the place of the one of `**arguments`."""
    indent = entry[1]
    return "".join(
        textwrap.fill(
            f"{name}: {ARGUMENTS[name].description}", 120, initial_indent=indent, subsequent_indent=f"{indent}    "
        )
        + "\n"
        for name in DEFAULTS
    )
