"""The safety filter of Stable Diffusion 1.x: how near a picture is to concepts that are not to be shown.

Pictures are seen by a CLIP vision transformer (Radford et al. 2021, arXiv:2103.00020). Which concepts a published
checker holds was found out by Rando et al. 2022, "Red-Teaming the Stable Diffusion Safety Filter" (arXiv:2210.04610).
"""

from keras import ops

from kerasdiff.models.layers import Composite, Conv, Dense, Embedding, LayerNorm, Sourced
from kerasdiff.models.network_configs import SafetyCheckerConfig
from kerasdiff.models.text_encoder import Block

# By how much the thresholds fall for a picture that is near one of the special concepts.
_ADJUSTMENT = 0.01


class SafetyChecker(Sourced, Composite):
    """Pictures as `safety_stage.prepare` makes them (B, image_size, image_size, 3) to scores and flags.

    Scores are float32 (B, num_concepts): how far the similarity to a concept is above its threshold, to three digits.
    Flags are bool (B,): whether any score is above 0. Both are those of diffusers' StableDiffusionSafetyChecker; the
    similarities are computed in float32 whatever the transformer computes in.
    """

    def __init__(self, config: SafetyCheckerConfig, **kwargs):
        super().__init__(**{"name": "safety_checker", **kwargs})
        self.config, width, patch = config, config.width, config.patch_size
        self.patches = (config.image_size // patch) ** 2
        self.patch_embedding = self.add(
            Conv, width, patch, strides=patch, padding=0, use_bias=False, in_channels=3, name="patch_embedding"
        )
        self.position_embedding = self.add(Embedding, self.patches + 1, width, name="position_embedding")
        self.pre_norm = self.add(LayerNorm, epsilon=1e-5, in_channels=width, name="pre_layrnorm")
        names = [f"layers.{index}" for index in range(config.num_layers)]
        self.blocks = [self.add(Block, config, causal=False, name=name) for name in names]
        self.post_norm = self.add(LayerNorm, epsilon=1e-5, in_channels=width, name="post_layernorm")
        self.projection = self.add(
            Dense, config.projection, use_bias=False, in_channels=width, name="visual_projection"
        )

    def build(self, _=None):
        config = self.config
        self.class_embedding = self.add_weight(shape=(config.width,), name="class_embedding")
        super().build()
        for name, count in (("concept_embeds", config.num_concepts), ("special_care_embeds", config.num_special)):
            setattr(self, name, self._precise(name, (count, config.projection)))
            setattr(self, f"{name}_weights", self._precise(f"{name}_weights", (count,)))

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
    return ops.sum(features[:, None] * _normalised(embeddings)[None], axis=-1) - thresholds


def _rounded(scores):
    return ops.round(scores * 1000) / 1000
