"""An IP-Adapter: what attentions to the text find in pictures (Ye et al. 2023, arXiv:2308.06721)."""

from keras import ops

from kerasdiff.models.blocks import cross_attentions, diffusers_order
from kerasdiff.models.control_configs import IPAdapterConfig
from kerasdiff.models.layers import Composite, Dense, LayerNorm, Sourced, attend
from kerasdiff.models.text_encoder import ACTIVATIONS

_GELU = ACTIVATIONS["gelu"]


class IPAdapter(Composite):
    """What an image encoder makes of pictures, (B, width) or (B, N, width), to keys and to values.

    Both are lists of one (B, tokens, width) for each attention in `blocks.cross_attentions`.
    """

    def __init__(self, config: IPAdapterConfig, **kwargs):
        super().__init__(**{"name": "ip_adapter", **kwargs})
        self.config, context = config, config.unet.context_width
        kind = {"plain": EmbeddingTokens, "plus": Resampler, "full": PatchTokens}[config.kind]
        self.image_proj = self.add(kind, config, name="image_proj")
        widths = cross_attentions(config.unet)
        # Files count the attentions of pixels to each other as well.
        numbers = {place: 2 * number + 1 for number, place in enumerate(diffusers_order(widths))}
        self.to_k, self.to_v = (
            [
                self.add(Dense, width, use_bias=False, in_channels=context, name=f"ip_adapter.{numbers[place]}.{part}")
                for place, width in widths.items()
            ]
            for part in ("to_k_ip", "to_v_ip")
        )

    def call(self, embeddings):
        tokens = self.image_proj(ops.cast(embeddings, self.compute_dtype))
        return [layer(tokens) for layer in self.to_k], [layer(tokens) for layer in self.to_v]


class EmbeddingTokens(Composite):
    """A few tokens of the embedding of a picture as a whole."""

    def __init__(self, config: IPAdapterConfig, **kwargs):
        super().__init__(**kwargs)
        self.shape, width = (-1, config.tokens, config.unet.context_width), config.tokens * config.unet.context_width
        self.proj = self.add(Dense, width, in_channels=config.embedding_width, name="proj")
        self.norm = self.add(LayerNorm, epsilon=1e-5, in_channels=config.unet.context_width, name="norm")

    def call(self, embeddings):
        return self.norm(ops.reshape(self.proj(embeddings), self.shape))


class PatchTokens(Composite):
    """A token for each patch."""

    def __init__(self, config: IPAdapterConfig, **kwargs):
        super().__init__(**kwargs)
        inside, context = config.embedding_width, config.unet.context_width
        self.first = self.add(Dense, inside, in_channels=inside, name="proj.0")
        self.second = self.add(Dense, context, in_channels=inside, name="proj.2")
        self.norm = self.add(LayerNorm, epsilon=1e-5, in_channels=context, name="proj.3")

    def call(self, embeddings):
        return self.norm(self.second(_GELU(self.first(embeddings))))


class Resampler(Sourced, Composite):
    """Some learned tokens that attend to those of all patches, and to each other."""

    def __init__(self, config: IPAdapterConfig, **kwargs):
        super().__init__(**kwargs)
        self.config, width, context = config, config.width, config.unet.context_width
        self.proj_in = self.add(Dense, width, in_channels=config.embedding_width, name="proj_in")
        self.blocks = [self.add(ResamplerBlock, config, name=f"layers.{index}") for index in range(config.depth)]
        self.proj_out = self.add(Dense, context, in_channels=width, name="proj_out")
        self.norm_out = self.add(LayerNorm, epsilon=1e-5, in_channels=context, name="norm_out")

    def build(self, _=None):
        self.latents = self.add_weight(shape=(1, self.config.tokens, self.config.width), name="latents")
        super().build()

    def call(self, embeddings):
        seen = self.proj_in(embeddings)
        tokens = ops.cast(self.latents, seen.dtype)
        tokens = ops.broadcast_to(tokens, (ops.shape(seen)[0], *tokens.shape[1:]))
        for block in self.blocks:
            tokens = block(tokens, seen)
        return self.norm_out(self.proj_out(tokens))


class ResamplerBlock(Composite):
    """Attention to a picture and to the tokens themselves, then two dense layers, each added to what came in."""

    def __init__(self, config: IPAdapterConfig, **kwargs):
        super().__init__(**kwargs)
        width, self.num_heads = config.width, config.num_heads
        inner = self.num_heads * config.HEAD_WIDTH

        def dense(units, inputs, name):
            return self.add(Dense, units, use_bias=False, in_channels=inputs, name=name)

        self.norm1, self.norm2, self.norm3 = (
            self.add(LayerNorm, epsilon=1e-5, in_channels=width, name=name) for name in ("0.norm1", "0.norm2", "1.0")
        )
        self.to_q, self.to_kv = dense(inner, width, "0.to_q"), dense(2 * inner, width, "0.to_kv")
        self.to_out = dense(width, inner, "0.to_out")
        self.fc1, self.fc2 = dense(config.mlp_width, width, "1.1"), dense(width, config.mlp_width, "1.3")

    def call(self, tokens, seen):
        own = self.norm2(tokens)
        keys, values = ops.split(self.to_kv(ops.concatenate([self.norm1(seen), own], axis=1)), 2, axis=-1)
        tokens = tokens + self.to_out(attend(self.to_q(own), keys, values, self.num_heads))
        return tokens + self.fc2(_GELU(self.fc1(self.norm3(tokens))))
