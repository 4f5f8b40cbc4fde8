"""Trains the embedded upscaler, "tiny-x2": `python -m kerasdiff.training.upscaler_training --folder=runs`.

Minutes on one core. An interrupted run resumes from its last checkpoint.
"""

import dataclasses
import itertools
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from absl import app, flags
from keras import ops
from safetensors.numpy import save_file

from kerasdiff.models.esrgan import SRVGGNetCompact
from kerasdiff.models.upscaler_config import CompactConfig
from kerasdiff.training import scenes
from kerasdiff.training.autoencoder import reconstruction_loss
from kerasdiff.training.loop import train

_FOLDER = flags.DEFINE_string("folder", "runs", "Folder of checkpoints and logs.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of data, initial weights and batches.", lower_bound=0)
_OUTPUT = flags.DEFINE_string("output", "kerasdiff/presets/upscalers/tiny-x2.safetensors", "File to write.")

CONFIG = CompactConfig(features=32, blocks=6, scale=2)
NUM_SCENES = 1500
CROP, BATCH_SIZE = 32, 8
STEPS, STEPS_PER_EPOCH = 4000, 100
LEARNING_RATE = 1.5e-3
EMA_MOMENTUM = 0.995
WEIGHT_DECAY = 1e-4


def pair(scene: scenes.Scene) -> tuple[np.ndarray, np.ndarray]:
    """A scene as uint8 (128, 128, 3), and in twice the size."""
    factor = CONFIG.scale
    things = tuple(
        dataclasses.replace(thing, x=factor * thing.x, y=factor * thing.y, radius=factor * thing.radius)
        for thing in scene.things
    )
    large = dataclasses.replace(scene, things=things)
    return scenes.render(scene), scenes.render(large, factor * scenes.IMAGE_SIZE)


class UpscalerTraining(keras.Model):
    """The network with its loss, of squares and absolute values."""

    def __init__(self) -> None:
        super().__init__(dtype="float32")
        self.network = SRVGGNetCompact(CONFIG, dtype="float32")
        self.network.build()
        # It starts as what repeats pixels: from random residuals, all of its layers would learn to give nothing.
        *others, last = self.network.body[::2]
        last.set_weights([np.zeros(weight.shape) for weight in last.weights])
        for layer in others:  # as He et al. 2015 (arXiv:1502.01852) have it for such activations
            layer.kernel.assign(layer.kernel * 2**0.5)
        self.built = True

    def call(self, inputs):
        small, large = inputs
        made = ops.cast(self.network(small), "float32")
        self.add_loss(reconstruction_loss(2 * made, 2 * large))
        return made


def train_upscaler(folder: pathlib.Path, *, seed: int = 0, total_steps: int = STEPS) -> dict[str, np.ndarray]:
    """Tensors as Real-ESRGAN's files have them, of a network that was trained on scenes."""
    keras.utils.set_random_seed(seed)
    stream = itertools.islice(scenes.scene_stream(seed, "train"), NUM_SCENES)
    small, large = (np.stack(pictures) for pictures in zip(*(pair(scene) for scene, _ in stream), strict=True))
    model = UpscalerTraining()

    def batch(step):
        rng = np.random.default_rng([seed, int(step)])
        crops = np.empty((BATCH_SIZE, CROP, CROP, 3), "float32")
        larger = np.empty((BATCH_SIZE, CONFIG.scale * CROP, CONFIG.scale * CROP, 3), "float32")
        for row, index in enumerate(rng.integers(len(small), size=BATCH_SIZE)):
            crop = small[index][:1, :1]
            while crop.std(axis=(0, 1)).max() == 0:  # where nothing is, nothing is learned
                top, left = rng.integers(scenes.IMAGE_SIZE - CROP + 1, size=2)
                crop = small[index][top : top + CROP, left : left + CROP]
            colours = rng.permutation(3)  # in any order, or the last one would hardly be learned
            crops[row] = crop[..., colours]
            top, left, side = CONFIG.scale * top, CONFIG.scale * left, CONFIG.scale * CROP
            larger[row] = large[index][top : top + side, left : left + side, colours]
        return crops / np.float32(255), larger / np.float32(255)

    train(
        model,
        batch,
        folder=folder,
        total_steps=total_steps,
        steps_per_epoch=STEPS_PER_EPOCH,
        learning_rate=LEARNING_RATE,
        ema_momentum=EMA_MOMENTUM,
        weight_decay=WEIGHT_DECAY,
    )
    return _tensors(model.network)


def _tensors(network: keras.layers.Layer) -> dict[str, np.ndarray]:
    tensors = {}
    for weight in network.weights:
        module, _, leaf = weight.path.partition("/")[2].replace("/", ".").rpartition(".")
        value = ops.convert_to_numpy(weight).astype("float16")
        value = value.transpose(3, 2, 0, 1) if leaf == "kernel" else value
        tensors[f"{module}.{'bias' if leaf == 'bias' else 'weight'}"] = np.ascontiguousarray(value)
    return tensors


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    output = pathlib.Path(_OUTPUT.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_file(train_upscaler(pathlib.Path(_FOLDER.value) / "upscaler", seed=_SEED.value), output)


if __name__ == "__main__":
    app.run(main)
