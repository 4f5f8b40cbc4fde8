"""Distils the embedded model to a few steps without guidance: `python -m kerasdiff.training.consistency --folder=runs`.

The result is a LoRA for `recipe="lcm"`. A latent consistency model (Luo et al. 2023, arXiv:2310.04378) tells from any
point of a guided trajectory where it ends. So small a model can be followed to the end of some thousand trajectories,
so that these ends themselves are learned. An interrupted run resumes from its last checkpoint.
"""

import itertools
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from absl import app
from keras import ops
from safetensors.numpy import save_file

from kerasdiff.checkpoints.resolve import open_model
from kerasdiff.models.config import TINY
from kerasdiff.models.tokenizer import pad_ids
from kerasdiff.samplers import spacings
from kerasdiff.samplers.schedules import alphas_cumprod
from kerasdiff.training import autoencoder, run_flags, scenes
from kerasdiff.training.loop import train
from kerasdiff.training.lora_training import LoraTraining, Recipe, build, header

RECIPE = Recipe(700, 2e-3, rank=4, modules="unet/")
NUM_SCENES, BATCH_SIZE, STEPS_PER_EPOCH = 1536, 16, 50
EMA_MOMENTUM = 0.98
# How many scenes are followed at once, and in how many steps one that begins as noise.
FOLLOWED, TEACHER_STEPS = 64, 8
NUM_TRAIN = TINY.schedule.num_train_timesteps
# Those of runs of 4 steps twice.
TIMESTEPS = np.concatenate([spacings.lcm(count, NUM_TRAIN) for count in (4, 8)]).astype("int32")
# What is left of a picture at each timestep.
SIGNALS = np.sqrt(alphas_cumprod(TINY.schedule))


class ConsistencyTraining(LoraTraining):
    """A LoRA with which the U-Net takes the ends of trajectories for what is behind the noise."""

    def call(self, inputs):
        noisy, ends, timesteps, signal, context = inputs
        with self.merged():
            velocity = ops.cast(self.unet(noisy, timesteps, context), "float32")
        signal = signal[:, None, None, None]
        found = signal * noisy - ops.sqrt(1 - signal**2) * velocity
        self.add_loss(ops.mean(ops.abs(found - ends)))
        return found


class Teacher:
    """The embedded model with its own guidance, followed by DPM-Solver++ (2M)."""

    def __init__(self, unet: keras.layers.Layer, empty: np.ndarray) -> None:
        """`empty` is the context (77, width) of no text."""
        self._empty = empty
        self._predict = tf.function(unet, reduce_retracing=True)

    def ends(self, noisy: np.ndarray, timestep: int, context: np.ndarray) -> np.ndarray:
        """Where trajectories through states (B, h, w, C) at a timestep end."""
        count = max(1, round(TEACHER_STEPS * timestep / NUM_TRAIN))
        times = spacings.trailing(count, timestep + 1).astype(int)
        signals = SIGNALS[times]
        deviations = np.sqrt(1 - signals**2)
        widths = np.diff(np.log(signals / deviations))
        x, before = noisy, np.zeros_like(noisy)
        for step, time in enumerate(times):
            data = signals[step] * x - deviations[step] * self._velocity(x, time, context)
            if step == count - 1:
                return data.astype("float32")
            ahead = data if step == 0 else data + (data - before) * widths[step] / (2 * widths[step - 1])
            kept = deviations[step + 1] / deviations[step]
            x, before = kept * x - signals[step + 1] * np.expm1(-widths[step]) * ahead, data
        raise AssertionError("a trajectory has at least one step")

    def _velocity(self, x: np.ndarray, time: int, context: np.ndarray) -> np.ndarray:
        both = np.concatenate([np.broadcast_to(self._empty, context.shape), context])
        given = np.tile(x, (2, 1, 1, 1)).astype("float32")
        without, with_text = np.split(self._predict(given, np.full(len(given), time, "float32"), both).numpy(), 2)
        return without + TINY.defaults.guidance_scale * (with_text - without)


def examples(folder: pathlib.Path, seed: int) -> tuple[np.ndarray, ...]:
    """States, the ends of their trajectories, timesteps and contexts, kept in a folder."""
    kept = folder / "trajectories.npz"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        model = open_model("tiny")
        networks = {name: build(model, name) for name in ("encoder", "text_encoder", "unet")}
        read = lambda text: pad_ids(model.tokenizer.encode(text), TINY.main_text_encoder.max_length)  # noqa: E731
        encode_text = lambda texts: np.asarray(networks["text_encoder"](np.array([*map(read, texts)])))  # noqa: E731
        (empty,) = encode_text([""])
        teacher, rng = Teacher(networks["unet"], empty), np.random.default_rng([seed, 3])
        pairs = scenes.scene_stream(seed, "train")
        parts = []
        for index in range(NUM_SCENES // FOLLOWED):
            chosen = list(itertools.islice(pairs, FOLLOWED))
            timestep = int(TIMESTEPS[index % len(TIMESTEPS)])
            pictures = np.stack([scenes.render(scene) for scene, _ in chosen])
            latents = autoencoder.encode_all(networks["encoder"], pictures)
            context = encode_text([scenes.caption(scene, other).text for scene, other in chosen])
            noise = rng.standard_normal(latents.shape, "float32")
            signal = SIGNALS[timestep]
            noisy = (signal * latents + np.sqrt(1 - signal**2) * noise).astype("float32")
            ends = teacher.ends(noisy, timestep, context)
            parts.append((noisy, ends, np.full(len(noisy), timestep, "int32"), context))
        np.savez(kept, *map(np.concatenate, zip(*parts, strict=True)))
    with np.load(kept) as file:
        return tuple(file[name] for name in file.files)


def distil(folder: pathlib.Path, *, seed: int = 0, scale: float = 1.0) -> dict[str, np.ndarray]:
    """Trains the LoRA; returns what its file holds. `scale` multiplies the number of steps."""
    noisy, ends, timesteps, context = examples(folder, seed)
    keras.utils.set_random_seed(seed)
    model = open_model("tiny")
    training = ConsistencyTraining(build(model, "unet"), build(model, "text_encoder"), RECIPE)
    signals = SIGNALS[timesteps].astype("float32")

    def batch(step):
        chosen = np.random.default_rng([seed, int(step)]).integers(len(noisy), size=BATCH_SIZE)
        return noisy[chosen], ends[chosen], timesteps[chosen].astype("float32"), signals[chosen], context[chosen]

    train(
        training,
        batch,
        folder=folder,
        total_steps=max(1, round(RECIPE.steps * scale)),
        steps_per_epoch=STEPS_PER_EPOCH,
        learning_rate=RECIPE.learning_rate,
        ema_momentum=EMA_MOMENTUM,
        weight_decay=0.0,
    )
    return training.tensors()


def metadata(seed: int) -> dict[str, str]:
    """What the header of the file says."""
    return header("lcm", RECIPE, NUM_SCENES, seed)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    seed, output = run_flags.SEED.value, pathlib.Path(run_flags.OUTPUT.value or "kerasdiff/presets/adapters")
    tensors = distil(pathlib.Path(run_flags.FOLDER.value) / "lcm", seed=seed, scale=run_flags.SHORTEN.value)
    output.mkdir(parents=True, exist_ok=True)
    save_file(tensors, output / "lcm.safetensors", metadata(seed))


if __name__ == "__main__":
    app.run(main)
