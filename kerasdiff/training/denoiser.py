"""Stage 3: the U-Net learns to denoise latents, told what is in them by the frozen text encoder."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kerasdiff.models.config import TINY
from kerasdiff.models.text_encoder import TextEncoder
from kerasdiff.models.unet import UNet
from kerasdiff.samplers.schedules import alphas_cumprod
from kerasdiff.training.loop import train

BATCH_SIZE = 64
LEARNING_RATE = 1e-3
EMA_MOMENTUM = 0.9993
UNCONDITIONAL_SHARE = 0.1


class Denoiser(keras.Model):
    """The U-Net with its training loss: v-prediction (Salimans & Ho 2022, arXiv:2202.00512)."""

    def __init__(self, text_encoder: TextEncoder, dtype: str = "mixed_bfloat16") -> None:
        super().__init__(dtype="float32")
        self.text_encoder = text_encoder
        self.text_encoder.trainable = False
        self.unet = UNet(TINY.unet, dtype=dtype)
        self.unet.build()
        self.built = True

    def call(self, inputs):
        latents, noise, timesteps, signal, tokens = inputs
        context = ops.stop_gradient(self.text_encoder(tokens))
        signal = signal[:, None, None, None]
        deviation = ops.sqrt(1 - signal**2)
        noisy = signal * latents + deviation * noise
        wanted = signal * noise - deviation * latents
        predicted = ops.cast(self.unet(noisy, timesteps, context), "float32")
        self.add_loss(ops.mean(ops.square(predicted - wanted)))
        return predicted


def train_denoiser(
    text_encoder: TextEncoder,
    latents: np.ndarray,
    tokens: np.ndarray,
    empty: np.ndarray,
    folder: pathlib.Path,
    *,
    total_steps: int,
    seed: int = 0,
    steps_per_epoch: int = 250,
    epoch_end: Callable[[Denoiser, int], None] | None = None,
) -> Denoiser:
    """Trains a `Denoiser`.

    Args:
        latents: float16 (N, 16, 16, 4).
        tokens: int (N, captions per scene, 77); one caption is chosen at random each time.
        empty: int (77,), the empty prompt, which replaces one caption in ten.
        epoch_end: called with the model (holding the running average of its weights) and the step.
    """
    keras.utils.set_random_seed(seed)
    model = Denoiser(text_encoder)
    train(
        model,
        functools.partial(_batches, latents, tokens, empty, seed),
        folder=folder,
        total_steps=total_steps,
        steps_per_epoch=steps_per_epoch,
        learning_rate=LEARNING_RATE,
        ema_momentum=EMA_MOMENTUM,
        epoch_end=None if epoch_end is None else functools.partial(epoch_end, model),
    )
    return model


def _batches(
    latents: np.ndarray, tokens: np.ndarray, empty: np.ndarray, seed: int, first_step: int
) -> tf.data.Dataset:
    """Batch `step` is a function of (seed, step): scenes, captions, noise and timesteps."""
    count, captions, length = tokens.shape
    shape = latents.shape[1:]
    signals = np.sqrt(alphas_cumprod(TINY.schedule))

    def batch(step):
        rng = np.random.default_rng([seed, int(step)])
        chosen = np.sort(rng.integers(count, size=BATCH_SIZE))
        said = tokens[chosen, rng.integers(captions, size=BATCH_SIZE)].astype("int32")
        said[rng.random(BATCH_SIZE) < UNCONDITIONAL_SHARE] = empty
        # Timesteps spread evenly over the schedule, a random one in each of BATCH_SIZE parts.
        places = (rng.permutation(BATCH_SIZE) + rng.random(BATCH_SIZE)) / BATCH_SIZE
        timesteps = np.minimum((places * len(signals)).astype("int64"), len(signals) - 1)
        noise = rng.standard_normal((BATCH_SIZE, *shape), "float32")
        return (
            latents[chosen].astype("float32"),
            noise,
            timesteps.astype("float32"),
            signals[timesteps].astype("float32"),
            said,
        )

    shapes = ([*shape], [*shape], [], [], [length])

    def tensors(step):
        kinds = (tf.float32, tf.float32, tf.float32, tf.float32, tf.int32)
        parts = tf.numpy_function(batch, [step], kinds)
        parts = [tf.ensure_shape(part, [BATCH_SIZE, *rest]) for part, rest in zip(parts, shapes, strict=True)]
        return tuple(parts), tf.zeros([BATCH_SIZE])

    return tf.data.Dataset.range(first_step, 2**62).map(tensors)
