"""Trains the embedded model from scratch: `python -m kerasdiff.training --folder=runs`.

Stages: data, autoencoder, text, latents, decoder, denoiser, export. Each leaves its result in the folder and
is skipped if that exists; an interrupted one resumes from its last checkpoint.
"""

import json
import os
import pathlib
from collections.abc import Callable
from typing import TypeVar

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

_FOLDER = flags.DEFINE_string("folder", "runs", "Folder of data, checkpoints, logs and sample grids.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of data, initial weights and batches.", lower_bound=0)
_NUM_TRAIN = flags.DEFINE_integer("num_train", 60_000, "Scenes in the training split.", lower_bound=100)
_SHORTEN = flags.DEFINE_float("shorten", 1.0, "Factor on the steps of every stage, for a trial run.", lower_bound=0.0)
_OUTPUT = flags.DEFINE_string("output", "kerasdiff/presets/tiny", "Folder to which `export` writes the model.")

_WEIGHTS = "final.weights.h5"
_Model = TypeVar("_Model", bound=keras.Model)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument {argv[1]!r}")
    unknown = set(_STAGES.value) - set(STAGES)
    if unknown:
        raise app.UsageError(f"unknown stages {sorted(unknown)}; known: {', '.join(STAGES)}")
    folder = pathlib.Path(_FOLDER.value)
    folder.mkdir(parents=True, exist_ok=True)
    for stage, run in STAGES.items():
        if stage in _STAGES.value:
            logging.info("stage %s", stage)
            run(folder)


def _data(folder: pathlib.Path) -> None:
    captions_path = folder / "captions.json"
    if captions_path.exists():
        return
    builder = CaptionedShapes(
        data_dir=folder / "tfds", num_train=_NUM_TRAIN.value, num_held_out=min(2000, _NUM_TRAIN.value), seed=_SEED.value
    )
    builder.download_and_prepare()
    shape = (_NUM_TRAIN.value, scenes.IMAGE_SIZE, scenes.IMAGE_SIZE, 3)
    pictures = np.lib.format.open_memmap(folder / "pictures.npy", "w+", "uint8", shape)
    captions = []
    for index, example in enumerate(builder.as_dataset(split="train").as_numpy_iterator()):
        pictures[index] = example["image"]
        captions.append([caption.decode() for caption in example["captions"]])
    pictures.flush()
    captions_path.write_text(json.dumps(captions))


def _pictures(folder: pathlib.Path) -> np.ndarray:
    return np.load(folder / "pictures.npy", mmap_mode="r")


def _steps(default: int) -> int:
    return max(1, round(default * _SHORTEN.value))


def _loaded(model: _Model, folder: pathlib.Path) -> _Model:
    model.load_weights(folder / _WEIGHTS)
    return model


def _autoencoder(folder: pathlib.Path) -> None:
    output = folder / "autoencoder"
    if not (output / _WEIGHTS).exists():
        steps = _steps(autoencoder.STEPS)
        model = autoencoder.train_autoencoder(_pictures(folder), output, seed=_SEED.value, total_steps=steps)
        model.save_weights(output / _WEIGHTS)


def _trained_autoencoder(folder: pathlib.Path) -> autoencoder.Autoencoder:
    return _loaded(autoencoder.Autoencoder(), folder / "autoencoder")


def _text(folder: pathlib.Path) -> None:
    tokenizer, output = text.make_tokenizer(_SEED.value, folder / "tokenizer.json"), folder / "text"
    if not (output / _WEIGHTS).exists():
        model = text.train_text_encoder(tokenizer, output, seed=_SEED.value, scale=_SHORTEN.value)
        logging.info("right answers, by question: %s", text.accuracy(model, tokenizer, _SEED.value + 5))
        model.save_weights(output / _WEIGHTS)


def _trained_reader(folder: pathlib.Path) -> text.Reader:
    return _loaded(text.Reader(TINY.main_text_encoder.max_length), folder / "text")


def _latents(folder: pathlib.Path) -> None:
    if not (folder / "latents.npy").exists():
        latents = autoencoder.encode_all(_trained_autoencoder(folder).encoder, _pictures(folder))
        np.save(folder / "latents.npy", latents.astype("float16"))
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    length = TINY.main_text_encoder.max_length
    captions = json.loads((folder / "captions.json").read_text())
    tokens = [[pad_ids(tokenizer.encode(caption), length) for caption in of_scene] for of_scene in captions]
    np.save(folder / "tokens.npy", np.array(tokens, "int16"))


def _decoder(folder: pathlib.Path) -> None:
    output = folder / "decoder"
    if not (output / _WEIGHTS).exists():
        model = autoencoder.train_decoder(
            _trained_autoencoder(folder).decoder,
            _pictures(folder),
            np.load(folder / "latents.npy"),
            output,
            seed=_SEED.value,
            total_steps=_steps(autoencoder.DECODER_STEPS),
        )
        model.save_weights(output / _WEIGHTS)


def _trained_decoder(folder: pathlib.Path) -> Decoder:
    return _loaded(autoencoder.DecoderTraining(_trained_autoencoder(folder).decoder), folder / "decoder").decoder


def _denoiser(folder: pathlib.Path) -> None:
    output = folder / "denoiser"
    if (output / _WEIGHTS).exists():
        return
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    model = denoiser.train_denoiser(
        _trained_reader(folder).encoder,
        np.load(folder / "latents.npy"),
        np.load(folder / "tokens.npy"),
        pad_ids(tokenizer.encode(""), TINY.main_text_encoder.max_length),
        output,
        total_steps=_steps(denoiser.STEPS),
        seed=_SEED.value,
        epoch_end=denoiser.SampleSheet(tokenizer, _trained_decoder(folder), output / "samples.png"),
    )
    model.save_weights(output / _WEIGHTS)


def _export(folder: pathlib.Path) -> None:
    reader = _trained_reader(folder)
    networks = {
        "text_encoder": reader.encoder,
        "unet": _loaded(denoiser.Denoiser(reader.encoder), folder / "denoiser").unet,
        "decoder": _trained_decoder(folder),
        "encoder": _trained_autoencoder(folder).encoder,
    }
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    model = Checkpoint("tiny", TINY, tokenizer, lambda network, _: _values_of(networks[network]))
    write_native(model, pathlib.Path(_OUTPUT.value))


def _values_of(network: keras.layers.Layer) -> Callable[[str, tuple[int, ...]], np.ndarray]:
    values = {weight.path.partition("/")[2].replace("/", "."): weight for weight in network.weights}
    return lambda name, shape: np.asarray(values[name.partition(".")[2]])


STAGES = {
    "data": _data,
    "autoencoder": _autoencoder,
    "text": _text,
    "latents": _latents,
    "decoder": _decoder,
    "denoiser": _denoiser,
    "export": _export,
}
_STAGES = flags.DEFINE_list("stages", list(STAGES), "Stages to run, always in the order of the default.")

if __name__ == "__main__":
    app.run(main)
