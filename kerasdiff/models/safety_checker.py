"""The safety filter of Stable Diffusion 1.x: how near a picture is to concepts that are not to be shown.

Pictures are seen by a CLIP vision transformer (Radford et al. 2021, arXiv:2103.00020). Which concepts a published
checker holds was found out by Rando et al. 2022, "Red-Teaming the Stable Diffusion Safety Filter" (arXiv:2210.04610).
"""

from __future__ import annotations

from keras import ops

from kerasdiff.models.config import SafetyCheckerConfig
from kerasdiff.models.layers import Conv, Dense, Embedding, LayerNorm, Sourced
from kerasdiff.models.text_encoder import Block

# By how much the thresholds fall for a picture that is near one of the special concepts.
_ADJUSTMENT = 0.01


class SafetyChecker(Sourced):
    """Pictures as `safety_stage.prepare` makes them (B, image_size, image_size, 3) to scores and flags.

    Scores are float32 (B, num_concepts): how far the similarity to a concept is above its threshold, to three digits.
    Flags are bool (B,): whether any score is above 0. Both are those of diffusers' StableDiffusionSafetyChecker; the
    similarities are computed in float32 whatever the transformer computes in.

    Example:
        ```python
        config = SafetyCheckerConfig(image_size=32, patch_size=8, width=64, num_layers=2, num_heads=4, mlp_width=128)
        checker = SafetyChecker(config)
        checker.build()
        scores, flags = checker(np.zeros((1, 32, 32, 3), "float32"))  # (1, 17), (1,)
        ```
    """

    def __init__(self, config: SafetyCheckerConfig, **kwargs):
        super().__init__(**{"name": "safety_checker", **kwargs})
        self.config = config
        dtype, patch, self.patches = self.dtype_policy, config.patch_size, (config.image_size // config.patch_size) ** 2
        self.patch_embedding = Conv(
            config.width, patch, strides=patch, padding=0, use_bias=False, dtype=dtype, name="patch_embedding"
        )
        self.position_embedding = Embedding(self.patches + 1, config.width, dtype=dtype, name="position_embedding")
        self.pre_norm = LayerNorm(epsilon=1e-5, dtype=dtype, name="pre_layrnorm")
        self.blocks = [
            Block(config, causal=False, dtype=dtype, name=f"layers.{index}") for index in range(config.num_layers)
        ]
        self.post_norm = LayerNorm(epsilon=1e-5, dtype=dtype, name="post_layernorm")
        self.projection = Dense(config.projection, use_bias=False, dtype=dtype, name="visual_projection")

    def build(self, _=None):
        config = self.config
        self.class_embedding = self.add_weight(shape=(config.width,), name="class_embedding")
        self.patch_embedding.build((None, None, None, 3))
        self.position_embedding.build(None)
        self.pre_norm.build((None, None, config.width))
        for block in self.blocks:
            block.build()
        self.post_norm.build((None, config.width))
        self.projection.build((None, config.width))
        for name, count in (("concept_embeds", config.num_concepts), ("special_care_embeds", config.num_special)):
            setattr(self, name, self._precise(name, (count, config.projection)))
            setattr(self, f"{name}_weights", self._precise(f"{name}_weights", (count,)))
        self.built = True

    def _precise(self, name: str, shape: tuple[int, ...]):
        """A parameter in float32: thresholds are compared to three digits, and half precision has fewer."""
        return self.add_weight(shape=shape, name=name, dtype="float32", autocast=False)

    def call(self, pictures):
        features = _normalised(self.features(pictures))
        special = _above(features, self.special_care_embeds, self.special_care_embeds_weights)
        near = ops.any(_rounded(special) > 0, axis=-1, keepdims=True)
        above = _above(features, self.concept_embeds, self.concept_embeds_weights)
        scores = _rounded(above + ops.where(near, _ADJUSTMENT, 0.0))
        return scores, ops.any(scores > 0, axis=-1)

    def features(self, pictures):
        """CLIP's embeddings (B, projection) of pictures."""
        patches = ops.reshape(self.patch_embedding(pictures), (-1, self.patches, self.config.width))
        first = ops.cast(self.class_embedding, patches.dtype)
        first = ops.broadcast_to(first, (ops.shape(patches)[0], 1, self.config.width))
        x = ops.concatenate([first, patches], axis=1)
        x = self.pre_norm(x + self.position_embedding(ops.arange(self.patches + 1, dtype="int32")))
        for block in self.blocks:
            x = block(x)
        return self.projection(self.post_norm(x[:, 0]))


def _normalised(x):
    """Rows of length one, in float32."""
    x = ops.cast(x, "float32")
    return x / ops.maximum(ops.sqrt(ops.sum(ops.square(x), axis=-1, keepdims=True)), 1e-12)


def _above(features, embeddings, thresholds):
    """How far the cosine similarity of (B, C) features to (K, C) embeddings is above the (K,) thresholds: (B, K)."""
    # Not a matmul, which would round in TF32.
    similarities = ops.sum(features[:, None] * _normalised(embeddings)[None], axis=-1)
    return similarities - thresholds


def _rounded(scores):
    return ops.round(scores * 1000) / 1000
