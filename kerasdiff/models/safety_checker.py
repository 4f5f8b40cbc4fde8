"""The safety filter of Stable Diffusion 1.x: how near a picture is to concepts that are not to be shown.

Pictures are seen by a CLIP vision transformer (Radford et al. 2021, arXiv:2103.00020). Which concepts a published
checker holds was found out by Rando et al. 2022, "Red-Teaming the Stable Diffusion Safety Filter" (arXiv:2210.04610).
"""

from keras import ops

from kerasdiff.models.clip_vision import CLIPVision
from kerasdiff.models.network_configs import SafetyCheckerConfig

# By how much the thresholds fall for a picture that is near one of the special concepts.
_ADJUSTMENT = 0.01


class SafetyChecker(CLIPVision):
    """Pictures as `safety_stage.prepare` makes them (B, image_size, image_size, 3) to scores and flags.

    Scores are float32 (B, num_concepts): how far the similarity to a concept is above its threshold, to three digits.
    Flags are bool (B,): whether any score is above 0. Both are those of diffusers' StableDiffusionSafetyChecker; the
    similarities are computed in float32 whatever the transformer computes in.
    """

    def __init__(self, config: SafetyCheckerConfig, **kwargs):
        super().__init__(config, **{"name": "safety_checker", **kwargs})

    def build(self, _=None):
        super().build()
        config = self.config
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
