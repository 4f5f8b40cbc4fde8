"""The denoising U-Net of latent diffusion (Rombach et al. 2022, arXiv:2112.10752)."""

from __future__ import annotations

import math

import keras
from keras import ops

from kerasdiff.models.blocks import BlockSpec, unet_blocks
from kerasdiff.models.config import UNetConfig
from kerasdiff.models.layers import (
    Conv,
    Dense,
    Downsample,
    GroupNorm,
    LayerNorm,
    ResnetBlock,
    Upsample,
    attend,
    silu,
)


class UNet(keras.layers.Layer):
    """Noisy latents, timestep and text to the model's prediction.

    `call(latents, timesteps, context)`: latents (B, h, w, in_channels) scaled to unit variance,
    timesteps (B,) in units of the training schedule, context (B, T, context_width);
    returns (B, h, w, out_channels). h and w are multiples of `2 ** (levels - 1)`.
    With context (2B, T, context_width) each latent meets two texts, at B and B further on, and the result has 2B
    rows; what comes before the first look at the text is then computed once for both.

    Example:
        ```python
        unet = UNet(UNetConfig(widths=(32, 64), attention=(False, True), num_heads=(4, 4), context_width=16))
        unet.build()
        unet(np.zeros((1, 8, 8, 4)), np.zeros(1), np.zeros((1, 77, 16))).shape  # (1, 8, 8, 4)
        ```
    """

    # Both halves of guidance may come as one half of latents.
    shares_latents = True

    def __init__(self, config: UNetConfig, **kwargs):
        # Without autocast: timesteps do not fit into half precision (999 would become 1000).
        super().__init__(**{"name": "unet", "autocast": False, **kwargs})
        self.config = config
        dtype = self.dtype_policy
        self.time_width = 4 * config.widths[0]
        self.time_linear1 = Dense(self.time_width, dtype=dtype, name="time_embedding.linear_1")
        self.time_linear2 = Dense(self.time_width, dtype=dtype, name="time_embedding.linear_2")
        self.conv_in = Conv(config.widths[0], dtype=dtype, name="conv_in")
        self.down, self.mid, self.up = [], [], []
        for block in unet_blocks(config):
            if block.kind == "downsamplers":
                self.down.append(Downsample(block.out_channels, padding=1, dtype=dtype, name=block.name))
            elif block.kind == "upsamplers":
                self.up.append(Upsample(block.out_channels, dtype=dtype, name=block.name))
            elif block.part == "mid_block":
                self.mid.append(self._resnet(block, block.name))
                if block.num_heads:
                    self.mid.append(self._transformer(block, block.attention))
            else:
                (self.down if block.part.startswith("down") else self.up).append(self._block(block))
        self.norm_out = GroupNorm(config.norm_groups, epsilon=config.norm_epsilon, dtype=dtype, name="conv_norm_out")
        self.conv_out = Conv(config.out_channels, dtype=dtype, name="conv_out")

    def _resnet(self, block: BlockSpec, name: str) -> ResnetBlock:
        return ResnetBlock(block, self.config, self.time_width, dtype=self.dtype_policy, name=name)

    def _transformer(self, block: BlockSpec, name: str) -> SpatialTransformer:
        return SpatialTransformer(self.config, block.level, dtype=self.dtype_policy, name=name)

    def _block(self, block: BlockSpec) -> UNetBlock:
        resnet = self._resnet(block, f"resnets.{block.index}")
        transformer = self._transformer(block, f"attentions.{block.index}") if block.num_heads else None
        return UNetBlock(resnet, transformer, dtype=self.dtype_policy, name=block.part)

    def build(self, _=None):
        # In the order in which KerasCV's files hold them.
        self.time_linear1.build((None, self.config.widths[0]))
        self.conv_in.build((None, None, None, self.config.in_channels))
        self.time_linear2.build((None, self.time_width))
        for layer in (*self.down, *self.mid, *self.up):
            layer.build()
        self.norm_out.build((None, None, None, self.config.widths[0]))
        self.conv_out.build((None, None, None, self.config.widths[0]))
        self.built = True

    def call(self, latents, timesteps, context):
        time = ops.cast(timestep_embedding(timesteps, self.config.widths[0]), self.compute_dtype)
        time = self.time_linear2(silu(self.time_linear1(time)))
        context = ops.cast(context, self.compute_dtype)
        x = self.conv_in(latents)
        skips = [x]
        for layer in self.down:
            x = layer(x) if isinstance(layer, Downsample) else layer(x, time, context)
            time = _as_many(time, x)
            skips.append(x)
        first, transformer, second = self.mid
        x = transformer(first(x, time), context)
        time = _as_many(time, x)
        x = second(x, time)
        for layer in self.up:
            if isinstance(layer, Upsample):
                x = layer(x)
            else:
                x = layer(ops.concatenate([x, _as_many(skips.pop(), x)], axis=-1), time, context)
        return self.conv_out(silu(self.norm_out(x)))


