"""The networks of a model: whatever must know all of them asks this table.

A new network is an entry here and its layer in `make_network`, a field of `ModelConfig`, and its names in the formats
that it can be read from.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from kerasdiff.errors import ModelError
from kerasdiff.models.config import ModelConfig
from kerasdiff.models.control_configs import ControlModel, ControlNetConfig, IPAdapterConfig, T2IAdapterConfig
from kerasdiff.models.network_configs import (
    CLIPVisionConfig,
    SafetyCheckerConfig,
    TextEncoderConfig,
    TinyVAEConfig,
    UNetConfig,
    VAEConfig,
)
from kerasdiff.models.upscaler_config import CompactConfig, RRDBConfig, UpscalerModel

if TYPE_CHECKING:
    import keras

AnyModel = ModelConfig | UpscalerModel | ControlModel


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """What is special about a network."""

    # What of a `ModelConfig` it is built from; a model in which that is None has no such network.
    config: str
    # Whether every image needs it; others are loaded when they are first used.
    text_to_image: bool = True
    # Parameters that are in float32 whatever the type of the others.
    float32: tuple[str, ...] = ()


NETWORKS = {
    "text_encoder": NetworkSpec("text_encoder"),
    "text_encoder_2": NetworkSpec("text_encoder_2"),
    "unet": NetworkSpec("unet"),
    "decoder": NetworkSpec("vae"),
    "encoder": NetworkSpec("encoder", text_to_image=False),
    "safety_checker": NetworkSpec(
        "safety_checker",
        text_to_image=False,
        # Thresholds are compared to three digits, and half precision has fewer.
        float32=("concept_embeds", "concept_embeds_weights", "special_care_embeds", "special_care_embeds_weights"),
    ),
    # The only one of an `UpscalerModel`, which has no other.
    "upscaler": NetworkSpec("upscaler", text_to_image=False),
    # A `ControlModel` has one of these; an adapter that reads pictures has its encoder as well.
    "controlnet": NetworkSpec("controlnet", text_to_image=False),
    "t2i_adapter": NetworkSpec("t2i_adapter", text_to_image=False),
    "ip_adapter": NetworkSpec("ip_adapter", text_to_image=False),
    "image_encoder": NetworkSpec("image_encoder", text_to_image=False),
}


def config_of(config: AnyModel, name: str) -> Any:
    """What a network of a model is built from; None if the model does not have it."""
    return getattr(config, NETWORKS[name].config, None)


def names_of(config: ModelConfig) -> tuple[str, ...]:
    """The networks that a model has."""
    return tuple(name for name in NETWORKS if config_of(config, name) is not None)


def text_to_image(config: ModelConfig) -> tuple[str, ...]:
    """Those that every image needs."""
    return tuple(name for name in names_of(config) if NETWORKS[name].text_to_image)


def make_network(name: str, config: AnyModel, policy: keras.DTypePolicy | str) -> keras.layers.Layer:
    """A network as a Keras layer that is not built yet; raises ModelError if the model does not have it."""
    # Here, as they import Keras.
    from kerasdiff.models.clip_vision import CLIPVision
    from kerasdiff.models.controlnet import ControlNet
    from kerasdiff.models.esrgan import RRDBNet, SRVGGNetCompact
    from kerasdiff.models.ip_adapter import IPAdapter
    from kerasdiff.models.safety_checker import SafetyChecker
    from kerasdiff.models.t2i_adapter import T2IAdapter
    from kerasdiff.models.text_encoder import TextEncoder
    from kerasdiff.models.tiny_vae import TinyDecoder, TinyEncoder
    from kerasdiff.models.unet import UNet
    from kerasdiff.models.vae import Decoder, Encoder

    part = config_of(config, name)
    layers: dict[tuple[str, type], type[keras.layers.Layer]] = {
        ("text_encoder", TextEncoderConfig): TextEncoder,
        ("text_encoder_2", TextEncoderConfig): TextEncoder,
        ("unet", UNetConfig): UNet,
        ("decoder", VAEConfig): Decoder,
        ("encoder", VAEConfig): Encoder,
        ("decoder", TinyVAEConfig): TinyDecoder,
        ("encoder", TinyVAEConfig): TinyEncoder,
        ("safety_checker", SafetyCheckerConfig): SafetyChecker,
        ("upscaler", RRDBConfig): RRDBNet,
        ("upscaler", CompactConfig): SRVGGNetCompact,
        ("controlnet", ControlNetConfig): ControlNet,
        ("t2i_adapter", T2IAdapterConfig): T2IAdapter,
        ("ip_adapter", IPAdapterConfig): IPAdapter,
        ("image_encoder", CLIPVisionConfig): CLIPVision,
    }
    if part is None:
        raise ModelError(f"this model has no {name.replace('_', ' ')}")
    return layers[name, type(part)](part, dtype=policy, name=name)
