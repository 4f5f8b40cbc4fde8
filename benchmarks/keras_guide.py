"""The table of KerasCV's guide, Standard / Mixed / XLA / XLA + Mixed: here and in KerasCV itself, cold and warm.

python benchmarks/keras_guide.py [any flag of python -m kerasdiff.bench]

The guide draws 3 images of 512 x 512 in 25 steps on a GPU; on a processor smaller ones tell as much:
--batch_size=1 --height=256 --width=256 --num_steps=4.
"""

from __future__ import annotations

import os
import sys

FLAGS = [
    "--configs=standard,mixed,xla,xla_mixed,auto",
    "--peers=keras_cv",
    "--batch_size=3",
    "--num_steps=25",
    "--output=benchmarks/results/keras_guide",
]

if __name__ == "__main__":
    os.execv(sys.executable, [sys.executable, "-m", "kerasdiff.bench", *FLAGS, *sys.argv[1:]])
