"""Makes the graphs of the embedded model that ship with the package: `python -m kerasdiff.training.graphs`.

With them the first process after an installation needs neither TensorFlow nor Keras. They are used as long as the files
that they were traced from stay the same; `tests/runtime/test_shipped_graphs.py` says when they must be made anew.
"""

import os
import pathlib
import shutil
import sys
import tempfile
import zlib

FOLDER = pathlib.Path(__file__).parents[1] / "graphs"
BACKEND = "openvino"
# How many images at once.
SIZES = (1, 2, 4, 16)


def make(folder: pathlib.Path = FOLDER) -> pathlib.Path:
    """Traces and writes them; what was there before goes."""
    from kerasdiff.generator import Generator
    from kerasdiff.runtime import program_cache

    target = folder / BACKEND
    shutil.rmtree(target, ignore_errors=True)
    generator = Generator("tiny", backend=BACKEND)
    for size in SIZES:
        generator.warm_up(size, guidance="both" if size == 1 else True, image=size == 1)
    target.mkdir(parents=True)
    for path in (pathlib.Path(os.environ["KERASDIFF_CACHE"]) / "programs").glob("*/*"):
        # Without the digest in front.
        (target / path.name).write_bytes(zlib.compress(path.read_bytes()[32:], 9))
    (target / program_cache.SOURCES).write_text(program_cache.shipped_digest(BACKEND) + "\n")
    return target


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ["KERASDIFF_CACHE"] = cache
        sys.stdout.write(f"{make()}\n")
