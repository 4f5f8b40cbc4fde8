"""The tables that the README and docs/performance.md publish, cold and warm.

python benchmarks/published_tables.py peers_256 [any flag of python -m kerasdiff.bench]
python benchmarks/published_tables.py peers_512 [...]
python benchmarks/published_tables.py keras_guide [...]
python benchmarks/published_tables.py keras_cv_against_diffusers [...]
python benchmarks/published_tables.py sdxl_4_steps [...]
python benchmarks/published_tables.py sdxl_guided [...]
python benchmarks/published_tables.py control [...]

peers_256, peers_512: one image in 10 and in 4 steps, beside the best of each other library; docs/make_tables.py then
writes them into the README. keras_guide: Standard / Mixed / XLA / XLA + Mixed, here and in KerasCV, 3 images of
512 x 512 in 25 steps. keras_cv_against_diffusers: 3 images in 50 steps, both timed from process start, and kerasdiff
beside them. The sizes of these two are for a GPU; on a processor smaller ones tell as much:
--batch_size=1 --height=256 --width=256 --num_steps=4.

sdxl_4_steps, sdxl_guided: one image of 1024 x 1024 of Stable Diffusion XL, in 4 steps without guidance, as Lightning
and its like draw it, and in 2 guided steps. Their files, 27 GB with what is kept between processes, can be written
before: add --prepare, and the same --work to both.

control: one guided image of 512 x 512 with a ControlNet and without, in 4 steps, here and in diffusers.
"""

from __future__ import annotations

import os
import sys

from kerasdiff.bench.machine import results_folder

_ROWS = ("kerasdiff auto", "kerasdiff tensorflow", "keras_cv xla", "diffusers bf16", "openvino bf16")
_CPP_ROWS = ("stable_diffusion_cpp f16", "stable_diffusion_cpp q8_0")
_PEERS = [f"--rows={','.join([*_ROWS, *_CPP_ROWS])}", "--batch_size=1", "--rounds=2"]
_SDXL = ["--model=sdxl", "--rounds=1"]
TABLES = {
    "peers_256": [*_PEERS, "--height=256", "--width=256", "--num_steps=10", "--runs=2"],
    "peers_512": [*_PEERS, "--num_steps=4", "--runs=1"],
    "sdxl_4_steps": [
        *_SDXL,
        f"--rows={','.join(['kerasdiff auto', 'diffusers bf16', 'openvino bf16', *_CPP_ROWS])}",
        *("--num_steps=4", "--guidance_scale=1", "--spacing=trailing", "--runs=2"),
    ],
    "sdxl_guided": [
        *_SDXL,
        *("--rows=kerasdiff auto,diffusers bf16", "--num_steps=2", "--guidance_scale=5", "--runs=1"),
        "--first_rounds=0",
    ],
    "control": [
        *("--control", "--rows=kerasdiff auto,diffusers bf16", "--num_steps=4", "--rounds=1", "--runs=2"),
    ],
    "keras_guide": [
        *("--configs=standard,mixed,xla,xla_mixed,auto", "--peers=keras_cv", "--batch_size=3", "--num_steps=25"),
    ],
    "keras_cv_against_diffusers": [
        *("--configs=auto", "--peers=keras_cv,diffusers,diffusers_compile", "--batch_size=3", "--num_steps=50"),
    ],
}

if __name__ == "__main__":
    name, *more = sys.argv[1:] or [""]
    if name not in TABLES:
        sys.exit(f"name one of: {', '.join(TABLES)}")
    output = f"--output={results_folder() / name}"
    os.execv(sys.executable, [sys.executable, "-m", "kerasdiff.bench", output, *TABLES[name], *more])
