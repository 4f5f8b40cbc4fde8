"""The command line with the embedded model, from process start to a picture on disk, beside `import tensorflow`.

python benchmarks/embedded_start.py [--runs=7]

Both in turns, with filled caches; the ratio is taken of each turn.
"""

from __future__ import annotations

import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags

from kerasdiff.bench.machine import results_folder, write_results

_RUNS = flags.DEFINE_integer("runs", 7, "Turns.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", f"{results_folder()}/embedded_start.json", "Where the figures go.")
PROMPT = "a red circle above a blue square on a yellow background"


def seconds_of(arguments: list[str]) -> float:
    """Of a Python with these arguments, from its start to its end."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    return time.perf_counter() - started


def main(_: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        picture = pathlib.Path(folder) / "out.png"
        draws = ["-m", "kerasdiff", PROMPT, "--model=tiny", "--seed=1", f"--output={picture}"]
        seconds_of(draws)  # fills the caches
        turns = []
        for _ in range(_RUNS.value):
            picture.unlink()
            turns.append((seconds_of(draws), seconds_of(["-c", "import tensorflow"])))
            if not picture.is_file():
                sys.exit("there is no picture")
    drawn, imported = (statistics.median(each) for each in zip(*turns, strict=True))
    ratios = [one / other for one, other in turns]
    results = {
        "picture_s": round(drawn, 2),
        "import_tensorflow_s": round(imported, 2),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_spread": [round(min(ratios), 2), round(max(ratios), 2)],
    }
    print(", ".join(f"{name} {value}" for name, value in results.items()))
    write_results(pathlib.Path(_OUTPUT.value), results)


if __name__ == "__main__":
    app.run(main)
