"""The weights of a live `keras_cv.models.StableDiffusion` or `StableDiffusionV2`; KerasCV is not imported for it.

KerasCV's functional models list their blocks in the order in which they were made, which is also the order of ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from kerasdiff.checkpoints.checkpoint import Checkpoint
from kerasdiff.errors import ModelError
from kerasdiff.models.blocks import BlockSpec, decoder_blocks, encoder_blocks, unet_blocks
from kerasdiff.models.config import SD_V1, SD_V2, Defaults, ModelConfig
from kerasdiff.models.tokenizer import Encodes

# Our name of a network -> KerasCV's attribute.
COMPONENTS = {
    "text_encoder": "text_encoder",
    "unet": "diffusion_model",
    "decoder": "decoder",
    "encoder": "image_encoder",
}


def is_live(model: Any) -> bool:
    """Whether an object is a KerasCV Stable Diffusion, without importing KerasCV."""
    return any(
        base.__name__ == "StableDiffusionBase" and base.__module__.startswith("keras_cv")
        for base in type(model).__mro__
    )


def open_live(model: Any) -> Checkpoint:
    """A live model's configuration, tokenizer and weights."""
    if isinstance(getattr(model, "opened", None), Checkpoint):  # one of ours, which builds no component for it
        return model.opened
    return Checkpoint(
        type(model).__name__,
        read_config(model),
        LiveTokenizer(model),
        lambda network, _: KerasCVSource(getattr(model, COMPONENTS[network]), network),
    )


def read_config(model: Any) -> ModelConfig:
    """The configuration of a live model; its size and KerasCV's own sampler become the defaults."""
    v2 = any(base.__name__ == "StableDiffusionV2" for base in type(model).__mro__)
    config = SD_V2 if v2 else SD_V1
    defaults = Defaults(
        height=model.img_height, width=model.img_width, sampler="ddim", spacing="keras_cv", num_steps=50
    )
    text_encoder = config.text_encoder
    if model._text_encoder is not None:  # textual inversion gives it new words
        embedding = dict(_text_encoder(model._text_encoder))["token_embedding"]
        text_encoder = dataclasses.replace(text_encoder, vocab_size=embedding.input_dim)
    return dataclasses.replace(config, text_encoder=text_encoder, defaults=defaults)


class LiveTokenizer:
    """A KerasCV tokenizer, taken from the model at the first prompt, as it may be downloaded then."""

    start_id, end_id = 49406, 49407

    def __init__(self, model: Any) -> None:
        self._model = model

    def encode(self, text: str) -> list[int]:
        """Ids with start and end."""
        tokenizer: Encodes = self._model.tokenizer
        return tokenizer.encode(text)

    def decode(self, ids: Any) -> str:
        """The text of some ids."""
        return self._model.tokenizer.decode([i for i in ids if i not in (self.start_id, self.end_id)]).strip()


class KerasCVSource:
    """Parameters of one live network, by our names, as tensors that share its memory.

    TensorFlow copies a variable's values before it changes them while somebody else holds them.
    """

    def __init__(self, component: Any, network: str) -> None:
        self._where = f"the {COMPONENTS[network]} of the KerasCV model"
        try:
            self._layers = dict(_LAYERS[network](component))
        except (AttributeError, IndexError, StopIteration, RuntimeError, ValueError):
            raise ModelError(
                f"{self._where} is not built as KerasCV builds it, and only that runs here; "
                "keras_cv.models.StableDiffusion itself can run it"
            ) from None
        self._count = len(component.weights)
        self._used: set[str] = set()

    def variable(self, name: str) -> Any:
        """KerasCV's variable for a parameter such as "unet.conv_in.kernel"."""
        layer_name, _, leaf = name.partition(".")[2].rpartition(".")
        variable = getattr(self._layers.get(layer_name), leaf, None)
        if variable is None:
            raise ModelError(f"{self._where} has nothing for {name}")
        return variable

    def __call__(self, name: str, shape: tuple[int, ...]) -> Any:
        variable = self.variable(name)
        # A 1 x 1 convolution there is a dense layer here.
        stored = tuple(variable.shape)
        if stored != tuple(shape) and (len(stored) != 4 or stored != (1, 1, *shape)):
            raise ModelError(f"{self._where}: {name} has shape {stored}, expected {tuple(shape)}")
        self._used.add(name)
        from keras import ops

        return ops.reshape(variable, shape)

    def finish(self) -> None:
        """Raises ModelError if the live model has weights that were not used."""
        if len(self._used) != self._count:
            raise ModelError(f"{self._where} has {self._count} weights, of which {len(self._used)} could be used")


def fill(component: Any, network: str, parameters: Iterable[tuple[str, np.ndarray]]) -> None:
    """Copies parameters of ours to a live network."""
    source = KerasCVSource(component, network)
    for name, values in parameters:
        variable = source.variable(name)
        variable.assign(values.reshape(variable.shape))


_Pairs = Iterator[tuple[str, Any]]
# Our name of a layer in the autoencoder's attention -> theirs.
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _of_kind(layers: Any, *kinds: str) -> Iterator[Any]:
    return (layer for layer in layers if type(layer).__name__ in kinds)


