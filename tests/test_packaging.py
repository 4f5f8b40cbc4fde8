"""What is built from a checkout, what is in it, and that it works where nothing of the checkout is seen."""

from __future__ import annotations

import ast
import configparser
import dataclasses
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile

import pytest
from packaging.metadata import Metadata
from packaging.utils import canonicalize_name
from PIL import Image

import kerasdiff
from kerasdiff.runtime.precision import OLDEST_OPENVINO

ROOT = pathlib.Path(__file__).parents[1]
FOLDERS = ("benchmarks", "docs", "kerasdiff", "notebooks", "tests")
EXTRAS = {"gpu", "hints", "hub", "keras-cv", "jax", "openvino", "ray", "train", "bench", "test", "docs", "dev"}
# Files that need an extra.
EXTRA_OF = {
    "batch/": "ray",
    "bench/": "bench",
    "bench/jax_roofline.py": "jax",
    "checkpoints/hub": "hub",
    "checkpoints/licence.py": "hub",
    "compat/stable_diffusion.py": "keras-cv",
    "hints.py": "hints",
    "info.py": "jax",
    "runtime/backends/jax.py": "jax",
    "runtime/backends/openvino": "openvino",
    "training/": "train",
}
# Bytes of the wheel, most of them the embedded models; graphs are 2.3 million, what goes with these models 1.5 million.
LARGEST = 24_000_000


@dataclasses.dataclass(frozen=True)
class Built:
    source: pathlib.Path  # what it was built from
    files: frozenset[str]  # that were there before
    wheel: pathlib.Path
    sdist: pathlib.Path


def build(source: pathlib.Path, target: pathlib.Path, *kinds: str) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", *kinds, "--outdir", target, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def files_of(folder: pathlib.Path) -> frozenset[str]:
    return frozenset(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def contents(wheel: pathlib.Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Built:
    """Both, from a copy: a build in the checkout takes over what earlier builds left there."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    source.mkdir()
    for path in ROOT.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy2(path, source)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    files = files_of(source)
    build(source, folder / "dist", "--sdist", "--wheel")
    (wheel,) = (folder / "dist").glob("*.whl")
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    return Built(source, files, wheel, sdist)


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> pathlib.Path:
    """A virtual environment with the wheel, whose dependencies are those of this one.

    A line of a .pth file adds a folder, and not what .pth files in that folder add, which an editable install is.
    """
    environment = tmp_path_factory.mktemp("installed") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, built.wheel], check=True)
    (site_packages,) = environment.glob("lib/python*/site-packages")
    (site_packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return environment


def run(command: list[str | pathlib.Path], folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)


def metadata(built: Built) -> Metadata:
    return Metadata.from_email(contents(built.wheel)[f"kerasdiff-{kerasdiff.__version__}.dist-info/METADATA"])


def test_the_wheel_is_the_package_and_nothing_else(built):
    about = f"kerasdiff-{kerasdiff.__version__}.dist-info/"
    names = set(contents(built.wheel))
    package = {name for name in built.files if name.startswith("kerasdiff/")}
    assert {name for name in names if not name.startswith(about)} == package
    assert {
        f"kerasdiff/{name}" for name in ("py.typed", "presets/tiny/unet.safetensors", "graphs/openvino/sources")
    } <= package
    assert {name.removeprefix(about) for name in names if name.startswith(about)} == {
        *("METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt"),
        *("licenses/LICENSE", "licenses/kerasdiff/presets/clip/LICENSE"),
    }
    assert built.wheel.stat().st_size < LARGEST


def test_metadata(built):
    found = metadata(built)
    assert (found.name, str(found.version)) == ("kerasdiff", kerasdiff.__version__)
    assert found.author == "The kerasdiff authors"
    assert found.license_expression == "Apache-2.0 AND MIT"
    assert str(found.requires_python) == "<3.14,>=3.11"
    assert set(found.provides_extra) == EXTRAS
    (openvino,) = (one.specifier for one in found.requires_dist if one.name == "openvino")
    assert f">={OLDEST_OPENVINO}" in str(openvino).split(",")
    assert set(found.project_urls) == {"Source", "Documentation", "Changelog", "Issues"}
    assert "Typing :: Typed" in found.classifiers
    scripts = configparser.ConfigParser()
    scripts.read_string(contents(built.wheel)[f"kerasdiff-{kerasdiff.__version__}.dist-info/entry_points.txt"].decode())
    assert dict(scripts["console_scripts"]) == {"kerasdiff": "kerasdiff.__main__:run"}


def required(found: Metadata, extras: set[str]) -> set[str]:
    """The distributions that an installation with some extras asks for."""
    return {
        canonicalize_name(requirement.name)
        for requirement in found.requires_dist
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)
    }


def imported(path: pathlib.Path) -> set[str]:
    """The packages that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module).partition(".")[0])
    return names - sys.stdlib_module_names - {"kerasdiff"}


