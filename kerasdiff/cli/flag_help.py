"""How flags are shown in --help."""

from __future__ import annotations

import re
import textwrap
from typing import Any

from absl import flags

# Columns of a line, and where the text of a flag begins.
WIDTH, _COLUMN = 100, 36
_PLACEHOLDERS = {"int": "N", "float": "X", "string": "TEXT", "multi string": "TEXT"}


def group_help(title: str, group: flags.FlagValues) -> str:
    """The flags of a group with their texts, below its title.

    A text may begin with what the flag's value is called, "<FILE>: ", as absl's own texts of enumerations do.
    """
    # absl lists a flag with a short name twice.
    return "\n".join([title, *(_flag_help(group[name]) for name in group if group[name].name == name)])


def _flag_help(flag: flags.Flag[Any]) -> str:
    text, _, _ = (flag.help or "").partition(";\n")  # behind it absl explains that a flag may be repeated
    named = re.match(r"<(.+?)>: ", text)
    if flag.boolean:
        called = flag.name if flag.default is False else f"[no]{flag.name}"
    else:
        called = f"{flag.name}={named[1] if named else _PLACEHOLDERS[flag.flag_type()]}"
    text = text[named.end() if named else 0 :]
    if flag.default is not None and flag.default is not False and flag.default != []:
        text += f" (default: {_shown(flag.default)})"
    left = f"  {f'-{flag.short_name}, ' if flag.short_name else ''}--{called}"
    lines = textwrap.wrap(text, WIDTH - _COLUMN)
    if len(left) < _COLUMN - 1:
        left = left.ljust(_COLUMN) + lines.pop(0)
    return "\n".join([left, *(" " * _COLUMN + line for line in lines)])


def _shown(default: Any) -> str:
    if isinstance(default, list):
        return ",".join(default)
    return "on" if default is True else f"{default:g}" if isinstance(default, float) else str(default)