def _prefixed(prefix: str, pairs: _Pairs) -> _Pairs:
    return ((f"{prefix}.{name}", layer) for name, layer in pairs)


def _inner(layer: Any) -> Any:
    """The convolution inside KerasCV's `PaddedConv2D`; other layers as they are."""
    return getattr(layer, "conv2d", layer)


def _text_encoder(model: Any) -> _Pairs:
    embedding = next(_of_kind(model.layers, "CLIPEmbedding"))
    yield "token_embedding", embedding.token_embedding
    yield "position_embedding", embedding.position_embedding
    for index, block in enumerate(_of_kind(model.layers, "CLIPEncoderLayer")):
        for name in ("layer_norm1", "layer_norm2", "fc1", "fc2"):
            yield f"layers.{index}.{name}", getattr(block, name)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield f"layers.{index}.{name}", getattr(block.clip_attn, name)
    yield "final_layer_norm", next(_of_kind(model.layers, "LayerNormalization"))


def _unet(model: Any) -> _Pairs:
    first, second = _of_kind(model.layers, "Dense")
    yield "time_embedding.linear_1", first
    yield "time_embedding.linear_2", second
    convolutions = _of_kind(model.layers, "PaddedConv2D")
    resnets = _of_kind(model.layers, "ResBlock")
    transformers = _of_kind(model.layers, "SpatialTransformer")
    upsamplers = _of_kind(model.layers, "Upsample")
    yield "conv_in", next(convolutions).conv2d
    for block in unet_blocks(SD_V1.unet):  # 2.x has the same
        if block.kind == "downsamplers":
            yield f"{block.name}.conv", next(convolutions).conv2d
        elif block.kind == "upsamplers":
            yield f"{block.name}.conv", next(upsamplers).conv.conv2d
        else:
            yield from _prefixed(block.name, _unet_resnet(next(resnets)))
            if block.num_heads:
                yield from _prefixed(block.attention, _transformer(next(transformers)))
    yield "conv_norm_out", next(_of_kind(model.layers, "GroupNormalization"))
    yield "conv_out", next(convolutions).conv2d


def _unet_resnet(block: Any) -> _Pairs:
    yield "norm1", block.entry_flow[0]
    yield "conv1", block.entry_flow[2].conv2d
    yield "time_emb_proj", block.embedding_flow[1]
    yield "norm2", block.exit_flow[0]
    yield "conv2", block.exit_flow[2].conv2d
    if hasattr(block.residual_projection, "conv2d"):
        yield "conv_shortcut", block.residual_projection.conv2d


def _transformer(block: Any) -> _Pairs:
    inner = block.transformer_block
    yield "norm", block.norm
    yield "proj_in", _inner(block.proj1)
    yield "proj_out", _inner(block.proj2)
    for number in (1, 2, 3):
        yield f"transformer_blocks.0.norm{number}", getattr(inner, f"norm{number}")
    for name in ("attn1", "attn2"):
        attention = getattr(inner, name)
        for part in ("to_q", "to_k", "to_v"):
            yield f"transformer_blocks.0.{name}.{part}", getattr(attention, part)
        yield f"transformer_blocks.0.{name}.to_out.0", attention.out_proj
    yield "transformer_blocks.0.ff.net.0.proj", inner.geglu.dense
    yield "transformer_blocks.0.ff.net.2", inner.dense


def _decoder(model: Any) -> _Pairs:
    return _autoencoder(model, ("post_quant_conv", "conv_in"), decoder_blocks(SD_V1.vae), ("conv_out",))


def _encoder(model: Any) -> _Pairs:
    return _autoencoder(model, ("conv_in",), encoder_blocks(SD_V1.vae), ("conv_out", "quant_conv"))


def _autoencoder(model: Any, before: tuple[str, ...], blocks: Iterator[BlockSpec], behind: tuple[str, ...]) -> _Pairs:
    convolutions = _of_kind(model.layers, "PaddedConv2D")
    resnets = _of_kind(model.layers, "ResnetBlock")
    for name in before:
        yield name, next(convolutions).conv2d
    for block in blocks:
        if block.kind != "resnets":
            yield f"{block.name}.conv", next(convolutions).conv2d
            continue
        yield from _prefixed(block.name, _vae_resnet(next(resnets)))
        if block.num_heads:
            attention = next(_of_kind(model.layers, "AttentionBlock"))
            for ours, theirs in _VAE_ATTENTION.items():
                yield f"{block.attention}.{ours}", _inner(getattr(attention, theirs))
    yield "conv_norm_out", next(_of_kind(model.layers, "GroupNormalization"))
    for name in behind:
        yield name, next(convolutions).conv2d


def _vae_resnet(block: Any) -> _Pairs:
    for name in ("norm1", "norm2", "conv1", "conv2"):
        yield name, _inner(getattr(block, name))
    if hasattr(block.residual_projection, "conv2d"):
        yield "conv_shortcut", block.residual_projection.conv2d


_LAYERS = {"text_encoder": _text_encoder, "unet": _unet, "decoder": _decoder, "encoder": _encoder}
