"""What is imported, and what is not: modules are counted, not milliseconds."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import kerasdiff

# What drawing does without. TensorFlow and Keras import some of them where they are installed.
UNUSED = {
    *("IPython", "diffusers", "grain", "huggingface_hub", "jax", "keras_cv", "matplotlib", "pandas", "scipy"),
    *("tensorflow_datasets", "torch", "transformers"),
}
# Of these, what the command line does not keep TensorFlow and Keras from importing.
BY_TENSORFLOW = {"IPython", "huggingface_hub", "scipy"}
LIGHT = """
import kerasdiff
print(kerasdiff.SAMPLERS, kerasdiff.SPACINGS, kerasdiff.Request, kerasdiff.Result, kerasdiff.RequestError)
kerasdiff.images.grid
"""
DRAWING = f"""
import sys
sys.modules.update(dict.fromkeys({UNUSED}))  # None: whoever imports one gets an error
import kerasdiff
print(kerasdiff.generate("a red circle", model="tiny", num_steps=2, seed=7, progress=False).images.shape)
"""
HELP = """
import sys
sys.modules["keras_cv"] = None
import kerasdiff, pydoc
print("StableDiffusion" in dir(kerasdiff), "class Generator" in pydoc.plain(pydoc.render_doc(kerasdiff)))
"""
COMMAND_LINE = """
import atexit, json, sys
from kerasdiff.__main__ import run
atexit.register(lambda: print(json.dumps([name for name, module in sys.modules.items() if module is not None])))
sys.argv[1:] = ["a red circle", "--num_steps=2", "--seed=7", "--noprogress"]
run()
"""


def output(folder, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done


def imported(folder, script: str) -> set[str]:
    """The modules that a script imports beyond those of Python itself."""
    begin = "import json, sys; before = set(sys.modules)"
    end = "print(json.dumps(sorted(set(sys.modules) - before)))"
    names = json.loads(output(folder, "-c", f"{begin}\n{script}\n{end}").stdout.splitlines()[-1])
    return {name for name in names if name.partition(".")[0] not in sys.stdlib_module_names}


def packages(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def test_the_package_by_itself_is_one_module(tmp_path):
    assert imported(tmp_path, "import kerasdiff") == {"kerasdiff", "kerasdiff._version"}


def test_looking_at_samplers_pictures_and_errors_needs_no_backend(tmp_path):
    found = packages(imported(tmp_path, LIGHT))
    assert {"kerasdiff", "numpy", "PIL"} <= found
    assert found & {"tensorflow", "keras", *UNUSED} == set()


def test_drawing_needs_none_of_the_heavy_packages(tmp_path):
    assert output(tmp_path, "-W", "ignore", "-c", DRAWING).stdout == "(1, 128, 128, 3)\n"


def test_the_command_line_imports_none_of_them(tmp_path, monkeypatch):
    """And Keras only in the process that traces."""
    monkeypatch.setenv("KERASDIFF_CACHE", str(tmp_path / "cache"))
    for traces in (True, False):
        names = json.loads(output(tmp_path, "-c", COMMAND_LINE).stdout.splitlines()[-1])
        assert not [name for name in names if name.startswith("kerasdiff.adapters.lora")]  # without any
        found = packages(names)
        assert {"kerasdiff", "tensorflow"} <= found
        assert ("keras" in found) == traces
        assert found & UNUSED <= BY_TENSORFLOW


@pytest.mark.parametrize("program", [("-m", "kerasdiff"), ("-Wignore", "-umkerasdiff.convert")])
def test_modules_of_the_current_folder_are_not_taken_for_others(tmp_path, program):
    for name in ("json", "random", "glob", "typing", "absl", "numpy", "PIL"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('this is not it')\n")
    assert "usage" in output(tmp_path, *program, "--help").stdout


def test_help_works_without_keras_cv(tmp_path):
    assert "StableDiffusion" in dir(kerasdiff)
    assert output(tmp_path, "-W", "ignore", "-c", HELP).stdout == "False True\n"
