"""Trains the embedded model from nothing: `python -m kerasdiff.training --folder=runs`.

Stages: data, autoencoder, text, latents, decoder, denoiser, export. Each leaves its result in the folder and
is skipped when that is there; an interrupted one goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from absl import app, flags, logging

from kerasdiff.checkpoints.checkpoint import Checkpoint
from kerasdiff.checkpoints.export import write_native
from kerasdiff.models.config import TINY
from kerasdiff.models.tokenizer import Tokenizer, pad_ids
from kerasdiff.models.vae import Decoder
from kerasdiff.training import autoencoder, denoiser, scenes, text
from kerasdiff.training.dataset import CaptionedShapes

STAGES = ("data", "autoencoder", "text", "latents", "decoder", "denoiser", "export")

_FOLDER = flags.DEFINE_string("folder", "runs", "Where data, checkpoints, logs and sample grids are kept.")
_STAGES = flags.DEFINE_list("stages", list(STAGES), "Which stages to run, in the order given by --help.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of data, initial weights and batches.", lower_bound=0)
_NUM_TRAIN = flags.DEFINE_integer("num_train", 60_000, "Scenes in the training split.", lower_bound=100)
_SHORTEN = flags.DEFINE_float("shorten", 1.0, "Factor on the steps of every stage; for trying out.", lower_bound=0.0)
_OUTPUT = flags.DEFINE_string("output", "kerasdiff/presets/tiny", "Where `export` writes the model.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    unknown = set(_STAGES.value) - set(STAGES)
    if unknown:
        raise app.UsageError(f"unknown stages {sorted(unknown)}; known: {', '.join(STAGES)}")
    folder = pathlib.Path(_FOLDER.value)
    folder.mkdir(parents=True, exist_ok=True)
    actions = {
        "data": _data,
        "autoencoder": _autoencoder,
        "text": _text,
        "latents": _latents,
        "decoder": _decoder,
        "denoiser": _denoiser,
        "export": _export,
    }
    for stage in STAGES:
        if stage in _STAGES.value:
            logging.info("stage %s", stage)
            actions[stage](folder)


def _builder(folder: pathlib.Path) -> CaptionedShapes:
    return CaptionedShapes(
        data_dir=folder / "tfds",
        num_train=_NUM_TRAIN.value,
        num_held_out=min(2000, _NUM_TRAIN.value),
        seed=_SEED.value,
    )


def _data(folder: pathlib.Path) -> None:
    done = folder / "captions.json"
    if done.exists():
        return
    builder = _builder(folder)
    builder.download_and_prepare()
    pictures = np.lib.format.open_memmap(
        folder / "pictures.npy", "w+", "uint8", (_NUM_TRAIN.value, scenes.IMAGE_SIZE, scenes.IMAGE_SIZE, 3)
    )
    captions = []
    for index, example in enumerate(builder.as_dataset(split="train").as_numpy_iterator()):
        pictures[index] = example["image"]
        captions.append([caption.decode() for caption in example["captions"]])
    pictures.flush()
    done.write_text(json.dumps(captions))


def _pictures(folder: pathlib.Path) -> np.ndarray:
    return np.load(folder / "pictures.npy", mmap_mode="r")


def _autoencoder(folder: pathlib.Path) -> None:
    final = folder / "autoencoder" / "final.weights.h5"
    if not final.exists():
        model = autoencoder.train_autoencoder(
            _pictures(folder), folder / "autoencoder", seed=_SEED.value, total_steps=_steps(autoencoder.STEPS)
        )
        model.save_weights(final)


def _steps(usual: int) -> int:
    return max(1, round(usual * _SHORTEN.value))


def _trained_autoencoder(folder: pathlib.Path) -> autoencoder.Autoencoder:
    model = autoencoder.Autoencoder()
    model.load_weights(folder / "autoencoder" / "final.weights.h5")
    return model


def _text(folder: pathlib.Path) -> None:
    tokenizer = text.make_tokenizer(_SEED.value, folder / "tokenizer.json")
    final = folder / "text" / "final.weights.h5"
    if not final.exists():
        model = text.train_text_encoder(tokenizer, folder / "text", seed=_SEED.value, scale=_SHORTEN.value)
        logging.info("read right, by question: %s", text.accuracy(model, tokenizer, _SEED.value + 5))
        model.save_weights(final)


def _trained_text(folder: pathlib.Path) -> text.Reader:
    model = text.Reader(TINY.text_encoder.max_length)
    model.load_weights(folder / "text" / "final.weights.h5")
    return model


def _latents(folder: pathlib.Path) -> None:
    if not (folder / "latents.npy").exists():
        latents = autoencoder.encode_all(_trained_autoencoder(folder), _pictures(folder))
        np.save(folder / "latents.npy", latents.astype("float16"))
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    length = TINY.text_encoder.max_length
    captions = json.loads((folder / "captions.json").read_text())
    tokens = np.array([[pad_ids(tokenizer.encode(one), length) for one in row] for row in captions], "int16")
    np.save(folder / "tokens.npy", tokens)


def _decoder(folder: pathlib.Path) -> None:
    final = folder / "decoder" / "final.weights.h5"
    if not final.exists():
        model = autoencoder.train_decoder(
            _trained_autoencoder(folder).decoder,
            _pictures(folder),
            np.load(folder / "latents.npy"),
            folder / "decoder",
            seed=_SEED.value,
            total_steps=_steps(autoencoder.DECODER_STEPS),
        )
        model.save_weights(final)


def _trained_decoder(folder: pathlib.Path) -> Decoder:
    refined = autoencoder.DecoderTraining(_trained_autoencoder(folder).decoder)
    refined.load_weights(folder / "decoder" / "final.weights.h5")
    return refined.decoder


def _denoiser(folder: pathlib.Path) -> None:
    final = folder / "denoiser" / "final.weights.h5"
    if final.exists():
        return
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    model = denoiser.train_denoiser(
        _trained_text(folder).encoder,
        np.load(folder / "latents.npy"),
        np.load(folder / "tokens.npy"),
        pad_ids(tokenizer.encode(""), TINY.text_encoder.max_length),
        folder / "denoiser",
        total_steps=_steps(denoiser.STEPS),
        seed=_SEED.value,
        epoch_end=denoiser.SampleSheet(tokenizer, _trained_decoder(folder), folder / "denoiser" / "samples.png"),
    )
    model.save_weights(final)


def _export(folder: pathlib.Path) -> None:
    reader = _trained_text(folder)
    trained = denoiser.Denoiser(reader.encoder)
    trained.load_weights(folder / "denoiser" / "final.weights.h5")
    networks = {
        "text_encoder": reader.encoder,
        "unet": trained.unet,
        "decoder": _trained_decoder(folder),
        "encoder": _trained_autoencoder(folder).encoder,
    }
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    model = Checkpoint("tiny", TINY, tokenizer, lambda network, _: _values_of(networks[network]))
    write_native(model, pathlib.Path(_OUTPUT.value))


def _values_of(network: keras.layers.Layer) -> Callable[[str, tuple[int, ...]], np.ndarray]:
    values = {weight.path.partition("/")[2].replace("/", "."): weight for weight in network.weights}
    return lambda name, shape: np.asarray(values[name.partition(".")[2]])


if __name__ == "__main__":
    app.run(main)
