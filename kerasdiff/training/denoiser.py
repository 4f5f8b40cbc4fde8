"""Stage 3: the U-Net learns to denoise latents, conditioned on the frozen text encoder."""

import pathlib
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from kerasdiff.diffusion.conditioning import Conditioning, ContextTable
from kerasdiff.diffusion.denoise_step import DenoiseStage
from kerasdiff.diffusion.initial_state import from_noise
from kerasdiff.models.config import TINY
from kerasdiff.models.text_encoder import TextEncoder
from kerasdiff.models.tokenizer import Tokenizer, pad_ids
from kerasdiff.models.unet import UNet
from kerasdiff.models.vae import Decoder
from kerasdiff.runtime.compiled import LayerNetwork
from kerasdiff.samplers import sampling_levels, sampling_table
from kerasdiff.samplers.batched import same_for_all
from kerasdiff.samplers.noise import PhiloxNoise
from kerasdiff.samplers.schedules import alphas_cumprod
from kerasdiff.training import scenes, score
from kerasdiff.training.autoencoder import decode_all
from kerasdiff.training.loop import train

BATCH_SIZE = 64
LEARNING_RATE = 1e-3
EMA_MOMENTUM = 0.9993
UNCONDITIONAL_SHARE = 0.1
STEPS, STEPS_PER_EPOCH = 6500, 250


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
        *noised, tokens = inputs
        predicted, loss = velocity_loss(self.unet, ops.stop_gradient(self.text_encoder(tokens)), *noised)
        self.add_loss(loss)
        return predicted


def velocity_loss(unet: Callable, context, latents, noise, timesteps, signal):
    """The predicted velocity of latents (B, h, w, C) in noise, and its mean square error; `signal` (B,) is 0 to 1."""
    signal = signal[:, None, None, None]
    deviation = ops.sqrt(1 - signal**2)
    noisy = signal * latents + deviation * noise
    velocity = signal * noise - deviation * latents
    predicted = ops.cast(unet(noisy, timesteps, context), "float32")
    return predicted, ops.mean(ops.square(predicted - velocity))


class NoisedBatches:
    """Batches of latents (N, h, w, C) in noise, as `velocity_loss` takes them, with tokens: functions of (seed, step).

    Tokens are int (N, captions per scene, 77): one caption is chosen at random, and `empty`, int (77,), replaces one
    in ten. No timestep is below the fraction `lowest` of the schedule.
    """

    def __init__(
        self, latents: np.ndarray, tokens: np.ndarray, empty: np.ndarray, *, size: int, seed: int, lowest: float = 0.0
    ) -> None:
        self._lowest = lowest
        self._latents, self._tokens, self._empty, self._size, self._seed = latents, tokens, empty, size, seed
        self._signals = np.sqrt(alphas_cumprod(TINY.schedule))

    def chosen(self, step: int) -> np.ndarray:
        """Places of what is in a batch."""
        return self._chosen(np.random.default_rng([self._seed, int(step)]))

    def _chosen(self, rng: np.random.Generator) -> np.ndarray:
        return np.sort(rng.integers(len(self._tokens), size=self._size))

    def __call__(self, step: int) -> tuple[np.ndarray, ...]:
        size, captions = self._size, self._tokens.shape[1]
        rng = np.random.default_rng([self._seed, int(step)])
        chosen = self._chosen(rng)
        texts = self._tokens[chosen, rng.integers(captions, size=size)].astype("int32")
        texts[rng.random(size) < UNCONDITIONAL_SHARE] = self._empty
        # Timesteps spread evenly over the schedule, a random one in each of `size` parts.
        fractions = self._lowest + (1 - self._lowest) * (rng.permutation(size) + rng.random(size)) / size
        timesteps = np.minimum((fractions * len(self._signals)).astype("int64"), len(self._signals) - 1)
        noise = rng.standard_normal((size, *self._latents.shape[1:]), "float32")
        signal = self._signals[timesteps].astype("float32")
        return self._latents[chosen].astype("float32"), noise, timesteps.astype("float32"), signal, texts


def train_denoiser(
    text_encoder: TextEncoder,
    latents: np.ndarray,
    tokens: np.ndarray,
    empty: np.ndarray,
    folder: pathlib.Path,
    *,
    total_steps: int,
    seed: int = 0,
    epoch_end: Callable[[Denoiser], None] | None = None,
) -> Denoiser:
    """Trains a `Denoiser` on latents float16 (N, 16, 16, 4) and tokens int (N, captions per scene, 77).

    One caption is chosen at random each time; `empty`, int (77,), replaces one in ten. `epoch_end` is called with the
    model after each checkpoint. The text encoder stays as it is.
    """
    keras.utils.set_random_seed(seed)
    model = Denoiser(text_encoder)
    train(
        model,
        NoisedBatches(latents, tokens, empty, size=BATCH_SIZE, seed=seed),
        folder=folder,
        total_steps=total_steps,
        steps_per_epoch=STEPS_PER_EPOCH,
        learning_rate=LEARNING_RATE,
        ema_momentum=EMA_MOMENTUM,
        epoch_end=None if epoch_end is None else lambda _: epoch_end(model),
    )
    return model


class SampleSheet:
    """Draws the same held-out prompts every time, to watch a `Denoiser` learn."""

    def __init__(self, tokenizer: Tokenizer, decoder: Decoder, path: pathlib.Path, count: int = 16) -> None:
        self._decoder, self._path = decoder, path
        length = TINY.main_text_encoder.max_length
        texts = [*[""] * count, *map(scenes.plain_caption, score.held_out_scenes(count, seed=1))]
        self._tokens = np.array([pad_ids(tokenizer.encode(text), length) for text in texts])
        cells = scenes.IMAGE_SIZE // TINY.latent_factor
        self._noise = PhiloxNoise(range(count), (cells, cells, TINY.vae.latent_channels))
        defaults, schedule = TINY.defaults, TINY.schedule
        levels = sampling_levels(schedule, defaults.sampler, defaults.num_steps, spacing=defaults.spacing)
        self._table = sampling_table(levels, defaults.sampler, {})
        self._run = same_for_all(self._table, count)
        self._denoise: DenoiseStage | None = None

    def __call__(self, model: Denoiser) -> None:
        """Writes the sheet with the weights as they are now."""
        if self._denoise is None:
            self._denoise = DenoiseStage(LayerNetwork(model.unet), jit_compile=False)
        start = from_noise(self._noise.initial(), self._run)
        weights = np.full((self._table.num_steps, len(start.x)), TINY.defaults.guidance_scale, "float32")
        conditioning = Conditioning(ContextTable.same(np.asarray(model.text_encoder(self._tokens)), len(start.x)))
        *_, last = self._denoise(start, conditioning, weights, self._run, self._noise)
        scenes.contact_sheet(decode_all(self._decoder, np.asarray(last.x)), 8).save(self._path)