def _as_many(x, other):
    """x as often as `other` has rows for each of its own."""
    if x.shape[0] is None or x.shape[0] == other.shape[0]:
        return x
    return ops.concatenate([x] * (other.shape[0] // x.shape[0]), axis=0)


def timestep_embedding(timesteps, width: int):
    """Sinusoids of timesteps (B,) -> float32 (B, width), cosines first, periods up to 10,000."""
    half = width // 2
    frequencies = ops.exp(-math.log(10000) * ops.arange(half, dtype="float32") / half)
    angles = ops.cast(timesteps, "float32")[:, None] * frequencies[None, :]
    return ops.concatenate([ops.cos(angles), ops.sin(angles)], axis=-1)


class UNetBlock(keras.layers.Layer):
    """A residual block and, at the levels that have one, the transformer behind it."""

    def __init__(self, resnet: ResnetBlock, transformer: SpatialTransformer | None, **kwargs):
        super().__init__(**kwargs)
        self.resnet, self.transformer = resnet, transformer

    def build(self, _=None):
        self.resnet.build()
        if self.transformer is not None:
            self.transformer.build()
        self.built = True

    def call(self, inputs, time_embedding, context):
        x = self.resnet(inputs, time_embedding)
        return x if self.transformer is None else self.transformer(x, context)


class SpatialTransformer(keras.layers.Layer):
    """Self-attention, attention to the text and a gated feed-forward layer over all positions."""

    def __init__(self, config: UNetConfig, level: int, **kwargs):
        super().__init__(**kwargs)
        self.config, self.width, self.num_heads = config, config.widths[level], config.num_heads[level]
        dtype, width = self.dtype_policy, self.width

        def dense(units, name, use_bias=True):
            return Dense(units, use_bias=use_bias, dtype=dtype, name=name)

        def layer_norm(name):
            return LayerNorm(epsilon=1e-5, dtype=dtype, name=name)

        self.norm = GroupNorm(config.norm_groups, epsilon=config.transformer_epsilon, dtype=dtype, name="norm")
        self.proj_in, self.proj_out = dense(width, "proj_in"), dense(width, "proj_out")
        block = "transformer_blocks.0"
        self.norm1, self.norm2, self.norm3 = (layer_norm(f"{block}.norm{i}") for i in (1, 2, 3))
        self.attn1, self.attn2 = (
            [
                *(dense(width, f"{block}.{name}.to_{part}", use_bias=False) for part in "qkv"),
                dense(width, f"{block}.{name}.to_out.0"),
            ]
            for name in ("attn1", "attn2")
        )
        self.ff_in = dense(8 * width, f"{block}.ff.net.0.proj")
        self.ff_out = dense(width, f"{block}.ff.net.2")

    def build(self, _=None):
        tokens, context = (None, None, self.width), (None, None, self.config.context_width)
        self.norm.build((None, None, None, self.width))
        for layer in (self.proj_in, self.norm1, *self.attn1, self.norm2):
            layer.build(tokens)
        to_q, to_k, to_v, to_out = self.attn2
        for layer, shape in ((to_q, tokens), (to_k, context), (to_v, context), (to_out, tokens)):
            layer.build(shape)
        for layer in (self.norm3, self.ff_in):
            layer.build(tokens)
        self.ff_out.build((None, None, 4 * self.width))
        self.proj_out.build(tokens)
        self.built = True

    def _attention(self, layers, x, length, context=None):
        """Attention of tokens (B * length, C) to themselves, or to a text (B, T, width)."""
        to_q, to_k, to_v, to_out = layers
        queries = ops.reshape(to_q(x), (-1, length, self.width))
        if context is None:
            keys, values = (ops.reshape(layer(x), (-1, length, self.width)) for layer in (to_k, to_v))
        else:
            keys, values = to_k(context), to_v(context)
        return to_out(ops.reshape(attend(queries, keys, values, self.num_heads), (-1, self.width)))

    def call(self, inputs, context):
        # Tokens of all pictures are the rows of one matrix, so that a sum with a layer's result is part of the layer.
        _, height, width, channels = inputs.shape
        length = height * width
        flat = ops.reshape(inputs, (-1, channels))
        x = self.proj_in(ops.reshape(self.norm(inputs), (-1, channels)))
        x = x + self._attention(self.attn1, self.norm1(x), length)
        if inputs.shape[0] is not None and context.shape[0] != inputs.shape[0]:
            x, flat = (ops.concatenate([each] * (context.shape[0] // inputs.shape[0]), axis=0) for each in (x, flat))
        x = x + self._attention(self.attn2, self.norm2(x), length, context)
        value, gate = self.ff_in.halves(self.norm3(x))
        gate = ops.gelu(gate, approximate=self.config.gelu == "tanh")
        # In another shape, or TensorFlow draws the factors of both together and no longer sees a GELU to fuse.
        gated = [ops.reshape(each, (-1, length, 4 * self.width)) for each in (value, gate)]
        x = x + self.ff_out(ops.reshape(gated[0] * gated[1], (-1, 4 * self.width)))
        return ops.reshape(flat + self.proj_out(x), (-1, height, width, channels))
