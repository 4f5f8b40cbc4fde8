"""KerasCV against diffusers, cold and warm, 3 images in 50 steps, timed from process start; and kerasdiff beside them.

python benchmarks/keras_cv_against_diffusers.py [any flag of python -m kerasdiff.bench]

The sizes are those of the published comparison on a GPU; on a processor smaller ones tell as much:
--batch_size=1 --height=256 --width=256 --num_steps=4.
"""

from __future__ import annotations

import os
import sys

FLAGS = [
    "--configs=auto",
    "--peers=keras_cv,diffusers,diffusers_compile",
    "--batch_size=3",
    "--num_steps=50",
    "--output=benchmarks/results/keras_cv_against_diffusers",
]

if __name__ == "__main__":
    os.execv(sys.executable, [sys.executable, "-m", "kerasdiff.bench", *FLAGS, *sys.argv[1:]])
