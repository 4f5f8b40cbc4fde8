"""The denoising U-Net of latent diffusion (Rombach et al. 2022, arXiv:2112.10752)."""

import math

from keras import ops

from kerasdiff.models.blocks import BlockSpec, feature_places, unet_blocks
from kerasdiff.models.image_attention import attend_to_pictures
from kerasdiff.models.layers import (
    Composite,
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
from kerasdiff.models.network_configs import UNetConfig
from kerasdiff.models.token_merging import matching


class UNetHalf(Composite):
    """What a U-Net and a ControlNet have in common: the time embedding, the way down, and the middle."""

    # Both halves of guidance may come as one half of latents.
    shares_latents = True

    def __init__(self, config: UNetConfig, **kwargs):
        # Without autocast: timesteps do not fit into half precision (999 would become 1000).
        super().__init__(**{"autocast": False, **kwargs})
        self.unet_config, width, time_width = config, config.widths[0], 4 * config.widths[0]
        # In the order in which KerasCV's files hold them.
        self.time_linear1 = self.add(Dense, time_width, in_channels=width, name="time_embedding.linear_1")
        self.conv_in = self.add(Conv, width, in_channels=config.in_channels, name="conv_in")
        self.time_linear2 = self.add(Dense, time_width, in_channels=time_width, name="time_embedding.linear_2")
        self.down: list[Composite] = []
        self.mid: list[Composite] = []
        for block in unet_blocks(config):
            part = block.part.partition("_")[0]
            if part != "up":
                self._add_block(self.down if part == "down" else self.mid, block)
        self._feature_of = {place: number for number, place in enumerate(feature_places(config))}
        self.cond_proj = self.add_linear1 = self.add_linear2 = None

    def _add_block(self, layers: list[Composite], block: BlockSpec) -> None:
        config, time_width = self.unet_config, 4 * self.unet_config.widths[0]
        if block.kind == "downsamplers":
            layers.append(self.add(Downsample, block.out_channels, padding=1, name=block.name))
        elif block.kind == "upsamplers":
            layers.append(self.add(Upsample, block.out_channels, name=block.name))
        elif block.part == "mid_block":
            layers.append(self.add(ResnetBlock, block, config, time_width, name=block.name))
            if block.num_heads:
                layers.append(self.add(SpatialTransformer, block, config, name=block.attention))
        else:
            layers.append(self.add(UNetBlock, block, config, time_width, name=block.part))

    def _add_inputs(self) -> None:
        """What some models read beside latents, timestep and text."""
        config, width, time_width = self.unet_config, self.unet_config.widths[0], 4 * self.unet_config.widths[0]
        if config.time_cond_proj_dim is not None:
            inside = {"in_channels": config.time_cond_proj_dim, "use_bias": False}
            self.cond_proj = self.add(Dense, width, name="time_embedding.cond_proj", **inside)
        if config.pooled_width is not None:
            inputs = config.pooled_width + config.num_time_ids * config.time_id_width
            self.add_linear1 = self.add(Dense, time_width, in_channels=inputs, name="add_embedding.linear_1")
            self.add_linear2 = self.add(Dense, time_width, in_channels=time_width, name="add_embedding.linear_2")

    def _time(self, timesteps, guidance, pooled, time_ids):
        time = ops.cast(timestep_embedding(timesteps, self.unet_config.widths[0]), self.compute_dtype)
        if self.cond_proj is not None:
            time = time + self.cond_proj(ops.cast(guidance, self.compute_dtype))
        time = self.time_linear2(silu(self.time_linear1(time)))
        if pooled is not None:  # each text has a time of its own then, and nothing is shared but the first layer
            added = self._added(pooled, time_ids)
            time = as_many(time, added) + added
        return time

    def _added(self, pooled, time_ids):
        """What a pooled embedding and sizes add to the time's embedding."""
        width, rows = self.unet_config.time_id_width, time_ids.shape[0]
        sizes = ops.reshape(
            timestep_embedding(ops.reshape(time_ids, (-1,)), width),
            (-1 if rows is None else rows, self.unet_config.num_time_ids * width),
        )
        inputs = ops.cast(ops.concatenate([ops.cast(pooled, "float32"), sizes], axis=-1), self.compute_dtype)
        return self.add_linear2(silu(self.add_linear1(inputs)))

    def _descend(self, first, end, skips, time, context, features=()):
        """Goes on from the last of `skips` through some layers, and adds what each gives."""
        for place in range(first, end):
            layer, x = self.down[place], skips[-1]
            x = layer(x) if isinstance(layer, Downsample) else layer(x, as_many(time, x), context)
            number = self._feature_of.get(place, len(features))
            skips.append(_sum(x, features[number]) if number < len(features) else x)

    def _middle(self, x, time, context):
        for layer in self.mid:
            x = layer(x, context if isinstance(layer, SpatialTransformer) else as_many(time, x))
        return x


class UNet(UNetHalf):
    """Noisy latents, timestep and text to the model's prediction.

    Latents (B, h, w, in_channels) have unit variance; an odd size is halved to the larger half. Timesteps (B,) are the
    training's; context is (B, T, context_width), the result (B, h, w, out_channels). With context (2B, ...) each
    latent meets two texts, B rows apart, and the result has 2B rows; what comes before the text is computed once.

    With a `branch`, the number of a skip connection from the finest on, the result is a pair: the prediction, and the
    deep features that come up to where that connection joins. With these as `deep` only the shallow part is computed,
    and the prediction alone is the result (Ma et al. 2023, DeepCache, arXiv:2312.00858).

    `guidance`, from `guidance_embedding`, (B, config.time_cond_proj_dim), is of a network that was distilled with it.
    `pooled`, (B, config.pooled_width), and `time_ids`, (B, config.num_time_ids), have the rows of the context.
    `residuals`, of the shapes `blocks.residual_shapes`, are added to the skip connections and to the middle, as a
    ControlNet makes them; `features`, one per level, on the way down, as a T2I-Adapter makes them.
    """

    def __init__(self, config: UNetConfig, **kwargs):
        super().__init__(config, **{"name": "unet", **kwargs})
        self.config, width = config, config.widths[0]
        self.up: list[Composite] = []
        for block in unet_blocks(config):
            if block.part.startswith("up"):
                self._add_block(self.up, block)
        self._add_inputs()
        self.norm_out = self.add(
            GroupNorm, config.norm_groups, epsilon=config.norm_epsilon, in_channels=width, name="conv_norm_out"
        )
        self.conv_out = self.add(Conv, config.out_channels, in_channels=width, name="conv_out")

    def call(
        self,
        latents,
        timesteps,
        context,
        guidance=None,
        pooled=None,
        time_ids=None,
        deep=None,
        branch=None,
        residuals=(),
        features=(),
    ):
        time = self._time(timesteps, guidance, pooled, time_ids)
        context = ops.cast(context, self.compute_dtype)
        joins = [place for place, layer in enumerate(self.up) if not isinstance(layer, Upsample)]
        depth, join = (len(self.down), 0) if branch is None else (branch, joins[-1 - branch])
        skips = [as_many(self.conv_in(latents), time)]
        self._descend(0, depth, skips, time, context, features)
        if deep is not None:
            skips = _sums(skips, residuals)
            x = ops.cast(deep, self.compute_dtype)
        else:
            self._descend(depth, len(self.down), skips, time, context, features)
            x = self._middle(skips[-1], time, context)
            if len(features) > len(self._feature_of):  # of an adapter for SDXL
                x = _sum(x, features[-1])
            *skips, x = _sums([*skips, x], residuals)
            x = self._ascend(self.up[:join], x, skips, time, context)
        predicted = self.conv_out(silu(self.norm_out(self._ascend(self.up[join:], x, skips, time, context))))
        return predicted if branch is None or deep is not None else (predicted, x)

    def _ascend(self, layers, x, skips, time, context):
        """Joins the last of `skips` one after another."""
        time = as_many(time, x)
        for layer in layers:
            if isinstance(layer, Upsample):
                x = layer(x, size=skips[-1].shape[1:3])
            else:
                x = layer(ops.concatenate([x, as_many(skips.pop(), x)], axis=-1), time, context)
        return x


def _sums(tensors, residuals):
    """Tensors with what is to be added to the first of them."""
    rest = [*residuals][: len(tensors)]
    return [*map(_sum, tensors, rest), *tensors[len(rest) :]]


def _sum(x, other):
    """x + other, each as often as the other one needs it."""
    return as_many(x, other) + as_many(ops.cast(other, x.dtype), x)


def as_many(x, other):
    """x as often as `other` has rows for each of its own."""
    if x.shape[0] is None:
        return x
    return _repeated(max(1, other.shape[0] // x.shape[0]), x)[0]


def _repeated(times: int, *tensors):
    """Each of the tensors so many times, one after another."""
    return tensors if times == 1 else tuple(ops.concatenate([each] * times, axis=0) for each in tensors)


def timestep_embedding(timesteps, width: int):
    """Sinusoids of timesteps (B,) -> float32 (B, width), cosines first, periods up to 10,000."""
    half = width // 2
    frequencies = ops.exp(-math.log(10000) * ops.arange(half, dtype="float32") / half)
    angles = ops.cast(timesteps, "float32")[:, None] * frequencies[None, :]
    return ops.concatenate([ops.cos(angles), ops.sin(angles)], axis=-1)


class UNetBlock(Composite):
    """A residual block and, at the levels that have one, the transformer behind it."""

    def __init__(self, block: BlockSpec, config: UNetConfig, time_width: int, **kwargs):
        super().__init__(**kwargs)
        self.resnet = self.add(ResnetBlock, block, config, time_width, name=f"resnets.{block.index}")
        self.transformer = None
        if block.num_heads:
            self.transformer = self.add(SpatialTransformer, block, config, name=f"attentions.{block.index}")

    def call(self, inputs, time_embedding, context):
        x = self.resnet(inputs, time_embedding)
        return x if self.transformer is None else self.transformer(x, context)


class SpatialTransformer(Composite):
    """Transformer blocks over all positions."""

    def __init__(self, block: BlockSpec, config: UNetConfig, **kwargs):
        super().__init__(**kwargs)
        width = block.out_channels
        self.norm = self.add(
            GroupNorm, config.norm_groups, epsilon=config.transformer_epsilon, in_channels=width, name="norm"
        )
        self.proj_in = self.add(Dense, width, in_channels=width, name="proj_in")
        self.blocks = [
            self.add(TransformerBlock, block, config, name=f"transformer_blocks.{index}")
            for index in range(block.depth)
        ]
        self.proj_out = self.add(Dense, width, in_channels=width, name="proj_out")

    def call(self, inputs, context):
        # Tokens of all pictures are the rows of one matrix, so that a sum with a layer's result is part of the layer.
        _, height, width, channels = inputs.shape
        flat = ops.reshape(inputs, (-1, channels))
        x = self.proj_in(ops.reshape(self.norm(inputs), (-1, channels)))
        rows = inputs.shape[0]
        for block in self.blocks:
            x = block(x, context, rows=rows, size=(height, width))
            rows = context.shape[0]
        if self.blocks and inputs.shape[0] is not None:
            flat = _repeated(context.shape[0] // inputs.shape[0], flat)[0]
        return ops.reshape(flat + self.proj_out(x), (-1, height, width, channels))


class TransformerBlock(Composite):
    """Self-attention, attention to the text and a gated feed-forward layer."""

    def __init__(self, block: BlockSpec, config: UNetConfig, **kwargs):
        super().__init__(**kwargs)
        self.config, self.width, self.num_heads = config, block.out_channels, block.num_heads
        self.merges, self.only_cross = block.level == config.finest_attention, block.only_cross
        self.place = f"{block.attention}.{self.name}"
        width = self.width

        def dense(units, name, in_channels=width, use_bias=True):
            return self.add(Dense, units, use_bias=use_bias, in_channels=in_channels, name=name)

        def layer_norm(name):
            return self.add(LayerNorm, epsilon=1e-5, in_channels=width, name=name)

        def attention(name, context_width):
            widths = {"to_q": width, "to_k": context_width, "to_v": context_width}
            parts = [dense(width, f"{name}.{part}", inputs, False) for part, inputs in widths.items()]
            return [*parts, dense(width, f"{name}.to_out.0")]

        first_width = config.context_width if self.only_cross else width
        self.norm1, self.attn1 = layer_norm("norm1"), attention("attn1", first_width)
        self.norm2, self.attn2 = layer_norm("norm2"), attention("attn2", config.context_width)
        self.norm3, self.ff_in = layer_norm("norm3"), dense(8 * width, "ff.net.0.proj")
        self.ff_out = dense(width, "ff.net.2", 4 * width)

    def _attention(self, layers, x, length, context=None):
        """Attention of tokens (B * length, C) to themselves, or to a text (B, T, width)."""
        to_q, to_k, to_v, to_out = layers
        queries = ops.reshape(to_q(x), (-1, length, self.width))
        if context is None:
            keys, values = (ops.reshape(layer(x), (-1, length, self.width)) for layer in (to_k, to_v))
        else:
            keys, values = to_k(context), to_v(context)
        mixed = attend(queries, keys, values, self.num_heads)
        if layers is self.attn2:
            mixed = attend_to_pictures(self.place, queries, mixed, self.num_heads)
        return to_out(ops.reshape(mixed, (-1, self.width)))

    def call(self, x, context, rows, size):
        """Tokens (B * h * w, C) of so many `rows`, B or None, and of a `size` (h, w)."""
        length = size[0] * size[1]
        repeats = 1 if rows is None else context.shape[0] // rows
        if self.only_cross:
            x, repeats = _repeated(repeats, x)[0], 1
        read = context if self.only_cross else None
        normed = self.norm1(x)
        matched = matching(normed, *size) if self.merges else None
        if matched is None:
            x = x + self._attention(self.attn1, normed, length, read)
        else:
            x = x + matched.unmerge(self._attention(self.attn1, matched.merge(normed), matched.length, read))
        x = _repeated(repeats, x)[0]
        x = x + self._attention(self.attn2, self.norm2(x), length, context)
        value, gate = self.ff_in.halves(self.norm3(x))
        gate = ops.gelu(gate, approximate=self.config.gelu == "tanh")
        # In another shape, or TensorFlow draws the factors of both together and no longer sees a GELU to fuse.
        gated = [ops.reshape(each, (-1, length, 4 * self.width)) for each in (value, gate)]
        return x + self.ff_out(ops.reshape(gated[0] * gated[1], (-1, 4 * self.width)))
