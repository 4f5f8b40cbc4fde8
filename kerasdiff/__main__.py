"""kerasdiff and python -m kerasdiff: one command, or images of the prompts that are given."""

from __future__ import annotations

import pkgutil
import sys

# Command -> its program and its main function. Both are imported when it runs, the second one not for --help.
COMMANDS = {
    "generate": ("kerasdiff.cli.options:GENERATE", "kerasdiff.cli.generate_command:generate"),
    "batch": ("kerasdiff.cli.options:BATCH", "kerasdiff.cli.generate_command:batch"),
    "bulk": ("kerasdiff.cli.bulk_options:PROGRAM", "kerasdiff.cli.bulk_command:main"),
    "interpolate": ("kerasdiff.cli.interpolate_command:PROGRAM", "kerasdiff.cli.interpolate_command:main"),
    "info": ("kerasdiff.info:PROGRAM", "kerasdiff.info:main"),
    "convert": ("kerasdiff.convert:PROGRAM", "kerasdiff.convert:main"),
    "upscale": ("kerasdiff.cli.upscale_command:PROGRAM", "kerasdiff.cli.upscale_command:main"),
    "verify": ("kerasdiff.verify:PROGRAM", "kerasdiff.verify:main"),
    "bench": ("kerasdiff.bench.__main__:PROGRAM", "kerasdiff.bench.__main__:main"),
}


def run() -> None:
    """The console entry point."""
    arguments = sys.argv[1:]
    command = arguments.pop(0) if arguments and arguments[0] in COMMANDS else "generate"
    program, main = COMMANDS[command]
    pkgutil.resolve_name(program).run(main, arguments)


if __name__ == "__main__":
    run()
