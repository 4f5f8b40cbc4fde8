"""What the programs of this package share: flags in groups, their help, how they speak, and how they end."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import logging
import os
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from absl import flags

from kerasdiff._version import __version__
from kerasdiff.cli.flag_help import WIDTH, group_help
from kerasdiff.cli.signals import Ending as Ending
from kerasdiff.errors import KerasdiffError

_LEVELS = {"silent": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}
_STATUSES = {
    2: "a wrong argument, or an error; one line on stderr says which",
    130: "ended by Ctrl-C; what is finished is kept",
    143: "ended by SIGTERM, in the same way",
}
_NOTE = """\
Where no default is shown there is none, and a switch is off. --flag value is the same as
--flag=value, --noswitch turns a switch off, and -- ends the flags."""


class OutputError(Exception):
    """Stdout cannot be written to; the cause is an `OSError`."""


def printed_flags(of_json: str, progress: bool = False) -> flags.FlagValues:
    """The last group of every program.

    Args:
        of_json: what --json prints.
        progress: whether the program has a progress bar.
    """
    group = flags.FlagValues()
    flags.DEFINE_bool("json", False, of_json, flag_values=group)
    if progress:
        flags.DEFINE_bool("progress", None, "A progress bar on stderr; if not given, on a terminal.", flag_values=group)
    flags.DEFINE_enum(
        "verbosity",
        "warning",
        list(_LEVELS),
        "What is told on stderr: errors only; warnings as well; what libraries say as well; or all of it, with the "
        "traceback of an error.",
        flag_values=group,
    )
    flags.DEFINE_bool("help", False, "Print this and exit.", short_name="h", flag_values=group)
    flags.DEFINE_bool("version", False, "Print the version and exit.", flag_values=group)
    return group


class Part(flags.FlagValues):
    """Some flags of a group, for a program that has use for them only; they are the same flags.

    Args:
        whole: the group.
        without: names of the others.
    """

    def __init__(self, whole: flags.FlagValues, *without: str) -> None:
        super().__init__()
        self.__dict__["whole"] = whole
        for name in whole:
            if name not in without:
                self[name] = whole[name]

    def mark_as_parsed(self) -> None:
        """Values can be read now, by way of the whole group as well."""
        super().mark_as_parsed()
        self.__dict__["whole"].mark_as_parsed()


@dataclasses.dataclass(frozen=True)
class Program:
    """A program of this package.

    Attributes:
        name: what its lines on stderr begin with.
        about: what it is for, in one paragraph.
        usage: how it is called, in one line.
        examples: lines of a shell.
        groups: flags, by what they are about. A group is absl's `FlagValues`, so that a flag is in one of them; the
            last one is of `printed_flags`.
        status_1: what exit status 1 means; the others are the same for all programs.
        more: the end of --help.
        ending: how this process is ended.
    """

    name: str
    about: str
    usage: str
    examples: str
    groups: Mapping[str, flags.FlagValues]
    status_1: str
    more: str = ""
    ending: Ending = dataclasses.field(default_factory=Ending)

    @functools.cached_property
    def values(self) -> flags.FlagValues:
        """The flags of all groups."""
        found = flags.FlagValues()
        for group in self.groups.values():
            found.append_flag_values(group)
        return found

    @property
    def verbosity(self) -> str:
        """What is told on stderr: "silent", "warning", "info" or "debug"."""
        return str(self.values["verbosity"].value)

    @property
    def json(self) -> bool:
        """Whether stdout is for a program to read."""
        return bool(self.values["json"].value)

    @property
    def progress(self) -> bool:
        """Whether to show a progress bar."""
        asked = self.values["progress"].value
        return self.verbosity != "silent" and sys.stderr.isatty() if asked is None else asked

    def run(self, main: Callable[[list[str]], int]) -> NoReturn:
        """Is this process: speaks, is ended by signals, and exits.

        Args:
            main: does what the flags and the other arguments say, and gives the exit status.
        """
        _open_streams()
        self.ending.install()
        sys.exit(self.call(main, sys.argv, self.speak))

    def call(self, main: Callable[[list[str]], int], argv: list[str], speak: Callable[[], None] = lambda: None) -> int:
        """Carries arguments out and gives the exit status; whatever goes wrong is one line on stderr.

        Args:
            main: as in `run`.
            argv: the program's name and its arguments.
            speak: called once flags are known.
        """
        try:
            arguments = self._parse(argv)
            if self.values["help"].value:
                tell(self.help())
                return 0
            if self.values["version"].value:
                tell(f"kerasdiff {__version__}")
                return 0
            speak()
            return main(arguments)
        except flags.Error as error:
            return self._refuse(f"{error}; usage: {self.usage}; --help lists the flags")
        except KerasdiffError as error:
            return self._refuse(str(error))
        except KeyboardInterrupt:
            complain(f"{self.name}: interrupted")
            return self.ending.exit_code
        except (OutputError, BrokenPipeError) as error:
            return self._unread(error.__cause__ or error)
        except Exception as error:
            return self._refuse(f"unexpected {type(error).__name__}: {error}; --verbosity=debug says where")

    def speak(self) -> None:
        """Makes this process say on stderr what --verbosity asks for."""
        import absl.logging

        level = _LEVELS[self.verbosity]
        of_others = max(level, logging.INFO)
        warnings.showwarning = lambda message, *_, **__: complain(f"{self.name}: {message}")
        if self.verbosity == "silent":
            warnings.simplefilter("ignore")
        logging.basicConfig(handlers=[_Lines()], level=of_others, force=True)
        logging.getLogger("kerasdiff").setLevel(level)
        absl.logging.set_verbosity(logging.getLevelName(of_others).lower())
        if self._hushes:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        if "progress" in self.values and not self.progress:
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    @contextlib.contextmanager
    def starting(self) -> Iterator[None]:
        """Without what TensorFlow writes past Python while it starts, unless --verbosity asks for it.

        What goes wrong is raised all the same, and what is written by Python comes through.
        """
        if not self._hushes:
            yield
            return
        sys.stderr.flush()
        kept = os.dup(2)
        with open(os.devnull, "wb") as nowhere, open(kept, "w", buffering=1, errors="backslashreplace") as still:
            os.dup2(nowhere.fileno(), 2)
            try:
                with contextlib.redirect_stderr(still):
                    yield
            finally:
                os.dup2(kept, 2)

    def help(self) -> str:
        """What --help prints."""
        statuses = {0: "done", 1: self.status_1, **_STATUSES}
        parts = [
            textwrap.fill(f"{self.name}: {self.about}", WIDTH),
            f"usage: {self.usage}",
            "examples\n" + textwrap.indent(self.examples, "  "),
            *(group_help(title, group) for title, group in self.groups.items()),
            _NOTE,
            "exit status\n" + "\n".join(f"  {status:<5}{what}" for status, what in statuses.items()),
            self.more,
        ]
        return "\n\n".join(part for part in parts if part)

    @property
    def _hushes(self) -> bool:
        return self.verbosity in ("silent", "warning")

    def _parse(self, argv: list[str]) -> list[str]:
        self.values.unparse_flags()
        arguments = self.values(argv)[1:]
        for group in self.groups.values():
            group.mark_as_parsed()
        return arguments

    def _refuse(self, line: str) -> int:
        if self.verbosity == "debug":
            complain(traceback.format_exc().rstrip())
        complain(f"{self.name}: {' '.join(line.split())}")
        return 2

    def _unread(self, error: BaseException) -> int:
        """Stdout is of no use any more; if its reader has gone, nobody wants to know."""
        if not isinstance(error, BrokenPipeError):
            complain(f"{self.name}: cannot write to stdout: {getattr(error, 'strerror', None) or error}")
        with open(os.devnull, "wb") as nowhere:  # or what is still buffered fails once more at the end
            for number in (1, 2):
                os.dup2(nowhere.fileno(), number)
        return 1


def tell(line: str) -> None:
    """Prints a line of results, at once.

    Raises:
        OutputError: nobody can read it.
    """
    try:
        print(line, flush=True)
    except OSError as error:
        raise OutputError from error


def tell_json(told: Mapping[str, Any]) -> None:
    """Prints an object as a line of JSON.

    Raises:
        OutputError: as in `tell`.
    """
    tell(json.dumps(told, allow_nan=False))


def complain(line: str) -> None:
    """Prints a line on stderr, if anybody can read it."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


class _Lines(logging.Handler):
    """Logged messages as lines on what stderr is at that moment, each with the name of who logged it."""

    def emit(self, record: logging.LogRecord) -> None:
        complain(f"{record.name}: {record.getMessage()}")


def _open_streams() -> None:
    """What is told on a stream that was closed before the start must not go to the first file that is opened."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            if nowhere != number:
                os.close(nowhere)
            setattr(sys, name, os.fdopen(number, "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may have bytes that are no text
            stream.reconfigure(errors="backslashreplace")
