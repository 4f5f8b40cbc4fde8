"""The command line with the embedded model, from process start to a picture on disk, beside `import tensorflow`.

python benchmarks/embedded_start.py [--runs=10]

In turns: with filled caches, with empty ones as after an installation, and the import; ratios are taken of each turn.
"""

from __future__ import annotations

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from absl import app, flags

from kerasdiff.bench.machine import results_folder, write_results

_RUNS = flags.DEFINE_integer("runs", 10, "Turns.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", f"{results_folder()}/embedded_start.json", "Where the figures go.")
PROMPT = "a red circle above a blue square on a yellow background"


def seconds_of(arguments: list[str], cache: pathlib.Path) -> float:
    """Of a Python with these arguments, from its start to its end."""
    environment = {**os.environ, "KERASDIFF_CACHE": str(cache)}
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True, env=environment)
    return time.perf_counter() - started


def main(_: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        draws = ["-m", "kerasdiff", PROMPT, "--model=tiny", "--seed=1", f"--output={place / 'out.png'}"]
        seconds_of(draws, place / "filled")
        turns = []
        for turn in range(_RUNS.value):
            primed, first = (seconds_of(draws, place / name) for name in ("filled", f"empty{turn}"))
            turns.append((primed, first, seconds_of(["-c", "import tensorflow"], place)))
            if not (place / "out.png").is_file():
                sys.exit("there is no picture")
            (place / "out.png").unlink()
    drawn, first, imported = zip(*turns, strict=True)
    ratios = [one / other for one, other in zip(drawn, imported, strict=True)]
    results = {
        "picture_s": round(statistics.median(drawn), 2),
        "picture_spread_s": _spread(drawn),
        "first_picture_s": round(statistics.median(first), 2),
        "first_picture_spread_s": _spread(first),
        "import_tensorflow_s": round(statistics.median(imported), 2),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_spread": _spread(ratios),
    }
    print(", ".join(f"{name} {value}" for name, value in results.items()))
    write_results(pathlib.Path(_OUTPUT.value), results)


def _spread(values: Sequence[float]) -> list[float]:
    """The least and the most."""
    return [round(min(values), 2), round(max(values), 2)]


if __name__ == "__main__":
    app.run(main)
