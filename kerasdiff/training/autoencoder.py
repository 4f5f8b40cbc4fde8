"""Stage 1: the autoencoder learns to pack pictures into latents."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kerasdiff.models.config import TINY
from kerasdiff.models.vae import Decoder, Encoder
from kerasdiff.training import scenes
from kerasdiff.training.loop import train

KL_WEIGHT = 5e-4
EMA_MOMENTUM = 0.998


@dataclasses.dataclass(frozen=True)
class Phase:
    """A part of the training: pictures are cut to squares of `crop` pixels."""

    name: str
    crop: int
    batch_size: int
    learning_rate: float
    steps: int


# Edges are learned on small crops, three times as many steps a minute; whole pictures then correct
# the statistics of the group norms.
PHASES = (Phase("crops", 64, 8, 2e-3, 6000), Phase("whole", 128, 4, 1e-3, 1600))


class Autoencoder(keras.Model):
    """Encoder and decoder in one, with the loss of a variational autoencoder (L1, squares and KL)."""

    def __init__(self, dtype: str = "mixed_bfloat16") -> None:
        super().__init__(dtype="float32")
        self.encoder = Encoder(TINY.vae, dtype=dtype)
        self.decoder = Decoder(TINY.vae, dtype=dtype)
        self.encoder.build()
        self.decoder.build()
        self.built = True

    def call(self, inputs):
        pictures, noise = inputs
        mean, log_variance = (ops.cast(x, "float32") for x in self.encoder.moments(pictures))
        log_variance = ops.clip(log_variance, -20.0, 5.0)
        kl = 0.5 * ops.mean(mean**2 + ops.exp(log_variance) - 1 - log_variance)
        rebuilt = ops.cast(self.decoder(mean + ops.exp(0.5 * log_variance) * noise), "float32")
        error = rebuilt - pictures
        self.add_loss(ops.mean(ops.abs(error)) + ops.mean(ops.square(error)) + KL_WEIGHT * kl)
        return rebuilt


def train_autoencoder(
    pictures: np.ndarray,
    folder: pathlib.Path,
    *,
    seed: int = 0,
    phases: tuple[Phase, ...] = PHASES,
    steps_per_epoch: int = 200,
) -> Autoencoder:
    """Trains on pictures uint8 (N, 128, 128, 3); its latents come out with mean 0 and deviation 1."""
    keras.utils.set_random_seed(seed)
    model = Autoencoder()

    def sample(_: int) -> None:
        shown = pictures[:16]
        both = np.stack([shown, reconstruct(model, shown)], axis=1).reshape(-1, *shown.shape[1:])
        scenes.contact_sheet(both, 8).save(folder / "samples.png")

    for number, phase in enumerate(phases):
        train(
            model,
            functools.partial(_batches, pictures, phase, seed + number),
            folder=folder / phase.name,
            total_steps=phase.steps,
            steps_per_epoch=steps_per_epoch,
            learning_rate=phase.learning_rate,
            ema_momentum=EMA_MOMENTUM,
            weight_decay=1e-4,
            epoch_end=sample,
        )
    normalise(model, encode_all(model, pictures[:2000]))
    sample(0)
    return model


def _batches(pictures: np.ndarray, phase: Phase, seed: int, first_step: int) -> tf.data.Dataset:
    """Batch `step` is ((crops, noise), nothing), all drawn from (seed, step)."""
    cells = phase.crop // TINY.latent_factor

    def batch(step):
        rng = np.random.default_rng([seed, int(step)])
        crops = np.empty((phase.batch_size, phase.crop, phase.crop, 3), "float32")
        for crop, index in zip(crops, rng.integers(len(pictures), size=phase.batch_size), strict=True):
            top, left = rng.integers(scenes.IMAGE_SIZE - phase.crop + 1, size=2)
            crop[:] = pictures[index][top : top + phase.crop, left : left + phase.crop]
        noise = rng.standard_normal((phase.batch_size, cells, cells, TINY.vae.latent_channels), "float32")
        return crops / 127.5 - 1, noise

    def tensors(step):
        crops, noise = tf.numpy_function(batch, [step], (tf.float32, tf.float32))
        crops = tf.ensure_shape(crops, [phase.batch_size, phase.crop, phase.crop, 3])
        noise = tf.ensure_shape(noise, [phase.batch_size, cells, cells, TINY.vae.latent_channels])
        return (crops, noise), tf.zeros([phase.batch_size])

    return tf.data.Dataset.range(first_step, 2**62).map(tensors)


def encode_all(model: Autoencoder, pictures: np.ndarray, batch_size: int = 50) -> np.ndarray:
    """Pictures uint8 (N, 128, 128, 3) to the means of their latents, float32 (N, 16, 16, 4)."""
    encode = tf.function(lambda batch: tf.cast(model.encoder(batch), tf.float32))
    parts = []
    for start in range(0, len(pictures), batch_size):
        parts.append(encode(pictures[start : start + batch_size].astype("float32") / 127.5 - 1).numpy())
    return np.concatenate(parts)


def reconstruct(model: Autoencoder, pictures: np.ndarray) -> np.ndarray:
    """Pictures uint8 (N, 128, 128, 3) through encoder and decoder and back to uint8."""
    decoded = ops.convert_to_numpy(ops.cast(model.decoder(encode_all(model, pictures)), "float32"))
    return np.clip(np.round((decoded + 1) * 127.5), 0, 255).astype("uint8")


def normalise(model: Autoencoder, latents: np.ndarray) -> None:
    """Folds the mean and deviation of each latent channel into the convolutions next to it."""
    mean, deviation = latents.mean((0, 1, 2)), latents.std((0, 1, 2))
    quant, post = model.encoder.quant_conv, model.decoder.post_quant_conv
    channels = len(mean)
    kernel, bias = quant.kernel.numpy(), quant.bias.numpy()
    kernel[..., :channels] /= deviation
    bias[:channels] = (bias[:channels] - mean) / deviation
    bias[channels:] -= 2 * np.log(deviation)
    quant.kernel.assign(kernel)
    quant.bias.assign(bias)
    kernel, bias = post.kernel.numpy(), post.bias.numpy()
    post.bias.assign(bias + mean @ kernel[0, 0])
    post.kernel.assign(kernel * deviation[:, None])
