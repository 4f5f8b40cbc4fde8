"""A program of this package: its options in groups, their --help, verbosity, exit status and signals."""

import contextlib
import dataclasses
import functools
import logging
import os
import pkgutil
import re
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NoReturn

from absl import flags

from kerasdiff._version import __version__
from kerasdiff.cli.console import LineHandler, OutputError, discard_streams, open_streams, print_error, print_line
from kerasdiff.cli.signals import SignalHandler
from kerasdiff.errors import KerasdiffError, RequestError
from kerasdiff.runtime.terminal import is_watched


class _IntegerParser(flags.IntegerParser):
    def convert(self, argument: Any) -> int:
        try:
            return super().convert(argument)
        except (TypeError, ValueError):
            raise ValueError("not an integer") from None


class _NumberParser(flags.FloatParser):
    def convert(self, argument: Any) -> float:
        try:
            return super().convert(argument)
        except (TypeError, ValueError):
            point = str(argument).replace(",", ".", 1)
            hint = f"; write {point}" if re.fullmatch(r"-?\d+\.\d+", point) else ""
            raise ValueError(f"not a number{hint}") from None


def _define(parser: type[flags.ArgumentParser[Any]]) -> Callable[..., Any]:
    return lambda *arguments, **named: flags.DEFINE(parser(), *arguments, **named)


# Options whose value may be empty, and those that are often two numbers.
_MAY_BE_EMPTY = ("negative_prompt", "configs", "peers")
_LISTS = ("seed", "timesteps", "sigmas", "guidance_interval")
Main = str | Callable[[list[str]], int]
Kind = Literal["string", "strings", "list", "integer", "number", "switch", "choice"]
_DEFINE: dict[Kind, Callable[..., Any]] = {
    "string": flags.DEFINE_string,
    "strings": flags.DEFINE_multi_string,
    "list": flags.DEFINE_list,
    "integer": _define(_IntegerParser),
    "number": _define(_NumberParser),
    "switch": flags.DEFINE_bool,
    "choice": flags.DEFINE_enum,
}
_PLACEHOLDERS = {"integer": "N", "number": "X"}
# Columns of a line of --help, and where the text of an option begins.
_WIDTH, _COLUMN = 79, 30
_LEVELS = {"silent": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}
# Whose own warnings only --verbosity=info shows.
_LIBRARIES = r"(keras|keras_cv|tensorflow|jax|absl|google|h5py|ml_dtypes|numpy|ray|pyarrow|huggingface_hub|tqdm)(\.|$)"
_STATUSES = {
    2: "a wrong argument or another error; one line on stderr says which",
    129: "the terminal was closed; what is finished is kept",
    130: "interrupted by Ctrl-C, in the same way",
    143: "ended by SIGTERM, in the same way",
}
_NOTE = """\
Flags without a default are unset; switches default to off. --flag value is the
same as --flag=value, --noswitch turns a switch off, and -- ends the flags."""


@dataclasses.dataclass(frozen=True)
class Option:
    """A flag of a program: "strings" may be repeated, a "list" is separated by commas; `short` is a single letter."""

    kind: Kind
    name: str
    default: Any
    help: str
    placeholder: str = ""
    choices: tuple[str, ...] = ()
    short: str | None = None

    def define(self, values: flags.FlagValues) -> None:
        choices = [list(self.choices)] if self.kind == "choice" else []
        _DEFINE[self.kind](self.name, self.default, *choices, self.help, flag_values=values, short_name=self.short)

    @property
    def help_lines(self) -> str:
        text = self.help
        if self.default is not None and self.default is not False:
            text += f" (default: {self._shown_default})"
        left = f"  {f'-{self.short}, ' if self.short else ''}--{self._usage}"
        lines = textwrap.wrap(text, _WIDTH - _COLUMN)
        if len(left) < _COLUMN - 1:
            left = left.ljust(_COLUMN) + lines.pop(0)
        return "\n".join([left, *(" " * _COLUMN + line for line in lines)])

    @property
    def _usage(self) -> str:
        if self.kind == "switch":
            return self.name if self.default is False else f"[no]{self.name}"
        return f"{self.name}={self.placeholder or '|'.join(self.choices) or _PLACEHOLDERS.get(self.kind, 'TEXT')}"

    @property
    def _shown_default(self) -> str:
        if isinstance(self.default, list):
            joined = ",".join(self.default)
            return joined if len(joined) < _COLUMN else ", ".join(self.default)
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)


