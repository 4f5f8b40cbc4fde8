"""Distils a small autoencoder for the embedded model: `python -m kerasdiff.training.small_autoencoder --folder=runs`.

Its decoder learns to draw what the embedded model's own draws, its encoder to give the own one's latents, each in some
minutes on one core. An interrupted run resumes from its last checkpoint.
"""

import dataclasses
import functools
import itertools
import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from absl import app
from keras import ops
from safetensors.numpy import save_file

from kerasdiff.checkpoints.formats.diffusers_config import settings_files
from kerasdiff.checkpoints.formats.diffusers_folder import COMPONENTS
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.generator import Generator
from kerasdiff.models.config import TINY
from kerasdiff.models.network_configs import TinyVAEConfig
from kerasdiff.models.tiny_vae import TinyDecoder, TinyEncoder
from kerasdiff.training import autoencoder, run_flags, scenes
from kerasdiff.training.loop import train
from kerasdiff.training.lora_training import build

# No blocks where pixels are many: the last two levels of the decoder only double, which is linear.
CONFIG = TinyVAEConfig(encoder_width=16, decoder_width=32, encoder_blocks=(0, 2, 3, 3), decoder_blocks=(3, 2, 0, 0))
NUM_SCENES, NUM_DRAWN = 2400, 1200
# Steps of what is drawn, in turns: after few, pictures are those that a preview shows.
DRAWN_STEPS = (1, 2, 4, 8, 8, 8)
BATCH_SIZE, STEPS_PER_EPOCH = 2, 500
STEPS = {"decoder": 12000, "encoder": 4000}
LEARNING_RATE, EMA_MOMENTUM = 2e-3, 0.995


class Distillation(keras.Model):
    """A half of the small autoencoder, which is to give what a half of the large one gave."""

    def __init__(self, half: keras.layers.Layer) -> None:
        super().__init__(dtype="float32")
        self.half = half
        self.half.build()
        self.built = True

    def call(self, inputs):
        given, wanted = inputs
        found = self.half(given)
        # So large that gradients are clipped, without which a few pictures undo what others taught.
        self.add_loss(10 * ops.mean(ops.square(found - wanted)))
        return found


def examples(folder: pathlib.Path, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the embedded model draws and what it encodes, kept in a folder.

    The decoder's pictures, uint8 (N, 128, 128, 3); the latents that it drew them from, float32 (N, 16, 16, 4); and what
    the encoder makes of the pictures, which is a little different.
    """
    kept = folder / "examples.npz"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pairs = list(itertools.islice(scenes.scene_stream(seed, "train"), NUM_SCENES + NUM_DRAWN))
        encoder, decoder = (build(open_model("tiny"), network) for network in ("encoder", "decoder"))
        encoded = autoencoder.encode_all(encoder, np.stack([scenes.render(scene) for scene, _ in pairs[:NUM_SCENES]]))
        pictures = [autoencoder.decode_all(decoder, part) for part in np.array_split(encoded, len(encoded) // 8)]
        latents, generator = [encoded], Generator("tiny")
        texts = [scenes.caption(scene, rng).text for scene, rng in pairs[NUM_SCENES:]]
        for turn, start in enumerate(range(0, len(texts), 8)):
            drawn = generator.generate(
                texts[start : start + 8],
                num_steps=DRAWN_STEPS[turn % len(DRAWN_STEPS)],
                seed=seed * len(texts) + start,
                progress=False,
            )
            latents.append(drawn.latents)
            pictures.append(drawn.images)
        drawn_from, shown = np.concatenate(latents), np.concatenate(pictures)
        np.savez(kept, shown, drawn_from, autoencoder.encode_all(encoder, shown))
    with np.load(kept) as file:
        return file["arr_0"], file["arr_1"], file["arr_2"]


def distil(folder: pathlib.Path, *, seed: int = 0, scale: float = 1.0) -> dict[str, keras.layers.Layer]:
    """Trains both halves; `scale` multiplies the numbers of steps."""
    pictures, latents, encoded = examples(folder, seed)
    keras.utils.set_random_seed(seed)
    halves: dict[str, keras.layers.Layer] = {"decoder": TinyDecoder(CONFIG), "encoder": TinyEncoder(CONFIG)}

    def batch(half, step):
        rng = np.random.default_rng([seed, list(halves).index(half), int(step)])
        # Half of them drawn, though there are fewer.
        ends = np.where(rng.random((BATCH_SIZE, 1)) < 0.5, (0, NUM_SCENES), (NUM_SCENES, len(pictures)))
        chosen = rng.integers(*ends.T)
        shown = pictures[chosen] / np.float32(127.5) - 1
        return (latents[chosen], shown) if half == "decoder" else (shown, encoded[chosen])

    for half, network in halves.items():
        train(
            Distillation(network),
            functools.partial(batch, half),
            folder=folder / half,
            total_steps=max(1, round(STEPS[half] * scale)),
            steps_per_epoch=STEPS_PER_EPOCH,
            learning_rate=LEARNING_RATE,
            ema_momentum=EMA_MOMENTUM,
            weight_decay=0.0,
        )
    return halves


def write(halves: dict[str, keras.layers.Layer], folder: pathlib.Path) -> None:
    """Writes an autoencoder as diffusers has it, in float16."""
    tensors = {}
    for half, network in halves.items():
        for weight in network.weights:
            name, value = weight.path.replace("/", "."), np.asarray(weight, "float16")
            key = next(COMPONENTS[half].slices(name)).key
            tensors[key] = np.ascontiguousarray(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value)
    settings = settings_files(dataclasses.replace(TINY, vae=CONFIG))["vae/config.json"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
    save_file(tensors, folder / f"{COMPONENTS['decoder'].stem}.safetensors", {"format": "pt"})


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    folder = pathlib.Path(run_flags.FOLDER.value) / "taesd"
    halves = distil(folder, seed=run_flags.SEED.value, scale=run_flags.SHORTEN.value)
    write(halves, pathlib.Path(run_flags.OUTPUT.value or "kerasdiff/presets/taesd"))


if __name__ == "__main__":
    app.run(main)
