"""Memory that really ends: an address space with a bound, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import kerasdiff

PROMPT = "a red circle above a blue square on a yellow background"
# What is expected may be made too little, so that the bound is really hit.
MB = 10**6
_DRAW = f"""
import json, logging, resource, sys
import numpy as np
import psutil
import kerasdiff
from kerasdiff.models import footprint
from kerasdiff.runtime import memory

maps, room, batch_size, output = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
told = []
handler = logging.Handler()
handler.emit = lambda record: told.append(record.getMessage())
logging.getLogger("kerasdiff").addHandler(handler)
if maps:
    footprint.UNET_MAPS = dict.fromkeys(footprint.UNET_MAPS, maps)
    memory.total = lambda: 10**9  # as each run's bound is its own to the byte
generator = kerasdiff.Generator("tiny", precision="float32", jit_compile=False)
generator.warm_up(1)
used = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.RLIM_INFINITY))
plan = generator.plan(batch_size)
result = generator.generate({PROMPT!r}, batch_size, seed=5, num_steps=3, progress=False)
np.save(output, result.images)
print(json.dumps({{"chunk": plan.chunk, "told": told}}))
"""


def draw(folder, maps, room, batch_size):
    """What a process said and drew, or two times None if it did not come to its end."""
    output = folder / "images.npy"
    output.unlink(missing_ok=True)
    try:
        run = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _DRAW, *map(str, (maps, room, batch_size, output))],
            env={
                **os.environ,
                "KERASDIFF_CACHE": str(folder / "cache"),
                "TF_CPP_MIN_LOG_LEVEL": "3",
                "MALLOC_ARENA_MAX": "2",  # each takes address space that it may never use
            },
            capture_output=True,
            text=True,
            timeout=60,  # without memory, oneDNN may wait for ever; somebody then kills the process
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, None
    if run.returncode:
        assert run.returncode < 0 or "Error" in run.stderr
        return None, None
    return json.loads(run.stdout.splitlines()[-1]), np.load(output)


@pytest.fixture(scope="module")
def expected():
    return (
        kerasdiff.Generator("tiny", precision="float32")
        .generate(PROMPT, 48, seed=5, num_steps=3, progress=False)
        .images
    )


def near(images, expected):
    return np.abs(images.astype(int) - expected).max() <= 1


def test_little_memory_is_seen_beforehand(tmp_path, expected):
    said, images = draw(tmp_path, 0, 250 * MB, 48)
    assert 1 <= said["chunk"] < 32
    assert near(images, expected)
    assert len(said["told"]) == 1
    assert "48 images of 128 x 128 are generated" in said["told"][0]


def test_a_bound_that_is_hit_is_learned_and_never_hit_again(tmp_path, expected):
    """By an error that is caught, or by the end of the process, which oneDNN prefers; the next one knows of either."""
    said, _ = draw(tmp_path, 12, 300 * MB, 48)
    hit = said is None or any("out of memory" in line for line in said["told"])
    assert hit
    for _ in range(5):
        said, images = draw(tmp_path, 12, 300 * MB, 48)
        if said is not None:
            break
    assert said["chunk"] < 32
    assert near(images, expected)
    again, images = draw(tmp_path, 12, 300 * MB, 48)
    assert near(images, expected)
    assert again["chunk"] < 32
    assert not any("out of memory" in line or "an earlier process died" in line for line in again["told"])
