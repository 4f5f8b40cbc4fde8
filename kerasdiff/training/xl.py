"""Trains the SDXL-shaped embedded model: `python -m kerasdiff.training.xl --folder=runs`.

It goes on from the embedded model, whose autoencoder and first text encoder stay as they are. Stages: a second text
encoder with a pooled embedding; latents of scenes that are framed differently; the U-Net, which starts as the embedded
model's, in three parts. Each leaves its result in the folder, and an interrupted one resumes.
"""

import itertools
import json
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import ml_dtypes
import numpy as np
from absl import app, flags, logging
from keras import ops

from kerasdiff.atomic_write import atomic_write
from kerasdiff.checkpoints.formats.native import TOKENIZERS, NativeSource, write_network
from kerasdiff.checkpoints.resolve import TINY_FOLDER, open_model
from kerasdiff.models.config import TINY, TINY_XL
from kerasdiff.models.networks import make_network
from kerasdiff.models.text_encoder import TextEncoder
from kerasdiff.models.tokenizer import Tokenizer, pad_ids
from kerasdiff.models.unet import UNet
from kerasdiff.samplers.schedules import alphas_cumprod
from kerasdiff.training import framing, run_flags, scenes, text
from kerasdiff.training.autoencoder import encode_all
from kerasdiff.training.loop import train
from kerasdiff.training.lora_training import build

_NUM_SCENES = flags.DEFINE_integer("num_scenes", 16_000, "Scenes to train on.", lower_bound=100)
SHARD = 500
PAD = "!"
BATCH_SIZE = 32
STEPS_PER_EPOCH = 50
# Stage -> steps, learning rate, momentum of the running average. The second one learns layouts: from more cropped
# pictures, and from more of the noise in which layouts are decided.
STAGES = {"denoiser": (2200, 2.5e-4, 0.998), "layouts": (700, 3e-4, 0.9), "details": (450, 2e-4, 0.99)}
# Of the pictures that are learned without their captions, and that are learned with the caption "".
WITHOUT, EMPTY = 0.08, 0.04
_WEIGHTS = "final.weights.h5"


def tokenizers() -> tuple[Tokenizer, Tokenizer]:
    """Both have the embedded model's words; the second fills rows up with "!", as Stable Diffusion XL's does."""
    first = Tokenizer.load(TINY_FOLDER / "tokenizer.json")
    return first, Tokenizer(first.vocabulary, pad_id=first.vocabulary.token_to_id(PAD))


class SizedDenoiser(keras.Model):
    """The U-Net with its training loss, v-prediction; the text encoders stay as they are."""

    def __init__(self, encoders: tuple[TextEncoder, TextEncoder], dtype: str = "mixed_bfloat16") -> None:
        super().__init__(dtype="float32")
        self.encoders = list(encoders)
        for encoder in encoders:
            encoder.trainable = False
        self.unet = UNet(TINY_XL.unet, dtype=dtype)
        self.unet.build()
        self.pad_id = tokenizers()[1].pad_id
        self.built = True

    def call(self, inputs):
        latents, noise, timesteps, signal, tokens, ends, told, time_ids = inputs
        context, pooled = (ops.stop_gradient(part) for part in embed(self.encoders, tokens, ends, self.pad_id))
        context, pooled = context * told[:, None, None], pooled * told[:, None]
        signal = signal[:, None, None, None]
        deviation = ops.sqrt(1 - signal**2)
        noisy, velocity = signal * latents + deviation * noise, signal * noise - deviation * latents
        predicted = ops.cast(self.unet(noisy, timesteps, context, pooled=pooled, time_ids=time_ids), "float32")
        self.add_loss(ops.mean(ops.square(predicted - velocity)))
        return predicted


def embed(encoders, tokens, ends, pad_id):
    """The context and the pooled embedding of rows of the first tokenizer, float32."""
    behind = ops.arange(tokens.shape[1], dtype="int32")[None] > ops.cast(ends, "int32")[:, None]
    second, pooled = encoders[1](ops.where(behind, pad_id, ops.cast(tokens, "int32")), ends=ends)
    parts = [ops.cast(part, "float32") for part in (encoders[0](tokens), second)]
    return ops.concatenate(parts, axis=-1), ops.cast(pooled, "float32")


def shard(encoder: keras.layers.Layer, seed: int) -> dict[str, np.ndarray]:
    """Scenes of the training split as the U-Net learns them."""
    tokenizer, length = tokenizers()[0], TINY.main_text_encoder.max_length
    rows, pictures, framings = [], [], []
    for scene, rng in itertools.islice(scenes.scene_stream(seed, "train"), SHARD):
        framed = framing.random_framing(rng)
        ids = tokenizer.encode(scenes.caption(scene, rng).text)
        pictures.append(framing.render(scene, framed))
        framings.append(framed)
        rows.append((pad_ids(ids, length), len(ids) - 1, framed.time_ids))
    tokens, ends, time_ids = (np.array(column, "int16") for column in zip(*rows, strict=True))
    pairs = zip(encode_all(encoder, np.stack(pictures)), framings, strict=True)
    latents = np.stack([framing.enlarged(*pair) for pair in pairs])
    return {"latents": latents.astype("float16"), "tokens": tokens, "ends": ends, "time_ids": time_ids}