def output_options(json: str, progress: bool = False) -> tuple[Option, ...]:
    """The last group of every program; `json` is what --json prints, `progress` whether it has a progress bar."""
    bar = Option("switch", "progress", None, "Progress bar on stderr. Default: if it is a terminal.")
    return (
        Option("switch", "json", False, json),
        *([bar] if progress else []),
        Option(
            "choice",
            "verbosity",
            "warning",
            "Verbosity of stderr: errors; + warnings; + library logs; + debug output and tracebacks.",
            choices=tuple(_LEVELS),
        ),
        Option("switch", "help", False, "Print this and exit.", short="h"),
        Option("switch", "version", False, "Print the version and exit."),
    )


@dataclasses.dataclass(frozen=True)
class Program:
    """A program of this package: what --help says, and its options by title, of which the last are `output_options`.

    `status_1` is what exit status 1 means; the others are the same for all programs.
    """

    name: str
    about: str
    usage: str
    examples: str
    groups: Mapping[str, Sequence[Option]]
    status_1: str
    more: str = ""
    positional: bool = True
    signals: SignalHandler = dataclasses.field(default_factory=SignalHandler)

    @functools.cached_property
    def values(self) -> flags.FlagValues:
        """Values of the options as attributes, once arguments were read."""
        values = flags.FlagValues()
        for group in self.groups.values():
            for option in group:
                option.define(values)
        return values

    @property
    def verbosity(self) -> str:
        """What is printed on stderr: "silent", "warning", "info" or "debug"."""
        return str(self.values["verbosity"].value)

    @property
    def json(self) -> bool:
        return bool(self.values.json)

    @property
    def progress(self) -> bool:
        progress = self.values.progress
        return self.verbosity != "silent" and is_watched() if progress is None else progress

    def given(self) -> list[str]:
        return [name for name in self.values if self.values[name].present]

    def run(self, main: Main, arguments: Sequence[str] | None = None) -> NoReturn:
        """Runs as this process: with its streams and its signals, until it exits.

        `main` is given the positional arguments and returns the exit status; as "module:function", it is imported after
        the options were read.
        """
        open_streams()
        self.signals.install(self.name)
        arguments = sys.argv[1:] if arguments is None else arguments
        sys.exit(self.call(main, [self.name, *arguments], self.configure_logging))

    def call(self, main: Main, argv: list[str], begin: Callable[[], None] = lambda: None) -> int:
        """Reads the arguments, runs, and returns the exit status; whatever goes wrong is one line on stderr.

        `argv` begins with a name; `begin` is called once the options are known.
        """
        try:
            arguments = self.parse(argv)
            if self.values.help:
                print_line(self.help())
                return 0
            if self.values.version:
                print_line(f"kerasdiff {__version__}")
                return 0
            begin()
            if arguments and not self.positional:
                raise RequestError(f"{arguments[0]!r} is not a flag; usage: {self.usage}; --help lists the flags")
            return (pkgutil.resolve_name(main) if isinstance(main, str) else main)(arguments)
        except flags.Error as error:
            return self._fail(f"{error}; usage: {self.usage}; --help lists the flags")
        except KerasdiffError as error:
            return self._fail(f"{error}{self._decimal_comma(str(error))}")
        except KeyboardInterrupt:
            print_error(f"{self.name}: interrupted")
            return self.signals.exit_code
        except (OutputError, BrokenPipeError) as error:
            return self._stop_printing(error.__cause__ or error)
        except Exception as error:
            return self._fail(f"unexpected {type(error).__name__}: {error}; --verbosity=debug says where")

    def parse(self, argv: Sequence[str]) -> list[str]:
        """Reads the options, which `values` then has, and returns the other arguments.

        Raises:
            absl.flags.Error: there is no such flag, or its value is wrong.
            RequestError: the same, if it is known what was meant.
        """
        self.values.unparse_flags()
        try:
            arguments = self.values(argv)[1:]
        except flags.UnrecognizedFlagError as error:
            told = self._advice(error, argv)
            if told is None:
                raise
            raise RequestError(told) from None
        except (flags.IllegalFlagValueError, ValueError) as error:  # that of a switch, turned off with a value
            raise flags.Error(re.sub(r"\('Non-boolean .*", "neither true nor false", str(error))) from None
        for name in self.given():
            if self.values[name].value in ("", [""], []) and name not in _MAY_BE_EMPTY:
                raise RequestError(f"--{name} is empty; give it a value, or leave it out")
        return arguments

    def configure_logging(self) -> None:
        """Makes warnings and logged messages of this process lines on stderr, as --verbosity says."""
        import absl.logging

        from kerasdiff.runtime import tf_setup

        level = _LEVELS[self.verbosity]
        library_level = max(level, logging.INFO)
        warnings.showwarning = lambda message, *_, **__: print_error(f"{self.name}: {message}")
        if self.verbosity == "silent":
            warnings.simplefilter("ignore")
        elif self._quiet:
            warnings.filterwarnings("ignore", module=_LIBRARIES)
        logging.basicConfig(handlers=[LineHandler()], level=library_level, force=True)
        logging.getLogger("kerasdiff").setLevel(level)
        absl.logging.set_verbosity(logging.getLevelName(library_level).lower())
        if self._quiet:
            tf_setup.start_quietly()
        if "progress" in self.values and not self.progress:
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    def starting(self) -> contextlib.AbstractContextManager[None]:
        """Without what TensorFlow writes past Python while it starts, unless --verbosity asks for it.

        Errors are raised all the same, and what Python code writes comes through.
        """
        from kerasdiff.runtime import tf_setup

        return tf_setup.starting()

    def help(self) -> str:
        statuses = {0: "done", 1: self.status_1, **_STATUSES}
        parts = [
            textwrap.fill(f"{self.name}: {self.about}", _WIDTH),
            f"usage: {self.usage}",
            "examples\n" + textwrap.indent(self.examples, "  "),
            *("\n".join([title, *(option.help_lines for option in group)]) for title, group in self.groups.items()),
            _NOTE,
            "exit status\n" + "\n".join(f"  {status:<5}{meaning}" for status, meaning in statuses.items()),
            self.more,
        ]
        return "\n\n".join(part for part in parts if part)

    def _advice(self, error: flags.UnrecognizedFlagError, argv: Sequence[str]) -> str | None:
        """What to write for a flag of another program."""
        from kerasdiff.synonyms import advice

        _, equals, value = str(error.flagvalue).partition("=")
        if not equals:
            following = [*argv, ""][argv.index(error.flagvalue) + 1]
            value = "" if following.startswith("-") else following
        known = [option.name for group in self.groups.values() for option in group]
        return advice(error.flagname, value or None, known, "flag")

    def _decimal_comma(self, message: str) -> str:
        """A hint for a message about an option that has two numbers, as a decimal comma makes of one."""
        for name in self.given():
            texts = self.values[name].value
            text = ",".join(texts) if isinstance(texts, list) else ""
            if message.startswith(name) and re.fullmatch(r"(\w+=)?-?\d+,\d+", text) and name not in _LISTS:
                return f"; if one number was meant, write --{name}={text.replace(',', '.')}"
        return ""

    @property
    def _quiet(self) -> bool:
        return self.verbosity in ("silent", "warning")

    def _fail(self, line: str) -> int:
        if self.verbosity == "debug":
            print_error(traceback.format_exc().rstrip())
        print_error(f"{self.name}: {' '.join(line.split())}")
        return 2

    def _stop_printing(self, error: BaseException) -> int:
        """Says why stdout cannot be written to; if its reader has gone, nobody wants to know."""
        if not isinstance(error, BrokenPipeError):
            print_error(f"{self.name}: cannot write to stdout: {getattr(error, 'strerror', None) or error}")
        discard_streams()
        return 1
