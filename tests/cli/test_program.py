"""What all programs share: what they say on which stream, and how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

import kerasdiff

BEGIN = """
import logging, os, signal, sys, warnings
from kerasdiff.cli.console import print_error, print_line
from kerasdiff.cli.program import Program, output_options
from kerasdiff.errors import RequestError

group = output_options("JSON.", progress=True)
program = Program("p", "does things.", "p [--flag=value ...]", "p", {"output": group}, "not all")
"""
SAYS = """
def main(arguments):
    print("from Python", file=sys.stderr)
    with program.starting():
        os.write(2, b"from a library\\n")
        warnings.warn("careful")
    logging.getLogger("other").info("request")
    logging.getLogger("kerasdiff").info("chosen")
    logging.getLogger("kerasdiff").debug("seconds")
    logging.getLogger("kerasdiff").error("broken")
    print_line(f"{arguments} {program.json} {program.progress}")
    return 5

program.run(main)
"""
EVERYTHING = [
    "from Python",
    "from a library",
    "p: careful",
    "other: request",
    "kerasdiff: chosen",
    "kerasdiff: seconds",
    "kerasdiff: broken",
]


def start(script, *arguments, **options):
    command = [sys.executable, "-c", BEGIN + script, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def run(script, *arguments, **options):
    with start(script, *arguments, **options) as process:
        out, err = process.communicate()
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("arguments", "left_out"),
    [
        ((), [1, 3, 4, 5]),
        (("--verbosity=silent",), [1, 2, 3, 4, 5]),
        (("--verbosity=info",), [5]),
        (("--verbosity=debug",), []),
    ],
)
def test_verbosity_is_what_is_told_on_stderr(arguments, left_out):
    code, out, err = run(SAYS, *arguments)
    assert (code, out) == (5, "[] False False\n")
    assert err.splitlines() == [line for place, line in enumerate(EVERYTHING) if place not in left_out]


def test_flags_end_where_two_dashes_say_so():
    assert (
        run(SAYS, "a", "--json", "--verbosity", "silent", "--", "-b", "--json")[1]
        == "['a', '-b', '--json'] True False\n"
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "False None 3 1"),
        (("--progress",), "True None 3 None"),
        (("--verbosity=info",), "False None None 1"),
    ],
)
def test_libraries_are_told_to_be_quiet(arguments, told):
    script = (
        "def main(_):\n"
        "    names = ('OTHER', 'TF_CPP_MIN_LOG_LEVEL', 'HF_HUB_DISABLE_PROGRESS_BARS')\n"
        "    print_line(' '.join(map(str, [program.progress, *map(os.environ.get, names)])))\n"
        "    return 0\n"
        "program.run(main)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TF_CPP", "HF_HUB"))}
    assert run(script, *arguments, env=environment) == (0, f"{told}\n", "")


RAISES = "def main(_):\n    raise {}\nprogram.run(main)\n"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("RequestError('seed is\\n  wrong')", "p: seed is wrong"),
        ("ValueError('axis 3')", "p: unexpected ValueError: axis 3; --verbosity=debug says where"),
    ],
)
def test_an_error_is_a_line_and_a_traceback_if_asked_for(error, told):
    assert run(RAISES.format(error)) == (2, "", f"{told}\n")
    code, out, err = run(RAISES.format(error), "--verbosity=debug")
    assert (code, out) == (2, "")
    assert err.startswith("Traceback")
    assert "in main" in err
    assert err.splitlines()[-1] == told


def test_a_wrong_flag_is_a_line():
    end = "; usage: p [--flag=value ...]; --help lists the flags\n"
    assert run(SAYS, "--jason", "--help") == (2, "", f"p: Unknown command line flag 'jason'. Did you mean: json ?{end}")
    loud = f"p: flag --verbosity=loud: value should be one of <silent|warning|info|debug>{end}"
    assert run(SAYS, "--verbosity=loud") == (2, "", loud)


def test_version():
    assert run(SAYS, "--version") == (0, f"kerasdiff {kerasdiff.__version__}\n", "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_are_a_line_and_their_status(number, code):
    script = f"def main(_):\n    os.kill(os.getpid(), {int(number)})\n    return 0\nprogram.run(main)\n"
    assert run(script) == (code, "", "p: interrupted\n")


def test_a_signal_while_python_cannot_be_interrupted_is_not_lost():
    script = (
        "class Last:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "def main(_):\n"
        "    Last()\n"
        "    print_line('goes on')\n"
        "    program.signals.check()\n"
        "program.run(main)\n"
    )
    assert run(script) == (143, "goes on\n", "p: interrupted\n")


TELLS = "def main(_):\n    while True:\n        print_line('x' * 1000)\nprogram.run(main)\n"


def test_a_reader_that_has_gone_ends_it_without_a_word():
    with start(TELLS) as process:
        assert process.stdout.readline() == "x" * 1000 + "\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait() == 1


def test_a_stderr_that_nobody_reads_ends_nothing():
    script = "def main(_):\n    print_error('a')\n    print_line('done')\n    return 0\nprogram.run(main)\n"
    with start(script) as process:
        process.stderr.close()
        assert process.stdout.read() == "done\n"
        assert process.wait() == 0


def test_a_full_disk_behind_stdout_is_a_line():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", BEGIN + TELLS]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "p: cannot write to stdout: No space left on device\n")


def test_closed_streams_are_not_the_first_file_that_is_opened(tmp_path):
    script = (
        "def main(_):\n"
        f"    with open({str(tmp_path / 'picture')!r}, 'w') as file:\n"
        "        print_line('told')\n"
        "        print_error('complained')\n"
        "        with program.starting():\n"
        "            os.write(1, b'written')\n"
        "            os.write(2, b'written')\n"
        "        file.write('pixels')\n"
        "    return 0\n"
        "program.run(main)\n"
    )
    command = [sys.executable, "-c", BEGIN + script]
    for closed in ("", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(["sh", "-c", f'"$@" {closed}', "sh", *command], capture_output=True, check=False)
        assert done.returncode == 0, closed
        assert (tmp_path / "picture").read_text() == "pixels"
        assert done.stdout == (b"" if ">&-" in closed.split() else b"told\nwritten")
        assert done.stderr == (b"" if "2>&-" in closed.split() else b"complained\n")


def test_names_that_are_no_text_can_be_told():
    code, out, err = run("def main(_):\n    print_line('a\\udcff.png')\n    return 0\nprogram.run(main)\n")
    assert (code, out, err) == (0, "a\\udcff.png\n", "")
