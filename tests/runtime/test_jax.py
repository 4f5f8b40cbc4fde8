"""The same stages on JAX: the same images, and nothing of TensorFlow."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import kerasdiff

SCRIPT = """
import json, sys
import numpy as np
import kerasdiff
generator = kerasdiff.Generator("tiny", precision=sys.argv[2])
arguments = dict(batch_size=2, num_steps=3, seed=1, progress=False)
images = generator.generate("a red circle on a blue background", sampler=sys.argv[3], **arguments).images
np.save(sys.argv[1], images)
latents = generator.encode_image(images)
kernel = generator.networks["unet"].conv_out.kernel
kernel.assign(kernel * 0.5)
changed = generator.generate("a red circle on a blue background", sampler=sys.argv[3], **arguments).images
print(json.dumps({
    "traces": generator.traces, "execution": str(generator.execution), "tensorflow": "tensorflow" in sys.modules,
    "latents": latents.shape, "changed": int(np.abs(images.astype(int) - changed).max()),
}))
"""


def run(*arguments, script=SCRIPT):
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    command = [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize(("precision", "sampler", "most"), [("auto", "dpmpp_2m", 1), ("bfloat16", "euler_a", 40)])
def test_jax_draws_the_same_images_without_tensorflow(tmp_path, monkeypatch, precision, sampler, most):
    monkeypatch.setenv("KERASDIFF_CACHE", str(tmp_path / "cache"))
    told = []
    for name in ("first.npy", "second.npy"):
        done = run(tmp_path / name, precision, sampler)
        assert done.returncode == 0, done.stderr[-2000:]
        told.append(json.loads(done.stdout.splitlines()[-1]))
    assert [one["traces"] for one in told] == [4, 0]
    for one in told:
        assert not one["tensorflow"]
        assert one["execution"].endswith("XLA")
        assert "no XLA" not in one["execution"]
        assert one["latents"] == [2, 16, 16, 4]
        assert one["changed"] > 10
    first, second = (np.load(tmp_path / name) for name in ("first.npy", "second.npy"))
    assert np.array_equal(first, second)
    assert any((tmp_path / "cache" / "jax").iterdir())
    ours = kerasdiff.Generator("tiny", precision="float32").generate(
        "a red circle on a blue background", batch_size=2, num_steps=3, seed=1, sampler=sampler, progress=False
    )
    difference = np.abs(ours.images.astype(int) - first)
    assert difference.max() <= most
    assert difference.mean() < 2


def test_jax_always_compiles():
    done = run(script="import kerasdiff\nkerasdiff.Generator('tiny', jit_compile=False)")
    assert done.returncode == 1
    assert "jit_compile=False is not possible on JAX" in done.stderr.splitlines()[-1]


PICTURES = """
import sys
import numpy as np
import kerasdiff
picture = np.tile(np.linspace(0, 255, 128, dtype="uint8")[:, None, None], (1, 128, 3))
mask = np.zeros((128, 128), bool)
mask[30:90, 41:77] = True
arguments = dict(image=picture, num_steps=4, seed=1, progress=False)
generator = kerasdiff.Generator("tiny", precision="float32")
drawn = [
    generator.generate("a ring", strength=[0.5, 1.0], batch_size=2, **arguments).images,
    generator.generate("a ring", mask=mask, strength=0.9, **arguments).images,
]
np.save(sys.argv[1], np.concatenate(drawn))
"""


def test_jax_starts_from_the_same_pictures(tmp_path):
    done = run(tmp_path / "jax.npy", script=PICTURES)
    assert done.returncode == 0, done.stderr[-2000:]
    subprocess.run([sys.executable, "-W", "ignore", "-c", PICTURES, tmp_path / "tensorflow.npy"], check=True)
    ours, theirs = (np.load(tmp_path / f"{name}.npy").astype(int) for name in ("jax", "tensorflow"))
    assert np.abs(ours - theirs).max() <= 1
