"""The networks of a model by name."""

from __future__ import annotations

from collections.abc import Callable

import keras

from kerasdiff.models.text_encoder import TextEncoder
from kerasdiff.models.unet import UNet
from kerasdiff.models.vae import Decoder, Encoder

# Name -> function of (ModelConfig, Keras dtype policy) to a layer that is not built yet.
NETWORKS: dict[str, Callable[..., keras.layers.Layer]] = {
    "text_encoder": lambda config, policy: TextEncoder(config.text_encoder, dtype=policy),
    "unet": lambda config, policy: UNet(config.unet, dtype=policy),
    "decoder": lambda config, policy: Decoder(config.vae, dtype=policy),
    "encoder": lambda config, policy: Encoder(config.vae, dtype=policy),
}
