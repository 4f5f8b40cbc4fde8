"""The networks of a model: whoever must know all of them asks this table.

A new network is one entry here, its field of `ModelConfig`, and its names in the formats that it can be read from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kerasdiff.errors import ModelError
from kerasdiff.models.config import ModelConfig

if TYPE_CHECKING:
    import keras


def _text_encoder() -> type[keras.layers.Layer]:
    from kerasdiff.models.text_encoder import TextEncoder

    return TextEncoder


def _unet() -> type[keras.layers.Layer]:
    from kerasdiff.models.unet import UNet

    return UNet


def _decoder() -> type[keras.layers.Layer]:
    from kerasdiff.models.vae import Decoder

    return Decoder


def _encoder() -> type[keras.layers.Layer]:
    from kerasdiff.models.vae import Encoder

    return Encoder


def _safety_checker() -> type[keras.layers.Layer]:
    from kerasdiff.models.safety_checker import SafetyChecker

    return SafetyChecker


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """What there is to know of a network but its weights.

    Attributes:
        layer: gives the Keras layer; Keras is imported when it is called.
        config: the field of `ModelConfig` that it is built from; a model in which that is None has no such network.
        text_to_image: whether every image needs it; others are loaded when they are first used.
        float32: parameters that are in float32 whatever the type of the others.
    """

    layer: Callable[[], type[keras.layers.Layer]]
    config: str
    text_to_image: bool = True
    float32: tuple[str, ...] = ()


NETWORKS = {
    "text_encoder": NetworkSpec(_text_encoder, "text_encoder"),
    "unet": NetworkSpec(_unet, "unet"),
    "decoder": NetworkSpec(_decoder, "vae"),
    "encoder": NetworkSpec(_encoder, "vae", text_to_image=False),
    "safety_checker": NetworkSpec(
        _safety_checker,
        "safety_checker",
        text_to_image=False,
        # Thresholds are compared to three digits, and half precision has fewer.
        float32=("concept_embeds", "concept_embeds_weights", "special_care_embeds", "special_care_embeds_weights"),
    ),
}
TEXT_TO_IMAGE = tuple(name for name, spec in NETWORKS.items() if spec.text_to_image)


def config_of(config: ModelConfig, name: str) -> Any:
    """What a network of a model is built from; None if the model does not have it."""
    return getattr(config, NETWORKS[name].config)


def names_of(config: ModelConfig) -> tuple[str, ...]:
    """The networks that a model has."""
    return tuple(name for name in NETWORKS if config_of(config, name) is not None)


def make_network(name: str, config: ModelConfig, policy: keras.DTypePolicy | str) -> keras.layers.Layer:
    """A network as a Keras layer that is not built yet.

    Raises:
        ModelError: the model does not have it.
    """
    part = config_of(config, name)
    if part is None:
        raise ModelError(f"this model has no {name.replace('_', ' ')}")
    return NETWORKS[name].layer()(part, dtype=policy)
