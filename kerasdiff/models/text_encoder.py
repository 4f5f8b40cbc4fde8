"""The text encoder: a causal transformer, as in CLIP (Radford et al. 2021, arXiv:2103.00020)."""

from keras import ops

from kerasdiff.models.layers import Composite, Dense, Embedding, LayerNorm, attend
from kerasdiff.models.network_configs import CLIPVisionConfig, TextEncoderConfig


def _quick_gelu(x):
    return x * ops.sigmoid(1.702 * x)


ACTIVATIONS = {
    "quick_gelu": _quick_gelu,
    "gelu": lambda x: ops.gelu(x, approximate=False),
    "gelu_tanh": lambda x: ops.gelu(x, approximate=True),
}


class TextEncoder(Composite):
    """Token ids to context: int32 (B, length) -> (B, length, width), at most max_length of them.

    Where `replaced`, bool (B, length), is true, `vectors` (B, length, width) take the place of what the vocabulary has.
    Where `seen`, bool (B, length), is false, a token is not attended to. The last `skip` layers are left out, besides
    those that the configuration leaves out, which also says whether the final norm follows.

    With `ends` (B,), the places of the texts' ends, the result is a pair: context, and what all layers make of the end,
    projected, (B, projection).
    """

    def __init__(self, config: TextEncoderConfig, **kwargs):
        super().__init__(**{"name": "text_encoder", **kwargs})
        self.config, width = config, config.width
        self.token_embedding = self.add(Embedding, config.vocab_size, width, name="token_embedding")
        self.position_embedding = self.add(Embedding, config.max_length, width, name="position_embedding")
        self.blocks = [self.add(Block, config, name=f"layers.{index}") for index in range(config.num_layers)]
        self.final_norm = self.add(LayerNorm, epsilon=1e-5, in_channels=width, name="final_layer_norm")
        self.text_projection = None
        if config.projection is not None:
            self.text_projection = self.add(
                Dense, config.projection, in_channels=width, use_bias=False, name="text_projection"
            )

    def call(self, tokens, vectors=None, replaced=None, seen=None, ends=None, skip=0):
        positions = ops.arange(tokens.shape[1], dtype="int32")
        x = self.token_embedding(tokens)
        if vectors is not None:
            x = ops.where(replaced[..., None], ops.cast(vectors, x.dtype), x)
        x = x + self.position_embedding(positions)
        read, context = len(self.blocks) - skip - self.config.skipped_layers, x
        for index, block in enumerate(self.blocks[: read if ends is None else None], start=1):
            x = block(x, seen)
            context = x if index == read else context
        context = self.final_norm(context) if self.config.final_norm else context
        if ends is None:
            return context
        place = ops.cast(ops.arange(tokens.shape[1], dtype="int32")[None] == ops.cast(ends, "int32")[:, None], x.dtype)
        return context, self.text_projection(ops.sum(place[..., None] * self.final_norm(x), axis=1))


class Block(Composite):
    """One layer of CLIP's transformers: attention, then two dense layers, each added to what came in.

    In a `causal` one a place sees only itself and those before it.
    """

    def __init__(self, config: TextEncoderConfig | CLIPVisionConfig, causal: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.config, self.causal, width = config, causal, config.width
        mlp_width = 4 * width if config.mlp_width is None else config.mlp_width
        self.norm1 = self.add(LayerNorm, epsilon=1e-5, in_channels=width, name="layer_norm1")
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            self.add(Dense, width, in_channels=width, name=name) for name in ("q_proj", "k_proj", "v_proj", "out_proj")
        )
        self.norm2 = self.add(LayerNorm, epsilon=1e-5, in_channels=width, name="layer_norm2")
        self.fc1 = self.add(Dense, mlp_width, in_channels=width, name="fc1")
        self.fc2 = self.add(Dense, width, in_channels=mlp_width, name="fc2")
        self.activation = ACTIVATIONS[config.activation]

    def call(self, inputs, seen=None):
        x = self.norm1(inputs)
        x = attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.config.num_heads, self.causal, seen)
        inputs = inputs + self.out_proj(x)
        return inputs + self.fc2(self.activation(self.fc1(self.norm2(inputs))))