def test_what_is_imported_is_required_and_the_other_way_round(built):
    found = metadata(built)
    packages = importlib.metadata.packages_distributions()
    seen = set()
    for path in (built.source / "kerasdiff").rglob("*.py"):
        place = path.relative_to(built.source / "kerasdiff").as_posix()
        known = required(found, {extra for start, extra in EXTRA_OF.items() if place.startswith(start)})
        names = {canonicalize_name(packages[name][0]) for name in imported(path)}
        assert names <= known, place
        seen |= names
    assert required(found, set()) <= seen


def test_what_tests_import_is_required(built):
    own = (one for one in metadata(built).requires_dist if one.name == "kerasdiff")
    of_tests = next(one.extras for one in own if one.marker.evaluate({"extra": "test"}))
    known = required(metadata(built), {"test", *of_tests})
    packages = importlib.metadata.packages_distributions()
    files = [path for folder in ("tests", "benchmarks") for path in (built.source / folder).rglob("*.py")]
    for path in files:
        names = imported(path) - {other.stem for other in files}
        assert {canonicalize_name(packages[name][0]) for name in names} <= known, path


def test_every_extra_that_is_named_is_there(built):
    for requirement in metadata(built).requires_dist:
        if requirement.name == "kerasdiff":
            assert requirement.extras <= EXTRAS  # letter by letter, as pip before 23.3 compares them
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.rglob("kerasdiff/*.py"), ROOT / "environment.yml"):
        for extras in re.findall(r"(?:kerasdiff|--editable \.)\[([\w,-]+)\]", path.read_text()):
            assert {canonicalize_name(extra) for extra in extras.split(",")} <= EXTRAS, path.name


def test_the_source_distribution_is_the_checkout_and_builds_the_same_wheel(built, tmp_path):
    root = f"kerasdiff-{kerasdiff.__version__}"
    with tarfile.open(built.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    made = {name for name in files_of(tmp_path / root) if name.startswith("kerasdiff.egg-info/")}
    assert files_of(tmp_path / root) - made == built.files | {"PKG-INFO"}
    build(tmp_path / root, tmp_path / "dist", "--wheel")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert contents(wheel) == contents(built.wheel)


def test_an_editable_installation_is_a_folder_on_the_path(built, tmp_path):
    """A folder kerasdiff/ beside a script hides what a finder finds, and not what is in a folder."""
    source = tmp_path / "source"
    shutil.copytree(built.source, source)
    script = f"from setuptools.build_meta import build_editable; build_editable({str(tmp_path)!r})"
    assert run([sys.executable, "-c", script], source).returncode == 0
    (wheel,) = tmp_path.glob("*.whl")
    (path,) = [text for name, text in contents(wheel).items() if name.endswith(".pth")]
    assert path.decode().strip() == str(source)
    (tmp_path / "kerasdiff").mkdir()
    script = f"import sys; sys.path.append({str(source)!r}); import kerasdiff; kerasdiff.KerasdiffError"
    assert run([sys.executable, "-S", "-c", script], tmp_path).returncode == 0


def test_both_would_be_taken_by_the_index(built):
    done = run([sys.executable, "-m", "twine", "check", "--strict", built.wheel, built.sdist], ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


def test_the_wheel_draws_from_another_folder(installed, tmp_path):
    told = run([installed / "bin" / "python", "-c", "import kerasdiff; print(kerasdiff.__file__)"], tmp_path)
    assert pathlib.Path(told.stdout.strip()).is_relative_to(installed), told.stderr
    done = run([installed / "bin" / "kerasdiff", "a red circle", "--num_steps=2", "--seed=7", "--noprogress"], tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "out.png (seed 7)\n", "")
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.size == (128, 128)
        assert "a red circle" in picture.text["parameters"]
