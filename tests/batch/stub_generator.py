"""A generator without TensorFlow, for tests of what becomes of files; run as a program, a job that it draws.

python stub_generator.py ROWS OUTPUT_DIR [SECONDS PER STEP] [BYTES OF A FILE AT MOST]
"""

from __future__ import annotations

import resource
import sys
import time
import types
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from kerasdiff.batch import read_rows
from kerasdiff.batch.job import make_job
from kerasdiff.cli.batch_command import run_batch
from kerasdiff.cli.options import GENERATE
from kerasdiff.metadata import Provenance
from kerasdiff.models.config import TINY
from kerasdiff.request import make_request
from kerasdiff.result import Result

MODEL = {"model": "tiny", "revision": None, "variant": None, "weights": "pretrained"}
VERSIONS = {"kerasdiff": "0.1.0", "stub": "1"}


class StubGenerator:
    """An image is noise from its prompt and seed, and always the same; at most four are drawn at once."""

    def __init__(self, seconds_per_step: float = 0.0, **_: Any) -> None:
        self._seconds = seconds_per_step
        self.config = TINY
        self.execution = types.SimpleNamespace(precision="float32", backend="tensorflow")
        self.origin = Provenance(
            **MODEL,
            precision="float32",
            jit_compile=False,
            inference_only=False,
            backend="tensorflow",
            device="stub",
            versions=VERSIONS,
            identity=lambda: None,
        )
        self.calls: list[int] = []

    def plan(self, batch_size: int, **_: Any) -> Any:
        return types.SimpleNamespace(chunk=min(batch_size, 4))

    def warm_up(self, *_: Any, **__: Any) -> None:
        pass

    def stream(self, prompt: list[str], callback: Any = None, progress: bool = True, **arguments: Any) -> Iterator:
        request = make_request(self.config, prompt, **arguments)
        self.calls.append(len(request))
        for index in range(len(request)):
            for step in range(request.num_steps):
                time.sleep(self._seconds)
                if callback is not None:
                    callback(step)
            noise = np.random.default_rng([request.seeds[index], zlib.crc32(request.prompts[index].encode())])
            image = noise.integers(0, 256, (1, request.height, request.width, 3), "uint8")
            yield Result(image, np.zeros((1, 1, 1, 4), "float32"), request, "tiny", origin=self.origin, places=(index,))


def main(arguments: list[str]) -> int:
    rows, output_dir, seconds, *limits = arguments
    job = make_job(read_rows(rows), MODEL, {})
    job.check(TINY)
    for limit in map(int, limits):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return run_batch(job, output_dir, lambda _: StubGenerator(float(seconds)), GENERATE)


if __name__ == "__main__":
    assert not {"tensorflow", "keras"} & set(sys.modules), "a stub that waits for TensorFlow"
    GENERATE.run(main)
