"""T2I-Adapter: what a U-Net adds on its way down, made of a hint alone (Mou et al. 2023, arXiv:2302.08453)."""

from keras import ops

from kerasdiff.models.control_configs import T2IAdapterConfig
from kerasdiff.models.layers import Composite, Conv, unshuffled


class T2IAdapter(Composite):
    """Hints from 0 to 1 (K, height, width, in_channels) to features (K, h, w, C), as `config.features` says.

    Sides are multiples of the downscale_factor; of an odd number of positions the larger half remains, as in a U-Net.
    """

    def __init__(self, config: T2IAdapterConfig, **kwargs):
        # Without autocast: a hint is brought to its type here, once.
        super().__init__(**{"autocast": False, "name": "t2i_adapter", **kwargs})
        self.config, channels = config, config.in_channels * config.downscale_factor**2
        self.conv_in, light = None, config.adapter_type == "light_adapter"
        if not light:
            self.conv_in = self.add(Conv, config.channels[0], padding=1, in_channels=channels, name="adapter.conv_in")
            channels = config.channels[0]
        self.blocks, pixels = [], config.downscale_factor
        for index, (width, covered) in enumerate(config.features):
            halves, name = covered > pixels, f"adapter.body.{index}"
            self.blocks.append(self.add(AdapterBlock, channels, width, config.num_res_blocks, halves, light, name=name))
            channels, pixels = width, covered

    def call(self, pictures):
        x = unshuffled(ops.cast(pictures, self.compute_dtype), self.config.downscale_factor)
        x = x if self.conv_in is None else self.conv_in(x)
        features = []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        return features


class AdapterBlock(Composite):
    """Residual blocks of a feature's channels; of a quarter of them, between two projections, in a `light` adapter."""

    def __init__(self, in_channels: int, channels: int, depth: int, halves: bool, light: bool, **kwargs):
        super().__init__(**kwargs)
        self.halves, inside, size = halves, channels // 4 if light else channels, 3 if light else 1
        self.layers = []
        if light or in_channels != inside:
            self.layers.append(self.add(Conv, inside, 1, in_channels=in_channels, name="in_conv"))
        self.layers += [self.add(ReluBlock, inside, size, name=f"resnets.{index}") for index in range(depth)]
        if light:
            self.layers.append(self.add(Conv, channels, 1, in_channels=inside, name="out_conv"))

    def call(self, x):
        x = ops.average_pool(x, 2, strides=2, padding="same") if self.halves else x
        for layer in self.layers:
            x = layer(x)
        return x


class ReluBlock(Composite):
    """Two convolutions around a residual, without norms."""

    def __init__(self, channels: int, kernel_size: int, **kwargs):
        super().__init__(**kwargs)
        self.block1 = self.add(Conv, channels, padding=1, in_channels=channels, name="block1")
        self.block2 = self.add(
            Conv, channels, kernel_size, padding=kernel_size // 2, in_channels=channels, name="block2"
        )

    def call(self, x):
        return self.block2(ops.relu(self.block1(x))) + x
