"""The stages of an IP-Adapter: pictures are seen once per run, by an image encoder, and become keys and values."""

from __future__ import annotations

from typing import Any

import numpy as np

from kerasdiff.diffusion.safety_stage import prepare
from kerasdiff.diffusion.stage import Stage
from kerasdiff.models.control_configs import IPAdapterConfig
from kerasdiff.models.network_configs import CLIPVisionConfig

# Of a picture: keys and values of each attention to the text, float32 (tokens, width) each.
PictureTokens = tuple[list[np.ndarray], list[np.ndarray]]


def see(encoder: Any, pictures: Any) -> Any:
    """Embeddings of pictures in float32; to be traced."""
    from keras import ops

    return ops.cast(encoder.features(pictures), "float32")


def see_patches(encoder: Any, pictures: Any) -> Any:
    """What all layers but the last make of pictures, in float32; to be traced."""
    from keras import ops

    return ops.cast(encoder.hidden(pictures), "float32")


def keys_and_values(adapter: Any, embeddings: Any) -> tuple[Any, ...]:
    """All keys and then all values, in float32; to be traced."""
    from keras import ops

    keys, values = adapter(embeddings)
    return tuple(ops.cast(each, "float32") for each in (*keys, *values))


class ImageEncoderStage(Stage):
    """Pictures to what an adapter reads of them, one at a time."""

    name = "image encoder"

    def __call__(self, picture: np.ndarray | None, adapter: IPAdapterConfig, encoder: CLIPVisionConfig) -> np.ndarray:
        """That of a picture, uint8 (height, width, 3), or of none, as an adapter has it beside the negative prompt."""
        if picture is None and adapter.kind == "plain":
            return np.zeros((1, encoder.projection), "float32")
        side = encoder.image_size
        prepared = np.zeros((side, side, 3), "float32") if picture is None else prepare(picture, encoder)
        traced = see if adapter.kind == "plain" else see_patches
        for check in self.checks():
            seen = np.asarray(self.function(traced.__name__, traced)(prepared[None]))
            check.finite = bool(np.isfinite(seen).all())
        return seen


class IPAdapterStage(Stage):
    """What an image encoder made of a picture to the keys and values of each attention to the text."""

    name = "IP-Adapter"

    def __call__(self, embeddings: np.ndarray) -> PictureTokens:
        for check in self.checks():
            found = [np.asarray(each)[0] for each in self.function("keys", keys_and_values)(embeddings)]
            check.finite = all(np.isfinite(each).all() for each in found)
        half = len(found) // 2
        return found[:half], found[half:]
