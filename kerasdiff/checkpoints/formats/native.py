"""Our own format: a folder with `config.json`, `tokenizer.json` and one safetensors file per network.

A model with two text encoders has `tokenizer_2.json` for the second one.

Tensors are named after the layers (`down_blocks.0.resnets.0.conv1.kernel`) and shaped as in Keras. Values in the type
of the model's parameters stay in the mapped file; others are converted.
"""

import json
import pathlib
from collections.abc import Iterable, Mapping

import numpy as np

from kerasdiff.errors import ModelError
from kerasdiff.models.config import ModelConfig
from kerasdiff.runtime import safetensors_write
from kerasdiff.runtime.safetensors_map import DTYPES, TensorFiles

# The files of the tokenizers, in the order of a model's text encoders.
TOKENIZERS = ("tokenizer.json", "tokenizer_2.json")


def read_config(folder: pathlib.Path) -> ModelConfig:
    """The configuration of a model folder."""
    path = folder / "config.json"
    try:
        text = path.read_text()
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read as a model configuration: {error}") from None
    return config_from(text, path)


def config_from(text: str, where: pathlib.Path) -> ModelConfig:
    """The configuration in a text; `where` it stands is for messages."""
    try:
        return ModelConfig.from_json(json.loads(text))
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"{where} cannot be read as a model configuration: {error}") from None


class NativeSource:
    """Parameters of one network from its safetensors file."""

    lasting = True

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._tensors = TensorFiles([path])
        self._unused = set(self._tensors)

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
        return self._tensors.read(name)

    def finish(self) -> None:
        """Raises ModelError if the file holds tensors that the model does not have."""
        if self._unused:
            first = ", ".join(sorted(self._unused)[:3])
            raise ModelError(f"{self._path} holds {len(self._unused)} tensors the model does not have, e.g. {first}")


def write_network(
    path: pathlib.Path, shapes: Mapping[str, tuple[int, ...]], values: Iterable[tuple[str, np.ndarray]], dtype: str
) -> None:
    """Writes one network's file from names that begin with the network's, such as "unet.conv_in.kernel"."""
    inside = {name.partition(".")[2]: shape for name, shape in shapes.items()}
    safetensors_write.write(path, inside, ((name.partition(".")[2], value) for name, value in values), dtype)
