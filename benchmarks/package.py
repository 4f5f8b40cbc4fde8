"""What an installation takes: bytes of the wheel, packages and megabytes with each extra, seconds of the import.

make dist && python benchmarks/package.py [--runs=20]
Other packages are those of this environment, with the sizes of the files that their installation recorded.
"""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile

from absl import app, flags
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kerasdiff.bench.machine import results_folder, write_results

_DIST = flags.DEFINE_string("dist", "dist", "The folder with the wheel and the source distribution.")
_RUNS = flags.DEFINE_integer("runs", 20, "Processes with the import, and as many without.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", f"{results_folder()}/packaging.json", "Where the figures go.")

# Not gpu, whose packages are not installed where there is none.
EXTRAS = ("", "hub", "keras-cv", "jax", "train", "bench", "docs", "test", "dev")


class Wheel:
    """A built wheel, unpacked, and what it requires."""

    def __init__(self, path: pathlib.Path, folder: str) -> None:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
        (self._distribution,) = importlib.metadata.distributions(path=[folder])
        self._sizes: dict[str, int] = {}

    def packages(self, extra: str) -> set[str]:
        """Names of all that is installed with an extra ("" is none), itself included."""
        seen: set[tuple[str, str]] = set()
        todo = [("kerasdiff", ""), ("kerasdiff", extra)]
        while todo:
            name, asked = todo.pop()
            if (name, asked) in seen:
                continue
            seen.add((name, asked))
            for requirement in map(Requirement, self._of(name).requires or []):
                if requirement.marker is None or requirement.marker.evaluate({"extra": asked}):
                    todo += [(canonicalize_name(requirement.name), more) for more in ("", *requirement.extras)]
        return {name for name, _ in seen}

    def megabytes(self, names: set[str]) -> float:
        return sum(map(self._size, names)) / 1e6

    def _of(self, name: str) -> importlib.metadata.Distribution:
        return self._distribution if name == "kerasdiff" else importlib.metadata.distribution(name)

    def _size(self, name: str) -> int:
        if name not in self._sizes:
            paths = [pathlib.Path(str(file.locate())) for file in self._of(name).files or []]
            self._sizes[name] = sum(path.stat().st_size for path in paths if path.is_file())
        return self._sizes[name]


def seconds(folder: str, script: str) -> float:
    """Of one process, from its start to its end."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", script], check=True, cwd=folder, env=environment)
    return time.perf_counter() - start


def imports(folder: str) -> dict[str, float]:
    """Medians with and without `import kerasdiff`, in turns, and the modules that it adds."""
    took: dict[str, list[float]] = {"pass": [], "import kerasdiff": []}
    for run in range(_RUNS.value + 1):
        for script, found in took.items():
            second = seconds(folder, script)
            if run > 0:  # the first writes the compiled module
                found.append(second)
    count = "import sys; before = set(sys.modules); import kerasdiff; print(len(set(sys.modules) - before))"
    added = subprocess.run([sys.executable, "-c", count], check=True, cwd=folder, capture_output=True, text=True)
    bare, with_import = (statistics.median(found) for found in took.values())
    return {
        "python_s": round(bare, 4),
        "python_with_import_s": round(with_import, 4),
        "import_s": round(with_import - bare, 4),
        "modules": int(added.stdout),
    }


def main(_: list[str]) -> None:
    built = {kind: sorted(pathlib.Path(_DIST.value).glob(f"*.{kind}")) for kind in ("whl", "tar.gz")}
    if any(len(found) != 1 for found in built.values()):
        sys.exit(f"{_DIST.value} has not one wheel and one source distribution: run make dist")
    with tempfile.TemporaryDirectory() as folder:
        wheel = Wheel(built["whl"][0], folder)
        rows = []
        for extra in EXTRAS:
            names = wheel.packages(extra)
            rows.append({"extra": extra, "packages": len(names), "megabytes": round(wheel.megabytes(names))})
            print(f"{extra:9} {rows[-1]['packages']:4} packages, {rows[-1]['megabytes']:6} MB", flush=True)
        own = wheel.packages("")
        largest = sorted(own, key=lambda name: -wheel.megabytes({name}))[:8]
        results = {
            "wheel_bytes": built["whl"][0].stat().st_size,
            "sdist_bytes": built["tar.gz"][0].stat().st_size,
            "import": imports(folder),
            "installed": rows,
            "largest_megabytes": {name: round(wheel.megabytes({name}), 1) for name in largest},
        }
    print(results["import"])
    write_results(pathlib.Path(_OUTPUT.value), results)


if __name__ == "__main__":
    app.run(main)
