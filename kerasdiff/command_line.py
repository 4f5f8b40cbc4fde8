"""What the programs of this package share: how wrong flags are reported."""

from __future__ import annotations

import sys
from collections.abc import Callable

import absl.logging
from absl import app, flags


def parser(name: str, usage: str) -> Callable[[list[str]], list[str]]:
    """absl's flag parser for `app.run`; a wrong flag is one line on stderr and exit status 2.

    Args:
        name: of the program, as its lines begin.
        usage: in one line.
    """

    def parse(argv: list[str]) -> list[str]:
        # Where nothing is set, absl shows what any library logs, such as each request of a download.
        absl.logging.set_verbosity(absl.logging.WARNING)
        try:
            if {"--help", "--helpfull", "-h", "-?"} & set(argv):
                return app.parse_flags_with_usage(argv)
            return flags.FLAGS(argv)
        except flags.Error as error:
            print(f"{name}: {error}; {usage}", file=sys.stderr)
            sys.exit(2)

    return parse
