"""The weights of a live `keras_cv.models.StableDiffusion` or `StableDiffusionV2`; KerasCV is not imported for it.

KerasCV's functional models list their blocks in the order in which they were made, which is also the order of ours.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from kerasdiff.checkpoints.checkpoint import Checkpoint
from kerasdiff.errors import ModelError
from kerasdiff.models.blocks import BlockSpec, decoder_blocks, encoder_blocks, unet_blocks
from kerasdiff.models.config import SD_V1, SD_V1_VAE, SD_V2, Defaults, ModelConfig
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
    text_encoder = config.main_text_encoder
    if model._text_encoder is not None:  # textual inversion gives it new words
        embedding = dict(_text_encoder(model._text_encoder))["token_embedding"]
        text_encoder = dataclasses.replace(text_encoder, vocab_size=embedding.input_dim)
    return dataclasses.replace(config, text_encoder=text_encoder, defaults=defaults)


class LiveTokenizer(Encodes):
    """A KerasCV tokenizer, taken from the model at the first prompt, as it may be downloaded then."""

    start_id, end_id = 49406, 49407

    def __init__(self, model: Any) -> None:
        self._model = model

    def encode(self, text: str) -> list[int]:
        """Ids with start and end."""
        return self._model.tokenizer.encode(text)

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
# Our name of a layer in a block -> where KerasCV's block has it.
_CLIP_LAYER = {
    **{name: name for name in ("layer_norm1", "layer_norm2", "fc1", "fc2")},
    **{name: f"clip_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")},
}
_UNET_RESNET = {
    "norm1": "entry_flow.0",
    "conv1": "entry_flow.2.conv2d",
    "time_emb_proj": "embedding_flow.1",
    "norm2": "exit_flow.0",
    "conv2": "exit_flow.2.conv2d",
    "conv_shortcut": "residual_projection",
}
_ATTENTION = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out.0": "out_proj"}
_INNER = "transformer_blocks.0"
_TRANSFORMER = {
    "norm": "norm",
    "proj_in": "proj1",
    "proj_out": "proj2",
    **{f"{_INNER}.{name}": f"transformer_block.{name}" for name in ("norm1", "norm2", "norm3")},
    **{f"{_INNER}.attn1.{ours}": f"transformer_block.attn1.{theirs}" for ours, theirs in _ATTENTION.items()},
    **{f"{_INNER}.attn2.{ours}": f"transformer_block.attn2.{theirs}" for ours, theirs in _ATTENTION.items()},
    f"{_INNER}.ff.net.0.proj": "transformer_block.geglu.dense",
    f"{_INNER}.ff.net.2": "transformer_block.dense",
}
_VAE_RESNET = {
    **{name: name for name in ("norm1", "norm2", "conv1", "conv2")},
    "conv_shortcut": "residual_projection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def _of_kind(layers: Any, kind: str) -> Iterator[Any]:
    return (layer for layer in layers if type(layer).__name__ == kind)


def _parts(prefix: str, block: Any, table: dict[str, str]) -> _Pairs:
    """The layers of a block; of a `PaddedConv2D`, the convolution inside it."""
    for ours, theirs in table.items():
        layer = block
        for step in theirs.split("."):
            layer = layer[int(step)] if step.isdigit() else getattr(layer, step)
        if ours != "conv_shortcut" or hasattr(layer, "conv2d"):
            yield f"{prefix}.{ours}", getattr(layer, "conv2d", layer)


def _text_encoder(model: Any) -> _Pairs:
    embedding = next(_of_kind(model.layers, "CLIPEmbedding"))
    yield "token_embedding", embedding.token_embedding
    yield "position_embedding", embedding.position_embedding
    for index, block in enumerate(_of_kind(model.layers, "CLIPEncoderLayer")):
        yield from _parts(f"layers.{index}", block, _CLIP_LAYER)
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
            yield from _parts(block.name, next(resnets), _UNET_RESNET)
            if block.num_heads:
                yield from _parts(block.attention, next(transformers), _TRANSFORMER)
    yield "conv_norm_out", next(_of_kind(model.layers, "GroupNormalization"))
    yield "conv_out", next(convolutions).conv2d


def _decoder(model: Any) -> _Pairs:
    return _autoencoder(model, ("post_quant_conv", "conv_in"), decoder_blocks(SD_V1_VAE), ("conv_out",))


def _encoder(model: Any) -> _Pairs:
    return _autoencoder(model, ("conv_in",), encoder_blocks(SD_V1_VAE), ("conv_out", "quant_conv"))


def _autoencoder(model: Any, before: tuple[str, ...], blocks: Iterator[BlockSpec], behind: tuple[str, ...]) -> _Pairs:
    convolutions = _of_kind(model.layers, "PaddedConv2D")
    resnets = _of_kind(model.layers, "ResnetBlock")
    for name in before:
        yield name, next(convolutions).conv2d
    for block in blocks:
        if block.kind != "resnets":
            yield f"{block.name}.conv", next(convolutions).conv2d
            continue
        yield from _parts(block.name, next(resnets), _VAE_RESNET)
        if block.num_heads:
            yield from _parts(block.attention, next(_of_kind(model.layers, "AttentionBlock")), _VAE_ATTENTION)
    yield "conv_norm_out", next(_of_kind(model.layers, "GroupNormalization"))
    for name in behind:
        yield name, next(convolutions).conv2d


_LAYERS = {"text_encoder": _text_encoder, "unet": _unet, "decoder": _decoder, "encoder": _encoder}
