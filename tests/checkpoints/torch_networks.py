"""Networks of ours with the weights of networks of torch, and those of a small U-Net of Stable Diffusion XL's kind."""

from __future__ import annotations

import numpy as np

from kerasdiff.models.config import ModelConfig
from kerasdiff.models.layers import values_from
from kerasdiff.models.network_configs import TextEncoderConfig, UNetConfig

LEAVES = {"kernel": "weight", "gamma": "weight", "beta": "bias", "embeddings": "weight"}
XL_UNET = UNetConfig(
    widths=(64, 128),
    layers_per_level=1,
    attention=(False, True),
    num_heads=(1, 2),
    context_width=192,
    gelu="erf",
    transformer_epsilon=1e-6,
    transformer_depth=(1, 2),
    pooled_width=96,
    time_id_width=32,
)


def built(network, theirs, rename=lambda path: path):
    """A network with the weights of one of torch."""
    state = {name.removeprefix("text_model."): value.numpy() for name, value in theirs.state_dict().items()}
    used = set()

    def source(name, shape):
        path, _, leaf = name.partition(".")[2].rpartition(".")
        key = f"{rename(path)}.{LEAVES.get(leaf, leaf)}"
        used.add(key)
        value = state[key]
        if leaf == "kernel":
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 and len(shape) == 4 else value.reshape(shape[::-1]).T
        return np.ascontiguousarray(value.reshape(shape))

    with values_from(source):
        network.build()
    assert used == set(state)
    return network


def xl_model(unet: UNetConfig) -> ModelConfig:
    encoder = TextEncoderConfig(width=unet.context_width, num_heads=1, projection=96)
    return ModelConfig(encoder, unet)
