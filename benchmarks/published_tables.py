"""Tables that others published, measured here, cold and warm.

python benchmarks/published_tables.py keras_guide [any flag of python -m kerasdiff.bench]
python benchmarks/published_tables.py keras_cv_against_diffusers [...]

keras_guide: Standard / Mixed / XLA / XLA + Mixed, here and in KerasCV, 3 images of 512 x 512 in 25 steps.
keras_cv_against_diffusers: 3 images in 50 steps, both timed from process start, and kerasdiff beside them.
These are sizes for a GPU; on a processor smaller ones tell as much:
--batch_size=1 --height=256 --width=256 --num_steps=4.
"""

from __future__ import annotations

import os
import sys

TABLES = {
    "keras_guide": ["--configs=standard,mixed,xla,xla_mixed,auto", "--peers=keras_cv", "--num_steps=25"],
    "keras_cv_against_diffusers": [
        "--configs=auto",
        "--peers=keras_cv,diffusers,diffusers_compile",
        "--num_steps=50",
    ],
}

if __name__ == "__main__":
    name, *more = sys.argv[1:] or [""]
    if name not in TABLES:
        sys.exit(f"name one of: {', '.join(TABLES)}")
    output = f"--output=benchmarks/results/{name}"
    command = [sys.executable, "-m", "kerasdiff.bench", "--batch_size=3", output, *TABLES[name], *more]
    os.execv(sys.executable, command)
