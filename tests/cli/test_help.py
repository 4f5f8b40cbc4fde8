"""--help of all programs, docs/command_line.md that it is pasted into, and every flag that pages name."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

from kerasdiff.__main__ import COMMANDS
from kerasdiff.cli.options import BATCH, FORMATS, GENERATE, OPTIONS
from kerasdiff.images import writer
from kerasdiff.request_arguments import ARGUMENTS, DEFAULTS

ROOT = pathlib.Path(__file__).parents[2]
HEAVY = {"tensorflow", "keras", "jax", "torch", "scipy", "huggingface_hub", "matplotlib"}
# Other commands, whose flags are behind them on a line; flags of others that stand alone; and what stands for any flag.
FOREIGN_COMMANDS = re.compile(r"#SBATCH|\b(?:conda|docker|gunicorn|jupyter|pip|ray|rsync|ssh|uv)\b")
FOREIGN = {"array", "cfg_scale", "memory", "xla_gpu_cuda_data_dir", "flag", "noswitch"}


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


paste_help = load(ROOT / "docs" / "paste_help.py")
PROGRAMS = paste_help.programs()


def defined_in(path):
    """Flags that a script of absl or argparse defines."""
    return set(re.findall(r'(?:DEFINE_\w+|add_argument)\(\s*"(?:--)?(\w+)"', path.read_text("utf-8")))


def test_the_pages_are_up_to_date():
    pages = [page.read_text("utf-8") for page in paste_help.PAGES]
    assert all(f"<!-- {program.name} -->" in pages[0] for program in PROGRAMS)
    assert all(f"\n| `{name}` | `{default!r}` |" in pages[1] for name, default in DEFAULTS.items())
    for page in pages:
        assert paste_help.filled(page) == page


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_every_flag_is_in_one_group_and_has_its_lines(program):
    grouped = [option.name for group in program.groups.values() for option in group]
    assert sorted(grouped) == sorted({program.values[name].name for name in program.values})
    told = program.help()
    flags = re.findall(r"^  (?:-\w, )?--(?:\[no\])?(\w+)", told, flags=re.MULTILINE)
    assert flags == grouped
    for line in told.splitlines():
        assert len(line) < 80, line
        assert line == line.rstrip()
        assert not re.search(r"absl|flagfile|undefok|<\w+>|repeat this option", line), line
    titles = ["usage:", "examples", *program.groups, "exit status"]
    places = [told.index(f"\n\n{title}") for title in titles]
    assert places == sorted(places)
    for name in grouped:
        default = program.values[name].default
        (about,) = re.findall(rf"^  (?:-\w, )?--(?:\[no\])?{name}\b(.*\n(?: {{20}}.*\n)*)", told, flags=re.MULTILINE)
        assert ("(default:" in " ".join(about.split())) == (default is not None and default is not False)


def test_help_is_printed_without_anything_heavy():
    """Of commands, and of those that are modules as well; in one process, as nothing that they import is heavy."""
    script = (
        "import contextlib, io, json, runpy, sys\n"
        "def printed(module, *arguments):\n"
        "    sys.argv = [module, *arguments, '-h']\n"
        "    out = io.StringIO()\n"
        "    try:\n"
        "        with contextlib.redirect_stdout(out):\n"
        "            runpy.run_module(module, run_name='__main__', alter_sys=True)\n"
        "    except SystemExit as end:\n"
        "        return [out.getvalue(), end.code]\n"
        f"found = [[name, *printed('kerasdiff', name)] for name in {list(COMMANDS)!r}]\n"
        "found += [['generate', *printed('kerasdiff')]]\n"
        "found += [[name, *printed(f'kerasdiff.{name}')] for name in ('bulk', 'info', 'convert', 'verify', 'bench')]\n"
        f"print(json.dumps([found, sorted(set(sys.modules) & {HEAVY!r})]))\n"
    )
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    found, heavy = json.loads(run.stdout)
    assert heavy == []
    assert run.stderr == ""
    for name, printed, code in found:
        program, _ = COMMANDS[name]
        assert (printed, code) == (f"{pkgutil.resolve_name(program).help()}\n", 0)


def test_choices_are_those_of_the_library():
    assert FORMATS == writer.FORMATS
    for name, argument in ARGUMENTS.items():
        if argument.kind == "choice":
            assert OPTIONS[name].placeholder.split("|") == list(argument.choices)


def test_whatever_can_be_asked_for_has_a_flag():
    flags = {argument.flag or name for name, argument in ARGUMENTS.items()}
    arrays = {"denoising_start"}  # goes with latents, which only Python has
    assert flags - {"prompt"} - arrays <= set(GENERATE.values)
    assert flags - {"prompt", "seed"} - arrays <= set(BATCH.values)
    for name, argument in ARGUMENTS.items():
        assert name in {"prompt", *arrays} or OPTIONS[argument.flag or name].help.startswith(argument.help)


def test_every_flag_that_a_page_names_exists():
    training = ROOT / "kerasdiff" / "training"
    scripts = [training / "__main__.py", training / "lora_training.py", *(ROOT / "benchmarks").glob("*.py")]
    ours = {name for program in PROGRAMS for name in program.values} | set().union(*map(defined_in, scripts))
    named = set()
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
            for found in re.finditer(r"(?<![\w-])--([a-z][\w-]*)", line):
                # Names of ours have underscores.
                if "-" in found[1] or found[1] in FOREIGN or FOREIGN_COMMANDS.search(line, 0, found.start()):
                    continue
                name = found[1] if found[1] in ours else found[1].removeprefix("no")
                assert name in ours, f"{page.name}, line {number}: --{found[1]}"
                named.add(name)
    assert {"num_steps", "output_dir", "clear"} <= named
