"""The text encoder: a causal transformer, as in CLIP (Radford et al. 2021, arXiv:2103.00020)."""

from __future__ import annotations

import keras
from keras import ops

from kerasdiff.models.config import SafetyCheckerConfig, TextEncoderConfig
from kerasdiff.models.layers import Dense, Embedding, LayerNorm, attend


def _quick_gelu(x):
    return x * ops.sigmoid(1.702 * x)


ACTIVATIONS = {
    "quick_gelu": _quick_gelu,
    "gelu": lambda x: ops.gelu(x, approximate=False),
    "gelu_tanh": lambda x: ops.gelu(x, approximate=True),
}


class TextEncoder(keras.layers.Layer):
    """Token ids to context: int32 (B, max_length) -> (B, max_length, width).

    Example:
        ```python
        encoder = TextEncoder(TextEncoderConfig(vocab_size=512, width=64, num_layers=2, num_heads=4))
        encoder.build()
        encoder(np.zeros((1, 77), "int32")).shape  # (1, 77, 64)
        ```
    """

    def __init__(self, config: TextEncoderConfig, **kwargs):
        super().__init__(**{"name": "text_encoder", **kwargs})
        self.config = config
        dtype = self.dtype_policy
        self.token_embedding = Embedding(config.vocab_size, config.width, dtype=dtype, name="token_embedding")
        self.position_embedding = Embedding(config.max_length, config.width, dtype=dtype, name="position_embedding")
        self.blocks = [Block(config, dtype=dtype, name=f"layers.{index}") for index in range(config.num_layers)]
        self.final_norm = LayerNorm(epsilon=1e-5, dtype=dtype, name="final_layer_norm")

    def build(self, _=None):
        self.token_embedding.build(None)
        self.position_embedding.build(None)
        for block in self.blocks:
            block.build()
        self.final_norm.build((None, None, self.config.width))
        self.built = True

    def call(self, tokens):
        return self.encode(tokens, self.config.max_length)

    def encode(self, tokens, length: int):
        """Context of token ids (B, length) with `length` up to max_length."""
        positions = ops.arange(length, dtype="int32")
        x = self.token_embedding(tokens) + self.position_embedding(positions)
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x)


class Block(keras.layers.Layer):
    """One layer of CLIP's transformers: attention, then two dense layers, each added to what came in.

    Args:
        config: what it is built from.
        causal: whether a place sees only itself and those before it.
        **kwargs: of the layer.
    """

    def __init__(self, config: TextEncoderConfig | SafetyCheckerConfig, causal: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.config, self.causal = config, causal
        dtype, width = self.dtype_policy, config.width

        def dense(units, name):
            return Dense(units, dtype=dtype, name=name)

        self.norm1 = LayerNorm(epsilon=1e-5, dtype=dtype, name="layer_norm1")
        self.q_proj, self.k_proj = dense(width, "q_proj"), dense(width, "k_proj")
        self.v_proj, self.out_proj = dense(width, "v_proj"), dense(width, "out_proj")
        self.norm2 = LayerNorm(epsilon=1e-5, dtype=dtype, name="layer_norm2")
        self.mlp_width = 4 * width if config.mlp_width is None else config.mlp_width
        self.fc1, self.fc2 = dense(self.mlp_width, "fc1"), dense(width, "fc2")
        self.activation = ACTIVATIONS[config.activation]

    def build(self, _=None):
        narrow = (None, None, self.config.width)
        for layer in (self.norm1, self.q_proj, self.k_proj, self.v_proj, self.out_proj, self.norm2, self.fc1):
            layer.build(narrow)
        self.fc2.build((None, None, self.mlp_width))
        self.built = True

    def call(self, inputs):
        x = self.norm1(inputs)
        x = attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.config.num_heads, causal=self.causal)
        inputs = inputs + self.out_proj(x)
        return inputs + self.fc2(self.activation(self.fc1(self.norm2(inputs))))
