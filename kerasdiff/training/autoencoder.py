"""Stage 1: the autoencoder learns to encode images as latents."""

import pathlib

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from kerasdiff.models.config import TINY, TINY_VAE
from kerasdiff.models.vae import Decoder, Encoder
from kerasdiff.training import scenes
from kerasdiff.training.loop import train

BATCH_SIZE = 8
LEARNING_RATE = 2e-3
KL_WEIGHT = 5e-4
EMA_MOMENTUM = 0.998
WEIGHT_DECAY = 1e-4
# Edges are learned on small crops, with four times as many steps per minute as on whole images.
CROP = 64
STEPS, STEPS_PER_EPOCH = 6000, 200
# The decoder then continues on whole images with fixed latents, which can run beside the denoiser.
DECODER_BATCH_SIZE = 4
DECODER_LEARNING_RATE = 1e-3
DECODER_STEPS = 1000
# Standard deviation of noise on latents that the decoder learns to ignore: a denoiser's are not exact.
LATENT_NOISE = 0.05


class Autoencoder(keras.Model):
    """Encoder and decoder with the loss of a variational autoencoder (L1, L2 and KL)."""

    def __init__(self, dtype: str = "mixed_bfloat16") -> None:
        super().__init__(dtype="float32")
        self.encoder = Encoder(TINY_VAE, dtype=dtype)
        self.decoder = Decoder(TINY_VAE, dtype=dtype)
        self.encoder.build()
        self.decoder.build()
        self.built = True

    def call(self, inputs):
        pictures, noise = inputs
        mean, log_variance = (ops.cast(x, "float32") for x in self.encoder.moments(pictures))
        log_variance = ops.clip(log_variance, -20.0, 5.0)
        kl = 0.5 * ops.mean(mean**2 + ops.exp(log_variance) - 1 - log_variance)
        rebuilt = ops.cast(self.decoder(mean + ops.exp(0.5 * log_variance) * noise), "float32")
        self.add_loss(reconstruction_loss(rebuilt, pictures) + KL_WEIGHT * kl)
        return rebuilt


def reconstruction_loss(rebuilt, pictures):
    """L1 and squares."""
    error = rebuilt - pictures
    return ops.mean(ops.abs(error)) + ops.mean(ops.square(error))


def train_autoencoder(
    pictures: np.ndarray, folder: pathlib.Path, *, seed: int = 0, total_steps: int = STEPS
) -> Autoencoder:
    """Trains on crops of images uint8 (N, 128, 128, 3); latents get mean 0 and standard deviation 1."""
    keras.utils.set_random_seed(seed)
    model = Autoencoder()
    noise_shape = (BATCH_SIZE, *2 * [CROP // TINY.latent_factor], TINY.vae.latent_channels)

    def batch(step):
        rng = np.random.default_rng([seed, int(step)])
        crops = np.empty((BATCH_SIZE, CROP, CROP, 3), "float32")
        for crop, index in zip(crops, rng.integers(len(pictures), size=BATCH_SIZE), strict=True):
            top, left = rng.integers(scenes.IMAGE_SIZE - CROP + 1, size=2)
            crop[:] = pictures[index][top : top + CROP, left : left + CROP]
        return crops / 127.5 - 1, rng.standard_normal(noise_shape, "float32")

    train(
        model,
        batch,
        folder=folder / "crops",
        total_steps=total_steps,
        steps_per_epoch=STEPS_PER_EPOCH,
        learning_rate=LEARNING_RATE,
        ema_momentum=EMA_MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        epoch_end=lambda _: _sheet(
            pictures, decode_all(model.decoder, encode_all(model.encoder, pictures[:16])), folder
        ),
    )
    normalise(model, encode_all(model.encoder, pictures[:2000]))
    return model


class DecoderTraining(keras.Model):
    """The decoder alone, with the autoencoder's reconstruction loss."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(dtype="float32")
        self.decoder = decoder
        self.built = True

    def call(self, inputs):
        pictures, latents = inputs
        rebuilt = ops.cast(self.decoder(latents), "float32")
        self.add_loss(reconstruction_loss(rebuilt, pictures))
        return rebuilt


def train_decoder(
    decoder: Decoder,
    pictures: np.ndarray,
    latents: np.ndarray,
    folder: pathlib.Path,
    *,
    seed: int = 0,
    total_steps: int = DECODER_STEPS,
) -> DecoderTraining:
    """Refines a decoder on whole images uint8 (N, 128, 128, 3) and their latents (N, 16, 16, 4)."""
    keras.utils.set_random_seed(seed)
    model = DecoderTraining(decoder)

    def batch(step):
        rng = np.random.default_rng([seed, 1, int(step)])
        chosen = np.sort(rng.integers(len(pictures), size=DECODER_BATCH_SIZE))
        noise = rng.standard_normal((len(chosen), *latents.shape[1:]), "float32")
        return pictures[chosen] / np.float32(127.5) - 1, latents[chosen] + LATENT_NOISE * noise

    train(
        model,
        batch,
        folder=folder,
        total_steps=total_steps,
        steps_per_epoch=STEPS_PER_EPOCH,
        learning_rate=DECODER_LEARNING_RATE,
        ema_momentum=EMA_MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        epoch_end=lambda _: _sheet(pictures, decode_all(decoder, latents[:16]), folder),
    )
    return model


def _sheet(pictures: np.ndarray, rebuilt: np.ndarray, folder: pathlib.Path) -> None:
    """Writes the first images next to what became of them."""
    both = np.stack([pictures[: len(rebuilt)], rebuilt], axis=1).reshape(-1, *pictures.shape[1:])
    scenes.contact_sheet(both, 8).save(folder / "samples.png")


def encode_all(encoder: Encoder, pictures: np.ndarray, batch_size: int = 50) -> np.ndarray:
    """Images uint8 (N, 128, 128, 3) to the means of their latents, float32 (N, 16, 16, 4)."""
    encode = tf.function(lambda batch: tf.cast(encoder(batch), tf.float32))
    starts = range(0, len(pictures), batch_size)
    batches = (pictures[start : start + batch_size].astype("float32") / 127.5 - 1 for start in starts)
    return np.concatenate([encode(batch).numpy() for batch in batches])


def decode_all(decoder: Decoder, latents: np.ndarray) -> np.ndarray:
    """Latents (N, 16, 16, 4) to images uint8 (N, 128, 128, 3)."""
    decoded = ops.convert_to_numpy(ops.cast(decoder(latents.astype("float32")), "float32"))
    return np.clip(np.round((decoded + 1) * 127.5), 0, 255).astype("uint8")


def normalise(model: Autoencoder, latents: np.ndarray) -> None:
    """Folds the mean and standard deviation of each latent channel into the convolutions next to it."""
    mean, deviation = latents.mean((0, 1, 2)), latents.std((0, 1, 2))
    quant, post = model.encoder.quant_conv, model.decoder.post_quant_conv
    channels = len(mean)
    kernel, bias = quant.get_weights()
    kernel[..., :channels] /= deviation
    bias[:channels] = (bias[:channels] - mean) / deviation
    bias[channels:] -= 2 * np.log(deviation)
    quant.set_weights([kernel, bias])
    kernel, bias = post.get_weights()
    post.set_weights([kernel * deviation[:, None], bias + mean @ kernel[0, 0]])
