"""How the package is laid out. Which folder may import which is in pyproject.toml, and `make lint` checks it."""

import ast
import collections
import pathlib
import re
import tomllib

import kerasdiff

PACKAGE = pathlib.Path(kerasdiff.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
LINES = {str(file.relative_to(PACKAGE)): len(file.read_text().splitlines()) for file in FILES}


def _repeated(names):
    return [name for name, count in collections.Counter(names).items() if count > 1]


def test_no_two_modules_share_a_name():
    assert not _repeated(file.stem for file in FILES if file.stem not in ("__init__", "__main__"))


def test_no_two_public_classes_share_a_name():
    nodes = [node for file in FILES for node in ast.walk(ast.parse(file.read_bytes()))]
    names = [node.name for node in nodes if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
    assert not _repeated(names)


def test_files_and_the_package_stay_small():
    assert not {file: lines for file, lines in LINES.items() if lines > 400}
    total = sum(LINES.values())
    assert total <= 45_500


def test_every_module_and_folder_has_its_layer():
    settings = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = {name for layer in settings["contracts"][0]["layers"] for name in re.findall(r"\w+", layer)}
    names = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert layers == names - {"__init__"}


def test_every_folder_of_modules_is_a_package_and_so_in_the_wheel():
    assert {file.parent for file in FILES} == {file.parent for file in FILES if file.name == "__init__.py"}
