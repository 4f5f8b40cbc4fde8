"""From the `model` argument to a configuration, a tokenizer and the parameters of each network.

Keras is imported when a network is built: a wrong argument is found out without waiting for it.
"""

from __future__ import annotations

import dataclasses
import difflib
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kerasdiff.errors import ModelError
from kerasdiff.models.config import SD_V1, SD_V2, ModelConfig
from kerasdiff.models.tokenizer import Tokenizer
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
_CLIP_START, _CLIP_END = 49406, 49407


@dataclasses.dataclass(frozen=True)
class OpenModel:
    """A model that was found: what it is, and where each network's parameters come from."""

    name: str
    config: ModelConfig
    tokenizer: Any
    source: Callable[[str], Any]

    def build(self, network: str, execution: Execution) -> keras.layers.Layer:
        """One of "text_encoder", "unet", "decoder", "encoder", with its parameters.

        Raises:
            ModelError: a parameter is missing, left over or of the wrong shape.
        """
        from kerasdiff.models.layers import values_from
        from kerasdiff.models.networks import NETWORKS

        source = self.source(network)
        layer = NETWORKS[network](self.config, execution.policy)
        with values_from(source):
            layer.build()
        if hasattr(source, "finish"):
            source.finish()
        layer.trainable = False
        return layer


def open_model(model: Any, weights: str = "pretrained") -> OpenModel:
    """Finds a model by preset name, or takes a live `keras_cv.models.StableDiffusion`.

    Args:
        model: "tiny" (ships with the package), "sd-v1-4", "sd-v2-1", or a KerasCV object.
        weights: "pretrained", or "random" for the architecture with random numbers.

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
            lambda network: KerasCVSource(model, network),
        )
    if not isinstance(model, str):
        raise ModelError(
            f"model must be a name or a keras_cv.models.StableDiffusion, not {type(model).__name__}; "
            f"known names: {', '.join(PRESETS)}"
        )
    if model not in PRESETS:
        near = difflib.get_close_matches(model.lower(), PRESETS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ModelError(f"model={model!r} is unknown; {hint}known: {', '.join(PRESETS)}")
    embedded = Tokenizer.load(TINY_FOLDER / "tokenizer.json")
    if model == "tiny":
        config = read_config(TINY_FOLDER)
        if weights == "pretrained":
            return OpenModel(
                model, config, embedded, lambda network: NativeSource(TINY_FOLDER / f"{network}.safetensors")
            )
        tokenizer = embedded
    else:
        config = _FULL_SIZE[model]
        if weights == "pretrained":
            raise ModelError(
                f"the published weights of {model!r} cannot be loaded by this version; use weights='random', "
                "model='tiny', or pass a keras_cv.models.StableDiffusion, which downloads its own"
            )
        # Any ids will do for random weights: the embedded vocabulary stands in for CLIP's.
        tokenizer = Tokenizer.load(TINY_FOLDER / "tokenizer.json", _CLIP_START, _CLIP_END)
    random = RandomSource()
    return OpenModel(f"{model} (random weights)", config, tokenizer, lambda network: random)
