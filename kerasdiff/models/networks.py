"""The networks of a model by name."""

from __future__ import annotations

from collections.abc import Callable

import keras

from kerasdiff.errors import ModelError
from kerasdiff.models.config import ModelConfig
from kerasdiff.models.safety_checker import SafetyChecker
from kerasdiff.models.text_encoder import TextEncoder
from kerasdiff.models.unet import UNet
from kerasdiff.models.vae import Decoder, Encoder

# Name -> function of (ModelConfig, Keras dtype policy) to a layer that is not built yet, of what every model has.
NETWORKS: dict[str, Callable[..., keras.layers.Layer]] = {
    "text_encoder": lambda config, policy: TextEncoder(config.text_encoder, dtype=policy),
    "unet": lambda config, policy: UNet(config.unet, dtype=policy),
    "decoder": lambda config, policy: Decoder(config.vae, dtype=policy),
    "encoder": lambda config, policy: Encoder(config.vae, dtype=policy),
}


def make_network(name: str, config: ModelConfig, policy: keras.DTypePolicy | str) -> keras.layers.Layer:
    """One of `config.networks` as a layer that is not built yet.

    Raises:
        ModelError: a safety checker of a model that has none.
    """
    if name != "safety_checker":
        return NETWORKS[name](config, policy)
    if config.safety_checker is None:
        raise ModelError("this model has no safety checker")
    return SafetyChecker(config.safety_checker, dtype=policy)
