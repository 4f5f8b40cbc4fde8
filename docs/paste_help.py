"""Pastes what --help prints into docs/command_line.md: python docs/paste_help.py."""

from __future__ import annotations

import pathlib
import pkgutil
import re

from kerasdiff.__main__ import COMMANDS
from kerasdiff.cli.program import Program

PAGE = pathlib.Path(__file__).parent / "command_line.md"


def programs() -> list[Program]:
    """All programs, in the order of `kerasdiff --help`."""
    return [pkgutil.resolve_name(program) for program, _ in COMMANDS.values()]


def filled(text: str) -> str:
    """The page with every --help between its markers made anew."""
    for program in programs():
        start, end = f"<!-- {program.name} -->", f"<!-- end of {program.name} -->"
        pasted = f"{start}\n```text\n{program.help()}\n```\n{end}"
        text = re.sub(f"{start}.*?{end}", lambda _: pasted, text, flags=re.DOTALL)  # noqa: B023
    return text


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text("utf-8")), "utf-8")
