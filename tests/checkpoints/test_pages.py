"""Pages of mapped files that are given back while every tensor is looked at once."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from kerasdiff.runtime.safetensors_map import TensorFiles, pages_given_back
from kerasdiff.runtime.safetensors_write import write

SCRIPT = """
import contextlib, pathlib, sys, time
import numpy as np
from kerasdiff.bench.machine import peak_memory_gb
from kerasdiff.runtime.safetensors_map import TensorFiles, pages_given_back
files = TensorFiles([pathlib.Path(sys.argv[1])])
before = peak_memory_gb()
with pages_given_back() if sys.argv[2] == "given back" else contextlib.nullcontext():
    for name in files:
        assert files.read(name).max() == 1
        time.sleep(0.1)
print(peak_memory_gb() - before)
"""


def test_memory_stays_below_the_files_size(tmp_path):
    path, shape = tmp_path / "tensors.safetensors", (50 * 10**6,)
    shapes = {f"tensor_{index}": shape for index in range(6)}
    write(path, shapes, ((name, np.ones(shape, "float32")) for name in shapes), "float16")
    grown = {}
    for kind in ("kept", "given back"):
        command = [sys.executable, "-c", SCRIPT, str(path), kind]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        grown[kind] = float(run.stdout)
    assert grown["kept"] > 0.58
    assert grown["given back"] < 0.4


def test_what_is_read_again_is_the_same(tmp_path):
    path, values = tmp_path / "tensors.safetensors", np.arange(100_000, dtype="float32")
    write(path, {"a": values.shape}, [("a", values)], "float32")
    view = TensorFiles([path]).read("a")
    for _ in range(20):
        with pages_given_back():
            assert np.array_equal(view, values)
