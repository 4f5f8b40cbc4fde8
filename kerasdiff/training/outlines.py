"""Trains a ControlNet for the embedded model: `python -m kerasdiff.training.outlines --folder=runs`.

Its hints are the outlines of shapes, white on black, without colours. It starts as the U-Net's first half, and adds
nothing (Zhang et al. 2023, arXiv:2302.05543); the U-Net stays as it is. An interrupted run resumes from its last
checkpoint.
"""

import dataclasses
import itertools
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from absl import app
from keras import ops
from scipy import ndimage

from kerasdiff.checkpoints.checkpoint import Checkpoint
from kerasdiff.checkpoints.export import write_controlnet
from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.models.config import TINY
from kerasdiff.models.control_configs import ControlModel, ControlNetConfig
from kerasdiff.models.controlnet import ControlNet
from kerasdiff.models.tokenizer import pad_ids
from kerasdiff.models.unet import UNet
from kerasdiff.training import autoencoder, run_flags, scenes
from kerasdiff.training.denoiser import NoisedBatches, velocity_loss
from kerasdiff.training.loop import train
from kerasdiff.training.lora_training import build

# As files of diffusers are read.
CONFIG = ControlNetConfig(
    unet=dataclasses.replace(TINY.unet, gelu="erf", transformer_epsilon=1e-6), hint_widths=(16, 24, 32, 32)
)
NUM_SCENES, CAPTIONS_PER_SCENE, BATCH_SIZE = 6000, 2, 32
STEPS, STEPS_PER_EPOCH, LEARNING_RATE, EMA_MOMENTUM = 1000, 50, 1e-3, 0.98
# Of lines in pixels; and the share of hints that are edges of filled shapes, as an edge detector finds them.
LINES, EDGES = (1.0, 3.0), 0.5


class ControlTraining(keras.Model):
    """The ControlNet with the U-Net's training loss; what it steers stays as it is."""

    def __init__(self, unet: keras.layers.Layer, text_encoder: keras.layers.Layer, dtype: str = "float32") -> None:
        super().__init__(dtype="float32")
        self.unet, self.text_encoder = UNet(TINY.unet, dtype=dtype), text_encoder
        self.unet.build()
        self.unet.set_weights(unet.get_weights())
        self.controlnet = ControlNet(CONFIG, dtype=dtype)
        self.controlnet.build()
        self.unet.trainable = self.text_encoder.trainable = False
        start = {_name(weight): weight for weight in unet.weights}
        for weight in self.controlnet.weights:
            name = _name(weight)
            if name in start:
                weight.assign(start[name])
            elif name.startswith(("controlnet_down_blocks", "controlnet_mid_block")):
                weight.assign(ops.zeros_like(weight))
        self.built = True

    def call(self, inputs):
        hints, *noised, tokens = inputs
        hint = self.controlnet.encode(ops.cast(hints, "float32") / 255)

        def steered(*seen):
            return self.unet(*seen, residuals=self.controlnet(*seen, hint))

        predicted, loss = velocity_loss(steered, ops.stop_gradient(self.text_encoder(tokens)), *noised)
        self.add_loss(loss)
        return predicted


def _name(weight: keras.Variable) -> str:
    """A weight's name in its network."""
    return weight.path.partition("/")[2].replace("/", ".")


def edges(scene: scenes.Scene) -> np.ndarray:
    """Lines of one pixel inside a scene's things, as an edge detector draws them: uint8 (128, 128, 3)."""
    lines = np.zeros((scenes.IMAGE_SIZE, scenes.IMAGE_SIZE), bool)
    for thing in scene.things:
        inside = np.asarray(scenes.mask(thing)) > 127
        lines |= inside & ~ndimage.binary_erosion(inside)
    return np.repeat(lines[..., None], 3, axis=-1) * np.uint8(255)


def random_hint(scene: scenes.Scene, rng: np.random.Generator) -> np.ndarray:
    """A hint for a scene, of one kind or another."""
    return edges(scene) if rng.random() < EDGES else scenes.outlines(scene, rng.uniform(*LINES))


def examples(folder: pathlib.Path, seed: int) -> tuple[np.ndarray, ...]:
    """Hints (N, 128, 128), latents and tokens (N, captions per scene, 77), kept in a folder; and those of no text."""
    kept, model = folder / "outlines.npz", open_model("tiny")

    def read(text: str) -> np.ndarray:
        return pad_ids(model.tokenizer.encode(text), TINY.main_text_encoder.max_length)

    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng([seed, 5])
        pairs = list(itertools.islice(scenes.scene_stream(seed, "train"), NUM_SCENES))
        hints = np.stack([random_hint(scene, rng)[..., 0] for scene, _ in pairs])
        pictures = np.stack([scenes.render(scene) for scene, _ in pairs])
        latents = autoencoder.encode_all(build(model, "encoder"), pictures)
        captions = [[scenes.caption(scene, rng).text for _ in range(CAPTIONS_PER_SCENE)] for scene, _ in pairs]
        tokens = np.array([[read(text) for text in of_scene] for of_scene in captions], "int16")
        np.savez(kept, hints, latents.astype("float16"), tokens)
    with np.load(kept) as file:
        return *(file[name] for name in file.files), read("")


class HintedBatches(NoisedBatches):
    """`NoisedBatches` with hints before them."""

    def __init__(self, hints: np.ndarray, *others: np.ndarray, size: int, seed: int) -> None:
        super().__init__(*others, size=size, seed=seed)
        self._hints = hints

    def __call__(self, step: int) -> tuple[np.ndarray, ...]:
        hints = self._hints[self.chosen(step)]
        return np.repeat(hints[..., None], 3, axis=-1).astype("int32"), *super().__call__(step)


def trained(folder: pathlib.Path, *, seed: int = 0, scale: float = 1.0) -> ControlNet:
    """Trains the ControlNet; `scale` multiplies the number of steps."""
    *kept, empty = examples(folder, seed)
    keras.utils.set_random_seed(seed)
    model = open_model("tiny")
    training = ControlTraining(build(model, "unet"), build(model, "text_encoder"))
    train(
        training,
        HintedBatches(*kept, empty, size=BATCH_SIZE, seed=seed),
        folder=folder,
        total_steps=max(1, round(STEPS * scale)),
        steps_per_epoch=STEPS_PER_EPOCH,
        learning_rate=LEARNING_RATE,
        ema_momentum=EMA_MOMENTUM,
    )
    return training.controlnet


def write(network: ControlNet, folder: pathlib.Path) -> None:
    """Writes a ControlNet as diffusers has it, in float16."""
    values = {weight.path.replace("/", "."): np.asarray(weight) for weight in network.weights}
    config = ControlModel(controlnet=CONFIG)
    checkpoint = Checkpoint("outlines", config, None, lambda *_: lambda name, shape: values[name])  # type: ignore[arg-type]
    write_controlnet(checkpoint, TINY, folder, "float16")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    folder = pathlib.Path(run_flags.FOLDER.value) / "outlines"
    network = trained(folder, seed=run_flags.SEED.value, scale=run_flags.SHORTEN.value)
    write(network, pathlib.Path(run_flags.OUTPUT.value or "tests/data/outlines"))


if __name__ == "__main__":
    app.run(main)
