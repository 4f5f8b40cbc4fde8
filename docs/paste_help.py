"""Pastes what --help prints, and the table of a request's arguments, into pages: python docs/paste_help.py."""

from __future__ import annotations

import pathlib
import pkgutil
import re

from kerasdiff.__main__ import COMMANDS
from kerasdiff.cli.program import Program
from kerasdiff.request_arguments import ARGUMENTS, DEFAULTS

DOCS = pathlib.Path(__file__).parent
PAGES = (DOCS / "command_line.md", DOCS / "api" / "request_result.md")


def programs() -> list[Program]:
    """All programs, in the order of the commands."""
    return [pkgutil.resolve_name(program) for program, _ in COMMANDS.values()]


def arguments() -> str:
    """One row per argument of a request."""
    lines = ["| argument | default | what it is |", "|---|---|---|"]
    for name, default in DEFAULTS.items():
        text = ARGUMENTS[name].description.replace("<", "\\<").replace("|", "\\|")
        lines.append(f"| `{name}` | `{default!r}` | {text} |")
    return "\n".join(lines)


def filled(text: str) -> str:
    """A page with everything between its markers made anew."""
    blocks = {program.name: f"```text\n{program.help()}\n```" for program in programs()}
    for name, block in {**blocks, "arguments": arguments()}.items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        pasted = f"{start}\n{block}\n{end}"
        text = re.sub(f"{start}.*?{end}", lambda _: pasted, text, flags=re.DOTALL)  # noqa: B023
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text("utf-8")), "utf-8")
