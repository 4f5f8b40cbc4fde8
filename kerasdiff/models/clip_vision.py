"""CLIP's vision transformer (Radford et al. 2021, arXiv:2103.00020): pictures to embeddings."""

from keras import ops

from kerasdiff.models.layers import Composite, Conv, Dense, Embedding, LayerNorm, Sourced
from kerasdiff.models.network_configs import CLIPVisionConfig
from kerasdiff.models.text_encoder import Block


class CLIPVision(Sourced, Composite):
    """Pictures (B, image_size, image_size, 3), normalised, to embeddings (B, projection), or to what leads there."""

    def __init__(self, config: CLIPVisionConfig, **kwargs):
        super().__init__(**{"name": "image_encoder", **kwargs})
        self.config, width, patch = config, config.width, config.patch_size
        self.patch_embedding = self.add(
            Conv, width, patch, strides=patch, padding=0, use_bias=False, in_channels=3, name="patch_embedding"
        )
        self.position_embedding = self.add(Embedding, self.config.num_patches + 1, width, name="position_embedding")
        self.pre_norm = self.add(LayerNorm, epsilon=1e-5, in_channels=width, name="pre_layrnorm")
        names = [f"layers.{index}" for index in range(config.num_layers)]
        self.blocks = [self.add(Block, config, causal=False, name=name) for name in names]
        self.post_norm = self.add(LayerNorm, epsilon=1e-5, in_channels=width, name="post_layernorm")
        self.projection = self.add(
            Dense, config.projection, use_bias=False, in_channels=width, name="visual_projection"
        )

    def build(self, _=None):
        self.class_embedding = self.add_weight(shape=(self.config.width,), name="class_embedding")
        super().build()

    def call(self, pictures):
        return self.features(pictures)

    def features(self, pictures):
        """CLIP's embeddings (B, projection) of pictures."""
        return self.projection(self.post_norm(self.hidden(pictures, 0)[:, 0]))

    def hidden(self, pictures, skip: int = 1):
        """What all layers but the last `skip` make of the picture and of each patch, (B, 1 + patches, width)."""
        patches = ops.reshape(self.patch_embedding(pictures), (-1, self.config.num_patches, self.config.width))
        first = ops.cast(self.class_embedding, patches.dtype)
        first = ops.broadcast_to(first, (ops.shape(patches)[0], 1, self.config.width))
        x = ops.concatenate([first, patches], axis=1)
        x = self.pre_norm(x + self.position_embedding(ops.arange(self.config.num_patches + 1, dtype="int32")))
        for block in self.blocks[: len(self.blocks) - skip]:
            x = block(x)
        return x
