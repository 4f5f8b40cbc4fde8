"""From the `model` argument to a configuration, a tokenizer and the parameters of each network.

Keras is imported when a network is built: a wrong argument is found out without waiting for it.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kerasdiff.errors import ModelError
from kerasdiff.models.config import SD_V1, SD_V2, ModelConfig
from kerasdiff.models.tokenizer import Tokenizer
from kerasdiff.weights import diffusers, hub, keras_cv_files, single_file
from kerasdiff.weights.keras_cv import KerasCVSource, LiveTokenizer, is_keras_cv
from kerasdiff.weights.keras_cv import read_config as read_keras_cv_config
from kerasdiff.weights.native import NativeSource, read_config
from kerasdiff.weights.random import RandomSource

if TYPE_CHECKING:
    import keras

    from kerasdiff.engine.precision import Execution

PRESETS_FOLDER = pathlib.Path(__file__).parents[1] / "presets"
TINY_FOLDER = PRESETS_FOLDER / "tiny"
PRESETS = ("sd-v1-4", "sd-v2-1", "tiny")
_FULL_SIZE = {"sd-v1-4": SD_V1, "sd-v2-1": SD_V2}


# Gives the names and shapes of a network's parameters.
Parameters = Callable[[], dict[str, tuple[int, ...]]]


@dataclasses.dataclass(frozen=True)
class OpenModel:
    """A model that was found: what it is, and where each network's parameters come from."""

    name: str
    config: ModelConfig
    tokenizer: Any
    source: Callable[[str, Parameters], Any]

    def build(self, network: str, execution: Execution) -> keras.layers.Layer:
        """One of "text_encoder", "unet", "decoder", "encoder", with its parameters.

        Raises:
            ModelError: a parameter is missing, left over or of the wrong shape.
        """
        from kerasdiff.models.layers import parameters_of, values_from
        from kerasdiff.models.networks import NETWORKS

        source = self.source(network, lambda: parameters_of(NETWORKS[network](self.config, execution.policy)))
        layer = NETWORKS[network](self.config, execution.policy)
        with values_from(source):
            layer.build()
        if hasattr(source, "finish"):
            source.finish()
        layer.trainable = False
        return layer


def open_model(
    model: Any, weights: str = "pretrained", *, revision: str | None = None, variant: str | None = None
) -> OpenModel:
    """Finds a model by preset name, or takes a live `keras_cv.models.StableDiffusion`.

    Args:
        model: "tiny" (ships with the package), "sd-v1-4" or "sd-v2-1" (KerasCV's published weights), a folder
            of diffusers, of KerasCV's .h5 files or of ours, a single `.safetensors` file in the original
            layout, "hf://org/name" or "org/name" for a repository of diffusers or a file on the Hugging Face
            hub, or a KerasCV object.
        weights: "pretrained", or "random" for the architecture with random numbers.
        revision: of a model on the hub: a branch, tag or commit.
        variant: which of several sets of weights to take, such as "fp16".

    Raises:
        ModelError: no such model, or weights that are not to be had.
    """
    if weights not in ("pretrained", "random"):
        raise ModelError(f"weights={weights!r} is unknown; choose 'pretrained' or 'random'")
    if is_keras_cv(model):
        if weights == "random":
            raise ModelError("weights='random' does not go with a live KerasCV model, which brings its own weights")
        return OpenModel(
            type(model).__name__,
            read_keras_cv_config(model),
            LiveTokenizer(model),
            lambda network, _: KerasCVSource(model, network),
        )
    if isinstance(model, os.PathLike):
        model = os.fspath(model)
    if not isinstance(model, str):
        raise ModelError(
            f"model must be a name, a path or a keras_cv.models.StableDiffusion, not {type(model).__name__}; "
            f"known names: {', '.join(PRESETS)}"
        )
    if model not in PRESETS:
        path = pathlib.Path(model)
        if not path.exists() and hub.is_name(model):
            found = hub.fetch(model, revision, variant, weights == "pretrained")
            return dataclasses.replace(_open_path(found, weights, variant), name=model.removeprefix("hf://"))
        if path.exists():
            return _open_path(path, weights, variant)
    if model not in PRESETS:
        near = difflib.get_close_matches(model.lower(), PRESETS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ModelError(
            f"model={model!r} is unknown; {hint}known: {', '.join(PRESETS)}, a folder, a .safetensors file, or "
            "'org/name' on the Hugging Face hub"
        )
    embedded = Tokenizer.load(TINY_FOLDER / "tokenizer.json")
    if model == "tiny":
        config = read_config(TINY_FOLDER)
        if weights == "pretrained":
            return OpenModel(
                model, config, embedded, lambda network, _: NativeSource(TINY_FOLDER / f"{network}.safetensors")
            )
        tokenizer = embedded
    else:
        config = _FULL_SIZE[model]
        if weights == "pretrained":
            return OpenModel(model, config, Tokenizer.clip(), keras_cv_files.from_hub(model))
        tokenizer = Tokenizer.clip()
    random = RandomSource()
    return OpenModel(f"{model} (random weights)", config, tokenizer, lambda network, _: random)


def _open_path(path: pathlib.Path, weights: str, variant: str | None) -> OpenModel:
    return _open_folder(path, weights, variant) if path.is_dir() else _open_file(path, weights)


def _open_file(path: pathlib.Path, weights: str) -> OpenModel:
    config, tokenizer, source = single_file.open_file(path)
    if weights == "random":
        random = RandomSource()
        return OpenModel(f"{path.stem} (random weights)", config, tokenizer, lambda network, _: random)
    return OpenModel(path.stem, config, tokenizer, lambda network, expected: source(network, expected()))


def _open_folder(folder: pathlib.Path, weights: str, variant: str | None) -> OpenModel:
    preset = keras_cv_files.preset_of(folder)
    source: Callable[[str, Parameters], Any]
    if preset is not None:
        config, tokenizer = _FULL_SIZE[preset], Tokenizer.clip()
        source = keras_cv_files.from_folder(folder, preset)
    elif diffusers.is_folder(folder):
        config = diffusers.read_config(folder)
        tokenizer = Tokenizer.load_clip(folder / "tokenizer")

        def source(network: str, expected: Parameters) -> Any:
            return diffusers.source(folder, network, expected(), variant)

    elif (folder / "config.json").is_file():
        config = read_config(folder)
        tokenizer = Tokenizer.load(folder / "tokenizer.json")

        def source(network: str, expected: Parameters) -> Any:
            return NativeSource(folder / f"{network}.safetensors")

    else:
        raise ModelError(
            f"{folder} is no model folder: it has neither unet/config.json nor config.json nor KerasCV's .h5 files"
        )
    name = folder.resolve().name
    if weights == "pretrained":
        return OpenModel(name, config, tokenizer, source)
    random = RandomSource()
    return OpenModel(f"{name} (random weights)", config, tokenizer, lambda network, _: random)