def data(folder: pathlib.Path, seed: int, num_scenes: int) -> dict[str, np.ndarray]:
    """All shards, made unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder, parts = None, []
    for number in range(-(-num_scenes // SHARD)):
        path = folder / f"{number:03}.npz"
        if not path.exists():
            encoder = build(open_model("tiny"), "encoder") if encoder is None else encoder
            made = shard(encoder, 1_000_000 * (seed + 1) + number)
            with atomic_write(path, sync=False) as file:
                np.savez(file, allow_pickle=False, **made)
            logging.info("%s", path)
        with np.load(path) as file:
            parts.append(dict(file))
    return {name: np.concatenate([part[name] for part in parts])[:num_scenes] for name in parts[0]}


class Batches:
    """The `SizedDenoiser`'s inputs: functions of (seed, step).

    With `layouts` half of them are cropped for sure, and high levels of noise are more frequent.
    """

    def __init__(self, kept: dict[str, np.ndarray], seed: int, layouts: bool = False) -> None:
        self._kept, self._seed, self._layouts = kept, seed, layouts
        self._cropped = np.flatnonzero(kept["time_ids"][:, 2:4].any(1))
        self._signals = np.sqrt(alphas_cumprod(TINY_XL.schedule))
        empty = tokenizers()[0].encode("")
        self._empty = pad_ids(empty, TINY.main_text_encoder.max_length), len(empty) - 1

    def __call__(self, step: int) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng([self._seed, int(step), int(self._layouts)])
        chosen = rng.integers(len(self._kept["ends"]), size=BATCH_SIZE)
        if self._layouts:
            chosen[::2] = rng.choice(self._cropped, size=len(chosen[::2]))
        latents, tokens, ends, time_ids = (
            self._kept[name][chosen] for name in ("latents", "tokens", "ends", "time_ids")
        )
        drawn = rng.random(BATCH_SIZE)
        tokens[drawn < EMPTY], ends[drawn < EMPTY] = self._empty
        # Timesteps spread evenly over the schedule, a random one in each part.
        fractions = (rng.permutation(BATCH_SIZE) + rng.random(BATCH_SIZE)) / BATCH_SIZE
        fractions = np.sqrt(fractions) if self._layouts else fractions
        timesteps = (fractions * len(self._signals)).astype("int64")
        return (
            latents.astype("float32"),
            rng.standard_normal(latents.shape, "float32"),
            timesteps.astype("float32"),
            self._signals[timesteps].astype("float32"),
            tokens.astype("int32"),
            ends.astype("int32"),
            (drawn < 1 - WITHOUT).astype("float32"),
            time_ids.astype("float32"),
        )


def warm_start(unet: UNet, encoders: tuple[TextEncoder, TextEncoder]) -> None:
    """Gives a U-Net what the embedded model's knows.

    Keys and values read what both encoders give as they read what the one did, as nearly as a linear map can tell. New
    transformer blocks, and what reads sizes, add nothing at first.
    """
    old = dict(open_model("tiny").parameters("unet"))
    reading = _reading(encoders)
    for weight in unet.weights:
        name = _name(weight)
        like = name.replace("transformer_blocks.1.", "transformer_blocks.0.")
        silent = like != name and any(part in name for part in ("to_out.0", "ff.net.2"))
        if silent or name.startswith("add_embedding.linear_2"):
            weight.assign(np.zeros(weight.shape, "float32"))
        elif "attn2.to_k" in name or "attn2.to_v" in name:
            weight.assign(reading @ np.asarray(old[f"unet.{like}"], "float32"))
        elif not name.startswith("add_embedding"):
            weight.assign(np.asarray(old[f"unet.{like}"], "float32"))


def read_apart(unet: UNet) -> None:
    """Gives each number of an original and a crop some hidden units of its own, those that did least before.

    They are ramps that begin at different values, so that what a number does can be any function of it.
    """
    first, second = unet.add_linear1, unet.add_linear2
    assert first is not None
    assert second is not None
    (kernel, bias), (out, shift) = first.get_weights(), second.get_weights()
    config, free = unet.config, iter(np.argsort(np.linalg.norm(out, axis=1)))
    # Place among the numbers, the largest value, and the sinusoid that is nearly straight up to it.
    for place, most, wave in ((2, 64, 8), (3, 64, 8), (0, 256, 10), (1, 256, 10)):
        half = config.time_id_width // 2
        row = (config.pooled_width or 0) + place * config.time_id_width + half + wave
        height = np.sin(most * np.exp(-np.log(10_000) * wave / half))
        for start in np.linspace(-0.05, 0.9, 12):
            unit = next(free)
            kernel[:, unit], kernel[row, unit], bias[unit], out[unit] = 0, 6 / height, -6 * start, 0
    first.set_weights([kernel, bias])
    second.set_weights([out, shift])


def _reading(encoders: tuple[TextEncoder, TextEncoder], count: int = 512) -> np.ndarray:
    """What comes nearest to the embedded model's context, as a product of both encoders' and this matrix."""
    (first, second), length = tokenizers(), TINY.main_text_encoder.max_length
    stream = itertools.islice(scenes.scene_stream(7, "train"), count)
    ids = [first.encode(scenes.caption(scene, rng).text) for scene, rng in stream]
    tokens, ends = np.array([pad_ids(row, length) for row in ids]), np.array([len(row) - 1 for row in ids], "int32")
    given = ops.convert_to_numpy(embed(encoders, tokens, ends, second.pad_id)[0])
    wanted = ops.convert_to_numpy(build(open_model("tiny"), "text_encoder")(tokens))
    solved, *_ = np.linalg.lstsq(given.reshape(-1, given.shape[-1]), wanted.reshape(-1, wanted.shape[-1]), rcond=1e-6)
    left = np.mean((given @ solved - wanted) ** 2) / np.var(wanted)
    logging.info("of the context a linear map misses %.3f", left)
    return solved.astype("float32")


def first_encoder() -> TextEncoder:
    """The embedded model's, without its last layer."""
    encoder = make_network("text_encoder", TINY_XL, "float32")
    encoder.build()
    source = NativeSource(TINY_FOLDER / "text_encoder.safetensors")
    for weight in encoder.weights:
        weight.assign(np.asarray(source(f"text_encoder.{_name(weight)}", tuple(weight.shape))))
    return encoder


