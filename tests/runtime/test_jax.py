"""The same stages on JAX: the same images, and nothing of TensorFlow."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from lora_files import write_lora

import kerasdiff
from kerasdiff.checkpoints.export import write_diffusers
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.models.network_configs import TinyVAEConfig
from kerasdiff.prompts.tokens import Token


def drawn(generator, sampler, lora):
    """Images with less arithmetic, a LoRA, vectors of one's own, joined texts, from a picture, and into a mask."""
    arguments = {"batch_size": 2, "num_steps": 3, "seed": 1, "progress": False}
    images = generator.generate("a red circle on a blue background", sampler=sampler, **arguments).images
    # In a size whose halves are odd.
    left_out = {"deep_cache_interval": 2, "token_merging_ratio": 0.5, "height": 104, "width": 72}
    less = generator.generate("a star", sampler=sampler, **left_out, tile="x", **arguments).images
    less = np.pad(less, ((0, 0), (0, 24), (0, 56), (0, 0)))
    other = generator.generate("a red circle on a blue background", sampler=sampler, loras=lora, **arguments).images
    # The words of the first prompt, as vectors.
    text, parameters = generator._pipeline.conditioner.main, generator._checkpoint.parameters("text_encoder")
    table = next(value for name, value in parameters if name.endswith("token_embedding.embeddings"))
    chunk = [Token(0, table[index]) for index in text.ids("a red circle on a blue background")]
    worded = generator.generate(prompt_embeds=text.encode([chunk])[0], sampler=sampler, **arguments).images
    texts = ["a ring AND a star:0.7", "[a ring|a star] AND a heart"]
    joined = [generator.generate(text, prompt_syntax="a1111", **arguments).images for text in texts]
    arguments["image"] = np.tile(np.linspace(0, 255, 128, dtype="uint8")[:, None, None], (1, 128, 3))
    mask = np.zeros((128, 128), bool)
    mask[30:90, 41:77] = True
    started = generator.generate("a ring", strength=[0.5, 1.0], **arguments).images
    painted = generator.generate("a ring", mask=mask, strength=0.9, **arguments).images
    return np.concatenate([images, less, other, worded, *joined, started, painted])


SCRIPT = f"""
import json, sys
import numpy as np
import kerasdiff
from kerasdiff.prompts.tokens import Token
{inspect.getsource(drawn)}
import jax
from jax import export
from kerasdiff.runtime.backends import jax as backend

# What is copied is the values of now, and no program is compiled for it.
events = []
jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: events.append(name))
values = np.arange(6, dtype="float32").reshape(2, 3)
taken = backend.adopt(values, "float32")
values[:] = 0
assert np.array_equal(taken, np.arange(6).reshape(2, 3))
assert not [name for name in events if "compile" in name], events

# An accelerator tells of its memory, or does not.
assert (backend.memory(), backend.peak_memory()) == (None, None)
class Device:
    def memory_stats(self):
        return stats
devices, jax.local_devices = jax.local_devices, lambda: [Device()]
for stats, memory, peak in (
    (None, None, None),
    ({{"bytes_in_use": 5}}, None, None),
    ({{"bytes_in_use": 5, "bytes_limit": 9, "peak_bytes_in_use": 7}}, (9, 5), 7),
):
    assert (backend.memory(), backend.peak_memory()) == (memory, peak)
jax.local_devices = devices

small = kerasdiff.Generator("tiny", precision="float32", vae=sys.argv[5])
pictures = np.tile(np.arange(64, dtype="uint8")[None, :, None, None], (1, 1, 96, 3))
latents = small.encode_image(pictures)
np.savez(sys.argv[1] + "z", pictures=pictures, latents=latents, images=small.decode(latents))

# Each program can be written for a GPU, too.
on_gpu, real = [], export.export
def exported(program):
    def traced(*shapes):
        on_gpu.append(real(program, platforms=["cuda"])(*shapes).serialize())
        return real(program)(*shapes)
    return traced
export.export = exported
generator = kerasdiff.Generator("tiny", precision=sys.argv[2])
images = drawn(generator, *sys.argv[3:5])
np.save(sys.argv[1], images)
latents = generator.encode_image(images[:1])
kernel = generator.networks["unet"].conv_out.kernel
kernel.assign(kernel * 0.5)
changed = drawn(generator, *sys.argv[3:5])
print(json.dumps({{
    "traces": generator.traces, "on_gpu": len(on_gpu), "execution": str(generator.execution),
    "tensorflow": "tensorflow" in sys.modules,
    "latents": latents.shape, "changed": int(np.abs(images[:2].astype(int) - changed[:2]).max()),
}}))
"""


def run(*arguments, script=SCRIPT):
    environment = {**os.environ, "KERAS_BACKEND": "jax"}
    command = [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize(
    ("precision", "sampler", "most"),
    [("auto", "dpmpp_2m", 1), pytest.param("bfloat16", "euler_a", 40, marks=pytest.mark.slow)],
)
def test_jax_draws_the_same_images_without_tensorflow(tiny, openvino, tmp_path, monkeypatch, precision, sampler, most):
    monkeypatch.setenv("KERASDIFF_CACHE", str(tmp_path / "cache"))
    told = []
    shapes = {network: tiny._pipeline.networks.network(network).shapes for network in ("unet", "text_encoder")}
    lora = str(write_lora(tmp_path / "lora.safetensors", shapes, 1))
    vae = tmp_path / "small"
    model = open_model("tiny", "random")
    write_diffusers(dataclasses.replace(model, config=dataclasses.replace(model.config, vae=TinyVAEConfig())), vae)
    for name in ("first.npy", "second.npy"):
        done = run(tmp_path / name, precision, sampler, lora, vae)
        assert done.returncode == 0, done.stderr[-2000:]
        told.append(json.loads(done.stdout.splitlines()[-1]))
    assert [one["traces"] for one in told] == [one["on_gpu"] for one in told] == [9, 0]
    for one in told:
        assert not one["tensorflow"]
        assert one["execution"].endswith("XLA")
        assert "no XLA" not in one["execution"]
        assert one["latents"] == [1, 16, 16, 4]
        assert one["changed"] > 10
    assert np.abs(np.diff(np.load(tmp_path / "first.npy")[[0, 4]].astype(int), axis=0)).max() > 10  # the LoRA
    first, second = (np.load(tmp_path / name) for name in ("first.npy", "second.npy"))
    assert np.array_equal(first, second)
    assert np.abs(first[6:8].astype(int) - first[:2]).max() <= most
    assert any((tmp_path / "cache" / "jax").iterdir())
    found, small = (
        np.load(tmp_path / "first.npyz.npz"),
        kerasdiff.Generator("tiny", precision="float32", vae=vae / "vae"),
    )
    assert np.abs(small.encode_image(found["pictures"]) - found["latents"]).max() < 1e-4
    assert np.abs(small.decode(found["latents"]).astype(int) - found["images"]).max() <= 1
    for generator in (tiny, openvino):
        difference = np.abs(drawn(generator, sampler, lora).astype(int) - first)
        assert difference.max() <= most
        assert difference.mean() < 2


def test_jax_always_compiles():
    done = run(script="import kerasdiff\nkerasdiff.Generator('tiny', jit_compile=False)")
    assert done.returncode == 1
    assert "jit_compile=False is not possible on JAX" in done.stderr.splitlines()[-1]
