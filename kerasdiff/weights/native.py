"""Our own format: a folder with `config.json`, `tokenizer.json` and one safetensors file a network.

Tensors are named as the layers are (`down_blocks.0.resnets.0.conv1.kernel`) and shaped as Keras has
them. Values may be stored in half precision; they are read into whatever the model runs with.
"""

from __future__ import annotations

import json
import pathlib
import shutil
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import safetensors.numpy

from kerasdiff.errors import ModelError
from kerasdiff.models.config import ModelConfig
from kerasdiff.weights.tensors import DTYPES, TensorFiles

if TYPE_CHECKING:
    import keras


def read_config(folder: pathlib.Path) -> ModelConfig:
    """The configuration of a model folder."""
    try:
        return ModelConfig.from_json(json.loads((folder / "config.json").read_text()))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / 'config.json'} cannot be read as a model configuration: {error}") from None


class NativeSource:
    """Parameters of one network from its safetensors file; `finish` tells what nobody asked for."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._tensors = TensorFiles([path])
        self._unused = set(self._tensors)
        self._last: str | None = None

    def __call__(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        name = name.partition(".")[2]
        if name not in self._unused:
            raise ModelError(f"{self._path} has no tensor {name}")
        if self._tensors.shape(name) != tuple(shape):
            raise ModelError(
                f"{self._path}: {name} has shape {self._tensors.shape(name)}, the model needs {tuple(shape)}"
            )
        if self._tensors.dtype(name) not in DTYPES:
            raise ModelError(f"{self._path}: {name} holds {self._tensors.dtype(name)}, not floating-point numbers")
        self._unused.remove(name)
        if self._last is not None:
            self._tensors.release(self._last)
        self._last = name
        return self._tensors.read(name)

    def finish(self) -> None:
        """Raises if the file holds tensors that the model does not have."""
        if self._unused:
            some = ", ".join(sorted(self._unused)[:3])
            raise ModelError(f"{self._path} holds {len(self._unused)} tensors the model does not have, e.g. {some}")


def write_network(network: keras.layers.Layer, path: pathlib.Path, dtype: str = "float16") -> None:
    """Writes the parameters of one network, in `dtype`."""
    safetensors.numpy.save_file(dict(_named(network.weights, dtype)), path)


def _named(weights: Iterable[keras.Variable], dtype: str) -> Iterable[tuple[str, np.ndarray]]:
    import keras

    for weight in weights:
        name = weight.path.replace("/", ".").partition(".")[2]
        yield name, np.ascontiguousarray(keras.ops.convert_to_numpy(weight), dtype)


def write_model(
    config: ModelConfig,
    tokenizer: pathlib.Path,
    networks: dict[str, keras.layers.Layer],
    folder: pathlib.Path,
    dtype: str = "float16",
) -> None:
    """Writes a whole model folder: `networks` by name, e.g. "unet"; `tokenizer` is copied."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_json(), indent=2) + "\n")
    if tokenizer.resolve() != (folder / "tokenizer.json").resolve():
        shutil.copyfile(tokenizer, folder / "tokenizer.json")
    for name, network in networks.items():
        write_network(network, folder / f"{name}.safetensors", dtype)