def _name(weight: keras.Variable) -> str:
    return weight.path.partition("/")[2].replace("/", ".")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    folder, seed, scale = pathlib.Path(run_flags.FOLDER.value) / "xl", run_flags.SEED.value, run_flags.SHORTEN.value
    reader = trained_reader(folder / "text", seed, scale)
    model = trained_denoiser(reader.encoder, folder, seed, scale)
    write(reader.encoder, model.unet, pathlib.Path(run_flags.OUTPUT.value or TINY_FOLDER.parent / "tiny-xl"))


def trained_reader(folder: pathlib.Path, seed: int, scale: float) -> text.Reader:
    """The second text encoder with what it was trained by."""
    config, second = TINY_XL.text_encoder_2, tokenizers()[1]
    assert config is not None
    if (folder / _WEIGHTS).exists():
        reader = text.Reader(config.max_length, config)
        reader.load_weights(folder / _WEIGHTS)
        return reader
    reader = text.train_text_encoder(second, folder, config=config, seed=seed, scale=scale)
    reader.save_weights(folder / _WEIGHTS)
    return reader


def trained_denoiser(second: TextEncoder, folder: pathlib.Path, seed: int, scale: float) -> SizedDenoiser:
    """The U-Net, trained on what `data` keeps in the folder."""
    keras.utils.set_random_seed(seed)
    encoders = first_encoder(), second
    model = SizedDenoiser(encoders)
    kept = data(folder / "data", seed, _NUM_SCENES.value)
    warm_start(model.unet, encoders)
    for name, (steps, rate, momentum) in STAGES.items():
        if name == "layouts":
            read_apart(model.unet)
        train(
            model,
            Batches(kept, seed + list(STAGES).index(name), layouts=name == "layouts"),
            folder=folder / name,
            total_steps=max(1, round(steps * scale)),
            steps_per_epoch=STEPS_PER_EPOCH,
            learning_rate=rate,
            ema_momentum=momentum,
        )
    return model


def write(second: TextEncoder, unet: UNet, folder: pathlib.Path) -> None:
    """Writes what is not the embedded model's, in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(TINY_XL.to_json(), indent=2) + "\n")
    (folder / TOKENIZERS[1]).write_text(tokenizers()[1].to_json(), "utf-8")
    for network, layer in (("text_encoder_2", second), ("unet", unet)):
        values = {f"{network}.{_name(weight)}": _packable(np.asarray(weight, "float32")) for weight in layer.weights}
        shapes = {name: value.shape for name, value in values.items()}
        write_network(folder / f"{network}.safetensors", shapes, iter(values.items()), "float16")


def _packable(values: np.ndarray) -> np.ndarray:
    """With the eight digits of bfloat16: a wheel, which is a zip file, takes a fifth less for it."""
    return values.astype(ml_dtypes.bfloat16).astype("float32")


if __name__ == "__main__":
    app.run(main)
